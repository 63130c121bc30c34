//! The account at the end of a trace.

use std::collections::BTreeMap;

use crate::model::Summary;

use super::{
    page::{Ink, Page},
    words::{self, WIDTH},
};

/// Columns before the text.
const INDENT: usize = 12;

pub(super) fn summary(page: &mut Page, summary: &Summary) {
    let seconds = summary.duration_ms as f64 / 1000.0;
    let journeys = if summary.journeys == 1 { "journey" } else { "journeys" };
    page.ink(Ink::Strong, format_args!("Summary: {} {journeys} in {seconds:.1} s", summary.journeys))
        .end_line();
    joined(page, "result", &summary.by_result);
    joined(page, "reason", &summary.by_reason);
    listed(page, "ended by", by_count(&summary.by_rule).map(|(rule, count)| format!("{count} x {rule}")));
    let findings = summary.by_finding.iter().map(|finding| {
        format!("{} x {}, first #{}: {}", finding.count, finding.code, finding.first, finding.summary)
    });
    listed(page, "finding", findings);
    joined(page, "not shown", &summary.not_shown);
    events(page, summary);
}

fn events(page: &mut Page, summary: &Summary) {
    label(page, "events");
    page.put(format_args!("{} received, ", summary.events_received));
    if summary.events_lost == 0 {
        page.put("none lost").end_line();
    } else {
        page.ink(Ink::Bad, format_args!("{} LOST", summary.events_lost));
        page.put(format_args!(" ({})", counts(&summary.lost_where).join(", "))).end_line();
    }
    if !summary.complete {
        label(page, "");
        page.ink(Ink::Doubt, "not the whole picture: events were lost, or journeys had no end yet")
            .end_line();
    }
}

fn label(page: &mut Page, label: &str) {
    page.ink(Ink::Faint, format_args!("  {label:width$}", width = INDENT - 2));
}

/// Short counts on as few lines as they need.
fn joined(page: &mut Page, name: &str, counted: &BTreeMap<String, u64>) {
    let parts = counts(counted);
    let lines = words::fill(parts.iter().map(String::as_str), ", ", WIDTH - INDENT);
    listed(page, name, lines);
}

fn counts(counted: &BTreeMap<String, u64>) -> Vec<String> {
    by_count(counted).map(|(name, count)| format!("{count} {name}")).collect()
}

/// The most frequent first, equals by name.
fn by_count(counted: &BTreeMap<String, u64>) -> impl Iterator<Item = (&str, u64)> {
    let mut all: Vec<(&str, u64)> = counted.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    all.into_iter()
}

fn listed(page: &mut Page, name: &str, lines: impl IntoIterator<Item = String>) {
    for (index, line) in lines.into_iter().enumerate() {
        label(page, if index == 0 { name } else { "" });
        page.put(line).end_line();
    }
}
