//! Journeys that have ended and wait to be attributed: for iptables-legacy, what the kernel side saw of the ruleset
//! is certain only once the whole of it was seen unchanged again (see `rules::live::Content`).

use std::collections::{BTreeSet, VecDeque};

use crate::{
    correlate::{Draft, DraftStage},
    model::Backend,
};

/// A finished journey, and when its last record was read (nanoseconds of CLOCK_MONOTONIC).
pub(super) type Ended = (Draft, u64);

/// In the order of their ends.
#[derive(Default)]
pub(super) struct Waiting(VecDeque<Ended>);

impl Waiting {
    pub(super) fn add(&mut self, drafts: Vec<Draft>, now: u64) {
        self.0.extend(drafts.into_iter().map(|draft| (draft, now)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Namespaces whose rulesets they wait for.
    pub(super) fn netns(&self) -> BTreeSet<u32> {
        self.0.iter().flat_map(|(draft, _)| legacy_in(draft)).collect()
    }

    /// Those that need not wait, up to the first that must.
    pub(super) fn ready(&mut self) -> Vec<Ended> {
        let ready = self.0.iter().position(|(draft, _)| must_wait(draft)).unwrap_or(self.0.len());
        self.0.drain(..ready).collect()
    }

    /// All of them: the rulesets have just been looked at.
    pub(super) fn all(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.0).into()
    }
}

fn must_wait(draft: &Draft) -> bool {
    legacy_in(draft).next().is_some()
}

/// Namespaces in which a table of iptables-legacy judged the packet.
fn legacy_in(draft: &Draft) -> impl Iterator<Item = u32> {
    draft.stages.iter().filter_map(|timed| {
        let DraftStage::Table(table) = &timed.stage else { return None };
        let (index, _) = table.gap.judges[table.judge].table.as_ref()?;
        (table.hits.is_some() && index.backend == Backend::IptablesLegacy).then_some(timed.netns)
    })
}
