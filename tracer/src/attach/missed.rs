//! How often the kernel left programs out.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_cmd, bpf_prog_info};

use super::syscall::call;

/// `struct { __u32 bpf_fd; __u32 info_len; __aligned_u64 info; } info` in `union bpf_attr`
/// (include/uapi/linux/bpf.h).
#[repr(C)]
struct Question {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// How often a program was left out because another was running on the same CPU: `bpf_prog_info.recursion_misses`, which
/// counts kprobe programs from 6.7 (`trace_call_bpf`, kernel/trace/bpf_trace.c) and is 0 before.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn by_program(program: impl AsFd) -> Result<u64> {
    // SAFETY: integers only; addresses and lengths that are 0 ask for nothing more.
    let mut info: bpf_prog_info = unsafe { std::mem::zeroed() };
    let mut question = Question {
        descriptor: u32::try_from(program.as_fd().as_raw_fd())?,
        length: u32::try_from(size_of::<bpf_prog_info>())?,
        info: (&raw mut info) as u64,
    };
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut question).context("BPF_OBJ_GET_INFO_BY_FD")?;
    Ok(info.recursion_misses)
}
