//! What tells one call of a function from all others under way: where its return address lies, or would lie.

use aya_ebpf::bindings::pt_regs;

/// Bytes that a return takes from the stack: the return address, where calls push it.
const POPPED: u64 = if cfg!(bpf_target_arch = "x86_64") { 8 } else { 0 };

#[inline(always)]
fn pointer(registers: *const pt_regs) -> u64 {
    // SAFETY: the context of a kprobe program; the verifier checks the access.
    unsafe {
        #[cfg(bpf_target_arch = "x86_64")]
        return (*registers).rsp;
        #[cfg(any(bpf_target_arch = "aarch64", bpf_target_arch = "riscv64"))]
        return (*registers).sp;
        #[cfg(bpf_target_arch = "loongarch64")]
        return (*registers).regs[3];
        #[cfg(bpf_target_arch = "powerpc64")]
        return (*registers).gpr[1];
        #[cfg(bpf_target_arch = "s390x")]
        return (*registers).gprs[15];
    }
}

/// At the first instruction of a function.
#[inline(always)]
pub(super) fn at_entry(registers: *const pt_regs) -> u64 {
    pointer(registers)
}

/// Right after its return.
#[inline(always)]
pub(super) fn at_return(registers: *const pt_regs) -> u64 {
    pointer(registers) - POPPED
}
