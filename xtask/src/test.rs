//! `test`: every test with the release build, and a few on other kernels.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    setup::setup,
    shell::{cargo, root, say},
    vm,
};

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// Sets up, builds, tests, and closes with what failed, said again, and one line that counts all tests of all crates.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    setup()?;
    build::command(true)?;
    let mut test = cargo();
    test.args(["test", "--no-fail-fast"])
        .args(arguments)
        // The chain of causes says what failed; a backtrace for each of them hides it.
        .env("RUST_LIB_BACKTRACE", "0")
        .env("PATHTRACE_BIN", root().join("target/release/pathtrace"));
    say("Running every test, in network namespaces of its own");
    let (mut report, success) = run(&mut test)?;
    // Chosen tests are what somebody waits for.
    if arguments.is_empty() {
        say("Running a few tests on other kernels, in emulated machines (ten minutes)");
        match vm::quick() {
            Ok(machines) => report.counts.add_machines(&machines),
            // What failed before is told all the same.
            Err(error) => report.fail(format!("the machines could not be run: {error:#}")),
        }
    }
    for line in &report.failures {
        println!("{line}");
    }
    let counts = report.counts;
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.ignored);
    if !success || counts.failed > 0 {
        bail!("{} tests failed; see above", counts.failed);
    }
    Ok(())
}

/// What the crates' tests printed, as far as it matters at the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    counts: Counts,
    /// Each crate's part between `failures:` and its result: far up in a long output, so kept for its end.
    failures: Vec<String>,
    in_failures: bool,
}

fn run(test: &mut Command) -> Result<(Report, bool)> {
    let mut child = test.stdout(Stdio::piped()).spawn().with_context(|| format!("start {test:?}"))?;
    let stdout = child.stdout.take().context("cargo test has no stdout")?;
    let mut report = Report::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        report.add(&line);
    }
    Ok((report, child.wait()?.success()))
}

impl Report {
    fn fail(&mut self, what: String) {
        self.counts.failed += 1;
        self.failures.push(what);
    }

    fn add(&mut self, line: &str) {
        self.counts.add(line);
        if line.starts_with("test result: ") {
            self.in_failures = false;
        } else if line == "failures:" {
            self.in_failures = true;
        }
        if self.in_failures {
            self.failures.push(line.to_owned());
        }
    }
}

impl Counts {
    fn add_machines(&mut self, machines: &vm::Counts) {
        self.passed += machines.passed;
        self.failed += machines.failed;
        self.ignored += machines.skipped;
    }

    /// Adds a line such as `test result: ok. 8 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<usize>() else { continue };
            match pair[1] {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Report};

    #[test]
    fn the_result_lines_of_all_crates_are_added() {
        let mut counts = Counts::default();
        counts.add(
            "test result: ok. 8 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.09s",
        );
        counts.add("test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.add("test 9 passed ... ok");
        assert_eq!(counts, Counts { passed: 15, failed: 2, ignored: 1 });
    }

    #[test]
    fn what_failed_is_kept_for_the_end() {
        let mut report = Report::default();
        for line in [
            "test works ... ok",
            "failures:",
            "---- breaks ----",
            "expected 3 stages",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "test other ... ok",
        ] {
            report.add(line);
        }
        assert_eq!(report.failures, ["failures:", "---- breaks ----", "expected 3 stages"]);
        assert_eq!(report.counts, Counts { passed: 1, failed: 1, ignored: 0 });
    }
}
