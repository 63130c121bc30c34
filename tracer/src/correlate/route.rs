//! Routing decisions: lookups that were seen, and the route that the packet carries afterwards.

use std::net::IpAddr;

use super::{DraftStage, open::Open};
use crate::{
    decode::{RouteEvent, SightEvent},
    model::RouteStage,
};

/// `-EAGAIN`: no match in this table, the next is asked.
const NEXT_TABLE: i32 = -11;
/// `RT_TABLE_MAIN`, `RT_TABLE_LOCAL` (include/uapi/linux/rtnetlink.h).
const MAIN: u32 = 254;
const LOCAL: u32 = 255;
/// `RTN_LOCAL`, `RTN_BROADCAST`
const TYPE_LOCAL: u8 = 2;
const TYPE_BROADCAST: u8 = 3;
/// What `ip_forward` and `ip6_forward` answer about a packet that they have a route for.
const TOO_LARGE_OR_OLD: [&str; 4] =
    ["icmp-fragmentation-needed", "icmp-time-exceeded", "icmp6-packet-too-big", "icmp6-time-exceeded"];
/// Where routing frees what comes in, by how the functions' names begin (net/ipv4/ip_input.c, ip_forward.c, route.c, ipmr.c,
/// net/core/dst.c and their like of IPv6). The last is br_netfilter's, which routes what DNAT gave a new destination.
const ROUTING: [&str; 16] = [
    "ip_rcv_finish",
    "ip_list_rcv_finish",
    "ip_sublist_rcv",
    "ip_error",
    "ip_forward",
    "ip_route_",
    "ip_mr_",
    "ip6_rcv_finish",
    "ip6_list_rcv_finish",
    "ip6_sublist_rcv",
    "ip6_forward",
    "ip6_pkt_",
    "ip6_mc_input",
    "ip6_mr_",
    "dst_discard",
    "br_nf_pre_routing_finish",
];

/// Whether a function that freed a packet is one of routing's.
#[must_use]
pub fn is_routing(function: &str) -> bool {
    ROUTING.iter().any(|name| function.starts_with(name))
}

impl Open {
    /// The packet has a route: says which.
    pub(super) fn routed(&mut self, sight: &SightEvent) {
        let mut lookups = std::mem::take(&mut self.routes);
        let Some(destination) = sight.tuple.map(|tuple| tuple.destination) else { return };
        // What was asked about the address before its translation in OUTPUT (`-m addrtype`) says nothing of this route.
        lookups.retain(|lookup| lookup.destination == destination);
        let found = lookups.iter().rev().find(|lookup| lookup.error == 0);
        if found.is_none() && sight.raw.routed == 0 {
            return;
        }
        let route_type = match sight.raw.route_type {
            0 => found.and_then(|lookup| lookup.route_type),
            known => Some(known),
        };
        let stage = RouteStage {
            table: found.map(|lookup| table(lookup, route_type, &lookups)),
            destination,
            device: sight
                .route_device()
                .or_else(|| found.and_then(|lookup| lookup.device.map(|name| name.to_string()))),
            gateway: indirect(sight.route_gateway(), destination)
                .or_else(|| found.and_then(|lookup| lookup.gateway)),
            error: None,
            route_type: route_type.and_then(type_name).map(str::to_owned),
            mark: found.map(|lookup| lookup.mark).filter(|mark| *mark != 0),
        };
        self.push(DraftStage::Route(stage));
    }

    /// Whether a packet on its way out was routed again since it was routed last.
    pub(super) fn is_rerouted(&self, sight: &SightEvent) -> bool {
        let last = self.stages.iter().rev().find_map(|timed| match &timed.stage {
            DraftStage::Route(route) => Some(route),
            _ => None,
        });
        last.is_some_and(|last| {
            Some(last.destination) != sight.tuple.map(|tuple| tuple.destination)
                || last.device != sight.route_device()
                || indirect(last.gateway, last.destination)
                    != indirect(sight.route_gateway(), last.destination)
        })
    }

    /// Dropped between PREROUTING and the next hook: either routing failed, or what forwards or delivers refused a packet
    /// that had its route.
    pub(super) fn dropped_at_routing(
        &mut self,
        sight: &SightEvent,
        reason: Option<&str>,
        location: Option<&str>,
    ) {
        let too_large_or_old = matches!(reason, Some("PKT_TOO_BIG" | "IP_INHDR"))
            || self.answer.is_some_and(|answer| TOO_LARGE_OR_OLD.contains(&answer));
        let has_route = match location {
            Some("ip_forward" | "ip6_forward") => too_large_or_old,
            Some("ip6_mc_input") => true,
            _ => false,
        };
        if has_route { self.routed(sight) } else { self.not_routed(sight, reason) }
    }

    /// No table had a route. A policy rule may have said more (`fib4_rule_action`, net/ipv4/fib_rules.c); what the sender was
    /// told tells it (`ip_error`, net/ipv4/route.c; `fib6_rule_action`, net/ipv6/fib6_rules.c; 6.12).
    fn refused_by_policy(&self) -> &'static str {
        match self.answer {
            Some("icmp-admin-prohibited" | "icmp6-adm-prohibited") => "EACCES",
            Some("icmp-host-unreachable") => "EHOSTUNREACH",
            _ => "ENETUNREACH",
        }
    }

    /// Routing threw the packet away. The route that it was given for that says why: IPv4 writes the error there with its sign
    /// turned (`ip_route_input_slow`, net/ipv4/route.c), IPv6 as it is (`ip6_rt_type_to_error`, net/ipv6/route.c; 6.12).
    /// `reason` is the kernel's, for when neither that nor a lookup says why.
    fn not_routed(&mut self, sight: &SightEvent, reason: Option<&str>) {
        let lookups = std::mem::take(&mut self.routes);
        let Some(destination) = self.tuple.map(|tuple| tuple.destination) else { return };
        let last = lookups.iter().rev().find(|lookup| lookup.error != NEXT_TABLE);
        let error = match last {
            _ if sight.raw.routed != 0 && sight.raw.route_error != 0 => Some(errno(sight.raw.route_error)),
            Some(lookup) if lookup.error != 0 => Some(errno(lookup.error)),
            None if !lookups.is_empty() => Some(self.refused_by_policy().to_owned()),
            // Never none: it failed, and a kernel before 5.17 does not say why.
            _ => Some(reason.unwrap_or("unknown").to_owned()),
        };
        let stage = RouteStage {
            table: last.map(|lookup| lookup.table),
            destination,
            device: None,
            gateway: None,
            error,
            route_type: None,
            mark: lookups.iter().map(|lookup| lookup.mark).find(|mark| *mark != 0),
        };
        self.push(DraftStage::Route(stage));
    }
}

/// The kernel writes the destination itself as the gateway into routes of packets that leave by no gateway
/// (`rt_set_nexthop`, net/ipv4/route.c).
fn indirect(gateway: Option<IpAddr>, destination: IpAddr) -> Option<IpAddr> {
    gateway.filter(|gateway| *gateway != destination)
}

/// While there are no rules of policy routing, the kernel keeps the tables main and local in one trie and looks up
/// both as main (`fib_trie_unmerge`, net/ipv4/fib_trie.c): a local route found there is table local's.
fn table(lookup: &RouteEvent, route_type: Option<u8>, lookups: &[RouteEvent]) -> u32 {
    let merged = lookups.iter().all(|other| other.table != LOCAL);
    let is_local = matches!(route_type, Some(TYPE_LOCAL | TYPE_BROADCAST));
    if lookup.destination.is_ipv4() && lookup.table == MAIN && merged && is_local {
        LOCAL
    } else {
        lookup.table
    }
}

/// As `ip route` names them (include/uapi/linux/rtnetlink.h).
fn type_name(number: u8) -> Option<&'static str> {
    [
        "unspec",
        "unicast",
        "local",
        "broadcast",
        "anycast",
        "multicast",
        "blackhole",
        "unreachable",
        "prohibit",
        "throw",
        "nat",
    ]
    .get(usize::from(number))
    .copied()
}

fn errno(error: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(error.abs()))
}
