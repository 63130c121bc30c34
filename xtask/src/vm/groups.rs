//! Groups of tests: which binaries each runs, built here and run inside as they are.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    compare, docker,
    kernels::Release,
    machine::{Job, LEFT, quoted},
};
use crate::shell::{cargo, root, say};

/// Its JSON is what the page of kernels is made from; here it only has to find a way to trace.
const DOCTOR: &str = "iptables-legacy -A FORWARD -j ACCEPT\niptables-nft -A FORWARD -j ACCEPT\n\
    nft add table inet mine\nnft add chain inet mine c '{ type filter hook forward priority 10; }'\n\
    if \"$PATHTRACE_BIN\" doctor --json; then echo 'test doctor ... ok'; \
    else echo 'test doctor ... FAILED'; failed=1; fi\n";

/// Tests that belong together; each group boots a machine of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Group {
    /// `pathtrace doctor` with rules of every backend: what the kernel offers
    Doctor,
    /// Signals, changes under a running trace, scopes, bursts, bad input
    Live,
    /// The ruleset in kernel memory, walked and witnessed
    Rules,
    /// tests/scenarios
    Scenarios,
    /// A real Docker daemon
    Docker,
    /// What scenarios showed beside what they show on this machine and others; comes with them
    #[value(skip)]
    Compare,
}

impl Group {
    /// Those that are run.
    pub(super) const ALL: [Self; 5] = [Self::Doctor, Self::Live, Self::Rules, Self::Scenarios, Self::Docker];

    /// Those that have results.
    pub(super) const SHOWN: [Self; 6] =
        [Self::Doctor, Self::Live, Self::Rules, Self::Scenarios, Self::Compare, Self::Docker];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Doctor => "doctor",
            Self::Live => "live",
            Self::Rules => "rules",
            Self::Scenarios => "scenarios",
            Self::Docker => "docker",
            Self::Compare => "compare",
        }
    }

    /// Package and test target of each binary.
    fn binaries(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Doctor | Self::Compare => &[],
            Self::Live => &[
                ("tests", "labs"),
                ("tests", "lifetime"),
                ("tests", "changes"),
                ("tests", "scopes"),
                ("tests", "filters"),
                ("tests", "bad_input"),
                ("tests", "burst"),
                ("tests", "verdicts"),
                ("tests", "correlation"),
                ("tests", "ends"),
                ("tests", "receivers"),
            ],
            Self::Rules => &[
                ("tracer", "kernel_walk"),
                ("tracer", "walks_witnessed"),
                ("tracer", "rule_texts"),
                ("tracer", "nftrace"),
                ("tests", "rule_probes"),
                ("tests", "uncounted"),
                ("tests", "edges"),
                ("tests", "flowtable"),
            ],
            Self::Scenarios => &[("tests", "scenarios")],
            Self::Docker => &[("tests", "docker")],
        }
    }

    /// Deadlines in tests are this many times longer inside. A daemon starts with a hundred calls of iptables.
    fn slowness(self) -> u32 {
        if self == Self::Docker { 15 } else { 5 }
    }

    /// The most that it may take under emulation, boot included, in seconds.
    pub(super) fn deadline(self) -> u64 {
        match self {
            Self::Doctor | Self::Compare => 5 * 60,
            Self::Rules => 20 * 60,
            Self::Live => 40 * 60,
            Self::Docker => 40 * 60,
            Self::Scenarios => 60 * 60,
        }
    }

    /// Tests of this group that cannot be on a kernel: part of their name or their binary, and why.
    pub(super) fn impossible(self, release: Release) -> &'static [(&'static str, &'static str)] {
        const NO_TYPES: &str = "nft's rules cannot be read: the types of modules are described from 5.11 on";
        const NO_OWNER: &str = "a table that dies with its process (`flags owner`) came with 5.12";
        match (self, release) {
            (Self::Live, Release::V5_10) => &[(
                "a_chain_on_the_way_out_of_a_device_is_named",
                "chains of netdev at egress came with 5.16",
            )],
            (Self::Rules, Release::V5_10) => &[
                ("walks_witnessed", NO_OWNER),
                ("nftrace", NO_OWNER),
                ("a_mapping_undone_where_no_chain_is_hooked_is_of_its_rule_s_table", NO_TYPES),
                ("what_a_packet_s_own_fields_settle_is_exact", NO_TYPES),
                ("what_was_translated_is_let_through_by_its_status", NO_TYPES),
            ],
            _ => &[],
        }
    }

    /// Its binaries for a kernel.
    fn possible(self, release: Release) -> impl Iterator<Item = &'static (&'static str, &'static str)> {
        let impossible = self.impossible(release);
        self.binaries().iter().filter(|(_, target)| impossible.iter().all(|(name, _)| name != target))
    }
}

/// Which tests of a group.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Only tests that have this in their name
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Every variant of every scenario, not one per backend (five times as many)
    #[arg(long)]
    all_scenarios: bool,
}

impl Choice {
    /// Only tests with one of these in their name.
    pub(super) fn of(only: &[&str]) -> Self {
        Self { only: only.iter().map(|text| (*text).to_owned()).collect(), all_scenarios: false }
    }

    /// Whether nothing is left out by name.
    pub(super) fn whole(&self) -> bool {
        self.only.is_empty()
    }

    /// What the scenarios' runner is to be called with, call by call: it takes one text at a time, and none for all.
    fn of_scenarios(&self) -> Vec<Option<&str>> {
        let mut calls: Vec<_> = self.only.iter().map(|text| Some(text.as_str())).collect();
        if calls.is_empty() {
            calls.push(None);
        }
        calls
    }

    /// The variable that lets the scenarios' runner take a part of them.
    fn sample(&self) -> Option<(&'static str, &'static str)> {
        (!self.all_scenarios).then_some(("PATHTRACE_SCENARIOS", "sample"))
    }
}

/// Test binaries by package and target.
pub(super) struct Binaries(HashMap<(String, String), PathBuf>);

impl Binaries {
    /// Builds the binaries of these groups.
    pub(super) fn build(groups: &[Group]) -> Result<Self> {
        let wanted: Vec<_> = groups.iter().flat_map(|group| group.binaries()).collect();
        if wanted.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        say("Building the tests");
        let mut build = cargo();
        build.args([
            "test",
            "--quiet",
            "--no-run",
            "--message-format=json",
            "--package",
            "tests",
            "--package",
            "tracer",
        ]);
        for (_, target) in &wanted {
            build.args(["--test", target]);
        }
        let mut child = build.stdout(Stdio::piped()).spawn().context("start cargo test")?;
        let lines = BufReader::new(child.stdout.take().context("cargo has no stdout")?).lines();
        let mut found = HashMap::new();
        for line in lines {
            found.extend(executable(&line?));
        }
        ensure!(child.wait()?.success(), "the tests do not build");
        Ok(Self(found))
    }

    /// What runs a group inside: each binary in its package's folder, all of them whatever becomes of the first. The
    /// deadline in seconds.
    pub(super) fn job(&self, group: Group, release: Release, choice: &Choice, deadline: u64) -> Result<Job> {
        let mut script =
            format!("export PATHTRACE_TEST_SLOWNESS={} RUST_BACKTRACE=0\nfailed=0\n", group.slowness());
        let path = |path: PathBuf| quoted(&path.display().to_string());
        script += &format!("export PATHTRACE_BIN={}\n", path(root().join("target/release/pathtrace")));
        if group == Group::Scenarios {
            script += &format!("export PATHTRACE_STORIES={LEFT}\n");
            script +=
                &choice.sample().map(|(name, value)| format!("export {name}={value}\n")).unwrap_or_default();
        }
        script += "export PATHTRACE_DISPOSABLE_MACHINE=1\n";
        let mut arguments = String::new();
        if group == Group::Docker {
            let folders = docker::fetch()?.map(path).join(":");
            script += &format!("export PATH={folders}:$PATH\n");
            arguments += " --ignored --test-threads 2";
        }
        let words = |text: &str| format!(" {}", quoted(text));
        let selections: Vec<String> = match group {
            Group::Scenarios => {
                choice.of_scenarios().into_iter().map(|text| text.map(words).unwrap_or_default()).collect()
            }
            _ => vec![choice.only.iter().map(|text| words(text)).collect()],
        };
        for (name, _) in group.impossible(release) {
            arguments += &format!(" --skip {}", quoted(name));
        }
        for (package, target) in group.possible(release) {
            let binary = self.get(package, target)?;
            script += &format!("cd {}\n", path(root().join(package)));
            for selection in &selections {
                script += &format!("{}{arguments}{selection} || failed=1\n", path(binary.clone()));
            }
        }
        if group == Group::Doctor {
            script += DOCTOR;
        }
        script += "exit $failed";
        let job = Job::new(&script, deadline);
        Ok(if group == Group::Scenarios { job.keeping(compare::folder(&release.to_string())) } else { job })
    }

    /// The same scenarios, to be run on this machine.
    pub(super) fn scenarios_here(&self, choice: &Choice) -> Result<Vec<Command>> {
        let binary = self.get("tests", "scenarios")?;
        let calls = choice.of_scenarios().into_iter().map(|selection| {
            let mut call = Command::new(binary);
            call.args(selection).envs(choice.sample()).current_dir(root().join("tests"));
            call.env("RUST_BACKTRACE", "0").env("PATHTRACE_BIN", root().join("target/release/pathtrace"));
            call
        });
        Ok(calls.collect())
    }

    fn get(&self, package: &str, target: &str) -> Result<&PathBuf> {
        let binary = self.0.get(&(package.to_owned(), target.to_owned()));
        binary.with_context(|| format!("cargo built no test {target} of {package}"))
    }
}

/// Package and target with the file, from one of cargo's messages.
fn executable(line: &str) -> Option<((String, String), PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["target"]["kind"][0] != "test" {
        return None;
    }
    let package = PathBuf::from(message["manifest_path"].as_str()?);
    let package = package.parent()?.file_name()?.to_str()?.to_owned();
    Some(((package, message["target"]["name"].as_str()?.to_owned()), message["executable"].as_str()?.into()))
}
