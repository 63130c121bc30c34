//! The walk through one table, from the counters that moved and the rules that were seen to match.

use std::sync::Arc;

use tracer_common::records::{HITS_CPU_CHANGED, HITS_OVERWRITTEN, HITS_STALE, Hit};

use crate::{
    correlate::DraftTable,
    model::{Backend, RulesSource, Tuple},
    plan::Judge,
    rules::{
        index::{ChainRef, TableIndex},
        path::{Fate, Inexact, Walk, solve, solve_seen},
        probes::Observed,
    },
};

/// One table's judgement of one packet.
pub(super) struct Judgement<'a> {
    pub(super) table: &'a DraftTable,
    pub(super) judge: &'a Judge,
    pub(super) index: &'a TableIndex,
    pub(super) base: ChainRef,
    pub(super) before: Tuple,
    /// What stands behind it in the gap.
    pub(super) rest: &'a [&'a DraftTable],
}

impl Judgement<'_> {
    /// The walk, given what became of the packet in the gap, and who told it. `read` is when its last record was read;
    /// `skipped`: probes may have been left out meanwhile, and so may a match.
    pub(super) fn walk(&self, read: u64, skipped: bool) -> (Walk, RulesSource) {
        let (hits, flags) = match &self.table.hits {
            Some(event) => (&*event.hits, event.flags),
            None if self.table.changed_cpu => (&[][..], HITS_CPU_CHANGED),
            None => (&[][..], HITS_OVERWRITTEN),
        };
        // The kernel side compares an address, where memory that was freed may hold other rules by now.
        let sure = self.index.backend != Backend::IptablesLegacy || self.judge.texts.stood_at(read);
        let flags = if sure { flags } else { flags | HITS_STALE };
        let counted = self.solved(hits, flags, None);
        let parts = self.table.parts.as_ref().filter(|_| self.index.probes.tell_more() && !skipped);
        let Some(seen) = parts.and_then(|parts| self.index.probes.observe(parts)) else {
            return (counted, RulesSource::Counters);
        };
        let probed = self.solved(hits, flags, Some(&seen));
        match (counted.is_exact(), probed.is_exact()) {
            (_, false) => (counted, RulesSource::Counters),
            (true, true) if counted != probed => {
                (Walk { inexact: Some(Inexact::Contradiction), ..probed }, RulesSource::Probes)
            }
            (_, true) => (probed, RulesSource::Probes),
        }
    }

    fn solved(&self, hits: &[Hit], flags: u32, seen: Option<&Observed<'_>>) -> Walk {
        let (table, rest) = (self.table, self.rest);
        let solve = |fate| match seen {
            Some(seen) => solve_seen(self.index, self.base, hits, flags, fate, seen),
            None => solve(self.index, self.base, hits, flags, fate),
        };
        let last_nat = self.judge.nat && rest.iter().all(|other| !other.gap.judges[other.judge].nat);
        if table.fate == Fate::Passed && last_nat && self.before != table.after {
            return solve(Fate::Translated);
        }
        if table.fate != Fate::Dropped {
            return solve(table.fate);
        }
        // Somebody in the gap dropped it. A table behind this one that it came to shows that this one let it pass.
        if rest.iter().any(|other| self.was_come_to(other)) {
            return solve(Fate::Passed);
        }
        let free = solve(Fate::Unknown);
        if free.is_exact() {
            return free;
        }
        solve(if rest.is_empty() { Fate::Dropped } else { Fate::Unknown })
    }
    /// Whether the packet came to a rule of this other table, by what is known.
    fn was_come_to(&self, other: &DraftTable) -> bool {
        let moved = other.hits.as_ref().is_some_and(|event| !event.hits.is_empty());
        let mine = self.judge.table.as_ref().map(|(index, _)| index);
        let index = other.gap.judges[other.judge].table.as_ref().map(|(index, _)| index);
        // Of a table with two chains here it is not known which of them it was.
        let seen = index.filter(|index| mine.is_none_or(|mine| !Arc::ptr_eq(mine, index)));
        let seen =
            seen.is_some_and(|index| other.parts.as_ref().is_some_and(|parts| index.probes.have_seen(parts)));
        moved || seen
    }
}
