//! What is around a journey: addresses, sockets, settings, networks.

use super::*;

pub(super) const NETNS: u32 = 4026531840;

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `address:port`, or a bare address.
pub(super) fn end(text: &str) -> (IpAddr, Option<u16>) {
    match text.parse::<SocketAddr>() {
        Ok(socket) => (socket.ip(), Some(socket.port())),
        Err(_) => (ip(text), None),
    }
}

pub(super) fn tuple(from: &str, to: &str) -> Tuple {
    let ((source, source_port), (destination, destination_port)) = (end(from), end(to));
    Tuple { source, source_port, destination, destination_port }
}

pub(super) fn at<T>(value: T) -> Reading<T> {
    Reading::Known { value, at: Timestamp::UNIX_EPOCH }
}

pub(super) fn rule(chain: &str, position: u32, text: &str) -> MatchedRule {
    MatchedRule {
        chain: chain.to_owned(),
        position,
        handle: Some(7),
        text: Some(text.to_owned()),
        action: None,
    }
}

pub(super) fn socket(protocol: Protocol, local: &str, state: SocketState, comm: &str) -> SocketEntry {
    let owner = Owner { pid: 12, comm: comm.to_owned(), holds_tun: false };
    SocketEntry {
        protocol,
        local: endpoint(local),
        state,
        inode: 1,
        limits: None,
        owner: Some(Arc::new(owner)),
    }
}

pub(super) fn endpoint(text: &str) -> Endpoint {
    let (address, port) = end(text);
    Endpoint { address, port: port.unwrap() }
}

pub(super) fn journey(protocol: Protocol, tuple: Tuple) -> Journey {
    Journey {
        id: 1,
        flow: Some(1),
        direction: Some(Direction::Original),
        time: Timestamp::UNIX_EPOCH,
        packet: Packet {
            family: if tuple.source.is_ipv6() { Family::Ipv6 } else { Family::Ipv4 },
            protocol,
            tuple,
            length: 60,
            tcp_flags: None,
            ip_id: None,
            icmp_type: None,
            icmp_code: None,
            ttl: 64,
            fragment: None,
            segments: None,
            quoted: None,
        },
        stages: Vec::new(),
        conntrack: Some(Conntrack {
            state: CtState::New,
            original: Some(tuple),
            reply: Some(tuple.inverse()),
            mark: None,
            zone: None,
            status: None,
        }),
        outcome: Outcome::new(OutcomeKind::Incomplete),
        findings: Vec::new(),
        notes: Vec::new(),
    }
}

pub(super) fn settings() -> Settings {
    let device = DeviceSettings {
        forwarding_v4: Some(true),
        forwarding_v6: Some(true),
        rp_filter: Some(0),
        route_localnet: Some(false),
        accept_local: Some(false),
    };
    Settings {
        ip_forward: Some(true),
        all: device,
        devices: ["lo", "c0", "br0", "v0", "u0"].into_iter().map(|name| (name.to_owned(), device)).collect(),
        bridge_calls_iptables: Some(true),
        bridge_calls_ip6tables: Some(true),
        tcp_l3mdev_accept: Some(false),
        udp_l3mdev_accept: Some(false),
        conntrack: None,
        queues: None,
        ipvs: None,
    }
}

pub(super) fn network(clients: &str, containers: &str, uplink: &str, gateway: &str) -> Network {
    let link = |index, name: &str, kind: Option<&str>, master| Link {
        index,
        name: name.to_owned(),
        kind: kind.map(str::to_owned),
        master,
        up: true,
        programs: JudgingPrograms::default(),
    };
    let own = |link, text: &str| {
        let (address, length) = text.split_once('/').unwrap();
        Address { link, prefix: Prefix::new(ip(address), length.parse().unwrap()).unwrap() }
    };
    let addresses = vec![own(2, clients), own(3, containers), own(5, uplink)];
    let ipv6 = ip(gateway).is_ipv6();
    let any = if ipv6 { ip("::") } else { ip("0.0.0.0") };
    let mut routes: Vec<_> = addresses
        .iter()
        .map(|own| Route {
            table: 254,
            destination: own.prefix.network(),
            kind: RouteKind::Unicast,
            metric: 0,
            nexthops: vec![Nexthop { link: Some(own.link), gateway: None }],
        })
        .collect();
    routes.push(Route {
        table: 254,
        destination: Prefix::new(any, 0).unwrap(),
        kind: RouteKind::Unicast,
        metric: 0,
        nexthops: vec![Nexthop { link: Some(5), gateway: Some(ip(gateway)) }],
    });
    Network {
        links: vec![
            link(1, "lo", None, None),
            link(2, "c0", Some("veth"), None),
            link(3, "br0", Some("bridge"), None),
            link(4, "v0", Some("veth"), Some(3)),
            link(5, "u0", Some("veth"), None),
        ],
        addresses,
        routes,
        rules: vec![PolicyRule {
            ipv6,
            priority: 32766,
            source: None,
            destination: None,
            input: None,
            mark: None,
            table: 254,
            refuses: None,
            other_conditions: false,
        }],
        neighbours: Vec::new(),
    }
}
