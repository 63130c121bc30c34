//! The cases that the tests of both output formats look at.

use tracer::model::{
    Backend, DecidedBy, Finding, Hook, Journey, LocalSocket, MatchedRule, NatKind, NetfilterStage,
    OutcomeKind, Protocol, StageKind, Verdict,
};

use super::{CONTAINER, Way, decides, rule, tuple};

fn docker_dnat(stage: &mut NetfilterStage) {
    let dnat = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080";
    let rules = vec![
        rule("PREROUTING", 1, "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER", "jump DOCKER"),
        rule("DOCKER", 2, dnat, "DNAT"),
    ];
    decides(stage, Verdict::Accept, rules);
    stage.nat = Some(NatKind::Dnat);
    stage.after = tuple("10.1.0.2:40000", "172.17.0.2:8080");
}

/// A published port of Docker, as far as the routing decision.
fn published(id: u64) -> Way {
    Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.1.0.1:80")
        .enters("eth0")
        .quiet(Hook::Prerouting, &["raw", "mangle"])
        .table(Hook::Prerouting, "nat", docker_dnat)
        .route(|route| route.device = Some("docker0".into()))
        .quiet(Hook::Forward, &["mangle"])
}

/// The first packet to a published port, all well.
pub(crate) fn docker_forwarded(id: u64) -> Journey {
    let accept = "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT";
    published(id)
        .table(Hook::Forward, "filter", |stage| {
            let rules = vec![
                rule("FORWARD", 1, "-A FORWARD -j DOCKER-USER", "jump DOCKER-USER"),
                rule("DOCKER-USER", 1, "-A DOCKER-USER -j RETURN", "RETURN"),
                rule("FORWARD", 2, "-A FORWARD -j DOCKER-FORWARD", "jump DOCKER-FORWARD"),
                rule("DOCKER-FORWARD", 1, "-A DOCKER-FORWARD -j DOCKER-CT", "jump DOCKER-CT"),
                rule("DOCKER-FORWARD", 3, "-A DOCKER-FORWARD -j DOCKER-BRIDGE", "jump DOCKER-BRIDGE"),
                rule("DOCKER-BRIDGE", 1, "-A DOCKER-BRIDGE -o docker0 -j DOCKER", "jump DOCKER"),
                rule("DOCKER", 1, accept, "ACCEPT"),
            ];
            decides(stage, Verdict::Accept, rules);
        })
        .quiet(Hook::Forward, &["security"])
        .quiet(Hook::Postrouting, &["mangle", "nat"])
        .leaves("docker0")
        .ends(OutcomeKind::Forwarded, |outcome| outcome.device = Some("docker0".into()))
}

/// The container's answer to [`docker_forwarded`]: the mapping turns the source back.
pub(crate) fn docker_reply(id: u64) -> Journey {
    let conntrack = "-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    let dnat = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080";
    Way::of(id, Protocol::TCP, "172.17.0.2:8080", "10.1.0.2:40000")
        .reply()
        .enters("veth5c0")
        .enters("docker0")
        .quiet(Hook::Prerouting, &["raw", "mangle", "nat"])
        .route(|route| {
            route.device = Some("eth0".into());
            route.gateway = Some("10.1.0.254".parse().unwrap());
        })
        .table(Hook::Forward, "filter", |stage| {
            let rules = vec![
                rule("FORWARD", 1, "-A FORWARD -j DOCKER-CT", "jump DOCKER-CT"),
                rule("DOCKER-CT", 1, conntrack, "ACCEPT"),
            ];
            decides(stage, Verdict::Accept, rules);
        })
        .table(Hook::Postrouting, "nat", |stage| {
            stage.decided_by = Some(DecidedBy::Mapping);
            stage.nat = Some(NatKind::Snat);
            stage.mapping_rule = Some(rule("DOCKER", 2, dnat, "DNAT"));
            stage.after = tuple("10.1.0.1:80", "10.1.0.2:40000");
        })
        .leaves("eth0")
        .ends(OutcomeKind::Forwarded, |outcome| outcome.device = Some("eth0".into()))
}

/// A container's way out, and the answer to it: the source is rewritten, and turned back.
pub(crate) fn masqueraded(id: u64) -> [Journey; 2] {
    let text = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    let masquerade = rule("POSTROUTING", 1, text, "MASQUERADE");
    let out = Way::of(id, Protocol::UDP, "172.17.0.2:5353", "192.0.2.53:53")
        .enters("docker0")
        .quiet(Hook::Prerouting, &["nat"])
        .route(|route| route.device = Some("eth0".into()))
        .quiet(Hook::Forward, &["filter"])
        .table(Hook::Postrouting, "nat", |stage| {
            decides(stage, Verdict::Accept, vec![masquerade.clone()]);
            stage.nat = Some(NatKind::Masquerade);
            stage.after = tuple("10.1.0.1:5353", "192.0.2.53:53");
        })
        .leaves("eth0")
        .ends(OutcomeKind::Forwarded, |outcome| outcome.device = Some("eth0".into()));
    let back = Way::of(id + 1, Protocol::UDP, "192.0.2.53:53", "10.1.0.1:5353")
        .reply()
        .enters("eth0")
        .table(Hook::Prerouting, "nat", |stage| {
            stage.decided_by = Some(DecidedBy::Mapping);
            stage.nat = Some(NatKind::Dnat);
            stage.mapping_rule = Some(masquerade.clone());
            stage.after = tuple("192.0.2.53:53", "172.17.0.2:5353");
        })
        .route(|route| route.device = Some("docker0".into()))
        .quiet(Hook::Forward, &["filter"])
        .leaves("docker0")
        .ends(OutcomeKind::Forwarded, |outcome| outcome.device = Some("docker0".into()));
    [out, back]
}

/// A service of Kubernetes: long chain names, a mark on the way; then a rule of DOCKER-USER without a text.
pub(crate) fn kube_service_dropped(id: u64) -> Journey {
    let (service, endpoint) = ("KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SEP-6E7XQMQ4RAYOWTTM");
    Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.96.0.10:443")
        .enters("eth0")
        .table(Hook::Prerouting, "nat", |stage| {
            let jump = |to: &str| format!("jump {to}");
            let rules = vec![
                rule("PREROUTING", 1, "-A PREROUTING -j KUBE-SERVICES", &jump("KUBE-SERVICES")),
                rule("KUBE-SERVICES", 4, "-A KUBE-SERVICES ...", &jump(service)),
                rule(service, 1, "-A KUBE-SVC-... -j KUBE-MARK-MASQ", &jump("KUBE-MARK-MASQ")),
                rule("KUBE-MARK-MASQ", 1, "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000", "MARK"),
                rule(service, 2, "-A KUBE-SVC-... --probability 0.5", &jump(endpoint)),
                rule(endpoint, 2, "-A KUBE-SEP-... -p tcp -j DNAT --to-destination 10.244.1.7:6443", "DNAT"),
            ];
            decides(stage, Verdict::Accept, rules);
            stage.nat = Some(NatKind::Dnat);
            stage.after = tuple("10.1.0.2:40000", "10.244.1.7:6443");
        })
        .route(|route| route.device = Some("cni0".into()))
        .table(Hook::Forward, "filter", |stage| {
            let jump = rule("FORWARD", 1, "-A FORWARD -j DOCKER-USER", "jump DOCKER-USER");
            let drop = MatchedRule { text: None, handle: None, ..rule("DOCKER-USER", 3, "", "DROP") };
            decides(stage, Verdict::Drop, vec![jump, drop]);
        })
        .with(|journey| {
            journey.notes.push("joined after raw".into());
            if let StageKind::Device(device) = &mut journey.stages[0].kind {
                device.programs = vec!["xdp: lb_main".into(), "tc: cil_from_netdev".into()];
            }
        })
        .dies(OutcomeKind::Dropped, "NETFILTER_DROP", "nf_hook_slow", |_| {})
}

/// With `--rules off`: verdicts, and nothing about rules.
pub(crate) fn without_rules(id: u64) -> Journey {
    let verdict_only = |verdict| {
        move |stage: &mut NetfilterStage| {
            stage.verdict = Some(verdict);
            (stage.decided_by, stage.rules_source, stage.exact) = (None, None, false);
        }
    };
    Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.1.0.1:25")
        .enters("eth0")
        .table(Hook::Prerouting, "nat", verdict_only(Verdict::Accept))
        .table(Hook::Input, "filter", verdict_only(Verdict::Drop))
        .dies(OutcomeKind::Dropped, "NETFILTER_DROP", "nf_hook_slow", |_| {})
}

/// Docker's filter chains are gone: the policy of FORWARD drops what was translated.
pub(crate) fn forward_policy_drop(id: u64) -> Journey {
    let mut journey = published(id)
        .table(Hook::Forward, "filter", |stage| stage.verdict = Some(Verdict::Drop))
        .dies(OutcomeKind::Dropped, "NETFILTER_DROP", "nf_hook_slow", |_| {});
    journey.findings.push(Finding {
        code: "forward-drop-after-dnat",
        summary: "10.1.0.1:80 was translated to 172.17.0.2:8080, but no rule of filter FORWARD accepts the \
                  translated packet, so the chain's policy DROP took it: Docker's own filter chains are missing."
            .into(),
        evidence: vec![
            "nat DOCKER #2 rewrote the destination to 172.17.0.2:8080".into(),
            "filter FORWARD has policy DROP and no rule that matched".into(),
            "filter has no chain DOCKER, nat has one: rules were restored over Docker's".into(),
        ],
        fix: "systemctl restart docker".into(),
    });
    journey
}

/// A whitelist that ends in REJECT, over IPv4.
pub(crate) fn rejected_by_rule(id: u64) -> Journey {
    Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.2.0.2:443")
        .backend(Backend::IptablesLegacy)
        .enters("eth0")
        .route(|route| route.device = Some("eth1".into()))
        .table(Hook::Forward, "filter", |stage| {
            let log = rule("FORWARD", 4, "-A FORWARD -j LOG --log-prefix \"no: \"", "LOG");
            let mark = rule("FORWARD", 5, "-A FORWARD -p tcp -j MARK --set-xmark 0x1/0xffffffff", "MARK");
            let reject = rule("FORWARD", 6, "-A FORWARD -p tcp -j REJECT --reject-with tcp-reset", "REJECT");
            decides(stage, Verdict::Reject, vec![log, mark, reject]);
        })
        .dies(OutcomeKind::Rejected, "NETFILTER_DROP", "nf_hook_slow", |outcome| {
            outcome.answer = Some("tcp-reset".into());
        })
}

/// Nobody listens.
pub(crate) fn refused_no_socket(id: u64) -> Journey {
    let mut journey = Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.1.0.1:81")
        .enters("eth0")
        .quiet(Hook::Prerouting, &["raw", "mangle", "nat"])
        .route(|route| {
            route.table = Some(255);
            route.device = Some("lo".into());
            route.route_type = Some("local".into());
        })
        .quiet(Hook::Input, &["mangle"])
        .table(Hook::Input, "filter", |stage| {
            stage.rules = vec![rule("INPUT", 1, "-A INPUT -j ALLOWED", "jump ALLOWED")];
        })
        .dies(OutcomeKind::Rejected, "NO_SOCKET", "tcp_v4_rcv", |outcome| {
            outcome.answer = Some("tcp-reset".into());
        });
    journey.findings.push(Finding {
        code: "listener-on-other-address",
        summary: "Nothing listens on 10.1.0.1:81; nginx[812] listens on 127.0.0.1:81 only.".into(),
        evidence: vec!["sockets on tcp port 81: 127.0.0.1:81 nginx[812]".into()],
        fix: "make nginx listen on 10.1.0.1:81 or 0.0.0.0:81".into(),
    });
    journey
}

pub(crate) fn delivered(id: u64) -> Journey {
    Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.1.0.1:22")
        .enters("eth0")
        .quiet(Hook::Prerouting, &["mangle", "nat"])
        .route(|route| {
            route.table = Some(255);
            route.device = Some("lo".into());
            route.route_type = Some("local".into());
        })
        .table(Hook::Input, "filter", |stage| {
            let accept = rule(
                "INPUT",
                2,
                "-A INPUT -p tcp -m tcp --dport 22 -m comment --comment \"ssh\" -j ACCEPT",
                "ACCEPT",
            );
            decides(stage, Verdict::Accept, vec![accept]);
        })
        .ends(OutcomeKind::Delivered, |outcome| {
            outcome.socket = Some(LocalSocket {
                local: "10.1.0.1:22".into(),
                process: Some("sshd".into()),
                pid: Some(812),
            });
        })
}

/// The same hook, two backends: legacy accepts, nft drops.
pub(crate) fn mixed_backends(id: u64) -> Journey {
    let way = Way::of(id, Protocol::UDP, "10.1.0.2:5000", "10.1.0.1:500").enters("eth0").route(|route| {
        route.table = Some(255);
        route.route_type = Some("local".into());
        route.device = Some("lo".into());
    });
    way.backend(Backend::IptablesLegacy)
        .table(Hook::Input, "filter", |stage| {
            let accept = "-A INPUT -p udp -m udp --dport 500 -j ACCEPT";
            decides(stage, Verdict::Accept, vec![rule("INPUT", 1, accept, "ACCEPT")]);
        })
        .backend(Backend::IptablesNft)
        .table(Hook::Input, "filter", |stage| {
            decides(stage, Verdict::Drop, vec![rule("INPUT", 9, "-A INPUT -j DROP", "DROP")]);
        })
        .dies(OutcomeKind::Dropped, "NETFILTER_DROP", "nf_hook_slow", |_| {})
}

/// A walk that is not certain, and native tables whose rules cannot be seen.
pub(crate) fn inexact(id: u64) -> Journey {
    let blind = |stage: &mut NetfilterStage| {
        stage.exact = false;
        stage.decided_by = None;
        stage.inexact_because = Some("its rules carry no counters".into());
    };
    Way::of(id, Protocol::TCP, "10.1.0.1:39000", "192.0.2.7:443")
        .route(|route| {
            route.device = Some("eth0".into());
            route.gateway = Some("10.1.0.254".parse().unwrap());
            route.table = Some(100);
            route.mark = Some(1);
        })
        .backend(Backend::Nftables)
        .table(Hook::Output, "fw", blind)
        .table(Hook::Output, "limits", blind)
        .backend(Backend::IptablesNft)
        .table(Hook::Output, "filter", |stage| {
            decides(
                stage,
                Verdict::Drop,
                vec![rule("OUTPUT", 3, "-A OUTPUT -p tcp --dport 443 -j DROP", "DROP")],
            );
            stage.exact = false;
            stage.inexact_because = Some("another packet passed on this CPU".into());
        })
        .dies(OutcomeKind::Dropped, "NETFILTER_DROP", "nf_hook_slow", |_| {})
}

/// An IPv6 redirect into a namespace of a container, refused by a native table there.
pub(crate) fn ipv6_two_namespaces(id: u64) -> Journey {
    Way::of(id, Protocol::TCP, "[2001:db8::2]:40000", "[2001:db8::1]:80")
        .enters("eth0")
        .table(Hook::Prerouting, "nat", |stage| {
            let text = "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080";
            decides(stage, Verdict::Accept, vec![rule("PREROUTING", 1, text, "REDIRECT")]);
            stage.nat = Some(NatKind::Redirect);
            stage.after = tuple("[2001:db8::2]:40000", "[2001:db8::1]:8080");
        })
        .route(|route| route.device = Some("veth0".into()))
        .leaves("veth0")
        .netns(CONTAINER)
        .enters("eth0")
        .backend(Backend::Nftables)
        .table(Hook::Input, "fw", |stage| {
            stage.chain = Some("input".into());
            decides(stage, Verdict::Drop, vec![rule("input", 4, "tcp dport 8080 counter drop", "drop")]);
        })
        .dies(OutcomeKind::Dropped, "NETFILTER_DROP", "nf_hook_slow", |_| {})
}

/// What an attacker or a joker would put into names and comments.
pub(crate) fn hostile(id: u64) -> Journey {
    let mut journey = Way::of(id, Protocol::TCP, "10.1.0.2:40000", "10.1.0.1:22")
        .enters("eth\u{1b}[2J0")
        .table(Hook::Input, "filter\u{9b}31m", |stage| {
            let text = "-A INPUT -m comment --comment \"ok\n02:00:00 DELIVERED \u{202e}gnp\u{7}\" -j \u{1b}]0;title\u{7}ACCEPT";
            decides(stage, Verdict::Accept, vec![rule("INPUT\r", 1, text, "ACCEPT\u{8}")]);
            stage.exact = false;
            stage.inexact_because = Some("\u{1b}[31mbecause".into());
        })
        .with(|journey| journey.notes.push("note\u{1b}c".into()))
        .ends(OutcomeKind::Delivered, |outcome| {
            let process = Some("ngi\u{1b}[1mnx\n".into());
            outcome.socket = Some(LocalSocket { local: "10.1.0.1:22".into(), process, pid: Some(1) });
        });
    journey.findings.push(Finding {
        code: "dropped-by-rule",
        summary: "sum\u{2028}mary \u{1b}[0m".into(),
        evidence: vec!["evi\u{1b}[0mdence\n".into()],
        fix: "true\nrm -rf /".into(),
    });
    journey
}
