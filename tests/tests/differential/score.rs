//! How often pathtrace is sure.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::shown::{Origin, Shown, origin};

/// How many of the walks that were not shown are printed.
const MOST_SHOWN: usize = 2;

/// What one round showed.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// Walks that were called exact and are not what the kernel told.
    pub(crate) wrong: Vec<String>,
    forwarded: Share,
    local: Share,
    incoming: Share,
    /// Walks that were shown and of which the kernel's trace tells nothing at all: its log drops messages under load
    /// (`nfnetlink_log` has no more room) without a word.
    pub(crate) unwitnessed: usize,
    /// Why walks were not exact.
    reasons: BTreeMap<String, u64>,
    /// Stories of the kernel that no journey told.
    pub(crate) untold: usize,
    pub(crate) untold_stories: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Share {
    all: u64,
    exact: u64,
}

impl Share {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.exact += other.exact;
    }

    fn percent(self) -> f64 {
        if self.all == 0 { 100.0 } else { 100.0 * self.exact as f64 / self.all as f64 }
    }
}

impl Round {
    pub(crate) fn journey(&mut self, journey: &Value, judgements: &[Shown]) {
        if judgements.is_empty() {
            return;
        }
        let share = match origin(journey) {
            Origin::Forwarded => &mut self.forwarded,
            Origin::Local => &mut self.local,
            Origin::Incoming => &mut self.incoming,
        };
        let exact = judgements.iter().all(|shown| shown.exact);
        share.add(Share { all: 1, exact: u64::from(exact) });
        for shown in judgements.iter().filter(|shown| !shown.exact) {
            let reason = shown.stage["inexact_because"].as_str().unwrap_or("no reason given");
            *self.reasons.entry(reason.to_owned()).or_default() += 1;
        }
    }
}

pub(crate) struct Score {
    name: String,
    rounds: u64,
    sum: Round,
}

impl Score {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rounds: 0, sum: Round::default() }
    }

    pub(crate) fn add(&mut self, round: &Round) {
        self.rounds += 1;
        self.sum.forwarded.add(round.forwarded);
        self.sum.local.add(round.local);
        self.sum.incoming.add(round.incoming);
        self.sum.untold += round.untold;
        self.sum.unwitnessed += round.unwitnessed;
        self.sum.untold_stories.extend(round.untold_stories.iter().take(MOST_SHOWN).cloned());
        for (reason, times) in &round.reasons {
            *self.sum.reasons.entry(reason.clone()).or_default() += times;
        }
    }

    pub(crate) fn journeys(&self) -> u64 {
        self.sum.forwarded.all + self.sum.local.all + self.sum.incoming.all
    }

    /// Forwarded packets whose walk was exact.
    pub(crate) fn forwarded(&self) -> u64 {
        self.sum.forwarded.exact
    }

    pub(crate) fn print(&self) {
        let Round { forwarded, local, incoming, untold, unwitnessed, reasons, .. } = &self.sum;
        eprintln!(
            "{}: {} rounds; exact: {:.2} % of {} forwarded, {:.2} % of {} locally generated, {:.2} % of {} \
             incoming; {untold} walks of the kernel's trace not shown, {unwitnessed} shown without a word of it",
            self.name,
            self.rounds,
            forwarded.percent(),
            forwarded.all,
            local.percent(),
            local.all,
            incoming.percent(),
            incoming.all,
        );
        for story in self.sum.untold_stories.iter().take(MOST_SHOWN) {
            eprintln!("    not shown, as an example: {story}");
        }
        for (reason, times) in reasons {
            eprintln!("    {times} x {reason}");
        }
    }

    /// Percent of journeys that must be exact.
    pub(crate) fn demand(&self, forwarded: f64, local: f64) -> Result<()> {
        let Round { forwarded: shown_forwarded, local: shown_local, untold, unwitnessed, .. } = &self.sum;
        ensure!(shown_forwarded.all > 0 && shown_local.all > 0, "{}: too few packets", self.name);
        ensure!(
            shown_forwarded.percent() >= forwarded,
            "{}: forwarded {:.2} %",
            self.name,
            shown_forwarded.percent()
        );
        ensure!(shown_local.percent() >= local, "{}: local {:.2} %", self.name, shown_local.percent());
        ensure!(
            *unwitnessed == 0,
            "{}: {unwitnessed} walks were shown that the kernel did not tell",
            self.name
        );
        ensure!(*untold == 0, "{}: {untold} walks that the kernel told were not shown", self.name);
        Ok(())
    }
}
