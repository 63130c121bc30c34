//! Routing decisions, as journeys tell them.

use super::*;
use crate::{correlate::Draft, model::RouteStage};

const MAIN: u32 = 254;
const LOCAL: u32 = 255;

fn routes(draft: &Draft) -> Vec<&RouteStage> {
    draft
        .stages
        .iter()
        .filter_map(|timed| match &timed.stage {
            DraftStage::Route(route) => Some(route),
            _ => None,
        })
        .collect()
}

fn routed(mut sight: SightEvent, device: &str, gateway: [u8; 4]) -> SightEvent {
    const AF_INET: u8 = 2;
    sight.raw.routed = 1;
    sight.raw.route_ifindex = 3;
    sight.raw.route_name = name(device);
    sight.raw.gateway_family = AF_INET;
    sight.raw.gateway[3] = u32::from_ne_bytes(gateway);
    sight
}

#[test]
fn what_a_rule_asked_about_the_old_destination_says_nothing_of_the_new_route() {
    let mut trace = Trace::new();
    let (old, new) = (tcp(CLIENT, PUBLISHED), tcp(CLIENT, INNER));
    trace.see(1, first(routed(before(Hook::Output, -1, old), "lo", PUBLISHED.0)));
    // `-m addrtype --dst-type LOCAL`
    trace.lookup_of(1, PUBLISHED.0, LOCAL, 0);
    trace.see(1, routed(before(Hook::Output, 1, new), "lo", PUBLISHED.0));
    trace.see(1, routed(before(Hook::Postrouting, 99, new), "eth1", INNER.0));
    trace.see(1, routed(before(Hook::Postrouting, 101, new), "eth1", INNER.0));
    trace.see(1, went_out(new));
    trace.see(1, consumed(new));

    let routes = routes(trace.only());
    let told: Vec<_> = routes.iter().map(|route| (route.device.as_deref(), route.table)).collect();
    assert_eq!(told, [(Some("lo"), None), (Some("eth1"), None)]);
}

#[test]
fn a_destination_that_stands_for_no_gateway_is_none() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, first(routed(before(Hook::Output, -1, tuple), "eth1", INNER.0)));
    trace.see(1, routed(before(Hook::Postrouting, 99, tuple), "eth1", INNER.0));
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    let gateways: Vec<_> = routes(trace.only()).iter().map(|route| route.gateway).collect();
    assert_eq!(gateways, [None]);

    let mut trace = Trace::new();
    trace.see(1, first(routed(before(Hook::Output, -1, tuple), "eth1", PUBLISHED.0)));
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    let gateways: Vec<_> = routes(trace.only()).iter().map(|route| route.gateway).collect();
    assert_eq!(gateways, [Some(PUBLISHED.0.into())]);
}

#[test]
fn a_packet_too_large_for_its_route_has_a_route() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Prerouting, -99, tuple));
    trace.lookup(1, MAIN, 0);
    trace.see(1, dropped(PKT_TOO_BIG, IN_FORWARD, tuple));

    let draft = trace.only();
    assert_eq!(draft.outcome.result, OutcomeKind::Dropped);
    let routes = routes(draft);
    let told: Vec<_> =
        routes.iter().map(|route| (route.table, route.device.as_deref(), route.error.as_deref())).collect();
    assert_eq!(told, [(Some(MAIN), Some("eth1"), None)]);
}

#[test]
fn a_lookup_before_any_hook_was_seen_is_told_of_a_packet_that_routing_drops() {
    for (error, told) in [(0, "NOT_SPECIFIED"), (-101, "ENETUNREACH")] {
        let mut trace = Trace::new();
        let tuple = tcp(CLIENT, INNER);
        trace.see(1, came_in(tuple));
        trace.lookup(1, MAIN, error);
        trace.see(1, dropped(NOT_SPECIFIED, 0, tuple));

        let draft = trace.only();
        let routes: Vec<_> =
            routes(draft).iter().map(|route| (route.table, route.error.as_deref())).collect();
        assert_eq!(routes, [(Some(MAIN), Some(told))]);
        assert_eq!(draft.outcome.stage, Some(1));
    }
    // Without one it may have died at its device.
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, dropped(NOT_SPECIFIED, 0, tuple));
    assert!(routes(trace.only()).is_empty());
}

fn at(mut sight: SightEvent, ifindex: u32, device: &str) -> SightEvent {
    sight.raw.in_ifindex = ifindex;
    sight.raw.in_name = name(device);
    sight
}

/// Devices and hooks, in order.
fn way(draft: &Draft) -> Vec<String> {
    let mut way = Vec::new();
    for timed in &draft.stages {
        let here = match &timed.stage {
            DraftStage::Device(device) => device.device.clone(),
            DraftStage::Table(table) => format!("{:?}", table.hook),
            DraftStage::Route(_) => "route".to_owned(),
            _ => continue,
        };
        way.push(here);
    }
    way
}

/// From eth0 through PREROUTING to FORWARD, where it has been routed, or is bridged.
fn through(inputs: &[(u32, &str)], is_routed: bool) -> Trace {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    for (ifindex, device) in inputs {
        trace.see(1, at(before(Hook::Prerouting, -101, tuple), *ifindex, device));
        trace.see(1, at(before(Hook::Prerouting, -99, tuple), *ifindex, device));
    }
    let (ifindex, device) = *inputs.last().unwrap();
    let forwarded = at(before(Hook::Forward, -1, tuple), ifindex, device);
    trace.see(1, if is_routed { routed(forwarded, "eth1", INNER.0) } else { forwarded });
    trace.see(1, at(before(Hook::Forward, 1, tuple), ifindex, device));
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    trace
}

#[test]
fn a_device_above_the_one_it_came_in_by_is_told_where_the_hooks_first_say_it() {
    let vlan = through(&[(5, "eth0.10")], true);
    assert_eq!(way(vlan.only()), ["eth0", "eth0.10", "Prerouting", "route", "Forward", "eth1"]);
    let vrf = through(&[(2, "eth0"), (6, "red")], true);
    assert_eq!(way(vrf.only()), ["eth0", "Prerouting", "red", "Prerouting", "route", "Forward", "eth1"]);
    let plain = through(&[(2, "eth0")], true);
    assert_eq!(way(plain.only()), ["eth0", "Prerouting", "route", "Forward", "eth1"]);
}

#[test]
fn a_bridged_frame_does_not_come_in_by_the_bridge() {
    let bridged = through(&[(7, "br0")], false);
    assert_eq!(way(bridged.only()), ["eth0", "Prerouting", "Forward", "eth1"]);
}

#[test]
fn what_a_bridge_drops_was_not_routed() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    // br_netfilter shows bridged packets to PREROUTING.
    trace.see(1, before(Hook::Prerouting, -101, tuple));
    trace.see(1, before(Hook::Prerouting, -99, tuple));
    trace.see(1, dropped(NOT_SPECIFIED, IN_BRIDGE, tuple));
    assert_eq!(kinds(trace.only()), ["device", "table"]);
    assert_eq!(trace.only().outcome.location.as_deref(), Some("br_handle_frame_finish"));
}

#[test]
fn behind_a_device_nothing_is_routed_again() {
    for (hook, location) in [(Hook::Forward, IN_TUNNEL), (Hook::Forward, 0), (Hook::Prerouting, 0)] {
        let mut trace = Trace::new();
        let tuple = tcp(CLIENT, INNER);
        trace.see(1, came_in(tuple));
        trace.lookup(1, MAIN, 0);
        trace.see(1, routed(before(hook, 1, tuple), "eth1", INNER.0));
        trace.see(1, went_out(tuple));
        // A tunnel asks for the way to its other end, or of an answer.
        trace.lookup_of(1, CLIENT.0, MAIN, -101);
        trace.see(1, dropped(NOT_SPECIFIED, location, tuple));
        assert!(routes(trace.only()).iter().all(|route| route.error.is_none()), "{:?}", trace.only());
        assert_eq!(kinds(trace.only()).last(), Some(&"device"));
    }
}
