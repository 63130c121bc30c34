//! What virtual machines need of this machine; installed only when they are used.

use anyhow::Result;

use crate::setup::install_missing;

const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("depmod", "kmod"),
    ("cpio", "cpio"),
    ("busybox", "busybox-static"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];

/// Installs what is missing.
pub(super) fn install() -> Result<()> {
    install_missing(PROGRAMS)
}
