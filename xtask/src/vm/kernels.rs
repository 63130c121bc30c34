//! Debian's kernels: fetched by apt with a state of its own for each suite, kept outside the checkout.

use std::{
    env,
    fmt::{self, Display, Formatter},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::shell::{find_program, printed, step};

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

    /// 7.2 with two panics now and then: it rewrites its own code while the other one runs it, which emulation shows late.
    pub(super) fn processors(self) -> u32 {
        if self == Self::V7_2 { 1 } else { 2 }
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

/// `$XDG_CACHE_HOME/pathtrace`, or `~/.cache/pathtrace`.
pub(super) fn cache() -> Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let root = env::var_os("XDG_CACHE_HOME").filter(|root| !root.is_empty()).map(PathBuf::from).or_else(home);
    Ok(root.context("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep kernels")?.join("pathtrace"))
}

/// The kernel from the cache; fetched when it is not there. To get a newer one of the release, remove its folder.
pub(super) fn fetch(release: Release) -> Result<Kernel> {
    let folder = cache()?.join("kernels").join(release.name());
    if let Some(kernel) = find(release, &folder) {
        return Ok(kernel);
    }
    let apt = Apt::new(release.suite())?;
    apt.update()?;
    let packages = apt.kernel_packages()?;
    // Only a whole kernel gets the name that is looked for.
    let partial = folder.with_file_name(format!("{}.partial", release.name()));
    for old in [&folder, &partial] {
        drop(fs::remove_dir_all(old));
    }
    unpack(&apt, &packages, &partial)?;
    let kernel = find(release, &partial).context("the kernel's packages have no kernel in them")?;
    let depmod = find_program("depmod").context("there is no depmod here: install kmod")?;
    step("Indexing its modules", Command::new(depmod).arg("-b").arg(&kernel.base).arg(&kernel.version))?;
    fs::rename(&partial, &folder)?;
    find(release, &folder).context("the kernel is not where it was put")
}

/// Downloads packages and unpacks them to `folder/root`.
pub(super) fn unpack(apt: &Apt, packages: &[String], folder: &Path) -> Result<()> {
    let unpacked = folder.join("root");
    fs::create_dir_all(&unpacked)?;
    for package in apt.download(packages, folder)? {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        step(&format!("Unpacking {name}"), Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))?;
        fs::remove_file(package)?;
    }
    Ok(())
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

/// apt with lists and cache of its own: the machine's are neither used nor touched.
pub(super) struct Apt {
    suite: &'static str,
    state: PathBuf,
}

impl Apt {
    /// For a suite, from where the machine takes Debian's packages.
    pub(super) fn new(suite: &'static str) -> Result<Self> {
        let state = cache()?.join("apt").join(suite);
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(folder))?;
        }
        let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed_by =
            if keys.is_file() { format!(" [signed-by={}]", keys.display()) } else { String::new() };
        fs::write(state.join("sources.list"), format!("deb{signed_by} {} {suite} main\n", mirror()?))?;
        Ok(Self { suite, state })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = |name: &str| self.state.join(name).display().to_string();
        for option in [
            format!("Dir::State::Lists={}", file("lists")),
            format!("Dir::Cache={}", file("cache")),
            format!("Dir::Etc::SourceList={}", file("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            // The cache may lie where apt's own user cannot write.
            "APT::Sandbox::User=".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// Fetches the list of packages.
    pub(super) fn update(&self) -> Result<()> {
        step(&format!("Fetching the package list of {}", self.suite), self.command("apt-get").args(["-q", "update"]))
    }

    /// The names of the packages that the newest kernel of this suite consists of.
    fn kernel_packages(&self) -> Result<Vec<String>> {
        let all = self.dependencies("linux-image-amd64")?;
        let parts = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];
        let versioned = |name: &String| {
            parts.iter().any(|part| {
                name.strip_prefix(part).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            })
        };
        let packages: Vec<String> = all.into_iter().filter(versioned).collect();
        ensure!(!packages.is_empty(), "Debian {} has no linux-image-amd64", self.suite);
        Ok(packages)
    }

    /// A package and all that it needs.
    pub(super) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"]);
        depends.args(["--no-breaks", "--no-replaces", "--no-enhances", package]);
        let said = printed(&mut depends).with_context(|| format!("Debian {} has no {package}", self.suite))?;
        Ok(said.lines().filter(|line| !line.starts_with([' ', '<'])).map(str::to_owned).collect())
    }

    /// Downloads packages into a folder; where they lie then.
    pub(super) fn download(&self, packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        let mut download = self.command("apt-get");
        download.args(["-q", "download"]).args(packages).current_dir(folder);
        step(&format!("Downloading {}", packages.join(" ")), &mut download)?;
        let files = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
        Ok(files.filter(|file| file.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

/// Where this machine takes Debian's packages from.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "Created-By: Packages", "--format", "$(SITE) $(RELEASE) $(ORIGIN)"]);
    let said = printed(&mut targets).unwrap_or_default();
    let found = said.lines().find_map(|line| {
        let [site, release, "Debian"] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        (!release.ends_with("-security")).then(|| site.to_owned())
    });
    found.context("apt knows no Debian archive here (after `apt-get update`): kernels are taken from one")
}
