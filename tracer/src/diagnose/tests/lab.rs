//! A journey under construction.

use super::*;

/// A journey under construction, with everything around it.
pub(super) struct Lab {
    pub(super) journey: Journey,
    pub(super) settings: Settings,
    pub(super) network: Network,
    pub(super) sockets: Vec<SocketEntry>,
    pub(super) containers: Containers,
    pub(super) ruleset: RulesetView,
    pub(super) recent: Vec<Delivery>,
    pub(super) flow: Flow,
    pub(super) waited: Duration,
    pub(super) netns: u32,
    pub(super) tuple: Tuple,
    pub(super) backend: Backend,
}

impl Lab {
    /// A host between clients on c0 (10.1.0.0/24), containers behind bridge br0 (10.2.0.0/24, port v0) and an
    /// uplink u0 (192.0.2.0/24, default route), that forwards.
    pub(super) fn new(protocol: Protocol, from: &str, to: &str) -> Self {
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
            flow: Flow { first_seen: Timestamp::UNIX_EPOCH, replies: 0, answers_may_be_lost: false },
            waited: Duration::ZERO,
            netns: NETNS,
            tuple,
            backend: Backend::IptablesNft,
        }
    }

    pub(super) fn tcp(from: &str, to: &str) -> Self {
        let mut lab = Self::new(Protocol::TCP, from, to);
        lab.journey.packet.tcp_flags = Some("S".to_owned());
        lab
    }

    pub(super) fn udp(from: &str, to: &str) -> Self {
        Self::new(Protocol::UDP, from, to)
    }

    pub(super) fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    pub(super) fn flags(mut self, flags: &str) -> Self {
        self.journey.packet.tcp_flags = Some(flags.to_owned());
        self
    }

    pub(super) fn state(mut self, state: CtState) -> Self {
        self.journey.conntrack.as_mut().unwrap().state = state;
        self
    }

    pub(super) fn push(mut self, kind: StageKind) -> Self {
        self.journey.stages.push(Stage { kind, elapsed_ns: 0, netns: self.netns });
        self
    }

    pub(super) fn device(self, device: &str, direction: DeviceDirection) -> Self {
        self.push(StageKind::Device(DeviceStage {
            xdp: false,
            device: device.to_owned(),
            ifindex: 1,
            direction,
            programs: Vec::new(),
        }))
    }

    pub(super) fn comes_in(self, device: &str) -> Self {
        self.device(device, DeviceDirection::In)
    }

    pub(super) fn goes_out(mut self, device: &str) -> Self {
        self.journey.outcome =
            Outcome { device: Some(device.to_owned()), ..Outcome::new(OutcomeKind::Forwarded) };
        self.device(device, DeviceDirection::Out)
    }

    pub(super) fn routed(self, table: u32, device: &str, route_type: &str) -> Self {
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
    /// The last stage, which is one of netfilter.
    pub(super) fn last_stage(&mut self) -> &mut NetfilterStage {
        match self.journey.stages.last_mut().map(|stage| &mut stage.kind) {
            Some(StageKind::Netfilter(stage)) => stage,
            other => panic!("not a netfilter stage: {other:?}"),
        }
    }

    pub(super) fn stage(mut self, hook: Hook, table: &str, edit: impl FnOnce(&mut NetfilterStage)) -> Self {
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

    pub(super) fn accepted(self, hook: Hook) -> Self {
        self.stage(hook, "filter", |_| {})
    }

    pub(super) fn dnat(self, to: &str, by: DecidedBy) -> Self {
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

    pub(super) fn masqueraded(self, source: &str) -> Self {
        self.stage(Hook::Postrouting, "nat", |stage| {
            stage.nat = Some(NatKind::Masquerade);
            stage.decided_by = Some(DecidedBy::Rule);
            stage.rules = vec![rule("POSTROUTING", 1, "-A POSTROUTING -j MASQUERADE")];
            stage.after = Tuple { source: ip(source), ..stage.before };
        })
    }

    /// The table's end of the journey.
    pub(super) fn judged(mut self, hook: Hook, verdict: Verdict, by: Option<(&str, u32, &str)>) -> Self {
        let result = if verdict == Verdict::Reject { OutcomeKind::Rejected } else { OutcomeKind::Dropped };
        self.journey.outcome = Outcome {
            reason: Some("NETFILTER_DROP".to_owned()),
            location: Some("nf_hook_slow".to_owned()),
            stage: Some(self.journey.stages.len()),
            ..Outcome::new(result)
        };
        self.stage(hook, "filter", |stage| {
            stage.verdict = Some(verdict);
            stage.decided_by = Some(if by.is_some() { DecidedBy::Rule } else { DecidedBy::Policy });
            stage.rules = by.into_iter().map(|(chain, position, text)| rule(chain, position, text)).collect();
        })
    }

    /// The kernel's end of the journey.
    pub(super) fn dropped(mut self, reason: &str, location: &str) -> Self {
        self.journey.outcome = Outcome {
            reason: Some(reason.to_owned()),
            location: Some(location.to_owned()),
            ..Outcome::new(OutcomeKind::Dropped)
        };
        self
    }

    /// The host had no socket, and said so.
    pub(super) fn refused(mut self) -> Self {
        let answer =
            if self.journey.packet.protocol == Protocol::TCP { "tcp-reset" } else { "icmp-port-unreachable" };
        self = self.dropped("NO_SOCKET", "tcp_v4_rcv");
        self.journey.outcome.result = OutcomeKind::Rejected;
        self.journey.outcome.answer = Some(answer.to_owned());
        self
    }

    pub(super) fn delivered(mut self) -> Self {
        self.journey.outcome = Outcome::new(OutcomeKind::Delivered);
        self
    }

    pub(super) fn events_lost(mut self) -> Self {
        self.flow.answers_may_be_lost = true;
        self
    }

    pub(super) fn answered(mut self, replies: u64) -> Self {
        self.flow.replies = replies;
        self
    }

    pub(super) fn after(mut self, seconds: u64) -> Self {
        self.waited = Duration::from_secs(seconds);
        self
    }

    pub(super) fn ruleset(mut self, text: &str) -> Self {
        let family = if self.tuple.source.is_ipv6() { TableFamily::Ip6 } else { TableFamily::Ip };
        self.ruleset.add_iptables_save(self.backend, family, text);
        self
    }

    pub(super) fn listens(mut self, protocol: Protocol, local: &str, comm: &str) -> Self {
        self.sockets.push(socket(protocol, local, SocketState::Listening, comm));
        self
    }

    pub(super) fn edit(mut self, edit: impl FnOnce(&mut Self)) -> Self {
        edit(&mut self);
        self
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            netns: NETNS,
            sockets: at(Arc::new(Sockets::new(self.sockets.clone()))),
            settings: at(Arc::new(self.settings.clone())),
            network: at(Arc::new(self.network.clone())),
            containers: at(Arc::new(self.containers.clone())),
        }
    }

    pub(super) fn diagnose(&self) -> Diagnosis {
        self.diagnose_in(&[Arc::new(self.surroundings())])
    }

    pub(super) fn diagnose_in(&self, surroundings: &[Arc<Surroundings>]) -> Diagnosis {
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
    pub(super) fn only(&self, code: &str) -> Finding {
        let diagnosis = self.diagnose();
        let codes: Vec<_> = diagnosis.findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [code], "{:#?}", diagnosis.findings);
        diagnosis.findings.into_iter().next().unwrap()
    }

    #[track_caller]
    pub(super) fn healthy(&self) {
        assert_eq!(self.diagnose(), Diagnosis::default());
    }
}
