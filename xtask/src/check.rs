//! `check`: formatting and lints.

use anyhow::Result;

use crate::{
    build::for_kernel,
    shell::{cargo, step},
};

/// Fails on a wrong format or any warning.
pub(crate) fn check() -> Result<()> {
    step("Checking the format", cargo().args(["fmt", "--all", "--check"]))?;
    step("Linting the user side", cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    step("Linting the kernel side", for_kernel("clippy").args(["--", "-D", "warnings"]))
}
