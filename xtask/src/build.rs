//! `build-ebpf` and `build`.

use std::{env::consts::ARCH, fs::File, process::Command, time::SystemTime};

use anyhow::{Context, Result};

use crate::shell::{cargo, root, step};

/// Builds the kernel side and says where it lies.
pub(crate) fn kernel_side() -> Result<()> {
    step("Building the kernel side", &mut for_kernel("build"))?;
    println!("{}", root().join("target/ebpf").join(target()).join("release/pathtrace-ebpf").display());
    Ok(())
}

/// Builds the command; its build script builds the kernel side and embeds it.
pub(crate) fn command(release: bool) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--package", "tracer", "--bin", "pathtrace"]);
    // The build script's own cargo says every step as a warning of ours; only real warnings are wanted from it.
    build.env("CARGO_TERM_QUIET", "true").args(["--config", "term.quiet=false"]);
    let (profile, flag) = if release { ("release", Some("--release")) } else { ("debug", None) };
    step("Building pathtrace and its kernel side (two minutes the first time)", build.args(flag))?;
    let binary = root().join("target").join(profile).join("pathtrace");
    // Labs run the newest: this one, also when there was nothing to build.
    File::open(&binary)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("set the time of {}", binary.display()))?;
    println!("{}", binary.display());
    Ok(())
}

/// A cargo command on the kernel side: BPF target, `core` built from source, flags as aya-build sets them.
pub(crate) fn for_kernel(verb: &str) -> Command {
    let mut command = cargo();
    command
        .args([verb, "--package", "tracer-ebpf", "--release", "--target", target(), "-Z", "build-std=core"])
        .args(["--target-dir", "target/ebpf"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            format!("--cfg=bpf_target_arch=\"{ARCH}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf"),
        );
    command
}

fn target() -> &'static str {
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
}
