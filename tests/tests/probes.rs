//! The two ways of looking at tables show the same: netfilter links and kprobes, on a kernel that has both.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::Value;
use tests::{
    expect,
    netns::Netns,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, SHORT, Server},
    wait,
};

const RULES: [&str; 6] = [
    "-t nat -A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination",
    "-t nat -A POSTROUTING -o eth1 -j MASQUERADE",
    "-N USER",
    "-A FORWARD -j USER",
    "-A USER -p tcp -m tcp --dport 81 -j REJECT",
    "-A FORWARD -p tcp -m tcp --dport 82 -j DROP",
];

/// A trace of all TCP, or why this kernel does not offer the mechanism.
fn trace_by(netns: &Netns, mechanism: &str) -> Result<Pathtrace, String> {
    Pathtrace::start(Some(netns), &["--proto", "tcp", "--probes", mechanism])
        .map_err(|error| format!("--probes {mechanism}: {error:#}"))
}

/// What a journey says, without what differs from one trace to another by nature: numbers and times.
fn story(journey: &Value) -> Value {
    let mut journey = journey.clone();
    if let Some(fields) = journey.as_object_mut() {
        for numbered in ["id", "flow", "time", "findings", "notes"] {
            fields.remove(numbered);
        }
    }
    for stage in journey["stages"].as_array_mut().into_iter().flatten() {
        if let Some(fields) = stage.as_object_mut() {
            fields.remove("elapsed_ns");
        }
    }
    journey
}

/// The journeys of connection attempts from the client, by their ports.
fn attempts(trace: &Pathtrace) -> Vec<Value> {
    let lines = trace.lines();
    let is_attempt = |journey: &&Value| journey["packet"]["tcp_flags"] == "S";
    let mut stories: Vec<Value> = expect::journeys(&lines).filter(is_attempt).map(story).collect();
    stories.sort_by_key(|journey| journey["packet"].to_string());
    stories.dedup();
    stories
}

#[test]
fn links_and_kprobes_tell_the_same() -> Result<()> {
    for backend in Backend::BOTH {
        let lab = Lab::new(Topology::Routed)?;
        let (client, host) = (lab.netns("client")?, lab.netns("host")?);
        let server = lab.address("server", Family::Ipv4)?;
        for rule in RULES {
            let rule =
                if rule.ends_with("destination") { format!("{rule} {server}:8080") } else { rule.into() };
            ruleset::iptables(host, backend, Family::Ipv4, &rule)?;
        }
        let (links, kprobes) = match (trace_by(host, "netfilter"), trace_by(host, "kprobe")) {
            (Ok(links), Ok(kprobes)) => (links, kprobes),
            (links, kprobes) => {
                let why: Vec<String> = [links.err(), kprobes.err()].into_iter().flatten().collect();
                eprintln!("skipped, this kernel has not both: {}", why.join("; "));
                return Ok(());
            }
        };
        let _server = Server::tcp(lab.netns("server")?, SocketAddr::new(server, 8080))?;
        let published = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
        traffic::tcp(client, published, *LONG)?;
        traffic::tcp(client, SocketAddr::new(server, 81), *LONG)?;
        traffic::tcp(client, SocketAddr::new(server, 82), SHORT)?;
        traffic::tcp(host, SocketAddr::new(server, 8080), *LONG)?;
        let enough = |trace: &Pathtrace| attempts(trace).len() >= 4;
        wait::until("both traces to show all four", || enough(&links) && enough(&kprobes))?;
        assert_eq!(attempts(&links), attempts(&kprobes), "{}", backend.name());
    }
    Ok(())
}
