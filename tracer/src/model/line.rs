//! The four kinds of JSON line.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Journey;

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line {
    Start(Start),
    Journey(Box<Journey>),
    Notice(Notice),
    Summary(Summary),
}

/// Said once, when every probe is in place: traffic from here on is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Start {
    pub version: String,
    pub kernel: String,
    /// Inode numbers of the traced namespaces.
    pub netns: Vec<u32>,
    /// Probes in use, by catalogue name.
    pub probes: Vec<String>,
    /// What will not be shown, and why; one line each.
    pub missing: Vec<String>,
    /// Milliseconds from the start of the process until ready.
    pub ready_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoticeLevel {
    Info,
    Warning,
}

/// Something that happened to the trace itself: a namespace vanished, the ruleset changed, events were lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Notice {
    pub level: NoticeLevel,
    pub message: String,
}

/// The account of a whole trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub journeys: u64,
    pub by_result: BTreeMap<String, u64>,
    pub by_reason: BTreeMap<String, u64>,
    /// Deciding rule of a bad journey (`filter FORWARD #3: text`), or the policy that decided.
    pub by_rule: BTreeMap<String, u64>,
    pub by_finding: Vec<SummaryFinding>,
    pub events_received: u64,
    pub events_lost: u64,
    /// Where events were lost (counter name), only those that are not 0.
    pub lost_where: BTreeMap<String, u64>,
    /// Journeys that were not shown (`--drops`, `--count`), by cause.
    pub not_shown: BTreeMap<String, u64>,
    /// Whether anything was left out: events lost, journeys closed early.
    pub complete: bool,
    pub duration_ms: u64,
}

/// Count and first example of a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SummaryFinding {
    pub code: String,
    pub count: u64,
    /// Journey id of the first example.
    pub first: u64,
    pub summary: String,
}
