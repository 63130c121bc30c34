//! docs/compatibility.md, from what machines printed. Results are kept beside the build, so that a page can be made of
//! several runs; each says which commit it is of.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{groups::Group, kernels::Release, table::Field};
use crate::shell::{printed, root, say};

/// Results by kernel and group.
#[derive(Debug)]
pub(super) struct Results {
    all: Map<String, Value>,
    /// What is tested in this run: the checkout may move on while machines run.
    commit: Option<String>,
}

impl Results {
    fn file() -> PathBuf {
        root().join("target/vm-test.json")
    }

    /// Those kept from before; none where there are none. To be called when the binaries have just been built.
    pub(super) fn load() -> Self {
        let text = fs::read_to_string(Self::file()).unwrap_or_default();
        let commit = printed(Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(root()));
        Self { all: serde_json::from_str(&text).unwrap_or_default(), commit }
    }

    /// Takes in a result and keeps all. Runs of chosen tests only are not to be given.
    pub(super) fn keep(&mut self, field: &Field, version: &str) -> Result<()> {
        self.all.insert(
            key(field.release, field.group),
            json!({
                "text": field.text(), "details": field.details(), "version": version, "commit": self.commit,
                "doctor": field.tally.doctor,
            }),
        );
        fs::write(Self::file(), serde_json::to_string_pretty(&self.all)?).context("keep the results")
    }

    /// Writes the page.
    pub(super) fn write_page(&self) -> Result<()> {
        let page = root().join("docs/compatibility.md");
        fs::write(&page, self.page())?;
        say(&format!("Wrote {}", page.display()));
        Ok(())
    }

    fn of(&self, release: Release, group: Group) -> Option<&Value> {
        self.all.get(&key(release, group))
    }

    fn page(&self) -> String {
        let mut text = String::from(INTRODUCTION);
        self.features(&mut text);
        text += "\n## What was tested\n\n| kernel |";
        for group in Group::SHOWN {
            _ = write!(text, " {} |", group.name());
        }
        text += "\n|---|";
        text += &"---|".repeat(Group::SHOWN.len());
        text.push('\n');
        let mut details = String::new();
        for release in Release::ALL {
            _ = write!(text, "| {release} |");
            for group in Group::SHOWN {
                let result = self.of(release, group);
                let words = |name: &str| result.and_then(|found| found[name].as_str()).unwrap_or_default();
                let commit = words("commit");
                match result {
                    Some(_) => _ = write!(text, " {} ({commit}) |", words("text")),
                    None => text += " not run |",
                }
                details += words("details");
            }
            text.push('\n');
        }
        text += "\nIn parentheses the commit that was tested.\n";
        if !details.is_empty() {
            _ = write!(text, "\n```text\n{}\n```\n", details.trim_end());
        }
        text
    }

    /// Doctor's items of the kernel and its probes, by kernel.
    fn features(&self, text: &mut String) {
        let mut rows: Vec<Row> = Vec::new();
        for (column, release) in Release::ALL.into_iter().enumerate() {
            let items = self.of(release, Group::Doctor).and_then(|found| found["doctor"]["items"].as_array());
            for item in items.into_iter().flatten().filter(|item| is_feature(item)) {
                let summary = item["summary"].as_str().unwrap_or_default();
                let name = summary.split(" is missing").next().unwrap_or(summary);
                let (name, purpose) = name.split_once(": ").unwrap_or((name, ""));
                let at = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
                    let evidence = item["evidence"][0].as_str().unwrap_or(purpose);
                    rows.push(Row { name, purpose, evidence, cells: ["-"; Release::ALL.len()] });
                    rows.len() - 1
                });
                rows[at].cells[column] = if item["level"] == "ok" { "yes" } else { "no" };
                if rows[at].purpose.is_empty() {
                    rows[at].purpose = purpose;
                }
            }
        }
        text.push_str("| `pathtrace doctor` says | what for |");
        for release in Release::ALL {
            let version = self.of(release, Group::Doctor).and_then(|found| found["version"].as_str());
            _ = write!(text, " {release} ({}) |", version.unwrap_or("not run"));
        }
        _ = write!(text, "\n|---|---|{}\n", "---|".repeat(Release::ALL.len()));
        // What is named only where it is missing is no feature.
        let (complaints, features): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.cells.contains(&"-") && !row.cells.contains(&"yes"));
        for row in features {
            _ = writeln!(text, "| {} | {} | {} |", row.name, row.purpose, row.cells.join(" | "));
        }
        for row in complaints {
            let of = Release::ALL.iter().zip(row.cells).filter(|(_, cell)| *cell == "no");
            let kernels: Vec<String> = of.map(|(release, _)| release.to_string()).collect();
            _ = write!(text, "\n{}: {} is missing: {}.\n", kernels.join(", "), row.name, row.evidence);
        }
    }
}

/// One feature on all kernels.
struct Row<'a> {
    name: &'a str,
    purpose: &'a str,
    /// What the first kernel that names it says besides.
    evidence: &'a str,
    cells: [&'static str; Release::ALL.len()],
}

/// Versions, and what only this moment's rules bring, are no features.
fn is_feature(item: &Value) -> bool {
    matches!(item["section"].as_str(), Some("kernel" | "probes")) && item["level"] != "info"
}

fn key(release: Release, group: Group) -> String {
    format!("{release} {}", group.name())
}

const INTRODUCTION: &str = "# Kernels\n\n\
    Made by `cargo xtask vm-test --page` from what Debian's kernels printed in virtual machines; not written by hand.\n\
    5.10 is Debian 11's, 6.1 is Debian 12's, 6.12 is Debian 13's, 7.2 comes from its backports.\n\n\
    ## What each kernel offers\n\n";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Map, Results, Value};

    #[test]
    fn features_are_one_row_each_and_what_did_not_run_says_so() {
        let doctor = |level: &str, summary: &str| {
            let part = json!({"section": "probes", "level": "warning", "summary": "a part is missing: rules",
                "evidence": ["no types"]});
            json!({"items": [{"section": "probes", "level": level, "code": "probe", "summary": summary},
                if level == "ok" { Value::Null } else { part },
                {"section": "kernel", "level": "info", "code": "kernel", "summary": "6.1.0"}]})
        };
        let mut all = Map::new();
        for (key, doctor) in [
            ("6.1 doctor", doctor("warning", "netfilter links is missing: rules")),
            ("6.12 doctor", doctor("ok", "netfilter links: the packet before each table")),
        ] {
            all.insert(
                key.to_owned(),
                json!({"text": "1 passed", "details": "", "version": "v", "commit": "abc", "doctor": doctor}),
            );
        }
        let page = Results { all, commit: None }.page();
        assert!(page.contains("\n6.1: a part is missing: no types.\n"), "{page}");
        let row = "| netfilter links | the packet before each table | - | no | yes | - |";
        assert!(page.contains(row), "{page}");
        assert!(page.contains("| 6.1 | 1 passed (abc) | not run |"), "{page}");
    }
}
