//! The kernel object: its settings, its maps, and the tracepoint programs that aya loads.

use anyhow::{Context, Result};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, programs::RawTracePoint};
use tracer_common::settings::Settings;

use crate::kernel::KernelTypes;

/// The object file, inside the binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathtrace-ebpf"));
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

/// Creates the maps and parses the programs; loads none yet.
pub fn create(settings: &Settings, edition: Edition) -> Result<Ebpf> {
    let object = match edition {
        Edition::Current => OBJECT,
        Edition::Older => OLDER,
    };
    EbpfLoader::new()
        // aya parses all of the kernel's BTF otherwise, for relocations that rustc does not write.
        .btf(None)
        // Used only when a load fails and is tried again for its log.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global("SETTINGS", settings, true)
        .load(object)
        .context("kernel object: its maps could not be created (BPF_MAP_CREATE); is this root?")
}

/// Loads a raw tracepoint program and attaches it.
pub fn attach_tracepoint(ebpf: &mut Ebpf, program: &str, tracepoint: &str) -> Result<()> {
    let program: &mut RawTracePoint = ebpf
        .program_mut(program)
        .with_context(|| format!("kernel object: no program {program}"))?
        .try_into()?;
    program.load().with_context(|| format!("program for tracepoint {tracepoint} was refused"))?;
    program.attach(tracepoint).with_context(|| format!("tracepoint {tracepoint} is not there"))?;
    Ok(())
}
