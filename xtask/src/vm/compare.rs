//! The same scenario, the same journey: what each machine showed is compared with what this one shows, and with what the
//! machines before it did.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, Result};
use tests::story::Stories;

use super::{
    groups::{Binaries, Choice, Group},
    kernels::Release,
    machine::Ended,
    table::{Field, Tally},
};
use crate::shell::{root, say};

/// The stories of all machines so far, this one's first, each with the machine's name.
pub(super) struct Comparison {
    told: Vec<(String, Stories)>,
}

/// Where the stories of a machine are kept.
pub(super) fn folder(machine: &str) -> PathBuf {
    root().join("target/stories").join(machine)
}

const HERE: &str = "this machine";

impl Comparison {
    /// Runs the chosen scenarios here. What fails here is said and has no story: it is red in `cargo xtask test`.
    pub(super) fn begin(binaries: &Binaries, choice: &Choice) -> Result<Self> {
        let folder = folder("here");
        drop(fs::remove_dir_all(&folder));
        say("Tracing the same scenarios on this machine, to compare with");
        for mut scenarios in binaries.scenarios_here(choice)? {
            scenarios.env("PATHTRACE_STORIES", &folder).stdout(Stdio::piped());
            let mut child = scenarios.spawn().with_context(|| format!("start {scenarios:?}"))?;
            for line in BufReader::new(child.stdout.take().context("the tests have no stdout")?).lines() {
                println!("here: {}", line?);
            }
            child.wait()?;
        }
        Ok(Self { told: vec![(HERE.to_owned(), Stories::read(&folder)?)] })
    }

    /// Compares what a machine showed; `None` where it showed nothing that another one did.
    pub(super) fn with(&mut self, release: Release) -> Result<Option<Field>> {
        let started = Instant::now();
        let stories = Stories::read(&folder(&release.to_string()))?;
        let mut tally = Tally::default();
        let mut differs = Vec::new();
        for (machine, others) in &self.told {
            for (case, difference) in others.compared(&stories) {
                match difference {
                    None => tally.passed += 1,
                    // One difference of a case is enough, whoever else differs too.
                    Some(_) if differs.contains(&case) => {}
                    Some(difference) => {
                        tally.fail(format!("{case}: {machine} | {release}\n{difference}"));
                        differs.push(case);
                    }
                }
            }
        }
        self.told.push((release.to_string(), stories));
        let nothing = tally == Tally::default();
        let took = started.elapsed().as_secs();
        Ok((!nothing).then_some(Field {
            release,
            group: Group::Compare,
            tally,
            ended: Ended::Status(0),
            took,
        }))
    }
}
