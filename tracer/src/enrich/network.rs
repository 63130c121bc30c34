//! Links, addresses, routes, policy rules and neighbours of a namespace, and the questions asked of them. Pure.

mod kinds;

use std::{fmt, net::IpAddr};

/// An address with a prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// `None` when the length is more than the family has bits.
    #[must_use]
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (length <= bits).then_some(Self { address, length })
    }

    /// One address.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    #[must_use]
    pub fn address(self) -> IpAddr {
        self.address
    }

    #[must_use]
    pub fn length(self) -> u8 {
        self.length
    }

    /// False for an address of the other family.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        let differing = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= u32::from(self.length)
    }

    /// The network's own address, host bits cleared.
    #[must_use]
    pub fn network(self) -> Self {
        let address = match self.address {
            IpAddr::V4(a) => IpAddr::V4(
                (a.to_bits() & u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0)).into(),
            ),
            IpAddr::V6(a) => IpAddr::V6(
                (a.to_bits() & u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)).into(),
            ),
        };
        Self { address, ..self }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, ...; `None` for plain hardware and loopback.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    pub up: bool,
    /// XDP programs, tcx programs and tc filters on it, ours left out.
    pub programs: JudgingPrograms,
}

/// Who judges packets on a device, by name; in the kernel's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JudgingPrograms {
    pub input: Vec<String>,
    pub output: Vec<String>,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub link: u32,
    /// The host's own address and the length of its network.
    pub prefix: Prefix,
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    Unicast,
    Local,
    Broadcast,
    Multicast,
    Blackhole,
    Unreachable,
    Prohibit,
    Throw,
    Other,
}

impl RouteKind {
    /// A packet that takes such a route gets somewhere.
    #[must_use]
    pub fn leads_on(self) -> bool {
        !matches!(self, Self::Blackhole | Self::Unreachable | Self::Prohibit | Self::Throw)
    }
}

/// One way on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nexthop {
    pub link: Option<u32>,
    pub gateway: Option<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub table: u32,
    pub destination: Prefix,
    pub kind: RouteKind,
    /// Lower wins.
    pub metric: u32,
    /// Empty for routes that lead nowhere; several for multipath.
    pub nexthops: Vec<Nexthop>,
}

/// An `ip rule`: looks into a table, or refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    pub ipv6: bool,
    pub priority: u32,
    pub source: Option<Prefix>,
    pub destination: Option<Prefix>,
    pub input: Option<String>,
    /// Mark and mask.
    pub mark: Option<(u32, u32)>,
    pub table: u32,
    /// It looks into no table: packets that it admits are refused (`ip rule add ... prohibit`).
    pub refuses: Option<RouteKind>,
    /// It asks for something that is not modelled here (ports, users, suppressed prefixes, `not`).
    pub other_conditions: bool,
}

/// A neighbour table entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub link: u32,
    pub address: IpAddr,
    /// As `ip neigh` prints it: `REACHABLE`, `FAILED`, ...
    pub state: String,
}

impl Neighbour {
    /// Address resolution got no answer.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state.as_str(), "FAILED" | "INCOMPLETE")
    }
}

/// What the way of a packet is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    pub destination: IpAddr,
    pub source: Option<IpAddr>,
    /// Name of the device it came in through; `None` for one made here.
    pub input: Option<&'a str>,
    pub mark: u32,
}

impl Question<'_> {
    /// The way to an address, nothing else known.
    #[must_use]
    pub fn to(destination: IpAddr) -> Self {
        Self { destination, source: None, input: None, mark: 0 }
    }
}

/// The network configuration of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    /// In order of priority.
    pub rules: Vec<PolicyRule>,
    pub neighbours: Vec<Neighbour>,
}

impl Network {
    #[must_use]
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The bridge that a device is a port of.
    #[must_use]
    pub fn bridge_of(&self, device: &str) -> Option<&Link> {
        self.master_of(device).filter(|master| master.is_bridge())
    }

    /// The bridge, bond, VRF, ... that a device is a port of.
    #[must_use]
    pub fn master_of(&self, device: &str) -> Option<&Link> {
        self.link_named(device).and_then(|link| self.link(link.master?))
    }

    #[must_use]
    pub fn is_own_address(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.prefix.address() == address) || address.is_loopback()
    }

    /// The device whose network an address is in, most specific first; `None` for one behind a router.
    #[must_use]
    pub fn on_link(&self, address: IpAddr) -> Option<(&Link, Prefix)> {
        self.addresses
            .iter()
            .filter(|own| own.prefix.contains(address))
            .max_by_key(|own| own.prefix.length())
            .and_then(|own| Some((self.link(own.link)?, own.prefix.network())))
    }

    /// The route that the policy rules and tables give, as far as they are modelled; `None` when there is none
    /// or a rule in between asks for something unknown.
    #[must_use]
    pub fn route(&self, question: Question<'_>) -> Option<&Route> {
        let ipv6 = question.destination.is_ipv6();
        for rule in self.rules.iter().filter(|rule| rule.ipv6 == ipv6 && rule.admits(question)) {
            if rule.other_conditions || rule.refuses.is_some() {
                return None;
            }
            match self.route_in(rule.table, question.destination) {
                Some(route) if route.kind == RouteKind::Throw => {}
                Some(route) => return Some(route),
                None => {}
            }
        }
        None
    }

    /// The policy rule that refuses what is asked about, before any table has a route for it.
    #[must_use]
    pub fn refusing_rule(&self, question: Question<'_>) -> Option<&PolicyRule> {
        let ipv6 = question.destination.is_ipv6();
        let mut rules = self.rules.iter().filter(|rule| rule.ipv6 == ipv6 && rule.admits(question));
        let leads_further = |rule: &PolicyRule| {
            let route = self.route_in(rule.table, question.destination);
            !rule.other_conditions && route.is_none_or(|route| route.kind == RouteKind::Throw)
        };
        rules
            .find(|rule| rule.refuses.is_some() || !leads_further(rule))
            .filter(|rule| rule.refuses.is_some() && !rule.other_conditions)
    }

    /// The route that one table has for an address.
    #[must_use]
    pub fn route_in(&self, table: u32, destination: IpAddr) -> Option<&Route> {
        self.routes
            .iter()
            .filter(|route| route.table == table && route.destination.contains(destination))
            .max_by_key(|route| (route.destination.length(), std::cmp::Reverse(route.metric)))
    }

    /// Name of the device, and the gateway, of a route's first way on.
    #[must_use]
    pub fn way<'a>(&'a self, route: &Route) -> Option<(&'a str, Option<IpAddr>)> {
        let nexthop = route.nexthops.first()?;
        Some((self.link(nexthop.link?)?.name.as_str(), nexthop.gateway))
    }

    /// The entry for an address on a device.
    #[must_use]
    pub fn neighbour(&self, device: &str, address: IpAddr) -> Option<&Neighbour> {
        let link = self.link_named(device)?.index;
        self.neighbours.iter().find(|entry| entry.link == link && entry.address == address)
    }

    /// A route as `ip route` would print it.
    #[must_use]
    pub fn route_text(&self, route: &Route) -> String {
        let kind = match route.kind {
            RouteKind::Unicast | RouteKind::Other => "",
            RouteKind::Local => "local ",
            RouteKind::Broadcast => "broadcast ",
            RouteKind::Multicast => "multicast ",
            RouteKind::Blackhole => "blackhole ",
            RouteKind::Unreachable => "unreachable ",
            RouteKind::Prohibit => "prohibit ",
            RouteKind::Throw => "throw ",
        };
        let destination = match route.destination.length() {
            0 => "default".to_owned(),
            _ => route.destination.to_string(),
        };
        let mut text = format!("{kind}{destination}");
        for nexthop in &route.nexthops {
            if let Some(gateway) = nexthop.gateway {
                text += &format!(" via {gateway}");
            }
            if let Some(link) = nexthop.link.and_then(|index| self.link(index)) {
                text += &format!(" dev {}", link.name);
            }
        }
        if route.table != MAIN_TABLE && route.table != LOCAL_TABLE {
            text += &format!(" table {}", route.table);
        }
        text
    }
}

/// `RT_TABLE_MAIN` and `RT_TABLE_LOCAL` (include/uapi/linux/rtnetlink.h).
const MAIN_TABLE: u32 = 254;
const LOCAL_TABLE: u32 = 255;

impl PolicyRule {
    fn admits(&self, question: Question<'_>) -> bool {
        self.destination.is_none_or(|prefix| prefix.contains(question.destination))
            && self.source.is_none_or(|prefix| question.source.is_some_and(|source| prefix.contains(source)))
            && self.input.as_deref().is_none_or(|input| question.input.unwrap_or("lo") == input)
            && self.mark.is_none_or(|(mark, mask)| question.mark & mask == mark)
    }
}

#[cfg(test)]
mod tests;
