//! BPF programs of somebody else on a device: a few instructions each, loaded by the system call itself.

mod filter;
mod text;

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::netns::Netns;

/// Commands, program types and attach types of include/uapi/linux/bpf.h.
const PROG_LOAD: i64 = 5;
const PROG_GET_FD_BY_ID: i64 = 13;
const BTF_LOAD: i64 = 18;
const LINK_CREATE: i64 = 28;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` (include/uapi/linux/if_link.h).
const GENERIC: u32 = 2;
const NATIVE: u32 = 4;
/// Bytes of `struct bpf_func_info`.
const FUNCTION_INFO: u32 = 8;

/// Where a program stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Generic XDP.
    Xdp,
    /// In the driver.
    XdpNative,
    TcxIngress,
    TcxEgress,
    /// Filters of a clsact qdisc, which must be there.
    FilterIngress,
    FilterEgress,
}

impl At {
    fn is_xdp(self) -> bool {
        matches!(self, Self::Xdp | Self::XdpNative)
    }
}

/// What it says of each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Pass,
    Drop,
    /// This number of UDP over IPv4 to this port, and that all others may pass.
    OfUdp {
        port: u16,
        verdict: i32,
    },
}

/// A program on a device; gone when dropped, filters with their device.
#[derive(Debug)]
pub struct Foreign {
    program: OwnedFd,
    _link: Option<OwnedFd>,
}

impl Foreign {
    /// Loads a program called `name` and attaches it to a device of a namespace.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn attach(netns: &Netns, device: &str, at: At, says: Says, name: &str) -> Result<Self> {
        Self::place(netns, device, at, says, name, false)
    }

    /// The same with a description of its function (BTF), as compilers give it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn attach_described(netns: &Netns, device: &str, at: At, says: Says, name: &str) -> Result<Self> {
        Self::place(netns, device, at, says, name, true)
    }

    fn place(netns: &Netns, device: &str, at: At, says: Says, name: &str, described: bool) -> Result<Self> {
        let program = load(at, says, name, described).with_context(|| format!("load {name}"))?;
        let link = netns.run(|| -> Result<Option<OwnedFd>> {
            let index = if_nametoindex(device).with_context(|| format!("find {device}"))?;
            let (attach_type, flags) = match at {
                At::Xdp => (37, GENERIC),
                At::XdpNative => (37, NATIVE),
                At::TcxIngress => (46, 0),
                At::TcxEgress => (47, 0),
                At::FilterIngress | At::FilterEgress => {
                    filter::add(index, at == At::FilterIngress, &program, name)?;
                    return Ok(None);
                }
            };
            let mut create = [0u32; 16];
            create[..4].copy_from_slice(&[program.as_raw_fd().cast_unsigned(), index, attach_type, flags]);
            let link = bpf(LINK_CREATE, &mut create);
            Ok(Some(link.with_context(|| format!("attach {name} to {device}"))?))
        })?;
        Ok(Self { program, _link: link })
    }

    /// The kernel's number of the program.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn id(&self) -> Result<u32> {
        let said = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.program.as_raw_fd()))?;
        let number = said.lines().find_map(|line| line.strip_prefix("prog_id:")).context("no prog_id")?;
        Ok(number.trim().parse()?)
    }
}

/// Whether the kernel has a program of this number.
#[must_use]
pub fn is_loaded(id: u32) -> bool {
    // `prog_id` of `union bpf_attr`.
    let mut which = [0u32; 16];
    which[0] = id;
    bpf(PROG_GET_FD_BY_ID, &mut which).is_ok()
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
    device: u32,
    attach_type: u32,
    types: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    rest: [u32; 9],
}

/// `BPF_BTF_LOAD`'s.
#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    types: u64,
    log: u64,
    size: u32,
    rest: [u32; 11],
}

fn load(at: At, says: Says, name: &str, described: bool) -> io::Result<OwnedFd> {
    // Before 5.11 programs are charged to it. Where it may not be raised, loading says whether there is room.
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: plain data.
    _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
    let text = text::of(at, says);
    let types = text::types(at, name);
    let mut btf_load =
        BtfLoad { types: types.as_ptr() as u64, size: types.len() as u32, ..BtfLoad::default() };
    let types = described.then(|| bpf(BTF_LOAD, &mut btf_load)).transpose()?;
    let function_info = [0u32, text::FUNCTION];
    let mut load = ProgLoad {
        kind: if at.is_xdp() { XDP } else { SCHED_CLS },
        instruction_count: text.len() as u32,
        instructions: text.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..ProgLoad::default()
    };
    if let Some(types) = &types {
        load.types = types.as_raw_fd().cast_unsigned();
        load.function_info_size = FUNCTION_INFO;
        load.function_info = function_info.as_ptr() as u64;
        load.function_info_count = 1;
    }
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
