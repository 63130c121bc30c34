//! Connections and the flows they belong to.

use super::build::*;
use crate::model::{CtState, Direction, Hook};

#[test]
fn replies_share_the_flow_and_a_reused_entry_does_not() {
    let mut trace = Trace::new();
    let outside = tcp(CLIENT, PUBLISHED);
    let reply = tcp(INNER, CLIENT);
    let other = tcp((CLIENT.0, 40_001), PUBLISHED);
    for (journey, packet, original, info) in
        [(1, outside, outside, NEW), (2, reply, outside, ESTABLISHED_REPLY), (3, other, other, NEW)]
    {
        trace.connection(journey, CONNTRACK, original, reply);
        trace.see(journey, tracked(came_in(packet), CONNTRACK, info));
        trace.see(journey, consumed(packet));
    }
    let [first, second, third] = trace.output.closed.as_slice() else { panic!("three journeys") };
    assert!(first.flow.is_some());
    assert_eq!(first.flow, second.flow);
    assert_ne!(first.flow, third.flow);
    assert_eq!(first.direction, Some(Direction::Original));
    assert_eq!(second.direction, Some(Direction::Reply));
    assert_eq!(second.conntrack.as_ref().map(|conntrack| conntrack.state), Some(CtState::Established));
}

/// A packet that two namespaces translate, and its reply, which meets their connections the other way round.
#[test]
fn connections_that_go_on_as_each_other_are_one_flow() {
    const GATEWAY: ([u8; 4], u16) = ([198, 51, 100, 9], 40_000);
    const SECOND: u64 = CONNTRACK + 0x100;
    let mut trace = Trace::new();
    let outside = tcp(CLIENT, PUBLISHED);
    let between = tcp(GATEWAY, PUBLISHED);
    trace.connection(1, CONNTRACK, outside, between.inverse());
    trace.see(1, tracked(came_in(outside), CONNTRACK, NEW));
    trace.connection(1, SECOND, between, tcp(INNER, GATEWAY));
    trace.see(1, tracked(before(Hook::Forward, -1, between), SECOND, NEW));
    trace.see(1, consumed(between));
    trace.connection(2, SECOND, between, tcp(INNER, GATEWAY));
    trace.see(2, tracked(came_in(tcp(INNER, GATEWAY)), SECOND, ESTABLISHED_REPLY));
    trace.connection(2, CONNTRACK, outside, between.inverse());
    trace.see(2, tracked(before(Hook::Forward, -1, between.inverse()), CONNTRACK, ESTABLISHED_REPLY));
    trace.see(2, consumed(outside.inverse()));
    let [first, second] = trace.output.closed.as_slice() else { panic!("two journeys") };
    assert!(first.flow.is_some());
    assert_eq!(first.flow, second.flow);
}

#[test]
fn what_a_tunnel_carries_is_a_flow_of_its_own() {
    const INSIDE: u64 = CONNTRACK + 0x100;
    let mut trace = Trace::new();
    let tunnel = tcp(CLIENT, PUBLISHED);
    for (journey, port, inside) in [(1, 1_000, INSIDE), (2, 1_001, INSIDE + 0x100)] {
        let carried = tcp(([192, 168, 0, 1], port), INNER);
        trace.connection(journey, CONNTRACK, tunnel, tunnel.inverse());
        trace.see(journey, tracked(came_in(tunnel), CONNTRACK, NEW));
        trace.connection(journey, inside, carried, carried.inverse());
        trace.see(journey, tracked(before(Hook::Forward, -1, carried), inside, NEW));
        trace.see(journey, consumed(carried));
    }
    let [first, second] = trace.output.closed.as_slice() else { panic!("two journeys") };
    assert!(first.flow.is_some());
    assert_ne!(first.flow, second.flow);
}
