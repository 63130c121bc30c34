use super::*;

fn at_port(location: &str) -> Lab {
    Lab::udp("10.2.0.3:4000", "10.2.0.2:80")
        .comes_in("v0")
        .edit(|lab| {
            lab.settings.ip_forward = Some(false);
            lab.settings.devices.get_mut("v0").unwrap().forwarding_v4 = Some(false);
        })
        .dropped("NOT_SPECIFIED", location)
}

#[test]
fn what_a_bridge_throws_away_is_no_matter_of_forwarding_packets() {
    for (location, said, fix) in [
        ("br_allowed_ingress", "br0 filters VLANs, and v0 takes no frame", "bridge vlan show dev v0 "),
        ("br_handle_vlan", "is not in its VLAN", "bridge vlan show "),
        ("br_pass_frame_up", "br0 itself, the port to this host", "bridge vlan show dev br0 "),
        ("br_handle_frame", "most likely v0 does not forward", "bridge -d link show dev v0 "),
        ("br_handle_frame_finish", "is isolated as v0 is", "bridge -d link "),
        ("br_flood.constprop.0", "is isolated as v0 is", "bridge -d link "),
        ("br_dev_queue_push_xmit", "larger than the port", "ip link show master br0 "),
    ] {
        let finding = at_port(location).only("bridge-did-not-forward");
        let begins =
            "Bridge br0 did not pass on udp 10.2.0.3:4000 -> 10.2.0.2:80, which came in by its port v0: ";
        assert!(finding.summary.starts_with(begins), "{}", finding.summary);
        assert!(finding.summary.contains(said), "{location}: {}", finding.summary);
        assert!(finding.fix.starts_with(fix), "{location}: {}", finding.fix);
        // br_netfilter showed it to PREROUTING before.
        let seen = at_port(location).accepted(Hook::Prerouting);
        assert_eq!(seen.only("bridge-did-not-forward").summary, finding.summary);
    }
}

#[test]
fn a_bridges_own_reason_is_no_guess() {
    let finding =
        at_port("").dropped("BRIDGE_INGRESS_STP_STATE", "br_handle_frame").only("bridge-did-not-forward");
    assert!(
        finding.summary.ends_with("v0: v0 does not forward (spanning tree, or set so)."),
        "{}",
        finding.summary
    );
    at_port("").dropped("NO_TX_TARGET", "br_flood").only("bridge-did-not-forward");
    at_port("").dropped("NO_TX_TARGET", "vxlan_xmit").only("dropped-by-kernel");
}

#[test]
fn a_group_that_nobody_listens_to_behind_a_bridge() {
    let finding = Lab::udp("10.2.0.3:4000", "239.1.1.1:80")
        .comes_in("v0")
        .dropped("NOT_SPECIFIED", "br_multicast_flood")
        .only("bridge-did-not-forward");
    assert!(finding.summary.contains("listens to that group"), "{}", finding.summary);
}

#[test]
fn of_what_this_host_sends_by_a_bridge_no_port_is_named() {
    let finding = Lab::udp("10.1.0.2:4000", "10.2.0.2:80")
        .comes_in("c0")
        .routed(254, "br0", "unicast")
        .device("br0", DeviceDirection::Out)
        .dropped("NOT_SPECIFIED", "br_dev_xmit")
        .only("bridge-did-not-forward");
    assert!(
        finding
            .summary
            .starts_with("Bridge br0 did not pass on udp 10.1.0.2:4000 -> 10.2.0.2:80: most likely")
    );
}

/// A place without a name may be a bridge's; one that is no function of routing is never a matter of forwarding.
#[test]
fn only_routing_asks_whether_this_host_forwards() {
    let mut unnamed = at_port("");
    unnamed.journey.outcome.location = None;
    unnamed.only("dropped-by-kernel");
    for location in
        ["vlan_do_receive", "macvlan_handle_frame", "__netif_receive_skb_core.constprop.0", "nf_hook_slow"]
    {
        at_port(location).only("dropped-by-kernel");
    }
    // br_netfilter routes what it translated.
    at_port("br_nf_pre_routing_finish").only("ip-forwarding-off");
}
