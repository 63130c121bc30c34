//! Drafts to journeys: which rule of which table judged, from the counters that moved. Pure.

mod judgement;
mod mapping;
mod queue;
mod reject;
mod table;
#[cfg(test)]
mod tests;
mod traced;
mod unread;

use jiff::{SignedDuration, Timestamp};

pub(crate) use self::queue::UNTAKEN_IN;

use self::mapping::Mappings;
use crate::{
    correlate::{Draft, DraftStage, DraftTable, TimedStage},
    model::{Journey, OutcomeKind, Stage, StageKind},
    rules::nftrace::Passages,
};

/// Turns drafts into journeys, in the order in which they ended.
pub struct Attributor {
    /// Wall clock at time 0 of the events' clock.
    epoch: Timestamp,
    last: u64,
    mappings: Mappings,
    /// What the kernel's own trace told, for tables whose counters do not tell all; empty unless it was asked for.
    pub passages: Passages,
    /// Between which times (nanoseconds of CLOCK_MONOTONIC) rule probes were left out last; whose is not known.
    pub skipped: Option<(u64, u64)>,
}

impl Attributor {
    #[must_use]
    pub fn new(epoch: Timestamp) -> Self {
        Self { epoch, last: 0, mappings: Mappings::default(), passages: Passages::default(), skipped: None }
    }

    /// Gives the journey its number, its rules and its verdicts. `read` is when its last record was read (nanoseconds
    /// of CLOCK_MONOTONIC).
    pub fn journey(&mut self, draft: Draft, read: u64) -> Journey {
        self.last += 1;
        let dropped = draft.outcome.result.is_bad();
        let mut builder = Builder { stages: Vec::new(), first: draft.time };
        let mut notes = draft.notes;
        let mut at = 0;
        while at < draft.stages.len() {
            let timed = &draft.stages[at];
            let (time, netns) = (timed.time, timed.netns);
            match &timed.stage {
                DraftStage::Device(device) => builder.push(StageKind::Device(device.clone()), time, netns),
                DraftStage::Route(route) => builder.push(StageKind::Route(route.clone()), time, netns),
                DraftStage::Program(program) => {
                    builder.push(StageKind::Program(program.clone()), time, netns);
                }
                DraftStage::Table(_) => {
                    let tables = same_gap(&draft.stages[at..]);
                    at += tables.len() - 1;
                    let mut account = traced::Account {
                        passages: &mut self.passages,
                        looks: draft.looks,
                        netns,
                        since: time,
                        read,
                        skipped: self.skipped,
                    };
                    let judged =
                        table::judge(&tables, draft.flow, draft.direction, &mut self.mappings, &mut account);
                    if judged.dropped_elsewhere {
                        notes.push(
                            "dropped by another function at this hook, behind the tables shown".to_owned(),
                        );
                    }
                    for stage in judged.stages {
                        builder.push(StageKind::Netfilter(stage), time, netns);
                    }
                }
            }
            at += 1;
        }
        let mut outcome = draft.outcome;
        outcome.stage = if dropped || outcome.result == OutcomeKind::Incomplete {
            builder.stages.len().checked_sub(1)
        } else {
            None
        };
        let mut journey = Journey {
            id: self.last,
            flow: draft.flow,
            direction: draft.direction,
            time: self.wall_clock(draft.time),
            packet: draft.packet,
            stages: builder.stages,
            conntrack: draft.conntrack,
            outcome,
            findings: Vec::new(),
            notes,
        };
        reject::complete(&mut journey);
        queue::complete(&mut journey);
        journey
    }

    /// The time of day at `nanoseconds` of CLOCK_MONOTONIC.
    #[must_use]
    pub fn wall_clock(&self, nanoseconds: u64) -> Timestamp {
        let since = SignedDuration::from_nanos(i64::try_from(nanoseconds).unwrap_or(i64::MAX));
        self.epoch.checked_add(since).unwrap_or(Timestamp::MAX)
    }
}

struct Builder {
    stages: Vec<Stage>,
    first: u64,
}

impl Builder {
    fn push(&mut self, kind: StageKind, time: u64, netns: u32) {
        self.stages.push(Stage { kind, elapsed_ns: time.saturating_sub(self.first), netns });
    }
}

/// The tables of one gap, which stand next to each other.
fn same_gap(stages: &[TimedStage]) -> Vec<&DraftTable> {
    let mut tables: Vec<&DraftTable> = Vec::new();
    for timed in stages {
        match &timed.stage {
            DraftStage::Table(table) if table.judge == tables.len() => tables.push(table),
            _ => break,
        }
    }
    tables
}
