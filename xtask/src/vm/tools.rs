//! What virtual machines need of this machine; installed only when they are used.

use std::process::Command;

use anyhow::{Context, Result};

use super::Unavailable;
use crate::{setup::install_missing, shell::printed};

const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("cpio", "cpio"),
    ("busybox", "busybox-static"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];

/// Installs what is missing, and sees whether the emulator runs.
pub(super) fn install() -> Result<()> {
    install_missing(PROGRAMS).context(Unavailable("what virtual machines need cannot be installed"))?;
    let version = printed(Command::new("qemu-system-x86_64").arg("--version"));
    version.map(drop).context(Unavailable("qemu-system-x86_64 does not run here"))
}
