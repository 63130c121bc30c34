//! Tells rustc which configurations exist.
fn main() {
    // Set by aya-build: whose registers kprobe programs read.
    println!("cargo:rustc-check-cfg=cfg(bpf_target_arch, values(any()))");
}
