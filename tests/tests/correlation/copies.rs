//! Frames that are flooded, multicast, or looked at by taps.

use super::*;

/// A third container on the bridge, with an address of its own.
fn third_port(host: &Netns) -> Result<Netns> {
    let third = Netns::new()?;
    third.exec(&format!("ip link add eth0 type veth peer name veth-third netns {}", host.name()))?;
    host.exec("ip link set veth-third master docker0 up")?;
    third.exec("ip address add 172.17.0.33/16 dev eth0")?;
    third.exec("ip link set eth0 up")?;
    Ok(third)
}

#[test]
fn a_flooded_frame_is_one_journey_and_its_copies_are_said() -> Result<()> {
    let lab = Lab::new(Topology::Docker)?;
    let (host, web, app) = (lab.netns("host")?, lab.netns("web")?, lab.netns("app")?);
    let third = third_port(host)?;
    // Nobody has this address: the bridge does not know where it is, and sends it everywhere.
    web.exec("ip neighbour add 172.17.0.77 lladdr 02:00:00:00:00:77 dev eth0")?;
    let nobody = SocketAddr::new([172, 17, 0, 77].into(), PORT);
    let spaces = ["--netns", host.name(), "--netns", app.name(), "--netns", third.name()];
    let trace = Pathtrace::start(None, &[&spaces[..], &["--port", "7777"]].concat())?;
    let packets = json!({"packet": {"destination": "172.17.0.77", "destination_port": PORT}});
    assert_eq!(traffic::datagram(web, FROM, nobody, b"flood", SHORT)?, Answer::Silence);
    let report = stop_after(trace, &packets, 2)?;

    let journeys = all_of(&report, &packets, 2);
    let (copy, whole): (Vec<&Value>, Vec<&Value>) = journeys
        .into_iter()
        .partition(|journey| notes(journey).iter().any(|note| note.starts_with("a copy, ")));
    let ([copy], [whole]) = (copy.as_slice(), whole.as_slice()) else { panic!("{copy:#?} {whole:#?}") };
    let own = whole["stages"].as_array().into_iter().flatten();
    let left_by: Vec<&str> = own
        .filter(|stage| stage["direction"] == "out")
        .filter_map(|stage| stage["device"].as_str())
        .collect();
    let other = if left_by == ["veth-app"] { "veth-third" } else { "veth-app" };
    assert_eq!(left_by, [if other == "veth-app" { "veth-third" } else { "veth-app" }]);
    assert_eq!(notes(whole), [format!("copies of it went out of {other}")]);
    assert_eq!(notes(copy), [format!("a copy, made for {other}, of a packet that has a journey of its own")]);
    // Both arrive at a host that is not meant, each for itself.
    for journey in [copy, whole] {
        fits(journey, &json!({"outcome": {"result": "dropped", "reason": "OTHERHOST"}}));
        let findings = journey["findings"].to_string();
        assert!(!findings.contains("ip-forwarding-off"), "{findings}");
    }
    assert_eq!(report.summary()?["journeys"], 2);
    Ok(())
}

#[test]
fn a_multicast_with_several_listeners_is_delivered_once() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let group = Ipv4Addr::new(239, 1, 1, 1);
    let (ours, theirs) = (Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 0, 2));
    let listeners = (0..3).map(|_| host.run(|| listen(group, ours))).collect::<Result<Vec<_>>>()?;
    let trace = Pathtrace::start(Some(host), &["--dst", "239.1.1.1"])?;
    client.run(|| -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.set_multicast_if_v4(&theirs)?;
        socket.send_to(b"hello", &SocketAddr::new(IpAddr::V4(group), PORT).into())?;
        Ok(())
    })?;
    for listener in &listeners {
        let mut room = [0; 16];
        assert_eq!(listener.recv(&mut room)?, 5);
    }
    let packets = json!({"packet": {"destination": "239.1.1.1"}});
    let report = stop_after(trace, &packets, 1)?;
    let journey = all_of(&report, &packets, 1)[0];
    fits(
        journey,
        &json!({"stages": [{"kind": "route", "route_type": "multicast"}],
                "outcome": {"result": "delivered", "socket": {"local": "239.1.1.1:7777"}}, "findings": []}),
    );
    // A datagram taken off a queue leaves no other trace: older kernels do not tell.
    let told = if machine::has_tracepoint("sk_data_ready") { vec!["3 sockets received it"] } else { vec![] };
    assert_eq!(notes(journey), told);
    Ok(())
}

fn listen(group: Ipv4Addr, ours: Ipv4Addr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(group), PORT).into())?;
    socket.join_multicast_v4(&group, &ours)?;
    let socket: UdpSocket = socket.into();
    socket.set_read_timeout(Some(*LONG))?;
    Ok(socket)
}

/// A running `tcpdump`; stopped when dropped.
pub(super) struct Tcpdump(Child);

impl Tcpdump {
    pub(super) fn start(netns: &Netns) -> Result<Self> {
        let mut command: Command = netns.command("tcpdump")?;
        let child = command
            .args(["-U", "-n", "-i", "any", "-w", "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let tcpdump = Self(child);
        wait::until("tcpdump to have its socket", || {
            netns.run(|| std::fs::read_to_string("/proc/thread-self/net/packet")).is_ok_and(|sockets| {
                sockets.lines().any(|line| line.split_whitespace().nth(3) == Some("0003"))
            })
        })?;
        Ok(tcpdump)
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        drop(self.0.wait());
    }
}

/// A packet socket for IPv4 that is bound to a device, as DHCP clients have: it gets the packet itself, and IP a
/// copy (`__netif_receive_skb_core`).
pub(super) fn packet_socket(device: &str) -> Result<Socket> {
    const ETH_P_IP: u16 = 0x0800;
    let index = nix::net::if_::if_nametoindex(device)?;
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    // SAFETY: plain data, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = ETH_P_IP.to_be();
    address.sll_ifindex = index.cast_signed();
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the address is live and as long as told.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    ensure!(bound == 0, "bind: {}", std::io::Error::last_os_error());
    Ok(socket)
}

#[test]
fn taps_change_nothing() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-A INPUT -p tcp --dport 7777 -j ACCEPT")?;
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, PORT);
    let _server = Server::tcp(host, to)?;
    let _tcpdump = Tcpdump::start(host)?;
    let _packets = host.run(|| packet_socket("eth0"))?;
    let trace = Pathtrace::start(Some(host), &["--port", "7777"])?;
    let (answer, ours) = traffic::tcp(client, to, *LONG)?;
    assert!(matches!(answer, Answer::Answered { .. }), "{answer:?}");
    let port = ours.context("a connection")?.port();

    let there = json!({"packet": {"source_port": port, "tcp_flags": "~F"}});
    let report = stop_after(trace, &there, 1)?;
    // What is sent once more after that may be under way when the trace is stopped.
    let last = fitting(&report.lines, &there)[0]["id"].as_u64().context("the journey's number")?;
    for journey in fitting(&report.lines, &json!({"packet": {"protocol": "tcp"}})) {
        if journey["id"].as_u64() > Some(last) {
            continue;
        }
        let here = journey["packet"]["source_port"] == port;
        let pattern = if here {
            json!({"stages": [{"device": "eth0", "direction": "in"}, {"kind": "route"},
                              {"hook": "input", "table": "filter", "backend": "iptables-legacy", "verdict": "accept", "exact": true}],
                   "outcome": {"result": "delivered"}, "findings": []})
        } else {
            json!({"stages": [{"kind": "route"}, {"device": "eth0", "direction": "out"}],
                   "outcome": {"result": "forwarded", "device": "eth0"}, "findings": []})
        };
        fits(journey, &pattern);
        // Without drop reasons nobody can tell what a connection that closes has handled.
        let untold = machine::drop_reasons().is_empty() && journey["outcome"]["result"] == "delivered";
        let told = notes(journey);
        assert!(told.is_empty() || (untold && told[0].starts_with("TCP freed it")), "{told:?}");
    }
    let syn = json!({"packet": {"source_port": port, "tcp_flags": "S"}});
    assert_eq!(fitting(&report.lines, &syn).len(), 1, "a tap's copy is no second packet");
    Ok(())
}

/// A tunnel wants more room in front of an IPv6 packet than it has: the kernel goes on with a copy of another buffer, and frees
/// the packet (`skb_expand_head`).
#[test]
fn a_packet_that_gets_more_room_in_front_goes_on_as_the_copy() -> Result<()> {
    let types = KernelTypes::open(Path::new("/sys/kernel/btf"))?;
    if tracepoints::freed(&types).consume_location == 0 {
        eprintln!("not tested: this kernel does not say who frees a packet (before 6.3)");
        return Ok(());
    }
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let here = lab.topology().address("host", Family::Ipv4)?;
    let there = lab.address("server", Family::Ipv4)?;
    host.exec(&format!("ip link add vx type vxlan id 5 local {here} remote {there} dstport 4789"))?;
    host.exec("ip link set dev vx up")?;
    host.exec("ip addr add fd0a::1/64 dev vx nodad")?;
    host.exec("ip neigh replace fd0a::2 lladdr 02:00:00:00:00:02 dev vx nud permanent")?;
    let trace = Pathtrace::start(Some(host), &["--port", "7777"])?;
    drop(traffic::lone_datagram(lab.netns("client")?, SocketAddr::new("fd0a::2".parse()?, PORT))?);
    let sent = json!({"packet": {"destination_port": PORT}});
    let report = stop_after(trace, &sent, 1)?;
    let [journey] = all_of(&report, &sent, 1)[..] else { unreachable!("all_of counts") };
    let pattern = json!({"stages": [{"device": "eth0", "direction": "in"}, {"kind": "route", "device": "vx"},
                                    {"device": "vx", "direction": "out"}],
                         "outcome": {"result": "forwarded", "device": "vx"}});
    fits(journey, &pattern);
    assert_eq!(
        notes(journey),
        ["vx is a tunnel (vxlan): it goes on inside another packet, with other addresses"]
    );
    Ok(())
}
