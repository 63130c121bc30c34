//! Packets that are no plain packets: fragments, segments that the stack keeps together, copies, taps.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};
use tests::{
    expect,
    netns::Netns,
    pathtrace::{Pathtrace, Report},
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT, Server},
    wait,
};

const PORT: u16 = 7777;
const FROM: u16 = 5555;
/// Three fragments on a device with an MTU of 1500.
const LARGE: [u8; 4000] = [b'x'; 4000];

/// Stops a trace once `count` journeys fit, and hands out all that its packets had.
fn stop_after(trace: Pathtrace, pattern: &Value, count: usize) -> Result<Report> {
    let enough = |lines: &[Value]| fitting(lines, pattern).len() >= count;
    let waited = trace.wait_for("the expected journeys", enough);
    waited.with_context(|| expect::explain(&trace.lines(), pattern))?;
    let report = trace.stop()?;
    ensure!(report.status.success(), "{}", report.stderr);
    assert_eq!(report.summary()?["events_lost"], 0, "{:?}", report.summary());
    Ok(report)
}

fn fitting<'a>(lines: &'a [Value], pattern: &Value) -> Vec<&'a Value> {
    expect::journeys(lines).filter(|journey| expect::matches(pattern, journey).is_ok()).collect()
}

/// Those that fit, which must be `count` of all that the trace showed of such packets.
fn all_of<'a>(report: &'a Report, packets: &Value, count: usize) -> Vec<&'a Value> {
    let found = fitting(&report.lines, packets);
    let shown: Vec<String> = found.iter().map(|journey| expect::pretty(journey)).collect();
    assert_eq!(found.len(), count, "{}", shown.join("\n"));
    found
}

fn fits(journey: &Value, pattern: &Value) {
    if let Err(wrong) = expect::matches(pattern, journey) {
        panic!("{wrong}\n{}\n  notes {}", expect::pretty(journey), journey["notes"]);
    }
}

fn notes(journey: &Value) -> Vec<&str> {
    journey["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn a_datagram_that_conntrack_puts_together_is_one_journey() -> Result<()> {
    for (family, whole) in [(Family::Ipv4, 4028), (Family::Ipv6, 4048)] {
        let lab = Lab::new(Topology::Routed)?;
        let host = lab.netns("host")?;
        let to = SocketAddr::new(lab.address("server", family)?, PORT);
        let _server = Server::udp(lab.netns("server")?, to)?;
        let accept = "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT";
        ruleset::iptables(host, Backend::Nft, family, accept)?;
        ruleset::iptables(host, Backend::Nft, family, "-t nat -A POSTROUTING -o eth1 -j MASQUERADE")?;
        let trace = Pathtrace::start(Some(host), &["--port", "7777"])?;
        let answer = traffic::datagram(lab.netns("client")?, FROM, to, &LARGE, *LONG)?;
        let inner = lab.address("inner", family)?;
        assert_eq!(answer, Answer::Answered { seen_as: Some(inner) });

        let there = json!({"packet": {"source": lab.address("client", family)?.to_string()}});
        let report = stop_after(trace, &there, 1)?;
        let journey = all_of(&report, &there, 1)[0];
        fits(
            journey,
            &json!({
                "direction": "original",
                "packet": {"source_port": FROM, "destination_port": PORT, "fragment": "offset 0, more follow"},
                "stages": [
                    {"kind": "device", "device": "eth0", "direction": "in"},
                    {"hook": "forward", "verdict": "accept", "exact": true, "rules": [{"position": 1, "text": accept}]},
                    {"hook": "postrouting", "nat": "masquerade",
                     "before": {"source_port": FROM}, "after": {"source": inner.to_string()}},
                ],
                "outcome": {"result": "forwarded", "device": "eth1"},
                "findings": [],
            }),
        );
        let together = format!("put together from 3 fragments: {whole} bytes");
        assert_eq!(notes(journey), [together.as_str(), "sent on in fragments"]);
        assert_eq!(report.summary()?["complete"], true, "{:?}", report.summary());
    }
    Ok(())
}

#[test]
fn without_conntrack_each_fragment_is_judged_and_only_the_first_has_ports() -> Result<()> {
    for family in Family::BOTH {
        let lab = Lab::new(Topology::Routed)?;
        let host = lab.netns("host")?;
        let to = SocketAddr::new(lab.address("server", family)?, PORT);
        ruleset::iptables(host, Backend::Legacy, family, "-A FORWARD -p udp --dport 7777 -j DROP")?;
        let trace = Pathtrace::start(Some(host), &["--port", "7777"])?;
        let answer = traffic::datagram(lab.netns("client")?, FROM, to, &LARGE, SHORT)?;
        assert_eq!(answer, Answer::Silence);

        let there = json!({"packet": {"protocol": "udp", "destination": to.ip().to_string()}});
        let report = stop_after(trace, &there, 3)?;
        let offset = |journey: &&Value| journey["packet"]["fragment"].as_str().map(str::to_owned);
        let mut fragments = all_of(&report, &there, 3);
        fragments.sort_by_key(|journey| journey["time"].as_str().map(str::to_owned));
        let second = if family == Family::Ipv4 { 1480 } else { 1448 };
        assert_eq!(
            fragments.iter().filter_map(offset).collect::<Vec<_>>(),
            [
                "offset 0, more follow".to_owned(),
                format!("offset {second}, more follow"),
                format!("offset {}, last", 2 * second)
            ]
        );
        fits(
            fragments[0],
            &json!({"packet": {"destination_port": PORT}, "outcome": {"result": "dropped"},
                    "stages": [{"hook": "forward", "verdict": "drop", "decided_by": "rule"}]}),
        );
        for later in &fragments[1..] {
            fits(
                later,
                &json!({"packet": {"source_port": "null", "destination_port": "null"},
                        "stages": [{"hook": "forward", "verdict": "accept", "decided_by": "policy",
                                    "before": {"destination_port": "null"}}],
                        "outcome": {"result": "forwarded"}}),
            );
        }
    }
    Ok(())
}

#[test]
fn a_datagram_for_this_host_is_put_together_before_input() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, PORT);
    let _server = Server::udp(host, to)?;
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-t mangle -A PREROUTING -p udp --dport 7777")?;
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-A INPUT -p udp --dport 7777 -j ACCEPT")?;
    let trace = Pathtrace::start(Some(host), &["--dport", "7777"])?;
    let answer = traffic::datagram(lab.netns("client")?, FROM, to, &LARGE, *LONG)?;
    assert!(matches!(answer, Answer::Answered { .. }), "{answer:?}");

    let there = json!({"packet": {"protocol": "udp"}});
    let report = stop_after(trace, &there, 1)?;
    let journey = all_of(&report, &there, 1)[0];
    fits(
        journey,
        &json!({
            "packet": {"destination_port": PORT, "fragment": "offset 0, more follow"},
            "stages": [
                {"hook": "prerouting", "table": "mangle", "rules": [{"position": 1}]},
                {"kind": "route", "route_type": "local"},
                {"hook": "input", "table": "filter", "verdict": "accept", "decided_by": "rule", "exact": true},
            ],
            "outcome": {"result": "delivered", "socket": {"local": to.to_string()}},
        }),
    );
    assert_eq!(notes(journey), ["put together from 3 fragments: 4028 bytes"]);
    Ok(())
}

/// Bytes of an IPv4 and a TCP header with timestamps.
const HEADERS: u64 = 20 + 32;
const BULK: usize = 1 << 20;

fn send_bulk(lab: &Lab, to: SocketAddr) -> Result<()> {
    let listener = lab.netns("server")?.run(|| TcpListener::bind(to))?;
    let reader = thread::spawn(move || -> Result<usize> {
        let (mut connection, _) = listener.accept()?;
        let mut all = Vec::new();
        connection.read_to_end(&mut all)?;
        Ok(all.len())
    });
    let mut connection = lab.netns("client")?.run(|| TcpStream::connect_timeout(&to, *LONG))?;
    connection.write_all(&vec![b'x'; BULK])?;
    drop(connection);
    let read = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    assert_eq!(read, BULK);
    Ok(())
}

fn retransmitted(netns: &Netns) -> Result<u64> {
    let table = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .filter_map(|line| line.strip_prefix("Tcp: "))
        .map(|line| line.split(' ').collect())
        .collect();
    let [names, values] = lines.as_slice() else { anyhow::bail!("no TCP counters in {table}") };
    let at = names.iter().position(|name| *name == "RetransSegs").context("RetransSegs")?;
    Ok(values[at].parse()?)
}

#[test]
fn segments_that_travel_together_are_one_journey_and_counted_once() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, PORT);
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT")?;
    let trace = Pathtrace::start(Some(host), &["--dport", "7777"])?;
    send_bulk(&lab, to)?;
    let end = json!({"packet": {"tcp_flags": "~F"}, "direction": "original"});
    let report = stop_after(trace, &end, 1)?;

    let there = fitting(&report.lines, &json!({"direction": "original"}));
    let mut together = 0;
    let mut payload = 0;
    for journey in &there {
        fits(
            journey,
            &json!({"stages": [{"hook": "forward", "exact": true}], "outcome": {"result": "forwarded"}}),
        );
        assert_eq!(notes(journey), Vec::<&str>::new());
        let packet = &journey["packet"];
        let length = packet["length"].as_u64().context("length")?;
        // With GSO the buffer is larger than the MTU, and says how many segments it stands for.
        assert_eq!(length > 1500, packet["segments"].as_u64().is_some_and(|n| n > 1), "{packet}");
        together += u64::from(length > 1500);
        if packet["tcp_flags"].as_str().is_some_and(|flags| !flags.contains('S')) {
            payload += length - HEADERS;
        }
    }
    assert!(together > 0, "no journey of several segments among {}", there.len());
    if retransmitted(lab.netns("client")?)? == 0 {
        assert_eq!(payload, BULK as u64, "each byte is in one journey");
    }
    Ok(())
}

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
    assert_eq!(notes(journey), ["3 sockets received it"]);
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
struct Tcpdump(Child);

impl Tcpdump {
    fn start(netns: &Netns) -> Result<Self> {
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
fn packet_socket(device: &str) -> Result<OwnedFd> {
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
    // SAFETY: the descriptor is taken out of its owner.
    Ok(unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(socket)) })
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
    let journeys = fitting(&report.lines, &json!({"packet": {"protocol": "tcp"}}));
    for journey in &journeys {
        let here = journey["packet"]["source_port"] == port;
        let pattern = if here {
            json!({"stages": [{"device": "eth0", "direction": "in"}, {"kind": "route"},
                              {"hook": "input", "table": "filter", "verdict": "accept", "exact": true}],
                   "outcome": {"result": "delivered"}, "findings": []})
        } else {
            json!({"stages": [{"kind": "route"}, {"device": "eth0", "direction": "out"}],
                   "outcome": {"result": "forwarded", "device": "eth0"}, "findings": []})
        };
        fits(journey, &pattern);
        assert_eq!(notes(journey), Vec::<&str>::new());
    }
    let syn = json!({"packet": {"source_port": port, "tcp_flags": "S"}});
    assert_eq!(fitting(&report.lines, &syn).len(), 1, "a tap's copy is no second packet");
    Ok(())
}
