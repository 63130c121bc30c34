//! `vm-test`: other kernels, booted under software emulation, with this machine's files inside.

mod apt;
mod docker;
mod groups;
mod initramfs;
mod kernels;
mod machine;
mod page;
mod table;
mod tools;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::{
    groups::{Binaries, Choice, Group},
    kernels::{Kernel, Release},
    machine::Job,
    page::Results,
    table::{Field, Tally},
};
use crate::{build, shell::say};

/// How long one command may take, in seconds; emulation is about ten times slower than the machine.
const COMMAND_DEADLINE: u64 = 60 * 60;

/// Which kernels, and what to do on them.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The kernels to boot, one after the other
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    kernel: Vec<Which>,
    /// The groups of tests to run; all of them when not given
    #[arg(long, value_enum, value_delimiter = ',')]
    group: Vec<Group>,
    #[command(flatten)]
    choice: Choice,
    /// Write docs/compatibility.md from this run and those before; `--group doctor` gives the kernels' features
    #[arg(long)]
    page: bool,
    /// Run this shell command instead of tests: same folder, same files; what it changes is lost
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

/// Boots each kernel and runs the command or the groups there.
pub(crate) fn vm_test(options: &Options) -> Result<()> {
    tools::install()?;
    let releases = options.kernel.iter().flat_map(|which| which.releases());
    let kernels: Vec<Kernel> = releases.map(kernels::fetch).collect::<Result<_>>()?;
    if options.command.is_empty() {
        test(&kernels, options)
    } else {
        run(&kernels, &options.command.join(" "))
    }
}

fn run(kernels: &[Kernel], command: &str) -> Result<()> {
    let job = Job::here(command, COMMAND_DEADLINE)?;
    let mut bad = Vec::new();
    for kernel in kernels {
        let ended = machine::run(kernel, &job, &mut |line| println!("{line}"))?;
        say(&format!("{}: {ended}", kernel.release));
        if !ended.success() {
            bad.push(kernel.release.to_string());
        }
    }
    if bad.is_empty() { Ok(()) } else { bail!("the command failed on {}", bad.join(", ")) }
}

fn test(kernels: &[Kernel], options: &Options) -> Result<()> {
    let groups = if options.group.is_empty() { Group::ALL.to_vec() } else { options.group.clone() };
    build::command(true)?;
    let binaries = Binaries::build(&groups)?;
    let mut fields = Vec::new();
    let mut results = Results::load();
    for kernel in kernels {
        for group in &groups {
            let job = binaries.job(*group, kernel.release, &options.choice)?;
            let place = format!("{} {}", kernel.release, group.name());
            say(&format!("{place}: at most {} minutes", group.deadline() / 60));
            let (started, mut tally) = (Instant::now(), Tally::default());
            let ended = machine::run(kernel, &job, &mut |line| {
                tally.add(line);
                println!("{place}: {line}");
            })?;
            say(&format!("{place}: {ended}"));
            let took = started.elapsed().as_secs();
            let field = Field { release: kernel.release, group: *group, tally, ended, took };
            if options.choice.whole() {
                results.keep(&field, &kernel.version)?;
            }
            fields.push(field);
        }
    }
    println!("{}", table::show(&fields));
    if options.page {
        results.write_page()?;
    }
    if fields.iter().all(Field::good) { Ok(()) } else { bail!("not everything passed; see above") }
}
