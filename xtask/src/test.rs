//! `test`: every test with the release build.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    setup::setup,
    shell::{cargo, root, say},
};

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u32,
    failed: u32,
    ignored: u32,
}

/// Sets up, builds, tests, and closes with one line that counts all tests of all crates.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    setup()?;
    build::command(true)?;
    let mut test = cargo();
    test.args(["test", "--no-fail-fast"])
        .args(arguments)
        .env("PATHTRACE_BIN", root().join("target/release/pathtrace"));
    say("Running every test, in network namespaces of its own");
    let (counts, success) = run(&mut test)?;
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.ignored);
    if !success {
        bail!("{} tests failed; see above", counts.failed);
    }
    Ok(())
}

fn run(test: &mut Command) -> Result<(Counts, bool)> {
    let mut child = test.stdout(Stdio::piped()).spawn().with_context(|| format!("start {test:?}"))?;
    let stdout = child.stdout.take().context("cargo test has no stdout")?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        counts.add(&line);
    }
    Ok((counts, child.wait()?.success()))
}

impl Counts {
    /// Adds a line such as `test result: ok. 8 passed; 0 failed; 1 ignored; ...`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(number) = pair[0].parse::<u32>() else { continue };
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
    use super::Counts;

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
}
