//! Debian's packages of any suite: apt with a state of its own for each, so that the machine's is left alone.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::Unavailable;
use crate::shell::{printed, step};

const UNREACHABLE: Unavailable =
    Unavailable("Debian's archive, which kernels are taken from, does not answer");

/// `$XDG_CACHE_HOME/pathtrace`, or `~/.cache/pathtrace`.
pub(super) fn cache() -> Result<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cache"));
    let root = env::var_os("XDG_CACHE_HOME").filter(|root| !root.is_empty()).map(PathBuf::from).or_else(home);
    Ok(root.context("neither XDG_CACHE_HOME nor HOME is set: nowhere to keep kernels")?.join("pathtrace"))
}

/// apt with lists and cache of its own: the machine's are neither used nor touched.
pub(super) struct Apt {
    suite: String,
    state: PathBuf,
}

impl Apt {
    /// For a suite, from where the machine takes Debian's packages.
    pub(super) fn new(suite: &str) -> Result<Self> {
        let state = cache()?.join("apt").join(suite);
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(folder))?;
        }
        let keys = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
        let signed_by =
            if keys.is_file() { format!(" [signed-by={}]", keys.display()) } else { String::new() };
        fs::write(state.join("sources.list"), format!("deb{signed_by} {} {suite} main\n", mirror()?))?;
        Ok(Self { suite: suite.to_owned(), state })
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
        step(
            &format!("Fetching the package list of {}", self.suite),
            // Without this it calls a mirror that does not answer a success.
            self.command("apt-get").args(["-q", "update", "-o", "APT::Update::Error-Mode=any"]),
        )
        .context(UNREACHABLE)
    }

    /// A package and all that it needs.
    pub(super) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"]);
        depends.args(["--no-breaks", "--no-replaces", "--no-enhances", package]);
        let said =
            printed(&mut depends).with_context(|| format!("Debian {} has no {package}", self.suite))?;
        Ok(said.lines().filter(|line| !line.starts_with([' ', '<'])).map(str::to_owned).collect())
    }

    /// Whether the suite has a package.
    pub(super) fn has(&self, package: &str) -> bool {
        printed(self.command("apt-cache").args(["show", package])).is_some()
    }

    /// Downloads packages and unpacks them to `folder/root`.
    pub(super) fn unpack(&self, packages: &[String], folder: &Path) -> Result<()> {
        let unpacked = folder.join("root");
        fs::create_dir_all(&unpacked)?;
        for package in self.download(packages, folder)? {
            let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let mut unpack = Command::new("dpkg-deb");
            step(&format!("Unpacking {name}"), unpack.arg("-x").arg(&package).arg(&unpacked))?;
            fs::remove_file(package)?;
        }
        Ok(())
    }

    /// Downloads packages into a folder; where they lie then.
    fn download(&self, packages: &[String], folder: &Path) -> Result<Vec<PathBuf>> {
        let mut download = self.command("apt-get");
        download.args(["-q", "download"]).args(packages).current_dir(folder);
        step(&format!("Downloading {}", packages.join(" ")), &mut download).context(UNREACHABLE)?;
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
    found.context(Unavailable(
        "apt knows no Debian archive here (after `apt-get update`): kernels are taken from one",
    ))
}
