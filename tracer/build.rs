//! Builds the kernel side, twice, and leaves it in `OUT_DIR` for `include_bytes_aligned!`: `pathtrace-ebpf-older` for
//! kernels before 5.17, `pathtrace-ebpf` for all others.
use std::{env, fs, path::PathBuf};

use anyhow::Context;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf");
    println!("cargo:rerun-if-changed={}/../tracer-common/src", env!("CARGO_MANIFEST_DIR"));
    let package = Package { name: "tracer-ebpf", root_dir: root, ..Package::default() };
    let toolchain = || Toolchain::Custom("1.95.0");
    aya_build::build_ebpf([Package { features: &["older"], ..package }], toolchain())?;
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    fs::copy(out.join("pathtrace-ebpf"), out.join("pathtrace-ebpf-older"))
        .context("keeping the kernel side for older kernels")?;
    let package = Package { name: "tracer-ebpf", root_dir: root, ..Package::default() };
    aya_build::build_ebpf([package], toolchain())
}
