//! Doctor's findings and how they are shown.

use std::fmt;

use serde::Serialize;

/// How much an item matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing is wrong.
    Info,
    /// Something will not be shown, or is likely to surprise.
    Warning,
    /// Tracing is not possible.
    Blocking,
}

/// What an item is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    Kernel,
    Probes,
    Hooks,
    Rules,
    Settings,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    pub section: Section,
    pub level: Level,
    /// Stable name.
    pub code: &'static str,
    pub summary: String,
    pub evidence: Vec<String>,
    pub fix: Option<String>,
}

/// The whole report; its serialized form is what `doctor --json` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "doctor")]
pub struct Report {
    pub items: Vec<Item>,
}

impl Report {
    /// Something stops tracing altogether: the exit code is 1.
    #[must_use]
    pub fn stops_tracing(&self) -> bool {
        self.items.iter().any(|item| item.level == Level::Blocking)
    }

    pub(super) fn add(
        &mut self,
        section: Section,
        level: Level,
        code: &'static str,
        summary: &str,
        evidence: &[String],
        fix: Option<&str>,
    ) {
        let clean = |text: &str| text.replace(char::is_control, "?");
        self.items.push(Item {
            section,
            level,
            code,
            summary: clean(summary),
            evidence: evidence.iter().map(|line| clean(line)).collect(),
            fix: fix.map(clean),
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut section = None;
        for item in &self.items {
            if section != Some(item.section) {
                let title = match item.section {
                    Section::Kernel => "Kernel",
                    Section::Probes => "Probes",
                    Section::Hooks => "Hooks, in the order in which they judge",
                    Section::Rules => "Rules",
                    Section::Settings => "Settings",
                };
                let gap = if section.is_some() { "\n" } else { "" };
                writeln!(f, "{gap}{title}")?;
                section = Some(item.section);
            }
            let mark = match item.level {
                Level::Ok => "ok  ",
                Level::Info => "    ",
                Level::Warning => "warn",
                Level::Blocking => "STOP",
            };
            writeln!(f, "  {mark}  {}", item.summary)?;
            for line in &item.evidence {
                writeln!(f, "        {line}")?;
            }
            if let Some(fix) = &item.fix {
                writeln!(f, "        fix: {fix}")?;
            }
        }
        Ok(())
    }
}
