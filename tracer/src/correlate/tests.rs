//! Journeys from hand-built events.

mod answers;
mod build;
mod bypass;
mod ends;
mod flows;
mod parts;
mod program;
mod routes;
mod xdp;

use std::num::NonZeroU64;

use tracer_common::tuple::Tuple;

use self::build::*;
use super::{DraftStage, Forget};
use crate::{
    decode::{self, AnswerEvent, Event, SightEvent, SightKind, SocketTaken},
    model::{CtState, Hook, OutcomeKind},
    rules::path::Fate,
};

/// The first packet of a connection to the published port, on its way to the inner host.
fn forward_with_dnat(trace: &mut Trace, journey: u64) {
    let outside = tcp(CLIENT, PUBLISHED);
    let inside = tcp(CLIENT, INNER);
    trace.connection(journey, CONNTRACK, outside, inside.inverse());
    trace.see(journey, came_in(outside));
    trace.see(journey, tracked(before(Hook::Prerouting, -101, outside), CONNTRACK, NEW));
    trace.see(journey, tracked(before(Hook::Prerouting, -99, inside), CONNTRACK, NEW));
    trace.lookup(journey, 254, 0);
    for (hook, priority) in
        [(Hook::Forward, -1), (Hook::Forward, 1), (Hook::Postrouting, 99), (Hook::Postrouting, 101)]
    {
        trace.see(journey, tracked(before(hook, priority, inside), CONNTRACK, NEW));
    }
    trace.see(journey, tracked(went_out(inside), CONNTRACK, NEW));
}

#[test]
fn a_forwarded_packet_shows_every_place_and_its_translation() {
    let mut trace = Trace::new();
    forward_with_dnat(&mut trace, 1);
    trace.see(1, consumed(tcp(CLIENT, INNER)));

    let draft = trace.only();
    assert_eq!(kinds(draft), ["device", "table", "route", "table", "table", "device"]);
    let tables = tables(draft);
    assert_eq!(
        tables.iter().map(|t| t.hook).collect::<Vec<_>>(),
        [Hook::Prerouting, Hook::Forward, Hook::Postrouting]
    );
    assert!(tables.iter().all(|table| table.fate == Fate::Passed && table.tracked && !table.confirmed));
    assert_eq!(Some(tables[0].before), decode::tuple(&tcp(CLIENT, PUBLISHED)));
    assert_eq!(Some(tables[0].after), decode::tuple(&tcp(CLIENT, INNER)));
    assert_eq!(tables[1].before, tables[1].after);
    let DraftStage::Route(route) = &draft.stages[2].stage else { panic!("a route") };
    assert_eq!(
        (route.table, route.device.as_deref(), route.error.as_deref()),
        (Some(254), Some("eth1"), None)
    );
    assert_eq!(route.destination, std::net::IpAddr::from(INNER.0));
    assert_eq!(draft.outcome.result, OutcomeKind::Forwarded);
    assert_eq!(draft.outcome.device.as_deref(), Some("eth1"));
    assert_eq!(draft.conntrack.as_ref().map(|conntrack| conntrack.state), Some(CtState::New));
    assert_eq!(draft.packet.tuple.destination_port, Some(80));
    assert!(draft.notes.is_empty(), "{:?}", draft.notes);
}

#[test]
fn a_packet_in_a_driver_is_taken_as_gone_after_fifty_milliseconds() {
    let mut trace = Trace::new();
    forward_with_dnat(&mut trace, 1);
    trace.wait(50 * MILLISECOND - 1);
    assert_eq!(trace.correlator.pending(), 1);
    trace.wait(50 * MILLISECOND);
    assert_eq!(trace.only().outcome.result, OutcomeKind::Forwarded);
    assert_eq!(trace.output.forget, [Forget { skb: SKB, journey: 1 }]);
}

#[test]
fn a_drop_between_two_probes_is_the_table_s() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Forward, -1, tuple));
    trace.see(1, dropped(NETFILTER_DROP, IN_NETFILTER, tuple));

    let draft = trace.only();
    assert_eq!(draft.outcome.result, OutcomeKind::Dropped);
    assert_eq!(draft.outcome.reason.as_deref(), Some("NETFILTER_DROP"));
    assert_eq!(draft.outcome.location.as_deref(), Some("nf_hook_slow"));
    let stage = draft.outcome.stage.expect("a stage");
    assert!(matches!(&draft.stages[stage].stage, DraftStage::Table(table) if table.fate == Fate::Dropped));
    assert_eq!(trace.correlator.pending(), 0);
}

#[test]
fn a_drop_after_prerouting_is_routing_s() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Prerouting, -99, tuple));
    trace.lookup(1, 254, UNREACHABLE);
    trace.lookup(1, 253, NOT_IN_THIS_TABLE);
    trace.see(1, dropped(NO_ROUTE, 0, tuple));

    let draft = trace.only();
    assert_eq!(draft.outcome.result, OutcomeKind::Dropped);
    assert_eq!(draft.outcome.location, None);
    let stage = draft.outcome.stage.expect("a stage");
    let DraftStage::Route(route) = &draft.stages[stage].stage else { panic!("{:?}", draft.stages) };
    assert_eq!((route.table, route.error.as_deref()), (Some(254), Some("ENETUNREACH")));
    assert_eq!(route.device, None);
}

#[test]
fn what_conntrack_drops_behind_the_tables_of_prerouting_is_not_routing_s() {
    for (reason, location) in [(NETFILTER_DROP, 0), (NOT_SPECIFIED, IN_NETFILTER)] {
        let mut trace = Trace::new();
        let tuple = tcp(CLIENT, INNER);
        trace.see(1, came_in(tuple));
        trace.see(1, before(Hook::Prerouting, -99, tuple));
        trace.see(1, dropped(reason, location, tuple));
        let draft = trace.only();
        assert_eq!(draft.outcome.result, OutcomeKind::Dropped);
        assert_eq!(kinds(draft), ["device"]);
    }
}

#[test]
fn no_table_that_answers_is_unreachable() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Prerouting, -99, tuple));
    trace.lookup(1, 254, NOT_IN_THIS_TABLE);
    trace.see(1, dropped(NO_ROUTE, 0, tuple));
    let stages = &trace.only().stages;
    let Some(DraftStage::Route(route)) = stages.last().map(|timed| &timed.stage) else {
        panic!("{stages:?}")
    };
    assert_eq!((route.table, route.error.as_deref()), (None, Some("ENETUNREACH")));
}

#[test]
fn the_nat_engine_seen_twice_in_one_call_judges_once() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, PUBLISHED);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Prerouting, -101, tuple));
    trace.see(1, before(Hook::Prerouting, -101, tuple));
    trace.see(1, before(Hook::Prerouting, -99, tcp(CLIENT, INNER)));
    trace.see(1, dropped(NO_ROUTE, 0, tcp(CLIENT, INNER)));
    let tables = trace.only().stages.iter().filter(|timed| matches!(timed.stage, DraftStage::Table(_)));
    assert_eq!(tables.count(), 1);
}

#[test]
fn a_packet_freed_behind_input_was_delivered() {
    let mut trace = Trace::new();
    trace.reach_input_end(1);
    trace.see(1, consumed(tcp(CLIENT, PUBLISHED)));
    assert_eq!(trace.only().outcome.result, OutcomeKind::Delivered);
    assert!(trace.output.forget.is_empty(), "the kernel side saw its end too");
}

#[test]
fn a_socket_that_took_it_has_three_milliseconds_to_refuse() {
    let mut trace = Trace::new();
    trace.reach_input_end(1);
    let taken = |time| SocketTaken {
        journey: 1,
        time,
        sock: 1,
        inode: NonZeroU64::new(5),
        tuple: tcp(PUBLISHED, CLIENT),
    };
    trace.event(Event::Socket(taken(trace.time)));
    trace.wait(3 * MILLISECOND - 1);
    assert!(trace.output.closed.is_empty());
    trace.wait(3 * MILLISECOND);
    assert_eq!(trace.only().outcome.result, OutcomeKind::Delivered);
    assert_eq!((trace.only().socket_port, trace.only().socket_inode), (Some(80), NonZeroU64::new(5)));
    assert_eq!(trace.output.forget, [Forget { skb: SKB, journey: 1 }]);
}

#[test]
fn silence_behind_input_is_delivery_after_thirty_milliseconds() {
    let mut trace = Trace::new();
    trace.reach_input_end(1);
    trace.wait(30 * MILLISECOND - 1);
    assert!(trace.output.closed.is_empty());
    trace.wait(30 * MILLISECOND);
    assert_eq!(trace.only().outcome.result, OutcomeKind::Delivered);
    assert_eq!(trace.only().socket_port, None);
}

#[test]
fn silence_says_nothing_on_a_machine_that_takes_as_long_from_one_place_to_the_next() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, PUBLISHED);
    trace.see(1, came_in(tuple));
    trace.time += 20 * MILLISECOND;
    trace.see(1, before(Hook::Input, -1, tuple));
    trace.see(1, before(Hook::Input, 1, tuple));
    trace.wait(199 * MILLISECOND);
    assert!(trace.output.closed.is_empty());
    trace.see(1, dropped(NO_SOCKET, IN_TCP, tuple));
    let outcome = &trace.only().outcome;
    assert_eq!((outcome.result, outcome.reason.as_deref()), (OutcomeKind::Dropped, Some("NO_SOCKET")));
}

#[test]
fn the_end_of_a_closed_journey_creates_nothing() {
    let mut trace = Trace::new();
    trace.reach_input_end(1);
    trace.wait(30 * MILLISECOND);
    let tuple = tcp(CLIENT, PUBLISHED);
    for end in [dropped(TCP_RESET, IN_TCP, tuple), consumed(tuple), seen(SightKind::Left, tuple)] {
        trace.see(1, end);
        assert_eq!((trace.output.closed.len(), trace.correlator.pending()), (1, 0));
    }
    trace.lookup(1, 254, 0);
    trace.event(Event::Answer(AnswerEvent { journey: 1, icmp: None }));
    assert_eq!(trace.correlator.pending(), 0);
}

#[test]
fn a_reused_buffer_is_another_journey() {
    let mut trace = Trace::new();
    let old = tcp(CLIENT, PUBLISHED);
    let new = tcp(INNER, CLIENT);
    trace.see(1, came_in(old));
    trace.see(2, came_in(new));
    trace.see(2, before(Hook::Forward, -1, new));
    trace.see(1, dropped(NO_ROUTE, 0, old));
    assert_eq!(Some(trace.only().packet.tuple), decode::tuple(&old));
    assert_eq!(kinds(trace.only()), ["device"]);

    trace.see(2, dropped(NETFILTER_DROP, IN_NETFILTER, new));
    let second = &trace.output.closed[1];
    assert_eq!(Some(second.packet.tuple), decode::tuple(&new));
    assert_eq!(second.outcome.reason.as_deref(), Some("NETFILTER_DROP"));
}

#[test]
fn a_tentative_journey_shows_only_when_it_matches() {
    let outside = tcp(CLIENT, PUBLISHED);
    let inside = tcp(CLIENT, INNER);
    for (port, shown) in [(80, 2), (8_080, 2), (443, 0)] {
        let mut trace = Trace::of_port(port);
        trace.see(1, tentative(came_in(outside)));
        trace.see(1, tentative(before(Hook::Forward, -1, inside)));
        trace.see(1, tentative(dropped(NETFILTER_DROP, IN_NETFILTER, inside)));
        // Another that leaves: of that, nothing but the fact is told.
        trace.see(2, tentative(came_in(outside)));
        trace.see(2, tentative(before(Hook::Forward, -1, inside)));
        trace.see(2, seen(SightKind::Left, tcp(([0; 4], 0), ([0; 4], 0))));
        assert_eq!((trace.output.closed.len(), trace.correlator.pending()), (shown, 0), "port {port}");
    }
}

#[test]
fn a_tentative_journey_matches_by_its_connection() {
    for (port, shown) in [(8_080, 1), (443, 0)] {
        let mut trace = Trace::of_port(port);
        let outside = tcp(CLIENT, PUBLISHED);
        trace.connection(1, CONNTRACK, outside, tcp(INNER, CLIENT));
        trace.see(1, tentative(came_in(outside)));
        trace.wait(5_000 * MILLISECOND);
        assert_eq!(trace.output.closed.len(), shown, "port {port}");
        assert_eq!(trace.output.forget.len(), 1, "given up, shown or not");
    }
}

#[test]
fn a_packet_that_is_lost_on_its_way_is_incomplete_after_five_seconds() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Forward, -1, tuple));
    trace.wait(5_000 * MILLISECOND - 1);
    assert!(trace.output.closed.is_empty());
    trace.wait(5_000 * MILLISECOND);
    let draft = trace.only();
    assert_eq!(draft.outcome.result, OutcomeKind::Incomplete);
    assert_eq!(tables(draft).iter().map(|table| table.fate).collect::<Vec<_>>(), [Fate::Unknown]);
    assert_eq!(trace.output.forget, [Forget { skb: SKB, journey: 1 }]);
}

#[test]
fn the_end_of_the_trace_closes_everything_in_order() {
    let mut trace = Trace::new();
    for journey in [3, 1, 2] {
        trace.see(journey, came_in(tcp(CLIENT, PUBLISHED)));
    }
    trace.correlator.finish(&mut trace.output);
    let order: Vec<u64> = trace.output.forget.iter().map(|forget| forget.journey).collect();
    assert_eq!(order, [3, 1, 2], "as they began");
    assert!(trace.output.closed.iter().all(|draft| draft.outcome.result == OutcomeKind::Incomplete));
    assert_eq!((trace.output.closed.len(), trace.correlator.pending()), (3, 0));
}

#[test]
fn a_journey_whose_beginning_was_lost_says_so() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, before(Hook::Forward, -1, tuple));
    trace.see(1, dropped(NETFILTER_DROP, IN_NETFILTER, tuple));
    let [note] = trace.only().notes.as_slice() else { panic!("{:?}", trace.only().notes) };
    assert!(note.contains("beginning"), "{note}");
}

#[test]
fn journeys_that_are_given_up_together_end_in_the_order_in_which_they_began() {
    let mut trace = Trace::new();
    let ports = [40_009, 40_003, 40_007, 40_001, 40_005];
    for (journey, port) in [90, 30, 70, 10, 50].into_iter().zip(ports) {
        trace.see(journey, came_in(tcp((CLIENT.0, port), PUBLISHED)));
    }
    trace.wait(10_000 * MILLISECOND);
    let ended: Vec<_> = trace.output.closed.iter().map(|draft| draft.packet.tuple.source_port).collect();
    assert_eq!(ended, ports.map(Some));
}
