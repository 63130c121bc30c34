//! What became of each group on each kernel, from the lines that test binaries print.

use std::fmt::Write as _;

use serde_json::Value;

use super::{groups::Group, kernels::Release, machine::Ended};

/// Tests of one group on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u32,
    /// What the binaries say at their ends. Other output may stand in the lines of single tests.
    summed: u32,
    failed: Vec<String>,
    ignored: u32,
    /// What `pathtrace doctor --json` said.
    pub(super) doctor: Option<Value>,
}

impl Tally {
    /// Takes in a failure; what follows its first line is shown below it.
    pub(super) fn fail(&mut self, what: String) {
        self.failed.push(what);
    }

    /// Takes in a line such as `test trace/publish-ok/nft/ipv4 ... ok`; other lines change nothing.
    pub(super) fn add(&mut self, line: &str) {
        if line.starts_with("{\"type\":\"doctor\"") {
            self.doctor = serde_json::from_str(line).ok();
        }
        if let Some(sum) = line.strip_prefix("test result: ") {
            let passed = sum.split_once(" passed").and_then(|(before, _)| before.split(' ').next_back());
            self.summed += passed.and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
            return;
        }
        let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        match result.split([',', ' ']).next() {
            Some("ok") => self.passed += 1,
            Some("ignored") => self.ignored += 1,
            Some("FAILED") => self.failed.push(name.trim().to_owned()),
            _ => {}
        }
    }

    fn passed(&self) -> u32 {
        self.passed.max(self.summed)
    }
}

/// One field of the table.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) release: Release,
    pub(super) group: Group,
    pub(super) tally: Tally,
    pub(super) ended: Ended,
    /// In seconds, boot included.
    pub(super) took: u64,
}

impl Field {
    /// All that should run ran and passed.
    pub(super) fn good(&self) -> bool {
        self.ended.success() && self.tally.failed.is_empty() && self.tally.passed() > 0
    }

    /// What stands in the table.
    pub(super) fn text(&self) -> String {
        let mut text = format!("{} passed", self.tally.passed());
        if !self.tally.failed.is_empty() {
            _ = write!(text, ", {} FAILED", self.tally.failed.len());
        }
        match &self.ended {
            Ended::Died(_) => text += ", DIED",
            Ended::Hung(..) => text += ", HUNG",
            Ended::Status(_) if !self.good() && self.tally.failed.is_empty() => text += ", FAILED",
            Ended::Status(_) => {}
        }
        _ = write!(text, ", {} s", self.took);
        text
    }

    /// Failures and skips, one a line.
    pub(super) fn details(&self) -> String {
        let place = format!("{} {}", self.release, self.group.name());
        let mut text = String::new();
        for name in &self.tally.failed {
            _ = writeln!(text, "failed  {place}: {}", name.replace('\n', "\n        "));
        }
        if matches!(self.ended, Ended::Died(_) | Ended::Hung(..)) {
            _ = writeln!(text, "ended   {place}: {}", self.ended);
        } else if !self.good() && self.tally.failed.is_empty() {
            _ = writeln!(text, "failed  {place}: {}, {} tests ran", self.ended, self.tally.passed());
        }
        for (name, why) in self.group.impossible(self.release) {
            _ = writeln!(text, "skipped {place}: {name}: {why}");
        }
        if self.tally.ignored > 0 {
            _ = writeln!(text, "skipped {place}: {} tests marked `ignore`", self.tally.ignored);
        }
        text
    }
}

/// Kernels down, groups across; then each failure and each skip with its reason; then one line that counts.
pub(super) fn show(fields: &[Field]) -> String {
    let mut text = String::new();
    let groups: Vec<Group> =
        Group::SHOWN.into_iter().filter(|group| fields.iter().any(|field| field.group == *group)).collect();
    let releases = Release::ALL.into_iter().filter(|r| fields.iter().any(|field| field.release == *r));
    _ = write!(text, "{:8}", "kernel");
    for group in &groups {
        _ = write!(text, "{:32}", group.name());
    }
    text.push('\n');
    for release in releases {
        _ = write!(text, "{release:8}");
        for group in &groups {
            let field = fields.iter().find(|field| field.release == release && field.group == *group);
            _ = write!(text, "{:32}", field.map_or_else(|| "not run".to_owned(), Field::text));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for field in fields {
        text += &field.details();
    }
    let Counts { passed, failed, skipped } = counts(fields);
    _ = write!(text, "{passed} passed, {failed} failed, {skipped} skipped");
    text
}

/// Tests of all groups on all kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    /// A machine that died or ran nothing is one, too.
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

/// Adds all up.
pub(super) fn counts(fields: &[Field]) -> Counts {
    let sum = |count: fn(&Field) -> usize| fields.iter().map(count).sum::<usize>();
    Counts {
        passed: sum(|field| field.tally.passed() as usize),
        failed: sum(|field| field.tally.failed.len().max(usize::from(!field.good()))),
        skipped: sum(|field| field.tally.ignored as usize + field.group.impossible(field.release).len()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Ended, Field, Group, Release, Tally, show};

    fn field(release: Release, lines: &[&str], ended: Ended) -> Field {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.add(line));
        Field { release, group: Group::Live, tally, ended, took: 7 }
    }

    #[test]
    fn the_table_counts_what_passed_and_names_what_failed() {
        let fields = [
            field(Release::V6_1, &["test a ... ok", "test b ... FAILED", "noise ... ok"], Ended::Status(1)),
            field(Release::V6_12, &["test a ... ok", "test b  ... ok"], Ended::Status(0)),
        ];
        assert!(!fields[0].good() && fields[1].good());
        let text = show(&fields);
        assert!(text.contains("6.1     1 passed, 1 FAILED, 7 s"), "{text}");
        assert!(text.contains("failed  6.1 live: b\n"), "{text}");
        assert!(text.ends_with("3 passed, 1 failed, 0 skipped"), "{text}");
    }

    #[test]
    fn other_output_in_the_lines_of_tests_hides_none_of_them() {
        let lines = [
            "test a ... ok",
            "test b ... okdocker: a daemon",
            "test result: ok. 2 passed; 0 failed; 0 ignored",
        ];
        assert!(field(Release::V6_1, &lines, Ended::Status(0)).text().starts_with("2 passed"));
    }

    #[test]
    fn a_machine_that_died_or_ran_nothing_is_a_failure() {
        let died = field(Release::V7_2, &["test a ... ok"], Ended::Died("panic".to_owned()));
        let empty = field(Release::V6_1, &[], Ended::Status(0));
        assert!(!died.good() && !empty.good());
        let text = show(&[died, empty]);
        assert!(text.contains("panic") && text.ends_with("1 passed, 2 failed, 0 skipped"), "{text}");
    }
}
