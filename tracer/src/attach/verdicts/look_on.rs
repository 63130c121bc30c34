//! A program that looks on when another returns (fexit).
//!
//! Kernel side: `bpf_check_attach_target` (kernel/bpf/verifier.c), `bpf_tracing_prog_attach` (kernel/bpf/syscall.c), from 5.5.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info};
use tracer_common::settings::patch;

use super::super::{
    object::{self, Cast, Edition},
    syscall::{bpf, call},
    text::{As, Object, Text, set},
};
use crate::model::ProgramType;

/// `BPF_PROG_TYPE_TRACING` and `BPF_TRACE_FEXIT` (include/uapi/linux/bpf.h, 5.5).
const TRACING: u32 = 26;
const FEXIT: u32 = 25;
/// Programs of the kernel object.
const XDP: &str = "xdp_verdict";
const TC: &str = "tc_verdict";
/// Bytes of `struct bpf_func_info` (include/uapi/linux/bpf.h).
const FUNCTION_INFO: u32 = 8;

/// What is needed to load these programs: they are parsed only when there is something to look on.
pub(in super::super) struct Shelf {
    pub(in super::super) maps: Vec<(String, OwnedFd)>,
    pub(in super::super) edition: Edition,
    pub(in super::super) cast: Option<Cast>,
    pub(in super::super) verbose: bool,
}

/// Why a program cannot be looked on.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum Refused {
    #[error("it was loaded without a description of its functions (BTF)")]
    NoTypes,
    #[error("{doing}: {error}{}", said.as_ref().map(|said| format!("\n{said}")).unwrap_or_default())]
    ByKernel {
        doing: &'static str,
        error: io::Error,
        /// The verifier's log, for those who want it.
        said: Option<String>,
    },
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl Refused {
    /// The kernel lets nobody do this here.
    pub(in super::super) fn is_general(&self) -> bool {
        matches!(self, Self::ByKernel { error, .. } if error.raw_os_error() == Some(libc::EPERM))
    }
}

/// The programs, ready to be loaded for any other.
pub(in super::super) struct Texts {
    xdp: Text,
    tc: Text,
    types: Option<OwnedFd>,
    verbose: bool,
}

impl Shelf {
    /// # Errors
    /// When the kernel object cannot be made ready.
    pub(in super::super) fn open(&self) -> Result<Texts> {
        let maps: Vec<_> = self.maps.iter().map(|(name, fd)| (name.clone(), fd.as_fd())).collect();
        let object = Object::open(&object::for_kernel(self.edition, self.cast), &maps)?;
        Ok(Texts { xdp: object.text(XDP)?, tc: object.text(TC)?, types: object.types, verbose: self.verbose })
    }
}

impl Texts {
    /// Looks on while the program `target` of number `id` returns, until the descriptor is closed.
    pub(in super::super) fn look_on(
        &self,
        target: BorrowedFd<'_>,
        id: u32,
        program_type: ProgramType,
    ) -> Result<OwnedFd, Refused> {
        let function = entry(target).context("asking about the program")?.ok_or(Refused::NoTypes)?;
        let text = if program_type == ProgramType::Xdp { &self.xdp } else { &self.tc };
        let mut instructions = text.instructions.clone();
        set(&mut instructions, patch::PROGRAM, id.cast_signed())?;
        let loaded_as = As { program_type: TRACING, attach_type: FEXIT, target: Some((target, function)) };
        let types = self.types.as_ref();
        let program = text.submit(&instructions, loaded_as, types, &mut []).map_err(|error| {
            let said = self.verbose.then(|| text.log(&instructions, loaded_as, types)).flatten();
            Refused::ByKernel { doing: "BPF_PROG_LOAD, fexit", error, said: said.map(|(_, log)| log) }
        })?;
        link(&program).map_err(|error| Refused::ByKernel {
            doing: "BPF_RAW_TRACEPOINT_OPEN, fexit",
            error,
            said: None,
        })
    }
}

/// Number of a program's first function in its own type information; `None` where it has none.
fn entry(program: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    // Offset of its first instruction, and its type.
    let mut function = [u32::MAX, 0];
    // SAFETY: plain data, zero is valid for each member.
    let mut info = unsafe { std::mem::zeroed::<bpf_prog_info>() };
    info.nr_func_info = 1;
    info.func_info_rec_size = FUNCTION_INFO;
    info.func_info = (&raw mut function) as u64;
    // SAFETY: as above.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    attr.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attr.info.info_len = size_of::<bpf_prog_info>() as u32;
    attr.info.info = (&raw mut info) as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let [first, kind] = function;
    Ok((info.btf_id != 0 && info.nr_func_info != 0 && first == 0).then_some(kind))
}

fn link(program: &OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: plain data, zero is valid for each member: without a name the program's own target is meant.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    attr.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
    bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
}
