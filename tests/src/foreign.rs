//! BPF programs of somebody else on a device: two instructions each, loaded by the system call itself.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::netns::Netns;

/// Commands, program types and attach types of include/uapi/linux/bpf.h.
const PROG_LOAD: i64 = 5;
const LINK_CREATE: i64 = 28;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;

/// Where a program stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Generic XDP (`XDP_FLAGS_SKB_MODE`).
    Xdp,
    TcxIngress,
    TcxEgress,
}

/// What it says of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Pass,
    Drop,
}

/// A program on a device; gone when dropped.
#[derive(Debug)]
pub struct Foreign {
    _link: OwnedFd,
}

impl Foreign {
    /// Loads a program called `name` and attaches it to a device of a namespace.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn attach(netns: &Netns, device: &str, at: At, says: Says, name: &str) -> Result<Self> {
        let (kind, attach_type, flags) = match at {
            At::Xdp => (XDP, 37, 2),
            At::TcxIngress => (SCHED_CLS, 46, 0),
            At::TcxEgress => (SCHED_CLS, 47, 0),
        };
        let verdict = match (at, says) {
            // XDP_DROP
            (At::Xdp, Says::Drop) => 1,
            // XDP_PASS, and TCX_DROP
            (At::Xdp, Says::Pass) | (At::TcxIngress | At::TcxEgress, Says::Drop) => 2,
            // TCX_NEXT
            (At::TcxIngress | At::TcxEgress, Says::Pass) => -1,
        };
        let program = load(kind, verdict, name).with_context(|| format!("load {name}"))?;
        let link = netns.run(|| -> Result<OwnedFd> {
            let index = if_nametoindex(device).with_context(|| format!("find {device}"))?;
            let mut create = [0u32; 16];
            create[..4].copy_from_slice(&[program.as_raw_fd().cast_unsigned(), index, attach_type, flags]);
            bpf(LINK_CREATE, &mut create).with_context(|| format!("attach {name} to {device}"))
        })?;
        Ok(Self { _link: link })
    }
}

/// `BPF_PROG_LOAD`'s part of `union bpf_attr`, as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    rest: [u64; 8],
}

fn load(kind: u32, verdict: i32, name: &str) -> io::Result<OwnedFd> {
    // r0 = verdict; exit
    let mut instructions = [0xb7u8, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    instructions[4..8].copy_from_slice(&verdict.to_ne_bytes());
    let mut load = ProgLoad {
        kind,
        instruction_count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgLoad::default()
    };
    for (to, from) in load.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bpf(PROG_LOAD, &mut load)
}

fn bpf<T>(command: i64, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: a live structure of the given size, zero beyond what the command reads.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?) })
}
