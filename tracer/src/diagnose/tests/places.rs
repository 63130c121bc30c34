use super::*;

fn at(lab: Lab, reason: &str, location: &str) -> Finding {
    lab.dropped(reason, location).only("dropped-by-kernel")
}

fn with_master(kind: &str) -> Lab {
    Lab::udp("10.1.0.2:4000", "10.1.0.77:80").comes_in("v0").edit(|lab| {
        let link = lab.network.links.iter_mut().find(|link| link.index == 3).unwrap();
        (link.name, link.kind) = ("bond0".to_owned(), Some(kind.to_owned()));
    })
}

#[test]
fn what_an_idle_slave_gets_is_nobodys() {
    let place = "__netif_receive_skb_core.constprop.0";
    for reason in ["UNHANDLED_PROTO", "NOT_SPECIFIED"] {
        let finding = at(with_master("bond"), reason, place);
        assert!(
            finding.summary.contains("v0 is a port of bond bond0, most likely not the active one"),
            "{}",
            finding.summary
        );
        assert!(!finding.summary.contains("nothing on this host handles"), "{}", finding.summary);
        assert!(finding.fix.starts_with("cat /proc/net/bonding/bond0"), "{}", finding.fix);
    }
    assert!(at(with_master("team"), "UNHANDLED_PROTO", place).fix.starts_with("teamdctl bond0 state"));
    // What is no slave, and what has another reason.
    let alone = at(Lab::udp("10.1.0.2:4000", "10.1.0.77:80").comes_in("c0"), "UNHANDLED_PROTO", place);
    assert!(alone.summary.contains("nothing on this host handles its protocol"), "{}", alone.summary);
    assert!(!at(with_master("bond"), "TC_INGRESS", place).summary.contains("bond0"));
}

#[test]
fn wireguard_without_a_peer() {
    let finding = at(
        Lab::udp("10.1.0.2:4000", "10.77.0.2:80").comes_in("c0").device("wg0", DeviceDirection::Out),
        "NOT_SPECIFIED",
        "wg_xmit",
    );
    let said = "most likely no peer of wg0 has 10.77.0.2 in its allowed-ips";
    assert!(finding.summary.contains(said), "{}", finding.summary);
    assert!(finding.fix.starts_with("wg show wg0 allowed-ips"), "{}", finding.fix);
}

#[test]
fn devices_that_are_down_and_tunnels_without_a_way() {
    let lab = || Lab::udp("10.1.0.2:4000", "10.1.0.1:80").comes_in("c0");
    let vlan = at(lab(), "NOT_SPECIFIED", "vlan_do_receive");
    assert!(vlan.summary.contains("the VLAN device on c0 that takes its tag is down"), "{}", vlan.summary);
    let tunnel = at(lab().device("t0", DeviceDirection::Out), "NOT_SPECIFIED", "ip_tunnel_xmit");
    assert!(tunnel.summary.contains("no route leads to the other end of t0"), "{}", tunnel.summary);
    assert!(tunnel.fix.starts_with("ip -d link show t0 "), "{}", tunnel.fix);
    // A reason of the kernel's own counts for more.
    assert!(!at(lab(), "TC_EGRESS", "ip_tunnel_xmit").summary.contains("other end"));
}

#[test]
fn only_a_kernel_without_reasons_is_called_old() {
    let lab = || Lab::udp("10.1.0.2:4000", "10.1.0.1:80").comes_in("c0");
    let new = at(lab(), "NOT_SPECIFIED", "some_function");
    assert!(!new.fix.contains("newer kernels"), "{}", new.fix);
    let mut old = lab().dropped("", "some_function");
    old.journey.outcome.reason = None;
    assert!(old.only("dropped-by-kernel").fix.contains("newer kernels (5.17 on)"));
}

#[test]
fn a_virtual_service_without_a_server() {
    let refused = |port, servers| {
        let address = ip("10.1.0.1");
        Lab::tcp("10.1.0.2:4000", "10.1.0.1:8088")
            .comes_in("c0")
            .accepted(Hook::Input)
            .edit(|lab| {
                let service = IpvsService { protocol: Protocol::TCP, address, port, servers };
                lab.settings.ipvs = Some(vec![service]);
            })
            .dropped("NETFILTER_DROP", "nf_hook_slow")
            .only("dropped-by-kernel")
    };
    let finding = refused(8088, 0);
    let said =
        "most likely IPVS refused it: 10.1.0.1:8088 is a virtual service of IPVS, which has no real server";
    assert!(finding.summary.contains(said), "{}", finding.summary);
    assert!(finding.fix.starts_with("ipvsadm -ln"), "{}", finding.fix);
    assert!(refused(8088, 2).summary.contains("for want of a server"));
    // Of another port; the rules of a table were seen, so they were not off.
    let unknown = refused(80, 0);
    assert!(unknown.summary.contains("was not seen"), "{}", unknown.summary);
    assert!(unknown.fix.starts_with("pathtrace doctor"), "{}", unknown.fix);
}
