//! How often the kernel left programs out.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_cmd, bpf_prog_info};

use super::syscall::{bpf, call};

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
    ask(program, &mut info)?;
    Ok(info.recursion_misses)
}

/// A descriptor of a link, by its id.
///
/// # Errors
/// When there is no such link.
pub(super) fn link(id: u32) -> Result<OwnedFd> {
    // `link_id`, `next_id`, `open_flags` in `union bpf_attr`.
    bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut [id, 0, 0]).context("BPF_LINK_GET_FD_BY_ID")
}

/// `struct bpf_link_info` of a kprobe (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct KprobeInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    /// `enum bpf_perf_event_type`: 0 where the kernel does not say.
    event: u32,
    reserved_too: u32,
    name: u64,
    name_length: u32,
    offset: u32,
    address: u64,
    missed: u64,
    cookie: u64,
}

const _: () = assert!(size_of::<KprobeInfo>() == 64);

/// How often a probe was left out because another was being handled on the same CPU, or too many calls were under way:
/// `bpf_link_info.perf_event.kprobe.missed`, from 6.7; 0 before.
///
/// # Errors
/// When the kernel does not answer.
pub(super) fn by_probe(link: impl AsFd) -> Result<u64> {
    let mut info = KprobeInfo::default();
    ask(link, &mut info)?;
    Ok(info.missed)
}

fn ask<T>(descriptor: impl AsFd, info: &mut T) -> Result<()> {
    let mut question = Question {
        descriptor: u32::try_from(descriptor.as_fd().as_raw_fd())?,
        length: u32::try_from(size_of::<T>())?,
        info: std::ptr::from_mut(info) as u64,
    };
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut question).context("BPF_OBJ_GET_INFO_BY_FD")?;
    Ok(())
}
