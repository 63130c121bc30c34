use crate::enrich::Neighbour;

use super::*;

const CLIENT: &str = "10.1.0.2:40000";

fn off(lab: &mut Lab) {
    lab.settings.ip_forward = Some(false);
    lab.settings.all.forwarding_v6 = Some(false);
    lab.settings.devices.get_mut("c0").unwrap().forwarding_v4 = Some(false);
}

#[test]
fn forwarding_switched_off() {
    let lab = Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .dnat("10.2.0.2:80", DecidedBy::Rule)
        .edit(off)
        .dropped("IP_INADDRERRORS", "ip_error");
    let finding = lab.only("ip-forwarding-off");
    assert!(finding.summary.ends_with(
        "must be forwarded to 10.2.0.2, but this host does not forward: net.ipv4.ip_forward is 0."
    ));
    assert!(finding.fix.starts_with("sysctl -w net.ipv4.ip_forward=1"), "{}", finding.fix);
    let v6 = Lab::tcp("[fd01::2]:4000", "[fd02::2]:80")
        .comes_in("c0")
        .edit(off)
        .dropped("IP_INADDRERRORS", "ip6_forward");
    assert!(v6.only("ip-forwarding-off").fix.starts_with("sysctl -w net.ipv6.conf.all.forwarding=1"));
}

#[test]
fn an_old_kernels_silence_makes_it_a_guess() {
    let lab = Lab::tcp(CLIENT, "10.2.0.2:80").comes_in("c0").edit(off).dropped("NOT_SPECIFIED", "ip_error");
    assert!(lab.only("ip-forwarding-off").summary.starts_with("Most likely"));
    // Routing was not asked about what was another machine's.
    let lab =
        Lab::tcp(CLIENT, "10.2.0.2:80").comes_in("c0").edit(off).dropped("NOT_SPECIFIED", "ip_rcv_core");
    lab.only("dropped-by-kernel");
}

#[test]
fn the_same_reason_with_forwarding_on_is_something_else() {
    Lab::tcp(CLIENT, "10.2.0.2:80")
        .comes_in("c0")
        .dropped("IP_INADDRERRORS", "ip_error")
        .only("dropped-by-kernel");
}

#[test]
fn a_group_that_nobody_joined_is_no_forwarding_matter() {
    let groups = [
        ("[fe80::1]:5353", "[ff02::fb]:5353"),
        ("10.1.0.2:5353", "224.0.0.251:5353"),
        (CLIENT, "255.255.255.255:67"),
    ];
    for (from, to) in groups {
        let finding = Lab::tcp(from, to)
            .comes_in("c0")
            .edit(off)
            .dropped("NOT_SPECIFIED", "ip6_mc_input")
            .only("dropped-by-kernel");
        assert!(finding.summary.contains("nobody here listens"), "{}", finding.summary);
    }
}

fn to_loopback() -> Lab {
    Lab::tcp(CLIENT, "10.1.0.1:80").comes_in("c0").dnat("127.0.0.1:1234", DecidedBy::Rule)
}

#[test]
fn loopback_addresses_from_outside() {
    let finding = to_loopback().dropped("IP_LOCALNET", "ip_rcv_finish_core").only("route-localnet-off");
    assert!(finding.summary.contains("was translated to 127.0.0.1:1234"), "{}", finding.summary);
    assert!(finding.fix.starts_with("sysctl -w net.ipv4.conf.c0.route_localnet=1"), "{}", finding.fix);
    let guess = to_loopback().dropped("NOT_SPECIFIED", "ip_rcv_finish").only("route-localnet-off");
    assert!(guess.summary.starts_with("Most likely"), "{}", guess.summary);
    to_loopback()
        .edit(|lab| lab.settings.devices.get_mut("c0").unwrap().route_localnet = Some(true))
        .dropped("NOT_SPECIFIED", "ip_rcv_finish")
        .only("dropped-by-kernel");
}

fn strict(lab: &mut Lab) {
    lab.settings.devices.get_mut("c0").unwrap().rp_filter = Some(1);
}

#[test]
fn reverse_path() {
    let asymmetric = |reason, location: &str| {
        Lab::tcp("10.2.0.9:40000", "10.1.0.1:80").comes_in("c0").edit(strict).dropped(reason, location)
    };
    let finding = asymmetric("IP_RPFILTER", "ip_rcv_finish_core").only("reverse-path-filter");
    assert!(finding.summary.contains("the route back to 10.2.0.9 leads over br0"), "{}", finding.summary);
    assert!(finding.evidence[0].contains("net.ipv4.conf.c0.rp_filter = 1"), "{:?}", finding.evidence);
    assert_eq!(finding.evidence[1], "route back: 10.2.0.0/24 dev br0");
    assert!(
        asymmetric("NOT_SPECIFIED", "ip_rcv_finish")
            .only("reverse-path-filter")
            .summary
            .starts_with("Most likely")
    );
    // From where the route leads, the filter has no reason to drop.
    Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .edit(strict)
        .dropped("NOT_SPECIFIED", "ip_rcv_finish")
        .only("dropped-by-kernel");
}

#[test]
fn no_route() {
    let finding = Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .dnat("10.9.0.2:80", DecidedBy::Rule)
        .edit(|lab| {
            lab.network.routes.pop();
        })
        .dropped("IP_INNOROUTES", "ip_error")
        .only("no-route");
    assert!(
        finding.summary.ends_with("after translation, no route leads to 10.9.0.2."),
        "{}",
        finding.summary
    );
    assert!(finding.fix.starts_with("ip route get 10.9.0.2"), "{}", finding.fix);
}

/// Nobody gives a group a gateway: a device that has just come up has no route to groups yet.
#[test]
fn a_group_without_a_route_wants_none() {
    let lab = Lab::tcp("[fd01::2]:4000", "[ff02::2]:80").comes_in("c0");
    let fix = lab.dropped("IP_INNOROUTES", "ip6_pkt_discard").only("no-route").fix;
    assert!(fix.starts_with("# nothing, if c0 came up just now"), "{fix}");
}

#[test]
fn a_route_that_refuses_is_named() {
    let refusing = |kind| {
        Lab::tcp(CLIENT, "10.8.0.2:80")
            .comes_in("c0")
            .edit(|lab| {
                let destination = Prefix::new(ip("10.8.0.0"), 24).unwrap();
                lab.network.routes.push(Route {
                    table: 254,
                    destination,
                    kind,
                    metric: 0,
                    nexthops: Vec::new(),
                });
            })
            .dropped("NOT_SPECIFIED", "ip_error")
    };
    let finding = refusing(RouteKind::Blackhole).only("no-route");
    assert!(finding.summary.contains("the route `blackhole 10.8.0.0/24` refuses it"), "{}", finding.summary);
    refusing(RouteKind::Unicast).only("dropped-by-kernel");
    let v6 = Lab::tcp("[fd01::2]:4000", "[fd50::2]:80")
        .comes_in("c0")
        .edit(|lab| {
            let destination = Prefix::new(ip("fd50::"), 64).unwrap();
            let kind = RouteKind::Blackhole;
            lab.network.routes.push(Route { table: 254, destination, kind, metric: 0, nexthops: Vec::new() });
        })
        .dropped("NOT_SPECIFIED", "dst_discard_out")
        .only("no-route");
    assert!(v6.summary.contains("the route `blackhole fd50::/64` refuses it"), "{}", v6.summary);
    let fix = "ip -6 route show table 254  # then, if that route is not wanted: ip -6 route del blackhole fd50::/64";
    assert_eq!(v6.fix, fix);
}

/// c0 belongs to VRF vred; its table is 100, which the rules do not name (`l3mdev`).
fn in_vrf(error: &str, table: Option<u32>) -> Lab {
    let lab = Lab::tcp(CLIENT, "10.99.0.1:80").comes_in("c0").edit(|lab| {
        let vrf = Link {
            index: 9,
            name: "vred".to_owned(),
            kind: Some("vrf".to_owned()),
            master: None,
            up: true,
            programs: JudgingPrograms::default(),
        };
        lab.network.links.push(vrf);
        lab.network.links.iter_mut().find(|link| link.name == "c0").unwrap().master = Some(9);
        let rule = PolicyRule { priority: 1000, other_conditions: true, ..lab.network.rules[0].clone() };
        lab.network.rules.insert(0, rule);
    });
    lab.push(StageKind::Route(RouteStage {
        table,
        destination: ip("10.99.0.1"),
        device: None,
        gateway: None,
        error: Some(error.to_owned()),
        route_type: None,
        mark: None,
    }))
}

#[test]
fn in_a_vrf_its_own_table_is_asked() {
    let finding = in_vrf("ENETUNREACH", None).dropped("IP_INNOROUTES", "ip_error").only("no-route");
    assert!(finding.summary.ends_with("no route leads to 10.99.0.1 in VRF vred."), "{}", finding.summary);
    let fix = "ip route get 10.99.0.1 vrf vred  # then: ip route add 10.99.0.1 vrf vred via GATEWAY";
    assert_eq!(finding.fix, fix);
}

#[test]
fn a_table_whose_default_is_unreachable_is_named() {
    let refused = |known| {
        in_vrf("EHOSTUNREACH", Some(100))
            .edit(|lab| {
                let destination = Prefix::new(ip("0.0.0.0"), 0).unwrap();
                let kind = RouteKind::Unreachable;
                let route = Route { table: 100, destination, kind, metric: 0, nexthops: Vec::new() };
                lab.network.routes.extend(Some(route).filter(|_| known));
            })
            .dropped("NOT_SPECIFIED", "ip_error")
            .only("no-route")
    };
    let finding = refused(true);
    let said = "the route `unreachable default table 100` refuses it.";
    assert!(finding.summary.ends_with(said), "{}", finding.summary);
    assert!(finding.fix.ends_with("ip route del unreachable default table 100"), "{}", finding.fix);
    let guess = refused(false).summary;
    assert!(guess.ends_with("most likely a route of type unreachable in table 100 refuses it."), "{guess}");
}

#[test]
fn a_policy_rule_that_refuses_is_named() {
    let finding = Lab::tcp(CLIENT, "10.8.0.2:80")
        .comes_in("c0")
        .edit(|lab| {
            let mut rule = lab.network.rules[0].clone();
            rule.priority = 10;
            rule.refuses = Some(RouteKind::Prohibit);
            rule.ipv6 = false;
            lab.network.rules.insert(0, rule);
        })
        .dropped("NOT_SPECIFIED", "ip_error")
        .only("no-route");
    assert!(finding.summary.contains("the policy rule 10 (`prohibit`"), "{}", finding.summary);
    assert!(finding.fix.ends_with("ip rule del pref 10"), "{}", finding.fix);
}

#[test]
fn a_dead_next_hop() {
    let finding = Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .dnat("10.2.0.77:80", DecidedBy::Rule)
        .routed(254, "br0", "unicast")
        .accepted(Hook::Forward)
        .edit(|lab| {
            lab.network.neighbours.push(Neighbour {
                link: 3,
                address: ip("10.2.0.77"),
                state: "FAILED".to_owned(),
            });
        })
        .dropped("NEIGH_FAILED", "neigh_invalidate")
        .only("neighbour-unreachable");
    assert!(finding.summary.contains("10.2.0.77 does not answer ARP on br0"), "{}", finding.summary);
    assert!(
        finding.evidence.contains(&"neighbour: 10.2.0.77 on br0 FAILED".to_owned()),
        "{:?}",
        finding.evidence
    );
    // IPv6 gives no reason; behind a gateway, the gateway is the one that is silent.
    let gateway = Lab::tcp("[fd01::2]:4000", "[2001:db8:9::9]:80")
        .comes_in("c0")
        .dropped("NOT_SPECIFIED", "neigh_invalidate");
    let summary = gateway.only("neighbour-unreachable").summary;
    assert!(
        summary.contains(
            "2001:db8::fe (the gateway to 2001:db8:9::9) does not answer neighbour discovery on u0"
        ),
        "{summary}"
    );
}

#[test]
fn a_neighbour_that_is_silent_is_told_by_the_answer_where_the_end_was_not_seen() {
    let told = |way: Lab, answer: &str| {
        way.edit(|lab| {
            lab.journey.outcome =
                Outcome { answer: Some(answer.to_owned()), ..Outcome::new(OutcomeKind::Rejected) };
        })
    };
    let way = || Lab::tcp("10.1.0.2:4000", "10.2.0.77:80").comes_in("c0");
    let routed = || way().routed(254, "br0", "unicast").accepted(Hook::Forward);
    told(routed(), "icmp-host-unreachable").only("neighbour-unreachable");
    let others = [told(routed(), "icmp-net-unreachable"), told(way(), "icmp-host-unreachable")];
    for lab in others {
        let codes: Vec<_> = lab.diagnose().findings.iter().map(|finding| finding.code).collect();
        assert!(!codes.contains(&"neighbour-unreachable"), "{codes:?}");
    }
}
