//! Kernel memory through a program of our own that copies it (tracer-ebpf/src/probes/peek.rs), run by
//! `BPF_PROG_TEST_RUN`: works under lockdown=integrity, where /proc/kcore and /dev/mem do not.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    ptr,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::Map,
    programs::{RawTracePoint, RawTracePointRunOptions, TestRun},
};
use memmap2::{MmapOptions, MmapRaw};
use tracer_common::peek::{Context, PEEK_BYTES, context_argument, peek_argument};

use super::{KernelTypes, Memory, ReadError};

/// The kernel's memory.
pub struct Peek {
    peek: RawTracePoint,
    context: RawTracePoint,
    /// The map `PEEK_BUFFER`; held for as long as what a run wrote there is being read.
    buffer: Mutex<MmapRaw>,
    task_nsproxy: u32,
    nsproxy_net: u32,
}

impl Peek {
    /// Loads the two programs out of `ebpf`. Nothing is attached, and `ebpf` keeps its maps.
    ///
    /// # Errors
    /// [`ReadError::Bpf`] when the kernel refuses the programs (CAP_BPF and CAP_PERFMON, no
    /// lockdown=confidentiality), [`ReadError::NoMember`] for a kernel without namespaces.
    pub fn load(ebpf: &mut Ebpf, types: &KernelTypes) -> Result<Self, ReadError> {
        let buffer = match ebpf.map("PEEK_BUFFER") {
            Some(Map::Array(data)) => MmapOptions::new()
                .len(PEEK_BYTES)
                .map_raw(data.fd().as_fd().as_raw_fd())
                .map_err(ReadError::bpf("mapping PEEK_BUFFER"))?,
            _ => return Err(ReadError::bpf("the embedded kernel object")("it has no array PEEK_BUFFER")),
        };
        Ok(Self {
            peek: load(ebpf, "peek")?,
            context: load(ebpf, "context")?,
            buffer: Mutex::new(buffer),
            task_nsproxy: types.require("task_struct", "nsproxy")?,
            nsproxy_net: types.require("nsproxy", "net_ns")?,
        })
    }

    /// What holds in the calling thread (`cpu` is `None`), or on that CPU, whatever runs there.
    ///
    /// # Errors
    /// [`ReadError::Bpf`]; `ENXIO` for a CPU that is offline.
    pub(super) fn context(&self, cpu: Option<u32>) -> Result<Context, ReadError> {
        let mut args = [0; 12];
        args[context_argument::TASK_NSPROXY] = u64::from(self.task_nsproxy);
        args[context_argument::NSPROXY_NET] = u64::from(self.nsproxy_net);
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        run(&self.context, args, cpu).map_err(ReadError::bpf("running the program `context`"))?;
        // SAFETY: the mapping is page-aligned and larger than the record, which is integers only; the kernel
        // writes it only while a program runs, and the lock is held.
        Ok(unsafe { buffer.as_ptr().cast::<Context>().read_volatile() })
    }

    fn piece(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let mut args = [0; 12];
        args[peek_argument::ADDRESS] = address;
        args[peek_argument::LENGTH] = into.len() as u64;
        let buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        run(&self.peek, args, None)?;
        // SAFETY: `into` has at most PEEK_BYTES bytes, the length of the mapping; the kernel writes the mapping only
        // while a program runs, and the lock is held.
        unsafe { ptr::copy_nonoverlapping(buffer.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}

impl Memory for Peek {
    fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        let mut at = address;
        for piece in into.chunks_mut(PEEK_BYTES) {
            self.piece(at, piece)?;
            at = at.wrapping_add(piece.len() as u64);
        }
        Ok(())
    }
}

/// Runs a program whose return value is 0 or a negative errno.
fn run(program: &RawTracePoint, args: [u64; 12], cpu: Option<u32>) -> io::Result<()> {
    let result = program.test_run(RawTracePointRunOptions { args, cpu }).map_err(io::Error::other)?;
    match result.return_value.cast_signed() {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// A handle of our own on a program of `ebpf`, loaded if it is not yet.
fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<RawTracePoint, ReadError> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(name)
        .ok_or("the embedded kernel object does not have it")
        .map_err(ReadError::bpf(name))?
        .try_into()
        .map_err(ReadError::bpf(name))?;
    if program.fd().is_err() {
        program.load().map_err(ReadError::bpf(name))?;
    }
    let info = program.info().map_err(ReadError::bpf(name))?;
    RawTracePoint::from_program_info(info, name.into()).map_err(ReadError::bpf(name))
}
