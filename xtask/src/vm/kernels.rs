//! Debian's kernels, fetched once and kept outside the checkout.

use std::{
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, cache};
use crate::shell::{find_program, step};

/// A kernel that is tested, by the version that it is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Release {
    V5_10,
    V6_1,
    V6_12,
    V7_2,
}

impl Release {
    pub(crate) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::V7_2];

    fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V7_2 => "7.2",
        }
    }

    /// The Debian suite that has it.
    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::V7_2 => "trixie-backports",
        }
    }
}

impl Display for Release {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A kernel that lies here, ready to boot.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) release: Release,
    /// As `uname -r` says it.
    pub(super) version: String,
    pub(super) image: PathBuf,
    /// The folder with `lib/modules/VERSION` in it, as `depmod -b` and `modprobe -d` want it.
    pub(super) base: PathBuf,
}

/// The kernel from the cache; fetched when it is not there. To get a newer one of the release, remove its folder.
pub(super) fn fetch(release: Release) -> Result<Kernel> {
    let folder = cache()?.join("kernels").join(release.name());
    if let Some(kernel) = find(release, &folder) {
        return Ok(kernel);
    }
    let apt = Apt::new(release.suite())?;
    apt.update()?;
    let packages = packages(&apt)?;
    // Only a whole kernel gets the name that is looked for.
    let partial = folder.with_file_name(format!("{}.partial", release.name()));
    for old in [&folder, &partial] {
        drop(fs::remove_dir_all(old));
    }
    apt.unpack(&packages, &partial)?;
    let kernel = find(release, &partial).context("the kernel's packages have no kernel in them")?;
    let depmod = find_program("depmod").context("there is no depmod here: install kmod")?;
    step("Indexing its modules", Command::new(depmod).arg("-b").arg(&kernel.base).arg(&kernel.version))?;
    fs::rename(&partial, &folder)?;
    find(release, &folder).context("the kernel is not where it was put")
}

/// `/lib` and `/usr/lib` are one folder in Debian; packages of 7.2 use the second.
fn find(release: Release, folder: &Path) -> Option<Kernel> {
    let root = folder.join("root");
    let base = [root.clone(), root.join("usr")].into_iter().find(|base| base.join("lib/modules").is_dir())?;
    let modules = fs::read_dir(base.join("lib/modules")).ok()?.flatten().next()?.path();
    let version = modules.file_name()?.to_str()?.to_owned();
    let image = [root.join("boot").join(format!("vmlinuz-{version}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())?;
    Some(Kernel { release, version, image, base })
}

/// The names of the packages that the newest kernel of this suite consists of.
fn packages(apt: &Apt) -> Result<Vec<String>> {
    let all = apt.dependencies("linux-image-amd64")?;
    let parts = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];
    let versioned = |name: &String| {
        parts.iter().any(|part| {
            name.strip_prefix(part).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let packages: Vec<String> = all.into_iter().filter(versioned).collect();
    ensure!(!packages.is_empty(), "linux-image-amd64 needs no kernel");
    Ok(packages)
}
