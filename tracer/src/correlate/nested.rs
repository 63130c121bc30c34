//! Readings within readings. While a packet is in its table, its REJECT sends another one through the same table, or an
//! interrupt brings one in: the packet's reading has what these moved as well. Where each of them was read itself, that
//! is taken off.

use std::collections::{BTreeMap, HashMap, VecDeque};

use tracer_common::records::{HITS_AT_DROP, HITS_DISTURBED, HITS_INTERLEAVED, HITS_UNSURE, HITS_UNSWITCHED};

use crate::decode::{Hits, HitsEvent};

/// Records kept of each CPU: an answer that passes every table of OUTPUT and POSTROUTING makes ten or so. Where some
/// that are needed have gone, they are missed.
const KEPT: usize = 64;

/// The last readings of each CPU, in the order in which they ended.
#[derive(Debug, Default)]
pub(super) struct Nested(HashMap<u32, VecDeque<HitsEvent>>);

impl Nested {
    /// Takes note of a reading, and gives it without what other packets moved meanwhile, if that is known.
    pub(super) fn settle(&mut self, reading: HitsEvent) -> HitsEvent {
        let log = self.0.entry(reading.cpu).or_insert_with(|| VecDeque::with_capacity(KEPT));
        let settled = own_hits(&reading, log).map(|hits| HitsEvent {
            flags: reading.flags & !HITS_INTERLEAVED,
            others: 0,
            hits,
            ..reading.clone()
        });
        if log.len() == KEPT {
            log.pop_front();
        }
        log.push_back(reading.clone());
        settled.unwrap_or(reading)
    }
}

/// What moved in `reading` without what moved in those that began and ended in it. They ended before it did, and so
/// their records came before: on one CPU, records come in the order in which they are made. `None` where it is not
/// sure that every packet that passed meanwhile has been read.
///
/// The task may have been switched out meanwhile: another one's packet that is judged then is read as well, and one
/// that had begun before shows in its own reading. Only a task that was in the midst of a table before, and still is
/// afterwards, shows nowhere: its rules would have to make one walk with those of this packet.
fn own_hits(reading: &HitsEvent, log: &VecDeque<HitsEvent>) -> Option<Hits> {
    if reading.flags & HITS_INTERLEAVED == 0 || reading.flags & (HITS_UNSURE | HITS_DISTURBED) != 0 {
        return None;
    }
    let inside = || log.iter().rev().filter(|other| other.opened > reading.opened);
    if log.iter().any(|other| ends_within(other, reading)) || !is_complete(inside(), reading.others) {
        return None;
    }
    let mut rest = reading.hits;
    // From the last to end back: what is in one that was taken off already began after it.
    let mut earliest = u64::MAX;
    for other in inside().filter(|other| other.table == reading.table) {
        if other.opened >= earliest {
            continue;
        }
        // What passed while this one's task was switched out, or its counters were read, may reach beyond it.
        let reached = other.flags & (HITS_INTERLEAVED | HITS_UNSWITCHED) == HITS_INTERLEAVED;
        if reached || other.flags & HITS_UNSURE != 0 {
            return None;
        }
        earliest = other.opened;
        rest = rest.without(&other.hits)?;
    }
    Some(rest)
}

/// Whether `other` began before `reading` and ended in it. A packet's reading of one gap ends with the pass with which
/// that of the next begins; where it died, there was none.
fn ends_within(other: &HitsEvent, reading: &HitsEvent) -> bool {
    let died = other.flags & HITS_AT_DROP != 0;
    let ended = other.opened.saturating_add(u64::from(other.passed) + u64::from(died));
    other.opened < reading.opened && ended > reading.opened
}

/// Whether these records are all of so many readings: a record a table, with one number.
fn is_complete<'e>(records: impl Iterator<Item = &'e HitsEvent>, readings: u32) -> bool {
    let mut missing = BTreeMap::new();
    for record in records {
        *missing.entry(record.opened).or_insert(i64::from(record.tables)) -= 1;
    }
    missing.len() == readings as usize && missing.values().all(|missing| *missing == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Event, decode};
    use tracer_common::records::{HITS_STALE, HITS_TRUNCATED, Head, Hit, Kind, MAX_HITS, RuleHits};

    const CPU: u32 = 1;
    const INTERLEAVED: u32 = HITS_INTERLEAVED | HITS_UNSWITCHED;

    /// A reading of one table, decoded.
    fn reading(opened: u64, others: u32, flags: u32, moved: &[(u32, u32)]) -> HitsEvent {
        let mut hits = [Hit::default(); MAX_HITS];
        for (hit, (rule, packets)) in hits.iter_mut().zip(moved) {
            *hit = Hit { rule: *rule, packets: *packets };
        }
        let head = Head { kind: Kind::RuleHits as u32, cpu: CPU, time: 0, journey: opened };
        let count = u32::try_from(moved.len()).unwrap();
        let raw =
            RuleHits { head, flags, table: 7, count, tables: 1, opened, others, passed: 1 + others, hits };
        // SAFETY: integers only, without padding.
        let bytes =
            unsafe { std::slice::from_raw_parts((&raw const raw).cast::<u8>(), size_of::<RuleHits>()) };
        let Ok(Event::Hits(event)) = decode(bytes) else { panic!("a reading") };
        event
    }

    fn moved(event: &HitsEvent) -> Vec<(u32, u32)> {
        event.hits.iter().map(|hit| (hit.rule, hit.packets)).collect()
    }

    /// The last of these readings, settled.
    fn last(readings: Vec<HitsEvent>) -> HitsEvent {
        let mut nested = Nested::default();
        readings.into_iter().map(|reading| nested.settle(reading)).last().unwrap()
    }

    #[test]
    fn what_an_answer_moved_is_taken_off() {
        let answer = reading(12, 0, 0, &[(0, 1), (3, 1)]);
        let outer = reading(10, 1, INTERLEAVED | HITS_AT_DROP, &[(0, 2), (2, 1), (3, 1)]);
        let outer = last(vec![answer, outer]);
        assert_eq!(moved(&outer), [(0, 1), (2, 1)]);
        assert_eq!((outer.flags, outer.others), (HITS_UNSWITCHED | HITS_AT_DROP, 0));
    }

    #[test]
    fn a_packet_within_a_packet_is_taken_off_once() {
        let inner = reading(13, 0, 0, &[(0, 1)]);
        let answer = reading(12, 1, INTERLEAVED, &[(0, 2), (3, 1)]);
        let beside = reading(16, 0, 0, &[(5, 1)]);
        let outer = reading(10, 3, INTERLEAVED, &[(0, 3), (2, 1), (3, 1), (5, 1)]);
        assert_eq!(moved(&last(vec![inner, answer, beside, outer])), [(0, 1), (2, 1)]);
    }

    #[test]
    fn what_another_table_moved_stays() {
        let elsewhere = HitsEvent { table: 8, ..reading(12, 0, 0, &[(2, 1)]) };
        let outer = last(vec![elsewhere, reading(10, 1, INTERLEAVED, &[(2, 1)])]);
        assert_eq!((moved(&outer), outer.flags), (vec![(2, 1)], HITS_UNSWITCHED));
    }

    #[test]
    fn a_packet_that_nobody_read_leaves_it_open() {
        let answer = || reading(12, 0, 0, &[(0, 1)]);
        let open = |flags, others, before: Vec<HitsEvent>| {
            let outer = reading(10, others, flags, &[(0, 2), (2, 1)]);
            assert_eq!(last(before.into_iter().chain([outer.clone()]).collect()), outer);
        };
        open(INTERLEAVED, 2, vec![answer()]);
        open(INTERLEAVED, 1, vec![]);
        open(INTERLEAVED, 1, vec![reading(9, 0, 0, &[(0, 1)])]);
        // On another CPU; by halves; of a ruleset that was replaced; while the counters were read.
        open(INTERLEAVED, 1, vec![HitsEvent { cpu: 0, ..answer() }]);
        open(INTERLEAVED, 1, vec![HitsEvent { tables: 2, ..answer() }]);
        open(INTERLEAVED, 1, vec![HitsEvent { flags: HITS_STALE, ..answer() }]);
        open(HITS_INTERLEAVED | HITS_DISTURBED, 1, vec![answer()]);
        open(INTERLEAVED | HITS_TRUNCATED, 1, vec![answer()]);
        // It moved more than there is.
        open(INTERLEAVED, 1, vec![reading(12, 0, 0, &[(0, 3)])]);
        open(INTERLEAVED, 1, vec![reading(12, 0, 0, &[(1, 1)])]);
    }

    #[test]
    fn a_task_that_was_switched_out_goes_by_what_was_read_meanwhile() {
        let outer = || reading(10, 1, HITS_INTERLEAVED, &[(0, 2), (2, 1)]);
        let answer = reading(12, 0, HITS_UNSWITCHED, &[(0, 1)]);
        let settled = last(vec![answer.clone(), outer()]);
        assert_eq!((moved(&settled), settled.flags), (vec![(0, 1), (2, 1)], 0));
        // Another task's packet had begun before, and ended in it: its last pass has no reading that began in this one.
        let early = |passed, flags| HitsEvent { passed, ..reading(8, 1, flags, &[(0, 1)]) };
        let died = HITS_INTERLEAVED | HITS_AT_DROP;
        assert_eq!(last(vec![answer.clone(), early(3, HITS_INTERLEAVED), outer()]), outer());
        assert_eq!(last(vec![answer.clone(), early(2, died), outer()]), outer());
        // That ended before it, and this packet's own of the tables before.
        assert_eq!(last(vec![early(1, died), answer.clone(), outer()]).flags, 0);
        assert_eq!(last(vec![early(2, HITS_INTERLEAVED), answer.clone(), outer()]).flags, 0);
        // Two other tasks' packets took turns.
        let (first, second) = (reading(11, 0, 0, &[(0, 1)]), reading(13, 1, HITS_INTERLEAVED, &[(2, 1)]));
        let both = reading(10, 2, HITS_INTERLEAVED, &[(0, 2), (2, 2)]);
        assert_eq!(last(vec![first, second, both.clone()]), both);
    }

    #[test]
    fn readings_that_have_gone_are_missed() {
        let mut all = vec![reading(12, 0, 0, &[(0, 1)])];
        all.extend((0..KEPT as u64).map(|number| reading(20 + number, 0, 0, &[])));
        all.push(reading(10, KEPT as u32 + 1, INTERLEAVED, &[(0, 1)]));
        assert_eq!(last(all.clone()).flags, INTERLEAVED);
    }
}
