//! The network configuration of the calling thread's namespace, by rtnetlink dumps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType},
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};
use netlink_sys::Socket;

use super::{
    network::{
        Address, JudgingPrograms, Link, Neighbour, Network, Nexthop, PolicyRule, Prefix, Route, RouteKind,
    },
    programs,
};
use crate::kernel::rtnetlink::{dump, open};

/// # Errors
/// When the kernel refuses a dump or its answer cannot be parsed.
pub(super) fn read() -> Result<Network> {
    let socket = open()?;
    let mut network = Network::default();
    for request in [
        RouteNetlinkMessage::GetLink(LinkMessage::default()),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        RouteNetlinkMessage::GetRoute(RouteMessage::default()),
        RouteNetlinkMessage::GetRule(RuleMessage::default()),
        RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
    ] {
        dump(&socket, request, |message| add(&mut network, message))?;
    }
    network.rules.sort_by_key(|rule| rule.priority);
    for link in &mut network.links {
        judging(&socket, link);
    }
    Ok(network)
}

/// The XDP program on a device (its index) of the calling thread's namespace, also one of ours: name, number and mode.
///
/// # Errors
/// When the kernel refuses the question.
pub fn xdp_on(device: u32) -> Result<Option<String>> {
    let mut found = None;
    dump(&open()?, RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return };
        if link.header.index == device {
            found = link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::Xdp(said) => programs::xdp(&said),
                _ => None,
            });
        }
    })?;
    Ok(found)
}

/// Adds who judges packets on a device. One that goes while we look has nobody.
fn judging(socket: &Socket, link: &mut Link) {
    let tcx = programs::tcx(&link.name);
    link.programs.input.extend(tcx.input);
    link.programs.output.extend(tcx.output);
    for (parent, input) in [(programs::INGRESS, true), (programs::EGRESS, false)] {
        let mut found = Vec::new();
        let request = RouteNetlinkMessage::GetTrafficFilter(programs::filters_of(link, parent));
        // Without clsact the kernel refuses, or gives nothing.
        let _ = dump(socket, request, |message| {
            if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
                found.extend(programs::filter(&message));
            }
        });
        found.dedup();
        if input { link.programs.input.extend(found) } else { link.programs.output.extend(found) }
    }
}

fn add(network: &mut Network, message: RouteNetlinkMessage) {
    match message {
        RouteNetlinkMessage::NewLink(link) => network.links.push(self::link(link)),
        RouteNetlinkMessage::NewAddress(address) => network.addresses.extend(self::address(&address)),
        RouteNetlinkMessage::NewRoute(route) => network.routes.extend(self::route(&route)),
        RouteNetlinkMessage::NewRule(rule) => network.rules.extend(policy_rule(&rule)),
        RouteNetlinkMessage::NewNeighbour(neighbour) => {
            network.neighbours.extend(self::neighbour(&neighbour));
        }
        _ => {}
    }
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        master: None,
        up: message.header.flags.contains(LinkFlags::Up),
        programs: JudgingPrograms::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Xdp(said) => link.programs.input.extend(programs::foreign_xdp(&said)),
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}

fn address(message: &AddressMessage) -> Option<Address> {
    // `Local` is the own address where `Address` is the peer's (point to point).
    let own = |local: bool| {
        message.attributes.iter().find_map(move |attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    let prefix = Prefix::new(own(true).or_else(|| own(false))?, message.header.prefix_len)?;
    Some(Address { link: message.header.index, prefix })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn any_address(family: AddressFamily) -> Option<IpAddr> {
    match family {
        AddressFamily::Inet => Some(Ipv4Addr::UNSPECIFIED.into()),
        AddressFamily::Inet6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

fn route(message: &RouteMessage) -> Option<Route> {
    if message.header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let mut destination = any_address(message.header.address_family)?;
    let mut table = u32::from(message.header.table);
    let mut metric = 0;
    let mut nexthops = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::MultiPath(ways) => {
                nexthops.extend(ways.iter().map(|way| nexthop(Some(way.interface_index), &way.attributes)));
            }
            _ => {}
        }
    }
    let single = nexthop(None, &message.attributes);
    if nexthops.is_empty() && single.link.is_some() {
        nexthops.push(single);
    }
    let destination = Prefix::new(destination, message.header.destination_prefix_length)?;
    Some(Route { table, destination, kind: kind(message.header.kind), metric, nexthops })
}

fn nexthop(link: Option<u32>, attributes: &[RouteAttribute]) -> Nexthop {
    let mut nexthop = Nexthop { link, gateway: None };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => nexthop.link = Some(*index),
            RouteAttribute::Gateway(address) => nexthop.gateway = ip(address),
            _ => {}
        }
    }
    nexthop
}

fn kind(kind: RouteType) -> RouteKind {
    match kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local | RouteType::Anycast => RouteKind::Local,
        RouteType::Broadcast => RouteKind::Broadcast,
        RouteType::Multicast => RouteKind::Multicast,
        RouteType::BlackHole => RouteKind::Blackhole,
        RouteType::Unreachable => RouteKind::Unreachable,
        RouteType::Prohibit => RouteKind::Prohibit,
        RouteType::Throw => RouteKind::Throw,
        _ => RouteKind::Other,
    }
}

fn policy_rule(message: &RuleMessage) -> Option<PolicyRule> {
    let action = message.header.action;
    let refuses = match action {
        RuleAction::Blackhole => Some(RouteKind::Blackhole),
        RuleAction::Unreachable => Some(RouteKind::Unreachable),
        RuleAction::Prohibit => Some(RouteKind::Prohibit),
        _ => None,
    };
    let mut rule = PolicyRule {
        ipv6: message.header.family == AddressFamily::Inet6,
        priority: 0,
        source: None,
        destination: None,
        input: None,
        mark: None,
        table: u32::from(message.header.table),
        refuses,
        other_conditions: (refuses.is_none() && action != RuleAction::ToTable)
            || message.header.flags.contains(RuleFlags::Invert),
    };
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(address) => rule.source = Prefix::new(*address, message.header.src_len),
            RuleAttribute::Destination(address) => {
                rule.destination = Prefix::new(*address, message.header.dst_len);
            }
            RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
            RuleAttribute::Priority(number) => rule.priority = *number,
            RuleAttribute::FwMark(number) => mark = Some(*number),
            RuleAttribute::FwMask(number) => mask = *number,
            RuleAttribute::Table(number) => rule.table = *number,
            RuleAttribute::Oifname(_)
            | RuleAttribute::L3MDev(true)
            | RuleAttribute::UidRange(_)
            | RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_) => rule.other_conditions = true,
            // All bits set is how the kernel says "none".
            RuleAttribute::SuppressPrefixLen(length) => rule.other_conditions |= *length != u32::MAX,
            _ => {}
        }
    }
    rule.mark = mark.map(|mark| (mark & mask, mask));
    matches!(message.header.family, AddressFamily::Inet | AddressFamily::Inet6).then_some(rule)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let state = match message.header.state {
        NeighbourState::Incomplete => "INCOMPLETE",
        NeighbourState::Reachable => "REACHABLE",
        NeighbourState::Stale => "STALE",
        NeighbourState::Delay => "DELAY",
        NeighbourState::Probe => "PROBE",
        NeighbourState::Failed => "FAILED",
        NeighbourState::Noarp => "NOARP",
        NeighbourState::Permanent => "PERMANENT",
        _ => "NONE",
    };
    Some(Neighbour { link: message.header.ifindex, address, state: state.to_owned() })
}
