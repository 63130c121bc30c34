//! Instruction set: 32-bit arithmetic (kernel 5.1), which `follow::bucket` relies on.
fn main() {
    println!("cargo:rustc-link-arg-bins=--cpu-features=+alu32");
    // Set by aya-build: whose registers kprobe programs read.
    println!("cargo:rustc-check-cfg=cfg(bpf_target_arch, values(any()))");
}
