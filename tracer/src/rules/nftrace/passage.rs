//! Steps put together: a packet's passage through one base chain, until the journey that it belongs to asks for it.
//! Pure; the clock is passed in.

use std::collections::{HashMap, VecDeque};

use super::{Headers, NftStep, NftStepKind, NftVerdict, TraceEvent};
use crate::model::TableFamily;

/// How long a passage waits for its journey (nanoseconds): longer than a journey waits for its next sight.
const KEEP: u64 = 10_000_000_000;
/// Passages and packets under way remembered; beyond, the oldest are dropped as if they had been lost.
const MOST: usize = 100_000;

/// Which base chain judged which packet. Packets that look alike share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Inode number of the namespace.
    pub netns: u32,
    pub family: TableFamily,
    pub table: String,
    /// The base chain.
    pub chain: String,
    pub packet: Headers,
}

/// A packet's way through one base chain, as nf_tables told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Chain and what happened there, in order, from the base chain's start to its verdict.
    pub steps: Vec<(String, NftStepKind)>,
    /// When it was read (nanoseconds of CLOCK_MONOTONIC), which is after it happened.
    pub heard: u64,
}

/// A passage that has not ended, and where.
#[derive(Debug)]
struct Running {
    place: Place,
    steps: Vec<(String, NftStepKind)>,
}

/// Passages of all traced namespaces that no journey has asked for yet.
#[derive(Debug, Default)]
pub struct Passages {
    /// By namespace and [`NftStep::id`].
    running: HashMap<(u32, u32), Running>,
    /// When tracing was seen to begin for a packet with this id.
    begun: HashMap<(u32, u32), u64>,
    ended: HashMap<Place, VecDeque<Passage>>,
    /// How many `ended` holds.
    count: usize,
    /// Until when steps may have been lost.
    lost: u64,
    swept: u64,
}

impl Passages {
    /// Takes note of what was read in namespace `netns` at `now` (nanoseconds of CLOCK_MONOTONIC).
    pub fn hear(&mut self, netns: u32, event: TraceEvent, now: u64) {
        match event {
            TraceEvent::Begun { id } => {
                self.begun.insert((netns, id), now);
            }
            TraceEvent::Nft(step) => self.step(netns, step, now),
            // Its counters tell more: they come with a chain's structure.
            TraceEvent::Legacy(_) => {}
            TraceEvent::Lost => self.lose(now),
        }
        if self.count + self.running.len() + self.begun.len() > MOST {
            self.lose(now);
        }
        if now.saturating_sub(self.swept) > KEEP {
            self.sweep(now);
        }
    }

    /// Steps were lost: what is known may belong to other packets than it seems.
    fn lose(&mut self, now: u64) {
        *self = Self { lost: now, swept: self.swept, ..Self::default() };
    }

    fn step(&mut self, netns: u32, step: NftStep, now: u64) {
        let key = (netns, step.id);
        if let (Some(packet), Some(family)) = (step.packet, step.family) {
            // What was going on under this id has ended unheard. Without a beginning of ours, somebody else may have
            // switched tracing on in the middle of the chain.
            self.running.remove(&key);
            if self.begun.contains_key(&key) {
                let place = Place { netns, family, table: step.table, chain: step.chain.clone(), packet };
                self.running.insert(key, Running { place, steps: Vec::new() });
            }
        }
        let Some(running) = self.running.get_mut(&key) else { return };
        let ends = match &step.kind {
            NftStepKind::Rule { verdict: NftVerdict::Final(_) | NftVerdict::Other(_), .. }
            | NftStepKind::Policy { .. } => true,
            NftStepKind::Rule { .. } | NftStepKind::Return => false,
        };
        running.steps.push((step.chain, step.kind));
        if ends && let Some(Running { place, steps }) = self.running.remove(&key) {
            self.ended.entry(place).or_default().push_back(Passage { steps, heard: now });
            self.count += 1;
        }
    }

    fn sweep(&mut self, now: u64) {
        let recent = now.saturating_sub(KEEP);
        self.swept = now;
        self.begun.retain(|_, begun| *begun >= recent);
        self.ended.retain(|_, passages| {
            passages.retain(|passage| passage.heard >= recent);
            !passages.is_empty()
        });
        self.count = self.ended.values().map(VecDeque::len).sum();
    }

    /// Passages that may be that of a packet which came to `place` at `since`; `None` when some may have been lost.
    #[must_use]
    pub fn find(&self, place: &Place, since: u64) -> Option<Vec<&Passage>> {
        if since <= self.lost {
            return None;
        }
        Some(self.ended.get(place).into_iter().flatten().filter(|passage| passage.heard >= since).collect())
    }

    /// Forgets one passage: its journey has been found.
    pub fn take(&mut self, place: &Place, since: u64, steps: &[(String, NftStepKind)]) {
        let Some(passages) = self.ended.get_mut(place) else { return };
        let found = passages.iter().position(|passage| passage.heard >= since && passage.steps == steps);
        if found.and_then(|at| passages.remove(at)).is_some() {
            self.count -= 1;
        }
        if passages.is_empty() {
            self.ended.remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Protocol, Tuple, Verdict};

    const NETNS: u32 = 7;
    const ID: u32 = 99;
    const POLICY: NftStepKind = NftStepKind::Policy { verdict: Some(Verdict::Accept) };

    fn headers(port: u16) -> Headers {
        let here = [127, 0, 0, 1].into();
        let tuple =
            Tuple { source: here, source_port: Some(port), destination: here, destination_port: Some(53) };
        Headers { family: Family::Ipv4, protocol: Protocol::UDP, tuple, ip_id: Some(1), tcp_flags: None }
    }

    fn place(port: u16) -> Place {
        let (table, chain) = ("fw".to_owned(), "in".to_owned());
        Place { netns: NETNS, family: TableFamily::Inet, table, chain, packet: headers(port) }
    }

    fn step(id: u32, chain: &str, kind: NftStepKind, packet: Option<Headers>) -> TraceEvent {
        TraceEvent::Nft(NftStep {
            id,
            family: Some(TableFamily::Inet),
            table: "fw".to_owned(),
            chain: chain.to_owned(),
            kind,
            packet,
            in_ifindex: Some(1),
            out_ifindex: None,
            mark: None,
        })
    }

    fn jump(port: u16) -> TraceEvent {
        let kind = NftStepKind::Rule { handle: 1, verdict: NftVerdict::Jump("user".to_owned()) };
        step(ID, "in", kind, Some(headers(port)))
    }

    fn hear(passages: &mut Passages, events: impl IntoIterator<Item = TraceEvent>, now: u64) {
        events.into_iter().for_each(|event| passages.hear(NETNS, event, now));
    }

    fn found(passages: &Passages, port: u16, since: u64) -> Option<usize> {
        passages.find(&place(port), since).map(|found| found.len())
    }

    #[test]
    fn a_passage_is_found_by_its_packet_until_it_is_taken() {
        let mut passages = Passages::default();
        let whole = [TraceEvent::Begun { id: ID }, jump(5), step(ID, "in", POLICY, None)];
        hear(&mut passages, whole, 1_000);
        assert_eq!((found(&passages, 5, 900), found(&passages, 6, 900)), (Some(1), Some(0)));
        assert_eq!(found(&passages, 5, 1_001), Some(0), "heard before the packet came");
        let steps = passages.find(&place(5), 900).unwrap()[0].steps.clone();
        assert_eq!(steps.len(), 2);
        passages.take(&place(5), 900, &steps);
        assert_eq!(found(&passages, 5, 900), Some(0));
    }

    #[test]
    fn packets_that_look_alike_are_all_found() {
        let mut passages = Passages::default();
        for id in [1, 2] {
            hear(&mut passages, [TraceEvent::Begun { id }, step(id, "in", POLICY, Some(headers(5)))], 1_000);
        }
        assert_eq!(found(&passages, 5, 900), Some(2));
    }

    #[test]
    fn what_did_not_begin_with_our_table_or_did_not_end_is_nothing() {
        let mut passages = Passages::default();
        hear(&mut passages, [step(ID, "in", POLICY, Some(headers(5)))], 1_000);
        hear(&mut passages, [TraceEvent::Begun { id: 3 }, jump(5)], 1_000);
        assert_eq!(found(&passages, 5, 900), Some(0));
    }

    #[test]
    fn after_a_loss_nothing_of_before_counts() {
        let mut passages = Passages::default();
        hear(&mut passages, [TraceEvent::Begun { id: ID }, step(ID, "in", POLICY, Some(headers(5)))], 1_000);
        hear(&mut passages, [TraceEvent::Lost], 2_000);
        assert_eq!((found(&passages, 5, 900), found(&passages, 5, 2_000)), (None, None));
        assert_eq!(found(&passages, 5, 2_001), Some(0));
    }

    #[test]
    fn passages_that_nobody_asks_for_are_forgotten() {
        let mut passages = Passages::default();
        hear(&mut passages, [TraceEvent::Begun { id: ID }, step(ID, "in", POLICY, Some(headers(5)))], 1_000);
        hear(&mut passages, [TraceEvent::Begun { id: ID }], 1_000 + 2 * KEEP);
        assert_eq!((passages.count, found(&passages, 5, 900)), (0, Some(0)));
    }
}
