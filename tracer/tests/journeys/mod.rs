//! Journeys as `correlate`, `rules` and `diagnose` would hand them over, built by hand.
#![allow(dead_code, reason = "each test program uses some of them")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod cases;

use tracer::model::{
    Backend, Conntrack, CtState, DecidedBy, DeviceDirection, DeviceStage, Direction, Family, Hook, Journey,
    MatchedRule, NetfilterStage, Outcome, OutcomeKind, Packet, ProgramStage, ProgramType, ProgramVerdict,
    Protocol, RouteStage, RulesSource, Stage, StageKind, TableFamily, Tuple, Verdict,
};

pub(crate) use self::cases::*;

pub(crate) const HOST: u32 = 4_026_531_840;
pub(crate) const CONTAINER: u32 = 4_026_532_001;

pub(crate) fn tuple(source: &str, destination: &str) -> Tuple {
    let end = |text: &str| match text.parse::<std::net::SocketAddr>() {
        Ok(end) => (end.ip(), Some(end.port())),
        Err(_) => (text.parse().unwrap(), None),
    };
    let ((source, source_port), (destination, destination_port)) = (end(source), end(destination));
    Tuple { source, source_port, destination, destination_port }
}

pub(crate) fn rule(chain: &str, position: u32, text: &str, action: &str) -> MatchedRule {
    MatchedRule {
        chain: chain.into(),
        position,
        handle: Some(u64::from(position) + 100),
        text: Some(text.into()),
        action: Some(action.into()),
    }
}

/// Builds a journey stage by stage.
pub(crate) struct Way {
    journey: Journey,
    tuple: Tuple,
    backend: Backend,
    netns: u32,
}

impl Way {
    pub(crate) fn of(id: u64, protocol: Protocol, source: &str, destination: &str) -> Self {
        let tuple = tuple(source, destination);
        let family = if tuple.source.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        let packet = Packet {
            family,
            protocol,
            tuple,
            length: 60,
            tcp_flags: (protocol == Protocol::TCP).then(|| "S".into()),
            ip_id: (family == Family::Ipv4).then_some(55060),
            icmp_type: None,
            icmp_code: None,
            ttl: 64,
            fragment: None,
            segments: None,
            quoted: None,
        };
        let outcome = Outcome::new(OutcomeKind::Incomplete);
        let journey = Journey {
            id,
            flow: Some(3),
            direction: Some(Direction::Original),
            time: format!("2026-11-21T02:00:00.{:06}Z", 123_000 + id).parse().unwrap(),
            packet,
            stages: Vec::new(),
            conntrack: Some(Conntrack {
                state: CtState::New,
                original: Some(tuple),
                reply: Some(tuple.inverse()),
                mark: Some(0),
                zone: Some(0),
                status: Some(0),
            }),
            outcome,
            findings: Vec::new(),
            notes: Vec::new(),
        };
        Self { journey, tuple, backend: Backend::IptablesNft, netns: HOST }
    }

    pub(crate) fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    pub(crate) fn netns(mut self, netns: u32) -> Self {
        self.netns = netns;
        self
    }

    /// Anything of the packet or the journey that the other verbs do not say.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Journey)) -> Self {
        change(&mut self.journey);
        self
    }

    pub(crate) fn reply(self) -> Self {
        self.with(|journey| {
            journey.direction = Some(Direction::Reply);
            journey.packet.tcp_flags = journey.packet.tcp_flags.is_some().then(|| "SA".into());
            if let Some(conntrack) = &mut journey.conntrack {
                conntrack.state = CtState::Established;
            }
        })
    }

    fn stage(mut self, kind: StageKind) -> Self {
        let elapsed_ns = self.journey.stages.len() as u64 * 2_100;
        self.journey.stages.push(Stage { kind, elapsed_ns, netns: self.netns });
        self
    }

    fn device(self, device: &str, direction: DeviceDirection) -> Self {
        let device =
            DeviceStage { device: device.into(), ifindex: 2, direction, xdp: false, programs: Vec::new() };
        self.stage(StageKind::Device(device))
    }

    pub(crate) fn enters(self, device: &str) -> Self {
        self.device(device, DeviceDirection::In)
    }

    pub(crate) fn leaves(self, device: &str) -> Self {
        self.device(device, DeviceDirection::Out)
    }

    /// A program of somebody else on the way in by `device`.
    pub(crate) fn program(self, device: &str, program_type: ProgramType, id: u32, code: i32) -> Self {
        self.stage(StageKind::Program(ProgramStage {
            device: device.into(),
            ifindex: 2,
            direction: DeviceDirection::In,
            program_type,
            program: (id != 0).then(|| "their_prog".into()),
            id,
            verdict: ProgramVerdict::new(program_type, code),
        }))
    }

    pub(crate) fn route(self, change: impl FnOnce(&mut RouteStage)) -> Self {
        let mut route = RouteStage {
            table: Some(254),
            destination: self.tuple.destination,
            device: None,
            gateway: None,
            error: None,
            route_type: Some("unicast".into()),
            mark: None,
        };
        change(&mut route);
        self.stage(StageKind::Route(route))
    }

    /// A base chain that accepts by policy, no rule matched; `change` says what else it did.
    pub(crate) fn table(mut self, hook: Hook, table: &str, change: impl FnOnce(&mut NetfilterStage)) -> Self {
        let family = match (self.backend, self.tuple.source.is_ipv4()) {
            (Backend::Nftables, _) => TableFamily::Inet,
            (_, true) => TableFamily::Ip,
            (_, false) => TableFamily::Ip6,
        };
        let mut stage = NetfilterStage {
            hook,
            family,
            table: table.into(),
            chain: Some(hook.iptables_name().into()),
            priority: priority(hook, table),
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
        change(&mut stage);
        self.tuple = stage.after;
        self.stage(StageKind::Netfilter(stage))
    }

    /// Tables of one hook that do nothing.
    pub(crate) fn quiet(self, hook: Hook, tables: &[&str]) -> Self {
        tables.iter().fold(self, |way, table| way.table(hook, table, |_| {}))
    }

    pub(crate) fn ends(mut self, result: OutcomeKind, change: impl FnOnce(&mut Outcome)) -> Journey {
        self.journey.outcome.result = result;
        change(&mut self.journey.outcome);
        self.journey
    }

    /// The last stage ended it.
    pub(crate) fn dies(
        self,
        result: OutcomeKind,
        reason: &str,
        location: &str,
        change: impl FnOnce(&mut Outcome),
    ) -> Journey {
        let last = self.journey.stages.len() - 1;
        self.ends(result, |outcome| {
            outcome.stage = Some(last);
            outcome.reason = Some(reason.into());
            outcome.location = Some(location.into());
            change(outcome);
        })
    }
}

/// That of iptables' own tables (include/uapi/linux/netfilter_ipv4.h).
fn priority(hook: Hook, table: &str) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    }
}

/// Sets what a table's rules decided.
pub(crate) fn decides(stage: &mut NetfilterStage, verdict: Verdict, rules: Vec<MatchedRule>) {
    stage.verdict = Some(verdict);
    stage.decided_by = Some(DecidedBy::Rule);
    stage.rules = rules;
}
