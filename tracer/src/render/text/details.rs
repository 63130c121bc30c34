//! What stands under a row: the rule in the user's words, the addresses that changed, what is not certain.

use crate::model::{DecidedBy, DeviceStage, MatchedRule, NetfilterStage};

use super::{page::Ink, rows::is_doubtful, walk};

/// A labelled line under a row.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) label: &'static str,
    pub(super) text: String,
    pub(super) ink: Ink,
}

impl Detail {
    fn new(label: &'static str, ink: Ink, text: impl Into<String>) -> Self {
        Self { label, text: text.into(), ink }
    }
}

/// What others do on a device, but those programs whose verdict is shown (by number).
pub(super) fn of_device(device: &DeviceStage, judged_by: &[u32]) -> Vec<Detail> {
    let is_shown = |program: &str| {
        let is =
            |id| program.contains(&format!("(program {id},")) || program.contains(&format!("(program {id})"));
        judged_by.iter().any(is)
    };
    let unseen = device.programs.iter().map(String::as_str).filter(|program| !is_shown(program));
    let unseen: Vec<&str> = unseen.collect();
    if unseen.is_empty() {
        return Vec::new();
    }
    let text = format!("programs of others judge on {}: {}", device.device, unseen.join(", "));
    vec![Detail::new("note", Ink::Doubt, text)]
}

/// What is known of a table's judgement.
pub(super) fn of_table(stage: &NetfilterStage, verbose: bool) -> Vec<Detail> {
    let mut details = if verbose { every_rule(stage) } else { deciding_rule(stage) };
    details.extend(stage.mapping_rule.as_ref().map(|rule| Detail::new("rule", Ink::Quote, quote(rule))));
    details.extend(changes(stage));
    if is_doubtful(stage) {
        let why = stage.inexact_because.as_deref().unwrap_or("the matched rules are not known for certain");
        details.push(Detail::new("~", Ink::Doubt, format!("not certain: {why}")));
    }
    details
}

/// The rule that decided, and those that did something on the way.
fn deciding_rule(stage: &NetfilterStage) -> Vec<Detail> {
    let mut details = Vec::new();
    let (passed, decider) = match (stage.decided_by, stage.rules.split_last()) {
        (Some(DecidedBy::Rule) | None, Some((last, passed))) => (passed, Some(last)),
        _ => (stage.rules.as_slice(), None),
    };
    if let Some(rule) = decider {
        details.push(Detail::new("rule", Ink::Quote, quote(rule)));
    }
    let side_effects: Vec<String> = walk::side_effects(passed)
        .map(|(rule, action)| format!("{} #{} {action}", rule.chain, rule.position))
        .collect();
    if !side_effects.is_empty() {
        details.push(Detail::new("also", Ink::Plain, side_effects.join(", ")));
    }
    details
}

fn every_rule(stage: &NetfilterStage) -> Vec<Detail> {
    let name = |rule: &MatchedRule| match rule.handle {
        Some(handle) => format!("{} #{} (handle {handle})", rule.chain, rule.position),
        None => format!("{} #{}", rule.chain, rule.position),
    };
    let width = stage.rules.iter().map(|rule| name(rule).chars().count()).max().unwrap_or(0);
    let line = |rule| Detail::new("rule", Ink::Quote, format!("{:width$}  {}", name(rule), quote(rule)));
    stage.rules.iter().map(line).collect()
}

fn quote(rule: &MatchedRule) -> String {
    match (&rule.text, &rule.action) {
        (Some(text), _) => text.clone(),
        (None, Some(action)) => format!("{action} (its text could not be read)"),
        (None, None) => "its text could not be read".to_owned(),
    }
}

/// The addresses and ports that the table rewrote, and only those.
fn changes(stage: &NetfilterStage) -> Vec<Detail> {
    let (before, after) = (stage.before, stage.after);
    let ends = [
        ("src", before.source_text(), after.source_text()),
        ("dst", before.destination_text(), after.destination_text()),
    ];
    let changed = ends.into_iter().filter(|(_, old, new)| old != new);
    changed.map(|(label, old, new)| Detail::new(label, Ink::Change, format!("{old} => {new}"))).collect()
}
