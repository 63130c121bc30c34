//! `setup`: installs what is missing and leaves alone what is there.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::shell::{cargo, find_program, printed, root, say, step};

/// The linker of the kernel side. Newer ones want an LLVM of their own; this one uses rustc's.
const BPF_LINKER: &str = "0.10.4";

/// Programs that building, labs and tests run, with the Debian package that has each.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "build-essential"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("iptables-nft", "iptables"),
    ("iptables-legacy", "iptables"),
    ("nft", "nftables"),
    ("ipset", "ipset"),
    ("conntrack", "conntrack"),
    ("ping", "iputils-ping"),
    ("perf", "linux-perf"),
    ("tcpdump", "tcpdump"),
];

/// Installs what is missing.
pub(crate) fn setup() -> Result<()> {
    packages()?;
    rust_src()?;
    other_target();
    bpf_linker()
}

fn packages() -> Result<()> {
    install_missing(PROGRAMS)?;
    say("Debian packages: all there");
    Ok(())
}

/// Installs the packages of those programs that are not there.
pub(crate) fn install_missing(programs: &[(&str, &'static str)]) -> Result<()> {
    let mut missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if find_program("apt-get").is_none() {
        bail!("there is no apt-get here: install these Debian packages' equivalents: {}", missing.join(" "));
    }
    step("Updating the package lists", Command::new("apt-get").args(["-q", "update"])).context(ROOT)?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "install", "-y", "--no-install-recommends"]);
    step(&format!("Installing {}", missing.join(" ")), install.args(&missing)).context(ROOT)
}

const ROOT: &str = "packages are installed by root: run `sudo -E cargo xtask setup`";

/// The toolchain's folder.
pub(crate) fn sysroot() -> Result<String> {
    printed(Command::new("rustc").args(["--print", "sysroot"]).current_dir(root()))
        .context("rustc does not answer: install Rust from https://rustup.rs")
}

/// The other architecture that `check` compiles for.
pub(crate) const OTHER_TARGET: &str = "aarch64-unknown-linux-gnu";

/// Adds its std where rustup can; `check` does without.
fn other_target() {
    let mut add = Command::new("rustup");
    let added = printed(add.args(["target", "add", OTHER_TARGET]).current_dir(root())).is_some();
    let state = if added { "there" } else { "not to be had from rustup; `check` leaves it out" };
    say(&format!("std for {OTHER_TARGET}: {state}"));
}

fn rust_src() -> Result<()> {
    let sysroot = sysroot()?;
    if Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir() {
        say("rust-src: there");
        return Ok(());
    }
    let mut add = Command::new("rustup");
    step("Adding rust-src to the toolchain", add.args(["component", "add", "rust-src"]).current_dir(root()))
}

fn bpf_linker() -> Result<()> {
    let version =
        find_program("bpf-linker").and_then(|program| printed(Command::new(program).arg("--version")));
    if version.as_deref() == Some(&format!("bpf-linker {BPF_LINKER}")) {
        say(&format!("bpf-linker {BPF_LINKER}: there"));
        return Ok(());
    }
    let mut install = cargo();
    install.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"]);
    step(&format!("Installing bpf-linker {BPF_LINKER} (about two minutes)"), &mut install)
}
