//! `--xdp`: our observer on a device, beside real traffic.

use std::net::{SocketAddr, UdpSocket};

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    expect,
    foreign::{At, Foreign, Says},
    machine::{BpfObjects, Fingerprint},
    netns::Netns,
    pathtrace::{self, Pathtrace},
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, SHORT},
    wait,
};

const PORT: u16 = 9099;
/// More than a queue of a veth takes in one go, so that many are under way at a time.
const BURST: usize = 150;

fn notices(lines: &[Value], beginning: &str) -> bool {
    lines.iter().any(|line| {
        line["type"] == "notice" && line["message"].as_str().is_some_and(|said| said.starts_with(beginning))
    })
}

fn has_xdp(netns: &Netns, device: &str) -> Result<bool> {
    Ok(netns.exec(&format!("ip -d link show dev {device}"))?.contains("xdp"))
}

/// Traces datagrams to [`PORT`] with the observer on eth0.
fn start(host: &Netns) -> Result<Pathtrace> {
    let port = PORT.to_string();
    Pathtrace::start(Some(host), &["--dport", &port, "--iface", "eth0", "--xdp", "--every", "-vv"])
}

/// Datagrams that nothing tells apart: they are sent from one port, with one content.
fn send_alike(client: &Netns, to: SocketAddr, count: usize) -> Result<()> {
    client.run(|| {
        let from = if to.is_ipv4() { "0.0.0.0:9100" } else { "[::]:9100" };
        let socket = UdpSocket::bind(from)?;
        for _ in 0..count {
            socket.send_to(b"alike", to)?;
        }
        Ok(())
    })
}

/// Not an ICMP error that quotes one.
fn is_datagram(line: &Value) -> bool {
    line["type"] == "journey" && line["packet"]["protocol"] == "udp"
}

/// The packet came in by eth0 at XDP, first of all, and was forwarded by eth1: each device once.
fn assert_seen_at_xdp(journey: &Value) {
    let stages = journey["stages"].as_array().map_or(&[][..], Vec::as_slice);
    let first = expect::pretty(journey);
    let beginning =
        json!({"kind": "device", "device": "eth0", "direction": "in", "xdp": true, "elapsed_ns": 0});
    for (key, value) in beginning.as_object().into_iter().flatten() {
        assert_eq!(&stages[0][key], value, "{key} of {first}");
    }
    let devices: Vec<&Value> = stages.iter().filter(|stage| stage["kind"] == "device").collect();
    assert_eq!(devices.len(), 2, "{first}");
    assert_eq!((&devices[1]["device"], devices[1].get("xdp")), (&json!("eth1"), None), "{first}");
    assert!(journey["notes"].is_null(), "{first}");
    assert_eq!(journey["outcome"]["result"], "forwarded", "{first}");
    // An own program judges nothing and is not named.
    assert!(stages.iter().all(|stage| stage.get("programs").is_none()), "{first}");
}

#[test]
fn packets_are_seen_at_xdp_first_and_each_is_told_once() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    for family in Family::BOTH {
        let server = lab.address("server", family)?;
        // So that no address has to be asked for.
        traffic::ping(client, server, *LONG)?;
        let trace = start(host)?;
        let journeys = |lines: &[Value]| lines.iter().filter(|line| is_datagram(line)).count();
        // Beside the tracepoints at first, and beside tcx afterwards.
        send_alike(client, SocketAddr::new(server, PORT), BURST)?;
        trace.wait_for("every datagram", |lines| journeys(lines) >= BURST)?;
        trace.wait_for("tcx", |lines| notices(lines, "tcx programs"))?;
        send_alike(client, SocketAddr::new(server, PORT), BURST)?;
        trace.wait_for("every datagram at tcx", |lines| journeys(lines) >= 2 * BURST)?;
        let report = trace.stop()?;
        assert!(report.status.success());
        let probes = &report.of_type("start")[0]["probes"];
        assert!(probes.as_array().is_some_and(|all| all.contains(&json!("xdp"))), "{probes}");
        let told: Vec<&Value> = report.lines.iter().filter(|line| is_datagram(line)).collect();
        assert_eq!(told.len(), 2 * BURST);
        told.into_iter().for_each(assert_seen_at_xdp);
        assert_eq!(report.summary()?["events_lost"], 0);
    }
    Ok(())
}

#[test]
fn only_the_named_device_has_the_observer_and_only_while_the_trace_runs() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    traffic::ping(client, lab.address("server", Family::Ipv4)?, *LONG)?;
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let before = Fingerprint::of(host)?;
        let trace = start(host)?;
        assert!(has_xdp(host, "eth0")? && !has_xdp(host, "eth1")?);
        let held = BpfObjects::of_process(trace.pid())?;
        trace.signal(signal)?;
        trace.wait()?;
        wait::until("the kernel to free what the trace held", || held.still_there().is_empty())?;
        assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new(), "{signal}");
    }
    Ok(())
}

#[test]
fn a_device_with_an_xdp_program_of_somebody_else_is_refused_by_its_name() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let _theirs = Foreign::attach(host, "eth0", At::Xdp, Says::Pass, "their_xdp")?;
    let before = Fingerprint::of(host)?;
    let output =
        pathtrace::command(Some(host))?.args(["--iface", "eth1", "--iface", "eth0", "--xdp"]).output()?;
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr)?;
    let first = stderr.lines().next().unwrap_or_default();
    let said = "pathtrace: --xdp: device eth0 has an XDP program already: XDP their_xdp (program ";
    assert!(first.starts_with(said) && first.ends_with(", generic)"), "{stderr}");
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_device_that_goes_and_comes_back_is_observed_again() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let add = || -> Result<()> {
        client.exec(&format!(
            "ip link add late0 index 77 type veth peer name late1 index 77 netns {}",
            host.name()
        ))?;
        client.exec("ip addr add 10.9.0.2/24 dev late0")?;
        client.exec("ip link set late0 up")?;
        host.exec("ip addr add 10.9.0.1/24 dev late1")?;
        host.exec("ip link set late1 up")?;
        Ok(())
    };
    add()?;
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp", "--iface", "late1", "--xdp", "--every"])?;
    assert!(has_xdp(host, "late1")?);
    client.exec("ip link del late0")?;
    add()?;
    wait::until("the observer on the new device", || has_xdp(host, "late1").unwrap_or(false))?;
    let seen = json!({
        "packet": {"icmp_type": 8, "destination": "10.9.0.1"},
        "stages": [{"kind": "device", "device": "late1", "direction": "in", "xdp": true}],
        "outcome": {"result": "delivered"}
    });
    wait::until("a packet on the new device", || {
        traffic::ping(client, [10, 9, 0, 1].into(), SHORT).is_ok()
            && expect::find(&trace.lines(), &seen).is_some()
    })
    .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &seen)))?;
    assert!(trace.stop()?.status.success());
    Ok(())
}
