//! Docker's daemon from Debian, unpacked beside the kernels: this machine gets none.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::apt::{Apt, cache};

/// The daemon and what it starts. In newer suites the client is a package of its own.
const PACKAGES: &[&str] = &["docker.io", "docker-cli", "containerd", "runc", "tini"];

/// The folders with its programs; fetched for this machine's own suite, whose libraries they want.
pub(super) fn fetch() -> Result<[PathBuf; 2]> {
    let suite = codename().context("no VERSION_CODENAME in /etc/os-release: which Debian is this?")?;
    let folder = cache()?.join("docker").join(&suite);
    if !folder.is_dir() {
        let apt = Apt::new(&suite)?;
        apt.update()?;
        let packages: Vec<String> =
            PACKAGES.iter().filter(|name| apt.has(name)).map(|name| (*name).to_owned()).collect();
        // Only a whole one gets the name that is looked for.
        let partial = folder.with_extension("partial");
        drop(fs::remove_dir_all(&partial));
        apt.unpack(&packages, &partial)?;
        fs::rename(&partial, &folder)?;
    }
    Ok(["usr/sbin", "usr/bin"].map(|programs| folder.join("root").join(programs)))
}

fn codename() -> Option<String> {
    let text = fs::read_to_string(Path::new("/etc/os-release")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned())
}
