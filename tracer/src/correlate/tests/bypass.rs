//! Packets that pass no hook between two devices.

use std::sync::Arc;

use super::build::*;
use crate::{
    decode::{self, SightEvent},
    model::{Backend, Family, Hook, TableFamily},
    plan::{Gap, Judge, ProbeKey},
    rules::{
        index::{ChainRef, TableIndex},
        probes::Probes,
    },
};
use tracer_common::tuple::Tuple;

const BY_FLOW_TABLE: &str = "passed no hook: a flowtable took it past FORWARD, whatever rules say there now";
const BY_SOMEBODY: &str =
    "passed no hook: a flowtable, or a program of others on the device, took it past FORWARD";

/// A trace where a rule of FORWARD hands connections to a flow table.
fn with_flow_table() -> Trace {
    let mut trace = Trace::new();
    let index = TableIndex {
        backend: Backend::Nftables,
        family: TableFamily::Inet,
        name: "f".into(),
        chains: Vec::new(),
        counters: Vec::new(),
        check: None,
        probes: Probes::default(),
        offloads: true,
    };
    let table = Some((Arc::new(index), ChainRef(0)));
    let judges = vec![Judge { reading: None, table, nat: false, priority: 0, texts: Arc::default() }];
    let key = ProbeKey { netns: NETNS, family: Family::Ipv4, hook: Hook::Forward, priority: -1 };
    let gap = Gap { judges, last: false, after_conntrack: true, holds_conntrack: false };
    trace.correlator.view.insert(key, gap);
    trace
}

fn with_ttl(mut sight: SightEvent, ttl: u8) -> SightEvent {
    sight.raw.ttl = ttl;
    sight
}

/// A packet straight from one device to the other, as `tuple` and with this TTL (64 before).
fn straight(mut trace: Trace, tuple: Tuple, ttl: u8) -> Trace {
    trace.see(1, came_in(tcp(CLIENT, PUBLISHED)));
    trace.see(1, with_ttl(went_out(tuple), ttl));
    trace.see(1, consumed(tuple));
    trace
}

#[test]
fn what_a_flow_table_took_past_the_hooks_says_so_and_shows_what_it_became() {
    let inside = tcp(CLIENT, INNER);
    let trace = straight(with_flow_table(), inside, 63);
    let draft = trace.only();
    assert_eq!(kinds(draft), ["device", "device"]);
    assert_eq!(draft.notes, [BY_FLOW_TABLE]);
    assert_eq!(draft.outcome.left_as, decode::tuple(&inside));
}

#[test]
fn without_a_flow_table_or_its_signs_it_is_not_said_who_it_was() {
    let (outside, inside) = (tcp(CLIENT, PUBLISHED), tcp(CLIENT, INNER));
    for (trace, tuple, ttl) in [
        (Trace::new(), outside, 63),
        (Trace::new(), inside, 63),
        (Trace::new(), inside, 64),
        (with_flow_table(), inside, 64),
        (with_flow_table(), inside, 62),
    ] {
        assert_eq!(straight(trace, tuple, ttl).only().notes, [BY_SOMEBODY], "{ttl}");
    }
}

#[test]
fn a_frame_that_a_bridge_hands_on_passes_no_hook_and_nothing_is_said() {
    let outside = tcp(CLIENT, PUBLISHED);
    let trace = straight(with_flow_table(), outside, 64);
    assert!(trace.only().notes.is_empty(), "{:?}", trace.only().notes);
    assert_eq!(trace.only().outcome.left_as, decode::tuple(&outside));
}

/// A hook that was seen, a route that was looked up, a connection on the packet, a namespace whose hooks are not looked at,
/// and events that were lost: in none of these is it known that no hook was passed.
#[test]
fn what_may_have_been_forwarded_is_not_called_bypassed() {
    let outside = tcp(CLIENT, PUBLISHED);
    let out = || with_ttl(went_out(outside), 63);
    let run = |middle: &dyn Fn(&mut Trace), out: SightEvent| {
        let mut trace = with_flow_table();
        trace.see(1, came_in(outside));
        middle(&mut trace);
        trace.see(1, out);
        trace.see(1, consumed(outside));
        trace.only().notes.clone()
    };
    let none: [&str; 0] = [];
    assert_eq!(run(&|_| {}, out()), [BY_FLOW_TABLE]);
    assert_eq!(run(&|trace| trace.see(1, before(Hook::Forward, 1, outside)), out()), none);
    assert_eq!(run(&|trace| trace.lookup(1, 254, 0), out()), none);
    assert_eq!(run(&|_| {}, tracked(out(), CONNTRACK, NEW)), none);
    assert_eq!(run(&|trace| trace.correlator.view = crate::plan::View::default(), out()), none);
    let mut lossy = out();
    lossy.raw.flags |= tracer_common::records::SIGHT_GAP;
    assert_eq!(run(&|_| {}, lossy).len(), 1, "the loss alone is said");
    let mut elsewhere = out();
    elsewhere.raw.netns += 1;
    assert_eq!(run(&|_| {}, elsewhere), none);
}
