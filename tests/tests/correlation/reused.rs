//! Memory of packets that serves others.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::*;

const ROUNDS: usize = 40;

/// An ARP frame for everybody, about nothing.
const ARP: [u8; 42] = {
    let mut frame = [0; 42];
    let mut at = 0;
    while at < 6 {
        frame[at] = 0xff;
        at += 1;
    }
    (frame[12], frame[13]) = (0x08, 0x06);
    frame
};

/// Opens and closes a connection on loopback, sending frames in between that are no IP: the kernel frees
/// acknowledgements without a word, and what is sent next from this CPU gets their memory.
fn connect_amid(listener: &TcpListener, frames: &Socket) -> Result<()> {
    let send = || (0..5).try_for_each(|_| frames.send(&ARP).map(drop));
    let mut here = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
    let (mut there, _) = listener.accept()?;
    send()?;
    here.write_all(b"hello")?;
    there.read_exact(&mut [0; 5])?;
    send()?;
    drop((here, there));
    Ok(send()?)
}

#[test]
fn what_leaves_in_memory_that_was_another_packets_is_not_that_packet() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let trace = Pathtrace::start(Some(host), &["--every", "--port", &PORT.to_string()])?;
    host.run(|| -> Result<()> {
        let mut one = CpuSet::new();
        one.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        let frames = copies::packet_socket("eth1")?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?;
        (0..ROUNDS).try_for_each(|_| connect_amid(&listener, &frames))
    })?;
    let closing = json!({"packet": {"tcp_flags": "AF"}});
    let report = stop_after(trace, &closing, ROUNDS * 2)?;
    let elsewhere = json!({"stages": [{"kind": "device", "device": "eth1"}]});
    if let [wrong, ..] = fitting(&report.lines, &elsewhere).as_slice() {
        panic!("a packet of loopback left by eth1:\n{}", expect::pretty(wrong));
    }
    let acknowledgements = fitting(&report.lines, &json!({"packet": {"tcp_flags": "A"}}));
    assert!(acknowledgements.len() >= ROUNDS, "one of each connection's beginning at least");
    for journey in acknowledgements {
        fits(journey, &json!({"outcome": {"result": "delivered"}}));
    }
    Ok(())
}

/// A packet socket that is bound to a device has the packet itself, and IP goes on with a copy: in the memory, often, of an
/// acknowledgement that was freed a moment ago.
#[test]
fn the_copy_that_ip_gets_beside_a_tap_is_its_own_packet() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, PORT);
    let listener = host.run(|| TcpListener::bind(to))?;
    let _tap = host.run(|| copies::packet_socket("eth0"))?;
    let trace = Pathtrace::start(Some(host), &["--every", "--dport", &PORT.to_string()])?;
    let mut here = client.run(|| TcpStream::connect(to))?;
    let (mut there, _) = listener.accept()?;
    for _ in 0..ROUNDS {
        here.write_all(b"x")?;
        there.read_exact(&mut [0])?;
        there.write_all(b"y")?;
        here.read_exact(&mut [0])?;
    }
    drop((here, there));

    let sent = json!({"packet": {"tcp_flags": "AP"}});
    let report = stop_after(trace, &sent, ROUNDS)?;
    let told = all_of(&report, &sent, ROUNDS);
    let acknowledgements = fitting(&report.lines, &json!({"packet": {"tcp_flags": "A"}}));
    for journey in told.into_iter().chain(acknowledgements) {
        let pattern = json!({"stages": [{"device": "eth0", "direction": "in"}, {"kind": "route"}],
                             "outcome": {"result": "delivered"}});
        fits(journey, &pattern);
        let routes =
            journey["stages"].as_array().into_iter().flatten().filter(|stage| stage["kind"] == "route");
        assert_eq!(routes.count(), 1, "{}", expect::pretty(journey));
    }
    Ok(())
}

/// The copies that tcpdump frees lie, often, where an acknowledgement was that TCP freed without a word, and are of the same
/// connection: theirs is not that packet's end.
#[test]
fn a_taps_copy_of_a_reply_does_not_turn_another_packet_round() -> Result<()> {
    const PORT: u16 = 47111;
    const CONNECTIONS: usize = 12;
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let rule = "-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT";
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, rule)?;
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, PORT);
    let _server = Server::tcp(lab.netns("server")?, to)?;
    let _tcpdump = copies::Tcpdump::start(host)?;
    // All namespaces: tracepoints stay on the devices.
    let trace = Pathtrace::start(None, &["--every", "--all-netns", "--port", &PORT.to_string()])?;
    for _ in 0..CONNECTIONS {
        let (answer, _) = traffic::tcp(client, to, *LONG)?;
        assert!(matches!(answer, Answer::Answered { .. }), "{answer:?}");
    }
    let closing = json!({"packet": {"source_port": PORT, "tcp_flags": "~F"}});
    let report = stop_after(trace, &closing, CONNECTIONS)?;
    let told = fitting(&report.lines, &json!({"conntrack": {"original": {}}}));
    assert!(told.len() > CONNECTIONS * 5, "{} journeys of {CONNECTIONS} connections", told.len());
    for journey in told {
        let direction = if journey["packet"]["source_port"] == PORT { "reply" } else { "original" };
        assert_eq!(journey["direction"], direction, "{}", expect::pretty(journey));
    }
    Ok(())
}
