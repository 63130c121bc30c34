//! Journeys that have ended and wait to be attributed: for iptables-legacy, what the kernel side saw of the ruleset
//! is certain only once the whole of it was seen unchanged again (see `rules::live::Content`).

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    correlate::{Draft, DraftStage},
    model::Backend,
    rules::late::LateTexts,
};

/// Journeys that wait at most.
const MOST: usize = 2_048;

/// Nanoseconds after which texts are not waited for any more: their tools have been killed by then, or their namespace
/// has gone.
const TEXT_PATIENCE: u64 = 11_000_000_000;

/// A finished journey.
pub(super) struct Ended {
    pub(super) draft: Draft,
    /// When its last record was read (nanoseconds of CLOCK_MONOTONIC).
    pub(super) read: u64,
    /// Rule texts that were still being read when it ended.
    texts: Vec<Arc<LateTexts>>,
}

/// In the order of their ends.
#[derive(Default)]
pub(super) struct Waiting(VecDeque<Ended>);

impl Waiting {
    /// `texts`: those that are being read at this moment.
    pub(super) fn add(&mut self, drafts: Vec<Draft>, now: u64, texts: &[Arc<LateTexts>]) {
        let ended = |draft| Ended { draft, read: now, texts: texts.to_vec() };
        self.0.extend(drafts.into_iter().map(ended));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.0.len() >= MOST
    }

    /// When the packet came that was first of them; nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.iter().map(|ended| ended.draft.time).min()
    }

    /// Namespaces whose rulesets they wait for.
    pub(super) fn netns(&self) -> BTreeSet<u32> {
        self.0.iter().flat_map(|ended| legacy_in(&ended.draft)).collect()
    }

    /// Texts that any of them waits for.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Arc<LateTexts>> {
        self.0.iter().flat_map(|ended| &ended.texts).filter(|texts| texts.is_pending())
    }

    /// Those that need not wait at `now`, up to the first that must.
    pub(super) fn ready(&mut self, now: u64) -> Vec<Ended> {
        self.until(|ended| awaits_texts(ended, now) || must_wait(&ended.draft))
    }

    /// As [`Waiting::ready`], when the rulesets have just been looked at.
    pub(super) fn ready_after_look(&mut self, now: u64) -> Vec<Ended> {
        self.until(|ended| awaits_texts(ended, now))
    }

    /// All of them.
    pub(super) fn all(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.0).into()
    }

    fn until(&mut self, must_wait: impl Fn(&Ended) -> bool) -> Vec<Ended> {
        let ready = self.0.iter().position(must_wait).unwrap_or(self.0.len());
        self.0.drain(..ready).collect()
    }
}

fn awaits_texts(ended: &Ended, now: u64) -> bool {
    now.saturating_sub(ended.read) < TEXT_PATIENCE && ended.texts.iter().any(|texts| texts.is_pending())
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
