//! `cargo xtask VERB`: everything one does with this workspace.

#![expect(clippy::print_stdout, reason = "results of a command go to stdout")]

mod bench;
mod build;
mod check;
mod demo;
mod scenario;
mod setup;
mod shell;
mod test;
mod vm;

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::bench::Count;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Everything one does with this workspace")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what is missing: Debian packages, rust-src, bpf-linker (needs root for packages)
    Setup,
    /// Build the kernel side alone
    BuildEbpf,
    /// Build the pathtrace command, kernel side included
    Build {
        /// Optimized: target/release/pathtrace
        #[arg(long)]
        release: bool,
    },
    /// Check formatting and lints, user side and kernel side
    Check,
    /// Set up, build, and run every test (needs root); what stands behind `--` goes to `cargo test`
    Test {
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Show three packets in a lab that looks like a Docker host (needs root)
    Demo,
    /// Measure what tracing costs each forwarded packet, beside nftrace and tcpdump (needs root)
    Bench {
        /// The same packet through 10 to 5,000 rules instead
        #[arg(long)]
        rules: bool,
        /// Count instructions, by the clock of an emulated machine; for machines whose processor counts none
        #[arg(long, conflicts_with = "rules")]
        instructions: bool,
        /// A nanosecond of this machine's clock is an instruction
        #[arg(long, hide = true)]
        emulated: bool,
    },
    /// What `bench` runs in the client's namespace
    #[command(hide = true)]
    BenchSend { to: SocketAddr, count: u32 },
    /// Boot other kernels under emulation and test there (needs root; fetches Debian's kernels once)
    VmTest(vm::Options),
    /// Build a scenario's lab, send its traffic, show what pathtrace says (needs root)
    Scenario {
        /// Its name, or a case's: publish-ok, publish-ok/legacy/ipv6
        #[arg(required_unless_present = "list")]
        name: Option<String>,
        /// List them
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Setup => setup::setup(),
        Verb::BuildEbpf => build::kernel_side(),
        Verb::Build { release } => build::command(release),
        Verb::Check => check::check(),
        Verb::Test { arguments } => test::test(&arguments),
        Verb::Demo => demo::demo(),
        Verb::Bench { instructions: true, .. } => bench::in_emulation(),
        Verb::Bench { rules: true, .. } => bench::by_rules(),
        Verb::Bench { emulated, .. } => bench::bench(if emulated { Count::Clock } else { Count::Processor }),
        Verb::BenchSend { to, count } => bench::send(to, count),
        Verb::VmTest(options) => vm::vm_test(&options),
        Verb::Scenario { name: Some(name), list: false } => scenario::show(&name),
        Verb::Scenario { .. } => scenario::list(),
    }
}
