//! Packets that are no plain packets: fragments, segments that the stack keeps together, copies, taps.

mod copies;
mod fragments;
mod reused;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
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
    expect, machine,
    netns::Netns,
    pathtrace::{Pathtrace, Report},
    ruleset::{self, Backend},
    scenario::told_here,
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT, Server},
    wait,
};
use tracer::kernel::{KernelTypes, tracepoints};

const PORT: u16 = 7777;
const FROM: u16 = 5555;
/// Three fragments on a device with an MTU of 1500.
const LARGE: [u8; 4000] = [b'x'; 4000];
/// Bytes of an IPv4 and a TCP header with timestamps.
const HEADERS: u64 = 20 + 32;
const BULK: usize = 1 << 20;

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

/// As far as this kernel can tell.
fn fits(journey: &Value, pattern: &Value) {
    if let Err(wrong) = expect::matches(&told_here(pattern.clone(), Backend::Nft), journey) {
        panic!("{wrong}\n{}\n  notes {}", expect::pretty(journey), journey["notes"]);
    }
}

fn notes(journey: &Value) -> Vec<&str> {
    journey["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

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

/// How a packet's end shows differs: the last segments are freed at once by who gets them, others show only that nothing
/// more came.
#[test]
fn packets_of_a_connection_are_told_in_their_order() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT")?;
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, PORT);
    let _server = Server::tcp(lab.netns("server")?, to)?;
    let trace = Pathtrace::start(Some(host), &["--port", "7777", "--every"])?;
    traffic::tcp(lab.netns("client")?, to, *LONG)?;
    let finished = json!({"direction": "reply", "packet": {"protocol": "tcp", "tcp_flags": "~F"}});
    let report = stop_after(trace, &finished, 1)?;
    let journeys = fitting(&report.lines, &json!({"flow": 1}));
    let told: Vec<_> =
        journeys.iter().map(|journey| (&journey["time"], &journey["packet"]["tcp_flags"])).collect();
    assert!(journeys.len() >= 7, "{told:?}");
    assert!(told.is_sorted_by_key(|(time, _)| time.as_str()), "{told:?}");
    Ok(())
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
