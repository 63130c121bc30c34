//! The kernel object: its settings, its maps, and the tracepoint programs that aya loads.

use anyhow::{Context, Result};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel, programs::RawTracePoint};
use tracer_common::settings::Settings;

/// The object file, inside the binary.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pathtrace-ebpf"));

/// Creates the maps and parses the programs; loads none yet.
pub fn create(settings: &Settings) -> Result<Ebpf> {
    EbpfLoader::new()
        // aya parses all of the kernel's BTF otherwise, for relocations that rustc does not write.
        .btf(None)
        // Used only when a load fails and is tried again for its log.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global("SETTINGS", settings, true)
        .load(OBJECT)
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
