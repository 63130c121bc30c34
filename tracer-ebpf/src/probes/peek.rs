//! Kernel memory for user space: programs that are run by `BPF_PROG_TEST_RUN` and never attached, so that the
//! walk over rulesets happens in user space, with no verifier limits.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_probe_read_kernel, generated},
    macros::map,
    maps::{Array, PerCpuArray},
    programs::RawTracePointContext,
};
use tracer_common::peek::{Context, PEEK_BYTES, context_argument, peek_argument};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h).
const MMAPABLE: u32 = 1 << 10;
const E2BIG: i32 = -7;
const ENOENT: i32 = -2;

/// User space maps it; each run overwrites its start.
#[map]
static PEEK_BUFFER: Array<[u8; PEEK_BYTES]> = Array::with_max_entries(1, MMAPABLE);

/// Its value's address on each CPU, less the address that the map keeps, is that CPU's per-CPU offset.
#[map]
static PER_CPU_PROBE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Copies kernel memory into the peek buffer; 0 or a negative errno.
// Not `#[raw_tracepoint]`: what that macro makes returns 0, whatever the function returned.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn peek(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let address: u64 = ctx.arg(peek_argument::ADDRESS);
    let length: u64 = ctx.arg(peek_argument::LENGTH);
    let Some(buffer) = PEEK_BUFFER.get_ptr_mut(0) else { return ENOENT };
    if length > PEEK_BYTES as u64 {
        return E2BIG;
    }
    // SAFETY: the buffer has PEEK_BYTES bytes; the helper checks the kernel address itself.
    unsafe { generated::bpf_probe_read_kernel(buffer.cast(), length as u32, address as *const c_void) as i32 }
}

/// Writes a [`Context`] to the start of the peek buffer; 0 or a negative errno.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
extern "C" fn context(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (Some(buffer), Some(value)) = (PEEK_BUFFER.get_ptr_mut(0), PER_CPU_PROBE.get_ptr(0)) else {
        return ENOENT;
    };
    // SAFETY: no arguments, no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let net = follow(task, ctx.arg(context_argument::TASK_NSPROXY))
        .and_then(|nsproxy| follow(nsproxy, ctx.arg(context_argument::NSPROXY_NET)));
    let found = Context {
        net: net.unwrap_or(0),
        per_cpu_value: value as u64,
        per_cpu_map: ptr::from_ref(&PER_CPU_PROBE) as u64,
    };
    // SAFETY: the buffer is page-aligned and larger than the record.
    unsafe { buffer.cast::<Context>().write(found) };
    0
}

fn follow(base: u64, offset: u64) -> Option<u64> {
    if base == 0 {
        return None;
    }
    // SAFETY: the helper checks the kernel address itself.
    unsafe { bpf_probe_read_kernel((base + offset) as *const u64) }.ok()
}
