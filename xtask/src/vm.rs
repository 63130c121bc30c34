//! `vm-test`: other kernels, booted under software emulation, with this machine's files inside.

mod apt;
mod compare;
mod docker;
mod groups;
mod initramfs;
mod kernels;
mod machine;
mod page;
mod table;
mod tools;

use std::{
    fmt::{self, Display, Formatter},
    time::Instant,
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::{
    compare::Comparison,
    groups::{Binaries, Choice, Group},
    kernels::{Kernel, Release},
    machine::Job,
    page::Results,
    table::{Field, Tally},
};
pub(crate) use self::{machine::quoted, table::Counts};
use crate::{build, shell::say};

/// How long one command may take, in seconds; emulation is about ten times slower than the machine.
const COMMAND_DEADLINE: u64 = 60 * 60;

/// The most that one group may take in a quick run, in seconds: several times what it needs.
const QUICK_DEADLINE: u64 = 15 * 60;

/// What a quick run boots: one kernel without netfilter links and one with them.
const QUICK_KERNELS: [Release; 2] = [Release::V6_1, Release::V6_12];

/// Scenarios of a quick run: rules and NAT, a drop with its reason, a protocol without ports.
const QUICK_SCENARIOS: [&str; 3] = ["trace/publish", "trace/conntrack-full", "trace/ping"];

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
    /// What `cargo xtask test` ends with: 6.1 and 6.12, doctor and a few scenarios. A machine that cannot fetch kernels
    /// or emulate skips it and says why
    #[arg(long, conflicts_with_all = ["kernel", "group", "only", "all_scenarios", "page", "command"])]
    quick: bool,
    /// Write docs/compatibility.md from this run and those before; `--group doctor` gives the kernels' features
    #[arg(long)]
    page: bool,
    /// With a command: the machine's clock counts instructions, one to the nanosecond, on one processor
    #[arg(long, requires = "command")]
    instructions: bool,
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
    if options.quick {
        let counts = quick()?;
        return if counts.failed == 0 { Ok(()) } else { bail!(FAILED) };
    }
    let releases: Vec<Release> = options.kernel.iter().flat_map(|which| which.releases()).collect();
    let kernels = prepare(&releases)?;
    if options.command.is_empty() {
        test(&kernels, options)
    } else {
        run(&kernels, &options.command.join(" "), options.instructions)
    }
}

/// A few tests on other kernels, soon done.
///
/// # Errors
/// When something is wrong here. A failed test is counted; a machine that cannot fetch kernels or emulate is one skip.
pub(crate) fn quick() -> Result<Counts> {
    let kernels = match prepare(&QUICK_KERNELS) {
        Ok(kernels) => kernels,
        Err(error) if error.is::<Unavailable>() => {
            println!("skipped the tests on other kernels: {error}; see above");
            return Ok(Counts { skipped: 1, ..Counts::default() });
        }
        Err(error) => return Err(error),
    };
    build::command(true)?;
    let choice = Choice::of(&QUICK_SCENARIOS);
    let groups = [Group::Doctor, Group::Scenarios];
    let limit = Some(QUICK_DEADLINE);
    let round = Round { kernels: &kernels, groups: &groups, choice: &choice, limit, compares: false };
    let fields = round.run(&mut Results::load())?;
    println!("{}", table::show(&fields));
    Ok(table::counts(&fields))
}

/// Runs a shell command on 6.12, in the current folder, where the clock counts instructions instead of time.
///
/// # Errors
/// When this machine cannot emulate or fetch the kernel, or the command failed.
pub(crate) fn by_instructions(command: &str) -> Result<()> {
    run(&prepare(&[Release::V6_12])?, command, true)
}

/// What machines need of this one, and the kernels.
fn prepare(releases: &[Release]) -> Result<Vec<Kernel>> {
    tools::install()?;
    releases.iter().map(|release| kernels::fetch(*release)).collect()
}

/// Context of an error: this machine, or its way to Debian's archive, lacks what virtual machines need. Nothing of the
/// project was tested.
#[derive(Clone, Copy, Debug)]
struct Unavailable(&'static str);

impl Display for Unavailable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

const FAILED: &str = "not everything passed; see above";

fn run(kernels: &[Kernel], command: &str, by_instructions: bool) -> Result<()> {
    let mut job = Job::here(command, COMMAND_DEADLINE)?;
    if by_instructions {
        job = job.by_instructions();
    }
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
    let mut results = Results::load();
    build::command(true)?;
    let round = Round { kernels, groups: &groups, choice: &options.choice, limit: None, compares: true };
    let fields = round.run(&mut results)?;
    println!("{}", table::show(&fields));
    if options.page {
        results.write_page()?;
    }
    if fields.iter().all(Field::good) { Ok(()) } else { bail!(FAILED) }
}

/// What runs where.
struct Round<'a> {
    kernels: &'a [Kernel],
    groups: &'a [Group],
    choice: &'a Choice,
    /// No group takes longer, in seconds.
    limit: Option<u64>,
    /// Whether what scenarios show is compared between the machines, and with this one.
    compares: bool,
}

impl Round<'_> {
    /// Runs each group on each kernel.
    fn run(&self, results: &mut Results) -> Result<Vec<Field>> {
        let binaries = Binaries::build(self.groups)?;
        let compares = self.compares && self.groups.contains(&Group::Scenarios);
        let mut comparison = compares.then(|| Comparison::begin(&binaries, self.choice)).transpose()?;
        let mut fields = Vec::new();
        for kernel in self.kernels {
            for group in self.groups {
                let mut new = vec![self.field(&binaries, kernel, *group)?];
                if *group == Group::Scenarios
                    && let Some(comparison) = &mut comparison
                {
                    new.extend(comparison.with(kernel.release)?);
                }
                for field in new {
                    if self.choice.whole() {
                        results.keep(&field, &kernel.version)?;
                    }
                    fields.push(field);
                }
            }
        }
        Ok(fields)
    }

    fn field(&self, binaries: &Binaries, kernel: &Kernel, group: Group) -> Result<Field> {
        let deadline = self.limit.map_or(group.deadline(), |limit| limit.min(group.deadline()));
        let job = binaries.job(group, kernel.release, self.choice, deadline)?;
        let place = format!("{} {}", kernel.release, group.name());
        say(&format!("{place}: at most {} minutes", deadline / 60));
        let (started, mut tally) = (Instant::now(), Tally::default());
        let ended = machine::run(kernel, &job, &mut |line| {
            tally.add(line);
            println!("{place}: {line}");
        })?;
        say(&format!("{place}: {ended}"));
        Ok(Field { release: kernel.release, group, tally, ended, took: started.elapsed().as_secs() })
    }
}
