//! The kernel object: its settings, its maps, and the tracepoint programs that aya loads.

use std::thread;

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, RawTracePoint},
};
use tracer_common::settings::{SNAPSHOT_PER_CPU, Settings, patch};

use super::verifier::refusal;
use crate::kernel::KernelTypes;

/// The object file, inside the binary.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathtrace-ebpf"));
/// The same for kernels before 5.17.
static OLDER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathtrace-ebpf-older"));

/// Which of the two this kernel can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    Current,
    /// Without `bpf_loop`: of a table with many rules not all are read. Without pointers as arguments of functions that
    /// the verifier looks at once (5.12).
    Older,
}

impl Edition {
    /// What the kernel's list of helpers says; without one it is taken for a current kernel.
    #[must_use]
    pub fn of(types: &KernelTypes) -> Self {
        match types.enum_values("bpf_func_id") {
            Some(helpers) if helpers.iter().all(|(name, _)| name != "BPF_FUNC_loop") => Self::Older,
            _ => Self::Current,
        }
    }
}

/// BPF_JMP | BPF_CALL, the first byte of a call; in the second, above the destination, who is called.
const CALL: u8 = 0x85;
const PSEUDO_KFUNC_CALL: u8 = 2 << 4;

/// What the running kernel offers for reading its memory fast.
#[derive(Clone, Copy, Debug)]
pub struct Cast {
    /// BTF id of the function `bpf_rdonly_cast` (kernel/bpf/helpers.c, 6.2).
    function: u32,
    /// BTF id of a structure of 16 bytes.
    pub kind: u32,
}

impl Cast {
    /// `None` on a kernel without it.
    #[must_use]
    pub fn find(types: &KernelTypes) -> Option<Self> {
        Some(Self { function: types.function_id("bpf_rdonly_cast")?, kind: types.structure_id("in6_addr")? })
    }
}

/// The object, with the kernel's own number in its calls of `bpf_rdonly_cast`.
#[must_use]
pub fn for_kernel(edition: Edition, cast: Option<Cast>) -> Vec<u8> {
    let mut object = match edition {
        Edition::Current => OBJECT,
        Edition::Older => OLDER,
    }
    .to_vec();
    let Some(cast) = cast else { return object };
    for instruction in object.chunks_exact_mut(8) {
        if instruction[..2] == [CALL, 0] && instruction[4..] == patch::CAST.to_ne_bytes() {
            instruction[1] = PSEUDO_KFUNC_CALL;
            instruction[4..].copy_from_slice(&cast.function.to_ne_bytes());
        }
    }
    object
}

/// Creates the maps and parses the programs; loads none yet.
///
/// Of a program that is refused aya asks for the log, again and again with more room for it; the verifier does its work
/// each time. So each instruction is in the log only where it will be shown.
pub fn create(object: &[u8], settings: &Settings) -> Result<Ebpf> {
    let detail = if settings.verbose == 0 { VerifierLogLevel::STATS } else { VerifierLogLevel::DEBUG };
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow!("{what}: {error}"))?;
    let cpus = u32::try_from(cpus).context("more CPUs than fit into 32 bits")?;
    EbpfLoader::new()
        .map_max_entries("SNAPSHOT", cpus.saturating_mul(SNAPSHOT_PER_CPU))
        // aya parses all of the kernel's BTF otherwise, for relocations that rustc does not write.
        .btf(None)
        // Used only when a load fails and is tried again for its log.
        .verifier_log_level(detail)
        .override_global("SETTINGS", settings, true)
        .load(object)
        .context("kernel object: its maps could not be created (BPF_MAP_CREATE); is this root?")
}

/// Loads raw tracepoint programs side by side: the verifier's work is most of the time until a trace is ready. Which are
/// refused, [`attach_tracepoint`] says.
pub fn load_tracepoints(ebpf: &mut Ebpf, programs: &[&str]) {
    thread::scope(|scope| {
        for (name, program) in ebpf.programs_mut() {
            if let Program::RawTracePoint(program) = program
                && programs.contains(&name)
            {
                scope.spawn(|| program.load());
            }
        }
    });
}

/// Attaches a raw tracepoint program, which is loaded if it is not yet.
pub fn attach_tracepoint(ebpf: &mut Ebpf, program: &str, tracepoint: &str) -> Result<()> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(program)
        .with_context(|| format!("kernel object: no program {program}"))?
        .try_into()?;
    if program.fd().is_err() {
        program.load().map_err(|error| refusal(&format!("program for tracepoint {tracepoint}"), error))?;
    }
    program.attach(tracepoint).with_context(|| format!("tracepoint {tracepoint} is not there"))?;
    Ok(())
}

/// Detaches a raw tracepoint program and lets go of it.
pub fn detach_tracepoint(ebpf: &mut Ebpf, program: &str) -> Result<()> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(program)
        .with_context(|| format!("kernel object: no program {program}"))?
        .try_into()?;
    program.unload().context("letting go of a tracepoint")
}
