//! Builds the kernel side and leaves it in `OUT_DIR` for `include_bytes_aligned!`.
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../tracer-ebpf");
    println!("cargo:rerun-if-changed={}/../tracer-common/src", env!("CARGO_MANIFEST_DIR"));
    let package = Package { name: "tracer-ebpf", root_dir: root, ..Package::default() };
    aya_build::build_ebpf([package], Toolchain::Custom("1.95.0"))
}
