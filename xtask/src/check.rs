//! `check`: formatting and lints.

use std::path::Path;

use anyhow::Result;

use crate::{
    build::for_kernel,
    setup::{OTHER_TARGET, sysroot},
    shell::{cargo, root, say, step},
};

/// Fails on a wrong format or any warning.
pub(crate) fn check() -> Result<()> {
    step("Checking the format", cargo().args(["fmt", "--all", "--check"]))?;
    step("Linting the user side", cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    step("Linting the kernel side", for_kernel("clippy").args(["--", "-D", "warnings"]))?;
    other_architecture()
}

/// Nothing may assume the architecture that it is written on. No linker is needed for that.
fn other_architecture() -> Result<()> {
    if !Path::new(&sysroot()?).join("lib/rustlib").join(OTHER_TARGET).join("lib").is_dir() {
        say(&format!(
            "Skipped checking for {OTHER_TARGET}: its std is not installed (`cargo xtask setup` adds it)"
        ));
        return Ok(());
    }
    let mut check = cargo();
    check.args(["check", "--quiet", "--package", "tracer", "--target", OTHER_TARGET]);
    // A folder of its own: the other one's caches stay as they are.
    check.arg("--target-dir").arg(root().join("target/other"));
    step(&format!("Checking for {OTHER_TARGET}"), &mut check)
}
