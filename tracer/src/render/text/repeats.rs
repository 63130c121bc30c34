//! Which journeys repeat one that was shown: the same flow and direction, the same places, rules and end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use jiff::Timestamp;

use crate::model::Journey;

/// Journeys remembered; the oldest is forgotten first, and shown in full when it comes again.
const REMEMBERED: usize = 8192;

/// Journeys like one that was shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repeats {
    pub(super) count: u64,
    pub(super) last: Timestamp,
    /// TCP flags that they had.
    pub(super) tcp_flags: BTreeSet<String>,
}

/// Counts repeats.
#[derive(Debug, Default)]
pub(super) struct Memory {
    hasher: RandomState,
    shown: HashMap<u64, u64>,
    oldest_first: VecDeque<u64>,
    /// By the id of the one that was shown.
    counted: BTreeMap<u64, Repeats>,
}

impl Memory {
    /// Counts the journey if it repeats a remembered one; else remembers it and says that it must be shown.
    pub(super) fn is_new(&mut self, journey: &Journey) -> bool {
        let key = self.key(journey);
        if let Some(&id) = self.shown.get(&key) {
            self.count(id, journey);
            return false;
        }
        self.shown.insert(key, journey.id);
        self.oldest_first.push_back(key);
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.shown.remove(&oldest);
        }
        true
    }

    fn count(&mut self, id: u64, journey: &Journey) {
        let none = || Repeats { count: 0, last: journey.time, tcp_flags: BTreeSet::new() };
        let repeats = self.counted.entry(id).or_insert_with(none);
        repeats.count += 1;
        repeats.last = journey.time;
        // Runs for every packet; the flags are nearly always known already.
        if let Some(flags) =
            journey.packet.tcp_flags.as_ref().filter(|flags| !repeats.tcp_flags.contains(*flags))
        {
            repeats.tcp_flags.insert(flags.clone());
        }
    }

    /// What was counted since the last call, by the id of the one that was shown.
    pub(super) fn take(&mut self) -> BTreeMap<u64, Repeats> {
        std::mem::take(&mut self.counted)
    }

    /// A hash, since a long trace would not have room for the journeys. Times, lengths and header fields that
    /// differ from packet to packet are left out.
    fn key(&self, journey: &Journey) -> u64 {
        let stages: Vec<_> = journey.stages.iter().map(|stage| (&stage.kind, stage.netns)).collect();
        let findings: Vec<_> = journey.findings.iter().map(|finding| finding.code).collect();
        let (packet, outcome) = (&journey.packet, &journey.outcome);
        // TCP gives reasons also for segments that it took; they vary and matter little.
        let reason = Some((&outcome.reason, &outcome.location)).filter(|_| outcome.result.is_bad());
        self.hasher.hash_one((
            (journey.flow, journey.direction),
            (packet.protocol, packet.tuple, packet.icmp_type, packet.icmp_code, packet.quoted),
            stages,
            (
                outcome.result,
                outcome.stage,
                &outcome.device,
                outcome.left_as,
                &outcome.socket,
                &outcome.answer,
                reason,
            ),
            findings,
        ))
    }
}
