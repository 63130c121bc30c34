//! Packets in parts, in copies, and with events lost.

use super::*;
use crate::decode::{PartEvent, PartWhen};
use tracer_common::records::{SIGHT_COPY, SIGHT_GAP};

const MORE: u16 = 0x2000;

/// A fragment of the client's datagram; `offset` in units of eight bytes.
fn fragment(mut sight: SightEvent, offset: u16, more: bool) -> SightEvent {
    sight.raw.fragment = offset | if more { MORE } else { 0 };
    sight.raw.ip_id = 7;
    sight.raw.length = 1_500;
    sight
}

/// Two fragments came in, and the first one's buffer was freed when the other arrived.
fn two_fragments() -> Trace {
    let mut trace = Trace::new();
    let (whole, later) = (tcp(CLIENT, INNER), tcp((CLIENT.0, 0), (INNER.0, 0)));
    trace.see(1, fragment(came_in(whole), 0, true));
    trace.see(2, fragment(came_in(later), 185, false));
    trace.see(1, fragment(consumed(whole), 0, true));
    trace
}

#[test]
fn fragments_that_are_put_together_are_one_journey() {
    let mut trace = two_fragments();
    let whole = tcp(CLIENT, INNER);
    let mut before_table = before(Hook::Forward, -1, whole);
    before_table.raw.ip_id = 7;
    before_table.raw.length = 2_980;
    trace.see(2, before_table);
    trace.see(2, before(Hook::Forward, 1, whole));
    trace.see(2, went_out(whole));
    trace.see(2, consumed(whole));

    let draft = trace.only();
    assert_eq!(draft.packet.fragment.as_deref(), Some("offset 0, more follow"));
    assert_eq!(draft.packet.tuple.destination_port, Some(INNER.1));
    assert_eq!(kinds(draft), ["device", "table", "device"]);
    assert_eq!(draft.notes, ["put together from 2 fragments: 2980 bytes"]);
    assert_eq!((draft.outcome.result, trace.correlator.pending()), (OutcomeKind::Forwarded, 0));
}

#[test]
fn a_fragment_whose_datagram_never_shows_is_incomplete() {
    let mut trace = two_fragments();
    trace.wait(50 * MILLISECOND);
    let draft = trace.only();
    assert_eq!(draft.outcome.result, OutcomeKind::Incomplete);
    assert_eq!(draft.outcome.location.as_deref(), Some("tcp_v4_rcv"));
}

#[test]
fn fragments_of_other_datagrams_stay_apart() {
    let mut trace = two_fragments();
    let mut other = fragment(came_in(tcp(CLIENT, INNER)), 0, true);
    other.raw.ip_id = 8;
    trace.see(3, other);
    let mut whole = before(Hook::Forward, -1, tcp(CLIENT, INNER));
    whole.raw.ip_id = 8;
    trace.see(3, whole);
    trace.see(3, dropped(NETFILTER_DROP, IN_NETFILTER, tcp(CLIENT, INNER)));
    assert_eq!(trace.only().notes.len(), 1);
    assert_eq!(trace.correlator.pending(), 2);
}

#[test]
fn a_copy_is_said_and_ends_nothing() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    let mut copy = went_out(tuple);
    copy.raw.skb = SKB + 0x100;
    copy.raw.flags = SIGHT_COPY;
    copy.raw.out_name = name("eth2");
    trace.see(1, copy);
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    // The copy turns up in another namespace.
    let mut arrived = came_in(tuple);
    arrived.raw.skb = SKB + 0x100;
    trace.see(2, arrived);
    trace.correlator.finish(&mut trace.output);

    let [whole, copy] = trace.output.closed.as_slice() else { panic!("{:#?}", trace.output.closed) };
    assert_eq!(kinds(whole), ["device", "device"]);
    assert_eq!(whole.notes, ["copies of it went out of eth2"]);
    assert!(copy.notes[0].starts_with("a copy, made for eth2"), "{:?}", copy.notes);
}

#[test]
fn silence_while_events_are_lost_is_no_delivery() {
    for (from, to, result) in [(10, 20, OutcomeKind::Incomplete), (1_000, 2_000, OutcomeKind::Delivered)] {
        let mut trace = Trace::new();
        trace.reach_input_end(1);
        let at = |milliseconds| trace.time + milliseconds * MILLISECOND;
        let (from, to) = (at(from), at(to));
        trace.correlator.lost(from, to);
        trace.wait(30 * MILLISECOND);
        assert_eq!(trace.only().outcome.result, result);
    }
}

#[test]
fn a_gap_in_the_middle_is_said_once() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    for _ in 0..2 {
        let mut sight = went_out(tuple);
        sight.raw.flags = SIGHT_GAP;
        trace.see(1, sight);
    }
    trace.see(1, consumed(tuple));
    assert_eq!(trace.only().notes, ["events were lost: its way is not shown in full"]);
}

#[test]
fn a_packet_whose_way_was_lost_until_it_turned_up_elsewhere_says_so() {
    let mut trace = Trace::new();
    trace.see(1, came_in(tcp(CLIENT, INNER)));
    let mut left = seen(SightKind::Left, tcp(([0; 4], 0), ([0; 4], 0)));
    left.raw.flags = SIGHT_GAP;
    trace.see(1, left);
    let journey = trace.only();
    assert_eq!(journey.outcome.result, OutcomeKind::Forwarded);
    assert_eq!(journey.notes, ["events were lost: its way is not shown in full"]);
}

/// What a packet came to is its table's, unless it came to it elsewhere, or some of it was lost.
#[test]
fn evaluated_expressions_belong_to_the_gap() {
    for lost in [false, true] {
        let mut trace = Trace::new();
        let tuple = tcp(CLIENT, INNER);
        let part = |expression| PartEvent { journey: 1, expression, when: PartWhen::Reached };
        trace.see(1, came_in(tuple));
        trace.event(Event::Part(part(1)));
        trace.see(1, before(Hook::Forward, -1, tuple));
        trace.event(Event::Part(part(2)));
        trace.event(Event::Part(part(3)));
        let mut behind = before(Hook::Forward, 1, tuple);
        behind.raw.flags |= if lost { SIGHT_GAP } else { 0 };
        trace.see(1, behind);
        trace.event(Event::Part(part(4)));
        trace.see(1, dropped(NETFILTER_DROP, IN_NETFILTER, tuple));
        let draft = trace.only();
        assert_eq!(tables(draft)[0].parts, (!lost).then(|| vec![part(2), part(3)]));
    }
}

#[test]
fn a_packet_that_goes_on_on_another_cpu_has_changed_it_in_the_table_between() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Forward, -1, tuple));
    for (priority, cpu) in [(1, 1), (100, 1)] {
        trace.see(1, on_cpu(before(Hook::Forward, priority, tuple), cpu));
    }
    for (hook, priority) in [(Hook::Postrouting, 99), (Hook::Postrouting, 101)] {
        trace.see(1, on_cpu(before(hook, priority, tuple), 1));
    }
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    let changed: Vec<_> = tables(trace.only()).iter().map(|table| (table.hook, table.changed_cpu)).collect();
    assert_eq!(changed, [(Hook::Forward, true), (Hook::Postrouting, false)]);
}
