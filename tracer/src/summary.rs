//! The account of a trace: what was seen, what was lost, what was not shown. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::model::{
    Backend, DecidedBy, Finding, Journey, NetfilterStage, OutcomeKind, ProgramStage, StageKind, Summary,
    SummaryFinding, Verdict,
};

/// Whether a journey reached the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// In full, or counted as a repeat of one that was shown in full.
    Yes,
    /// It ended well, and only bad ends were asked for.
    NotBad,
    /// It ended after the last one that was asked for.
    AfterCount,
}

impl Shown {
    /// Key in [`Summary::not_shown`].
    fn cause(self) -> Option<&'static str> {
        match self {
            Self::Yes => None,
            Self::NotBad => Some("neither dropped nor rejected (--drops)"),
            Self::AfterCount => Some("after the last one asked for (--count)"),
        }
    }
}

/// What the kernel side counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Events {
    pub received: u64,
    /// By place; those that are 0 are left out of the summary.
    pub lost: BTreeMap<String, u64>,
}

/// Adds journeys up.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    journeys: u64,
    by_result: BTreeMap<OutcomeKind, u64>,
    by_reason: BTreeMap<String, u64>,
    by_rule: BTreeMap<String, u64>,
    by_finding: BTreeMap<&'static str, SummaryFinding>,
    not_shown: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn add(&mut self, journey: &Journey, shown: Shown) {
        self.journeys += 1;
        *self.by_result.entry(journey.outcome.result).or_default() += 1;
        if let Some(reason) = journey.outcome.reason.as_ref().filter(|_| journey.outcome.result.is_bad()) {
            *self.by_reason.entry(reason.clone()).or_default() += 1;
        }
        if let Some(stage) = fatal_stage(journey) {
            *self.by_rule.entry(decider_with_text(stage)).or_default() += 1;
        }
        if let Some(program) = journey.fatal_program() {
            *self.by_rule.entry(program_decider(program)).or_default() += 1;
        }
        for finding in &journey.findings {
            self.add_finding(finding, journey.id);
        }
        if let Some(cause) = shown.cause() {
            *self.not_shown.entry(cause).or_default() += 1;
        }
    }

    fn add_finding(&mut self, finding: &Finding, journey: u64) {
        let first = || SummaryFinding {
            code: finding.code.to_owned(),
            count: 0,
            first: journey,
            summary: finding.summary.clone(),
        };
        self.by_finding.entry(finding.code).or_insert_with(first).count += 1;
    }

    /// Closes the account of a trace that lasted `duration`. Findings come most frequent first.
    #[must_use]
    pub fn finish(self, events: Events, duration: Duration) -> Summary {
        let lost_where: BTreeMap<String, u64> = events.lost.into_iter().filter(|(_, n)| *n > 0).collect();
        let events_lost = lost_where.values().sum();
        let mut by_finding: Vec<SummaryFinding> = self.by_finding.into_values().collect();
        by_finding.sort_by_key(|finding| (std::cmp::Reverse(finding.count), finding.first));
        Summary {
            journeys: self.journeys,
            complete: events_lost == 0 && !self.by_result.contains_key(&OutcomeKind::Incomplete),
            by_result: self.by_result.into_iter().map(|(kind, n)| (kind.name().to_owned(), n)).collect(),
            by_reason: self.by_reason,
            by_rule: self.by_rule,
            by_finding,
            events_received: events.received,
            events_lost,
            lost_where,
            not_shown: self.not_shown.into_iter().map(|(cause, n)| (cause.to_owned(), n)).collect(),
            duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// The table that ended a bad journey, if one did: the kernel can also drop what the last table let pass.
pub(crate) fn fatal_stage(journey: &Journey) -> Option<&NetfilterStage> {
    let index = journey.outcome.stage.filter(|_| journey.outcome.result.is_bad())?;
    match &journey.stages.get(index)?.kind {
        StageKind::Netfilter(stage) => {
            Some(stage).filter(|stage| matches!(stage.verdict, Some(Verdict::Drop | Verdict::Reject)))
        }
        StageKind::Device(_) | StageKind::Route(_) | StageKind::Program(_) => None,
    }
}

/// What decided, in the user's terms: `filter DOCKER #1`, `filter FORWARD policy`, `inet fw input #3`.
pub(crate) fn decider(stage: &NetfilterStage) -> String {
    let table = table_name(stage);
    let chain = stage.chain.as_deref().unwrap_or_else(|| stage.hook.iptables_name());
    match (stage.decided_by, stage.rules.last()) {
        (Some(DecidedBy::Rule), Some(rule)) => format!("{table} {} #{}", rule.chain, rule.position),
        (Some(DecidedBy::Policy), _) => format!("{table} {chain} policy"),
        (Some(DecidedBy::Mapping), _) => format!("{table} mapping"),
        (Some(DecidedBy::Rule) | None, _) => format!("{table} {chain}"),
    }
}

/// `XDP drop_port (program 12) on eth0`
pub(crate) fn program_decider(program: &ProgramStage) -> String {
    format!("{} {} on {}", program.program_type.name(), program.label(), program.device)
}

fn decider_with_text(stage: &NetfilterStage) -> String {
    let decider = decider(stage);
    let rule = stage.rules.last().filter(|_| stage.decided_by == Some(DecidedBy::Rule));
    match rule.and_then(|rule| rule.text.as_deref()) {
        Some(text) => format!("{decider}: {text}"),
        None => decider,
    }
}

/// `filter` for iptables, `inet fw` for nftables, whose tables need their family to be told apart.
pub(crate) fn table_name(stage: &NetfilterStage) -> String {
    match stage.backend {
        Some(Backend::Nftables) => format!("{} {}", stage.family.name(), stage.table),
        Some(Backend::IptablesLegacy | Backend::IptablesNft) | None => stage.table.clone(),
    }
}
