use crate::model::LocalSocket;

use super::*;

const CLIENT: &str = "10.1.0.2:40000";

fn refused() -> Lab {
    Lab::tcp(CLIENT, "10.1.0.1:80").comes_in("c0").routed(255, "lo", "local").refused()
}

#[test]
fn nobody_listens() {
    let finding = refused().listens(Protocol::UDP, "0.0.0.0:80", "other").only("no-listener");
    assert_eq!(
        finding.summary,
        "tcp 10.1.0.2:40000 -> 10.1.0.1:80 was refused with a TCP reset: nothing on this host listens on tcp port 80."
    );
    let udp = Lab::udp(CLIENT, "10.1.0.1:53").comes_in("c0").refused().only("no-listener");
    assert!(udp.summary.contains("refused with icmp-port-unreachable"), "{}", udp.summary);
}

#[test]
fn nobody_listens_on_a_kernel_that_gives_no_reasons() {
    let mut lab = refused();
    lab.journey.outcome.reason = None;
    lab.only("no-listener");
    let mut by_a_rule = refused();
    by_a_rule.journey.outcome.reason = None;
    by_a_rule.journey.outcome.location = Some("nf_hook_slow".to_owned());
    let findings = by_a_rule.diagnose().findings;
    assert!(findings.iter().all(|finding| finding.code != "no-listener"), "{findings:?}");
}

#[test]
fn a_socket_that_is_connected_to_another_peer_is_told() {
    let mut lab = Lab::udp(CLIENT, "10.1.0.1:53").comes_in("c0").refused();
    lab = lab.listens(Protocol::UDP, "10.1.0.1:53", "resolver");
    let peer = Endpoint { address: "10.1.0.99".parse().unwrap(), port: 5 };
    lab.sockets.last_mut().unwrap().state = SocketState::Connected { peer };
    assert_eq!(
        lab.only("no-listener").evidence[0],
        "sockets: resolver (pid 12) is bound to udp 10.1.0.1:53, but connected to 10.1.0.99:5: it takes packets from there only"
    );
}

#[test]
fn somebody_listens_in_another_namespace() {
    let lab = refused();
    let other = Lab::tcp(CLIENT, "10.1.0.1:80").listens(Protocol::TCP, "0.0.0.0:80", "nginx");
    let mut elsewhere = other.surroundings();
    elsewhere.netns = NETNS + 1;
    let findings = lab.diagnose_in(&[Arc::new(lab.surroundings()), Arc::new(elsewhere)]).findings;
    assert_eq!(findings[0].evidence[1], "in another namespace, nginx (pid 12) listens on tcp 0.0.0.0:80");
}

#[test]
fn somebody_listens_on_another_address() {
    let finding = refused().listens(Protocol::TCP, "127.0.0.1:80", "nginx").only("listener-on-other-address");
    assert!(
        finding
            .summary
            .ends_with("nginx (pid 12) listens on 127.0.0.1:80 only, and the packet is for 10.1.0.1:80."),
        "{}",
        finding.summary
    );
    let maybe = refused().listens(Protocol::TCP, "[::]:80", "nginx").only("listener-on-other-address");
    assert!(
        maybe.summary.contains("[::]:80, most likely for IPv6 only (that could not"),
        "{}",
        maybe.summary
    );
    let v6_only = listening_on("[::]:80", None, Some(true)).only("listener-on-other-address");
    assert!(v6_only.summary.contains("[::]:80, for IPv6 only"), "{}", v6_only.summary);
    let translated = Lab::tcp(CLIENT, "10.1.0.1:8080")
        .comes_in("c0")
        .dnat("127.0.0.1:80", DecidedBy::Rule)
        .refused()
        .listens(Protocol::TCP, "10.1.0.1:80", "nginx")
        .only("listener-on-other-address");
    assert!(translated.fix.contains("let the NAT rule lead to 10.1.0.1:80"), "{}", translated.fix);
}

/// A refused packet of c0 and a socket with these limits.
fn listening_on(local: &str, device: Option<u32>, v6_only: Option<bool>) -> Lab {
    refused().listens(Protocol::TCP, local, "nginx").edit(|lab| {
        lab.sockets[0].limits = Some(Limits { device, v6_only });
    })
}

/// c0 becomes a device of a VRF.
fn in_vrf(lab: Lab) -> Lab {
    lab.edit(|lab| {
        let link = lab.network.links[0].clone();
        lab.network.links.push(Link {
            index: 9,
            name: "red".to_owned(),
            kind: Some("vrf".to_owned()),
            ..link
        });
        lab.network.links[1].master = Some(9);
    })
}

#[test]
fn a_service_that_started_since_is_not_blamed() {
    for known in [listening_on("0.0.0.0:80", None, None), listening_on("[::]:80", Some(2), Some(false))] {
        let finding = known.only("no-listener");
        assert!(
            finding.summary.ends_with("no socket on this host took it, though one listens on tcp port 80.")
        );
        assert!(finding.evidence[0].ends_with("it began after the packet came"), "{:?}", finding.evidence);
    }
    let finding = refused().listens(Protocol::TCP, "0.0.0.0:80", "nginx").only("no-listener");
    assert!(finding.evidence[0].ends_with("or is bound to a device that this one did not come in by"));
}

#[test]
fn a_socket_of_another_device_is_told() {
    let finding = listening_on("0.0.0.0:80", Some(5), None).only("listener-on-other-device");
    assert!(
        finding.summary.ends_with(
            "nginx (pid 12) listens on 0.0.0.0:80, but is bound to u0, and the packet came in by c0."
        ),
        "{}",
        finding.summary
    );
    assert_eq!(finding.evidence, ["socket: nginx (pid 12) listens on tcp 0.0.0.0:80, bound to u0"]);
    // For another address anyway.
    listening_on("127.0.0.1:80", Some(5), None).only("listener-on-other-address");
}

#[test]
fn a_socket_of_the_default_vrf_takes_nothing_from_a_vrf() {
    for local in ["0.0.0.0:80", "[::]:80"] {
        let finding = in_vrf(listening_on(local, None, Some(false))).only("listener-on-other-device");
        assert!(finding.summary.contains("it came in by c0 of VRF red, and nginx"), "{}", finding.summary);
        assert!(finding.fix.contains("tcp_l3mdev_accept=1") && finding.fix.contains("ip vrf exec red"));
        let unread = refused().listens(Protocol::TCP, local, "nginx");
        let finding = in_vrf(unread).only("listener-on-other-device");
        assert!(finding.summary.ends_with("most likely it is not."), "{}", finding.summary);
    }
    in_vrf(listening_on("[::]:80", None, Some(true))).only("listener-on-other-address");
    // Bound to the VRF, or with the setting: it should have taken it.
    in_vrf(listening_on("0.0.0.0:80", Some(9), None)).only("no-listener");
    let all = in_vrf(listening_on("0.0.0.0:80", None, None));
    all.edit(|lab| lab.settings.tcp_l3mdev_accept = Some(true)).only("no-listener");
}

#[test]
fn a_late_packet_of_a_closed_connection_asks_for_no_listener() {
    let finding = refused().flags("A").only("dropped-by-kernel");
    assert!(finding.summary.contains("it belongs to no open connection"), "{}", finding.summary);
}

/// `comm` listens on port 9090, has accepted `accepted_from`, and connects to port 8080.
fn relayed(comm: &str, accepted_from: &str) -> Lab {
    Lab::tcp("127.0.0.1:50000", "127.0.0.1:8080")
        .stage(Hook::Output, "filter", |_| {})
        .goes_out("lo")
        .comes_in("lo")
        .delivered()
        .listens(Protocol::TCP, "0.0.0.0:9090", comm)
        .edit(|lab| {
            let connected = |peer: &str| SocketState::Connected { peer: endpoint(peer) };
            lab.sockets.push(socket(Protocol::TCP, "10.1.0.1:9090", connected(accepted_from), comm));
            lab.sockets.push(socket(Protocol::TCP, "127.0.0.1:50000", connected("127.0.0.1:8080"), comm));
        })
}

#[test]
fn a_relay_hides_its_client() {
    let finding = relayed("socat", "10.1.0.2:41000").only("source-hidden-by-local-proxy");
    assert!(finding.summary.contains("sees 127.0.0.1 and not the real client"), "{}", finding.summary);
    assert_eq!(finding.evidence[2], "socket: the same program has accepted 10.1.0.2:41000 on 10.1.0.1:9090");
    let by_ports = relayed("app", "10.1.0.2:41000").edit(|lab| {
        for socket in &mut lab.sockets {
            if socket.local.port == 9090 {
                socket.local.port = 80;
            }
        }
    });
    assert!(by_ports.only("source-hidden-by-local-proxy").summary.contains("most likely relays"));
    let tunnel = Lab::udp("127.0.0.1:50000", "127.0.0.1:53").accepted(Hook::Output).delivered().edit(|lab| {
        let state = SocketState::Connected { peer: endpoint("127.0.0.1:53") };
        let mut entry = socket(Protocol::UDP, "127.0.0.1:50000", state, "vpn");
        Arc::get_mut(entry.owner.as_mut().unwrap()).unwrap().holds_tun = true;
        lab.sockets.push(entry);
    });
    assert!(tunnel.only("source-hidden-by-local-proxy").evidence[2].contains("/dev/net/tun"));
}

/// A loopback connection to port 8080, and what port 80 received `milliseconds` before.
fn after_delivery(client: &str, milliseconds: i64, service: &str) -> Lab {
    let received = |lab: &mut Lab, local: &str| {
        let (local, process, pid) = (local.to_owned(), Some("proxy".to_owned()), Some(9));
        lab.journey.outcome.socket = Some(LocalSocket { local, process, pid });
    };
    let front =
        Lab::tcp(client, "10.1.0.1:80").comes_in("c0").delivered().edit(|lab| received(lab, "0.0.0.0:80"));
    Lab::tcp("127.0.0.1:50000", "127.0.0.1:8080").accepted(Hook::Output).delivered().edit(|lab| {
        received(lab, service);
        lab.journey.time = Timestamp::from_millisecond(milliseconds).unwrap();
        lab.recent.extend(Delivery::of(&front.journey));
    })
}

#[test]
fn a_relay_is_found_by_what_it_received_when_its_connection_is_over() {
    let finding = after_delivery(CLIENT, 3, "127.0.0.1:8080").only("source-hidden-by-local-proxy");
    assert!(
        finding.summary.contains("comes from proxy (pid 9), a program on this host that most likely relays")
    );
    assert!(
        finding.evidence[1].contains("received a packet of 10.1.0.2 on 0.0.0.0:80"),
        "{:?}",
        finding.evidence
    );
    // Long before; of this host itself; the same socket, which so has two clients.
    after_delivery(CLIENT, 900, "127.0.0.1:8080").healthy();
    after_delivery("10.1.0.1:40000", 3, "127.0.0.1:8080").healthy();
    after_delivery(CLIENT, 3, "0.0.0.0:80").healthy();
}

#[test]
fn a_server_that_uses_another_is_no_relay() {
    // An application with a database.
    relayed("app", "10.1.0.2:41000").healthy();
    // The relay's client is on this host itself: nothing is hidden.
    relayed("socat", "10.1.0.1:41000").healthy();
    Lab::tcp("127.0.0.1:50000", "127.0.0.1:8080").accepted(Hook::Output).delivered().healthy();
}
