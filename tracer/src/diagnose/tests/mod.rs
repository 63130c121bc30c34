//! Hand-built journeys: for each cause one that has it, one that nearly has it, and healthy ones.

mod conntrack;
mod listeners;
mod published;
mod replies;
mod routing;
mod verdicts;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    enrich::{
        Address, Containers, DeviceSettings, Endpoint, JudgingPrograms, Link, Network, Nexthop, Owner,
        PolicyRule, Prefix, Reading, Route, RouteKind, Settings, SocketEntry, SocketState, Sockets,
        Surroundings,
    },
    model::{
        Backend, Conntrack, CtState, DecidedBy, DeviceDirection, DeviceStage, Direction, Family, Finding,
        Hook, Journey, MatchedRule, NatKind, NetfilterStage, Outcome, OutcomeKind, Packet, Protocol,
        RouteStage, RulesSource, Stage, StageKind, TableFamily, Tuple, Verdict,
    },
};

use super::*;

const NETNS: u32 = 4026531840;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// `address:port`, or a bare address.
fn end(text: &str) -> (IpAddr, Option<u16>) {
    match text.parse::<SocketAddr>() {
        Ok(socket) => (socket.ip(), Some(socket.port())),
        Err(_) => (ip(text), None),
    }
}

fn tuple(from: &str, to: &str) -> Tuple {
    let ((source, source_port), (destination, destination_port)) = (end(from), end(to));
    Tuple { source, source_port, destination, destination_port }
}

/// A journey under construction, with everything around it.
struct Lab {
    journey: Journey,
    settings: Settings,
    network: Network,
    sockets: Vec<SocketEntry>,
    containers: Containers,
    ruleset: RulesetView,
    recent: Vec<Delivery>,
    flow: Flow,
    waited: Duration,
    netns: u32,
    tuple: Tuple,
    backend: Backend,
}

impl Lab {
    /// A host between clients on c0 (10.1.0.0/24), containers behind bridge br0 (10.2.0.0/24, port v0) and an
    /// uplink u0 (192.0.2.0/24, default route), that forwards.
    fn new(protocol: Protocol, from: &str, to: &str) -> Self {
        let tuple = tuple(from, to);
        let ipv6 = tuple.source.is_ipv6();
        Self {
            journey: journey(protocol, tuple),
            settings: settings(),
            network: if ipv6 {
                network("fd01::1/64", "fd02::1/64", "2001:db8::1/64", "2001:db8::fe")
            } else {
                network("10.1.0.1/24", "10.2.0.1/24", "192.0.2.1/24", "192.0.2.254")
            },
            sockets: Vec::new(),
            containers: Containers::default(),
            ruleset: RulesetView::new(NETNS),
            recent: Vec::new(),
            flow: Flow { first_seen: Timestamp::UNIX_EPOCH, replies: 0 },
            waited: Duration::ZERO,
            netns: NETNS,
            tuple,
            backend: Backend::IptablesNft,
        }
    }

    fn tcp(from: &str, to: &str) -> Self {
        let mut lab = Self::new(Protocol::TCP, from, to);
        lab.journey.packet.tcp_flags = Some("S".to_owned());
        lab
    }

    fn udp(from: &str, to: &str) -> Self {
        Self::new(Protocol::UDP, from, to)
    }

    fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    fn flags(mut self, flags: &str) -> Self {
        self.journey.packet.tcp_flags = Some(flags.to_owned());
        self
    }

    fn state(mut self, state: CtState) -> Self {
        self.journey.conntrack.as_mut().unwrap().state = state;
        self
    }

    fn push(mut self, kind: StageKind) -> Self {
        self.journey.stages.push(Stage { kind, elapsed_ns: 0, netns: self.netns });
        self
    }

    fn device(self, device: &str, direction: DeviceDirection) -> Self {
        self.push(StageKind::Device(DeviceStage {
            device: device.to_owned(),
            ifindex: 1,
            direction,
            programs: Vec::new(),
        }))
    }

    fn comes_in(self, device: &str) -> Self {
        self.device(device, DeviceDirection::In)
    }

    fn goes_out(mut self, device: &str) -> Self {
        self.journey.outcome = Outcome { device: Some(device.to_owned()), ..outcome(OutcomeKind::Forwarded) };
        self.device(device, DeviceDirection::Out)
    }

    fn routed(self, table: u32, device: &str, route_type: &str) -> Self {
        let destination = self.tuple.destination;
        self.push(StageKind::Route(RouteStage {
            table: Some(table),
            destination,
            device: Some(device.to_owned()),
            gateway: None,
            error: None,
            route_type: Some(route_type.to_owned()),
            mark: None,
        }))
    }

    /// A table's stage, changed by `edit`.
    fn stage(mut self, hook: Hook, table: &str, edit: impl FnOnce(&mut NetfilterStage)) -> Self {
        let mut stage = NetfilterStage {
            hook,
            family: if self.tuple.source.is_ipv6() { TableFamily::Ip6 } else { TableFamily::Ip },
            table: table.to_owned(),
            chain: Some(hook.iptables_name().to_owned()),
            priority: 0,
            backend: Some(self.backend),
            verdict: Some(Verdict::Accept),
            decided_by: Some(DecidedBy::Policy),
            rules: Vec::new(),
            rules_source: Some(RulesSource::Counters),
            exact: true,
            inexact_because: None,
            nat: None,
            mapping_rule: None,
            before: self.tuple,
            after: self.tuple,
        };
        edit(&mut stage);
        self.tuple = stage.after;
        self.push(StageKind::Netfilter(stage))
    }

    fn accepted(self, hook: Hook) -> Self {
        self.stage(hook, "filter", |_| {})
    }

    fn dnat(self, to: &str, by: DecidedBy) -> Self {
        let (destination, destination_port) = end(to);
        let text = format!("-A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination {to}");
        self.stage(Hook::Prerouting, "nat", |stage| {
            stage.nat = Some(NatKind::Dnat);
            stage.decided_by = Some(by);
            stage.after = Tuple { destination, destination_port, ..stage.before };
            if by == DecidedBy::Rule {
                stage.rules = vec![rule("DOCKER", 2, &text)];
            }
        })
    }

    fn masqueraded(self, source: &str) -> Self {
        self.stage(Hook::Postrouting, "nat", |stage| {
            stage.nat = Some(NatKind::Masquerade);
            stage.decided_by = Some(DecidedBy::Rule);
            stage.rules = vec![rule("POSTROUTING", 1, "-A POSTROUTING -j MASQUERADE")];
            stage.after = Tuple { source: ip(source), ..stage.before };
        })
    }

    /// The table's end of the journey.
    fn judged(mut self, hook: Hook, verdict: Verdict, by: Option<(&str, u32, &str)>) -> Self {
        let result = if verdict == Verdict::Reject { OutcomeKind::Rejected } else { OutcomeKind::Dropped };
        self.journey.outcome = Outcome {
            reason: Some("NETFILTER_DROP".to_owned()),
            location: Some("nf_hook_slow".to_owned()),
            stage: Some(self.journey.stages.len()),
            ..outcome(result)
        };
        self.stage(hook, "filter", |stage| {
            stage.verdict = Some(verdict);
            stage.decided_by = Some(if by.is_some() { DecidedBy::Rule } else { DecidedBy::Policy });
            stage.rules = by.into_iter().map(|(chain, position, text)| rule(chain, position, text)).collect();
        })
    }

    /// The kernel's end of the journey.
    fn dropped(mut self, reason: &str, location: &str) -> Self {
        self.journey.outcome = Outcome {
            reason: Some(reason.to_owned()),
            location: Some(location.to_owned()),
            ..outcome(OutcomeKind::Dropped)
        };
        self
    }

    /// The host had no socket, and said so.
    fn refused(mut self) -> Self {
        let answer =
            if self.journey.packet.protocol == Protocol::TCP { "tcp-reset" } else { "icmp-port-unreachable" };
        self = self.dropped("NO_SOCKET", "tcp_v4_rcv");
        self.journey.outcome.result = OutcomeKind::Rejected;
        self.journey.outcome.answer = Some(answer.to_owned());
        self
    }

    fn delivered(mut self) -> Self {
        self.journey.outcome = outcome(OutcomeKind::Delivered);
        self
    }

    fn answered(mut self, replies: u64) -> Self {
        self.flow.replies = replies;
        self
    }

    fn after(mut self, seconds: u64) -> Self {
        self.waited = Duration::from_secs(seconds);
        self
    }

    fn ruleset(mut self, text: &str) -> Self {
        let family = if self.tuple.source.is_ipv6() { TableFamily::Ip6 } else { TableFamily::Ip };
        self.ruleset.add_iptables_save(self.backend, family, text);
        self
    }

    fn listens(mut self, protocol: Protocol, local: &str, comm: &str) -> Self {
        self.sockets.push(socket(protocol, local, SocketState::Listening, comm));
        self
    }

    fn edit(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            netns: NETNS,
            sockets: at(Arc::new(Sockets::new(self.sockets.clone()))),
            settings: at(Arc::new(self.settings.clone())),
            network: at(Arc::new(self.network.clone())),
            containers: at(Arc::new(self.containers.clone())),
        }
    }

    fn diagnose(&self) -> Diagnosis {
        self.diagnose_in(&[Arc::new(self.surroundings())])
    }

    fn diagnose_in(&self, surroundings: &[Arc<Surroundings>]) -> Diagnosis {
        diagnose(&Case {
            journey: &self.journey,
            flow: Some(self.flow),
            now: self.flow.first_seen.checked_add(self.waited).unwrap(),
            recent: &self.recent,
            surroundings,
            rulesets: &[Arc::new(self.ruleset.clone())],
        })
    }

    /// The only finding there is, which must have that code.
    #[track_caller]
    fn only(&self, code: &str) -> Finding {
        let diagnosis = self.diagnose();
        let codes: Vec<_> = diagnosis.findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [code], "{:#?}", diagnosis.findings);
        diagnosis.findings.into_iter().next().unwrap()
    }

    #[track_caller]
    fn healthy(&self) {
        assert_eq!(self.diagnose(), Diagnosis::default());
    }
}

fn at<T>(value: T) -> Reading<T> {
    Reading::Known { value, at: Timestamp::UNIX_EPOCH }
}

fn rule(chain: &str, position: u32, text: &str) -> MatchedRule {
    MatchedRule {
        chain: chain.to_owned(),
        position,
        handle: Some(7),
        text: Some(text.to_owned()),
        action: None,
    }
}

fn socket(protocol: Protocol, local: &str, state: SocketState, comm: &str) -> SocketEntry {
    let owner = Owner { pid: 12, comm: comm.to_owned(), holds_tun: false };
    SocketEntry { protocol, local: endpoint(local), state, inode: 1, owner: Some(Arc::new(owner)) }
}

fn endpoint(text: &str) -> Endpoint {
    let (address, port) = end(text);
    Endpoint { address, port: port.unwrap() }
}

fn outcome(result: OutcomeKind) -> Outcome {
    Outcome { result, stage: None, reason: None, location: None, device: None, socket: None, answer: None }
}

fn journey(protocol: Protocol, tuple: Tuple) -> Journey {
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
        outcome: outcome(OutcomeKind::Incomplete),
        findings: Vec::new(),
        notes: Vec::new(),
    }
}

fn settings() -> Settings {
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
        conntrack: None,
    }
}

fn network(clients: &str, containers: &str, uplink: &str, gateway: &str) -> Network {
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
            other_conditions: false,
        }],
        neighbours: Vec::new(),
    }
}

#[test]
fn codes_are_unique_and_documented() {
    let document = include_str!("../../../../docs/findings.md");
    let all: Vec<_> = codes().collect();
    for code in &all {
        assert_eq!(all.iter().filter(|other| *other == code).count(), 1, "{code}");
        assert!(document.contains(&format!("\n## {code}\n")), "{code} is not in docs/findings.md");
    }
    let described = document.lines().filter_map(|line| line.strip_prefix("## "));
    for code in described {
        assert!(all.contains(&code), "docs/findings.md describes {code}, which does not exist");
    }
}

#[test]
fn nothing_is_said_where_nothing_is_known() {
    let lab = Lab::tcp("10.1.0.2:40000", "10.1.0.1:80").comes_in("c0");
    let unread = Arc::new(Surroundings::unread(NETNS, "not read"));
    let end_of_trace = lab.diagnose_in(std::slice::from_ref(&unread));
    assert_eq!(end_of_trace, Diagnosis::default());
    let lab = lab.dropped("IP_INADDRERRORS", "ip_error");
    for surroundings in [vec![], vec![unread]] {
        let findings = lab.diagnose_in(&surroundings).findings;
        assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["dropped-by-kernel"]);
        assert!(findings[0].summary.contains("may not take or forward"), "{}", findings[0].summary);
    }
}

#[test]
fn nothing_in_a_finding_can_move_the_cursor() {
    let text = "-A INPUT -m comment --comment \"\u{1b}[2J\n\" -j DROP";
    let lab = Lab::tcp("10.1.0.2:40000", "10.1.0.1:80").comes_in("c0").judged(
        Hook::Input,
        Verdict::Drop,
        Some(("INPUT", 1, text)),
    );
    let finding = lab.only("dropped-by-rule");
    for line in finding.evidence.iter().chain([&finding.summary, &finding.fix]) {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}
