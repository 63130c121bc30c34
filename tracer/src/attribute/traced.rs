//! Where counters leave a walk open, the kernel's own trace may tell it.

use crate::{
    correlate::{DraftTable, Looks},
    model::{RulesSource, Tuple},
    rules::{
        index::{ChainRef, TableIndex},
        nftrace::{Headers, Passages, Place, told},
        path::{Fate, Walk, agrees},
    },
};

/// The kernel's account of one packet in one gap between two probes.
pub(super) struct Account<'a> {
    pub(super) passages: &'a mut Passages,
    pub(super) looks: Looks,
    pub(super) netns: u32,
    /// When the packet came to the gap, nanoseconds of CLOCK_MONOTONIC.
    pub(super) since: u64,
    /// When its last record was read, on the same clock.
    pub(super) read: u64,
    /// Between which times probes were left out.
    pub(super) skipped: Option<(u64, u64)>,
}

/// A walk, and who told it.
pub(super) struct Told {
    pub(super) walk: Walk,
    pub(super) source: RulesSource,
    /// Several packets that look alike were traced, and not all went the same way.
    pub(super) alike: bool,
}

impl Account<'_> {
    /// Whether probes may have been left out for this packet.
    pub(super) fn probes_skipped(&self) -> bool {
        self.skipped.is_some_and(|(from, to)| from <= self.read && to >= self.since)
    }

    /// Completes `walk`, which its source told of `table`. With `shared`, other tables stand in the gap behind
    /// this one, any of which may have ended the packet.
    pub(super) fn complete(
        &mut self,
        table: &DraftTable,
        index: &TableIndex,
        base: ChainRef,
        before: Tuple,
        shared: bool,
        (walk, source): (Walk, RulesSource),
    ) -> Told {
        let counted = |walk, alike| Told { walk, source, alike };
        let Looks { family, protocol, ip_id, tcp_flags } = self.looks;
        let place = Place {
            netns: self.netns,
            family: index.family,
            table: index.name.clone(),
            chain: index.chains.get(base.0).map(|chain| chain.name.clone()).unwrap_or_default(),
            packet: Headers { family, protocol, tuple: before, ip_id, tcp_flags },
        };
        let heard = self.passages.find(&place, self.since).unwrap_or_default();
        let fate = if shared && table.fate == Fate::Dropped { Fate::Unknown } else { table.fate };
        let possible = |told: &Walk| {
            told.verdict.is_some_and(|verdict| fate.allows(verdict))
                && table
                    .hits
                    .as_ref()
                    .is_some_and(|event| agrees(index, &told.steps, &event.hits, event.flags))
        };
        let mut stories: Vec<_> = heard
            .into_iter()
            .filter_map(|passage| Some((told(index, base, passage)?, passage.steps.clone())))
            .filter(|(story, _)| possible(story) && (!walk.is_exact() || *story == walk))
            .collect();
        stories.dedup_by(|a, b| a.0 == b.0);
        match stories.as_slice() {
            [] => counted(walk, false),
            [(story, steps)] => {
                self.passages.take(&place, self.since, steps);
                if walk.is_exact() {
                    return counted(walk, false);
                }
                Told { walk: story.clone(), source: RulesSource::Nftrace, alike: false }
            }
            _ => counted(walk, true),
        }
    }
}
