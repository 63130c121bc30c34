//! The kernel side's own diagnostics (`-vv`), which it sends through aya-log: a line each on standard error.

use std::io::Write;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::Kernel;
use crate::error::one_line;

/// Reads the diagnostics.
pub(super) struct Diagnostics(EbpfLogger<ToStderr>);

impl Diagnostics {
    /// Takes their map; to be called when all programs that use it are made.
    ///
    /// # Errors
    /// When the kernel object has none.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        EbpfLogger::init_with_logger(ebpf, ToStderr).map(Self).context("the kernel side's diagnostics")
    }

    /// Writes what has come.
    pub(super) fn write(&mut self) {
        self.0.flush();
    }
}

impl Kernel {
    /// Writes to standard error what the kernel side had to say since the last call, with `-vv`.
    pub fn write_diagnostics(&mut self) {
        if let Some(diagnostics) = &mut self.diagnostics {
            diagnostics.write();
        }
    }
}

struct ToStderr;

impl Log for ToStderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = record.level().as_str().to_ascii_lowercase();
        let line = one_line(&record.args().to_string());
        // With stderr gone there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "pathtrace: kernel side: {level}: {line}");
    }

    fn flush(&self) {}
}
