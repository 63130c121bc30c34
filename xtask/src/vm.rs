//! `vm-test`: other kernels, booted under software emulation, with this machine's files inside.

mod initramfs;
mod kernels;
mod machine;
mod tools;

use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::{kernels::Release, machine::Job};
use crate::shell::say;

/// How long one command may take; emulation is about ten times slower than the machine.
const COMMAND_DEADLINE: Duration = Duration::from_mins(60);

/// Which kernels, and what to do on them.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The kernel to boot; `all` takes one after the other
    #[arg(long, value_enum, default_value = "all")]
    kernel: Which,
    /// Run this shell command instead of tests: same folder, same files, changes go nowhere
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Which {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "7.2")]
    V7_2,
    All,
}

impl Which {
    fn releases(self) -> Vec<Release> {
        match self {
            Self::V5_10 => vec![Release::V5_10],
            Self::V6_1 => vec![Release::V6_1],
            Self::V6_12 => vec![Release::V6_12],
            Self::V7_2 => vec![Release::V7_2],
            Self::All => Release::ALL.to_vec(),
        }
    }
}

/// Boots each kernel and runs the command there.
pub(crate) fn vm_test(options: &Options) -> Result<()> {
    tools::install()?;
    if options.command.is_empty() {
        bail!("say what to run: cargo xtask vm-test --kernel 6.1 -- uname -r");
    }
    let job = Job::here(&options.command.join(" "), COMMAND_DEADLINE)?;
    let mut bad = Vec::new();
    for release in options.kernel.releases() {
        let kernel = kernels::fetch(release)?;
        let ended = machine::run(&kernel, &job)?;
        say(&format!("{release}: {ended}"));
        if !ended.success() {
            bad.push(format!("{release}: {ended}"));
        }
    }
    if bad.is_empty() { Ok(()) } else { bail!("{}", bad.join("; ")) }
}
