//! Which namespaces are traced, and journeys across several.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
};

use anyhow::Result;
use serde_json::{Value, json};
use tests::{
    expect, machine,
    netns::Netns,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, Server},
};

/// A process that sits in a namespace until dropped.
struct Inmate(Child);

impl Inmate {
    fn new(netns: &Netns) -> Result<Self> {
        Ok(Self(netns.command("cat")?.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }
}

impl Drop for Inmate {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn echo_seen_in(netns: &Netns) -> Result<Value> {
    Ok(json!({"packet": {"protocol": "icmp", "icmp_type": 8}, "stages": [{"netns": netns.inode()?}]}))
}

fn assert_sees(trace: &Pathtrace, pattern: &Value) -> Result<()> {
    trace
        .wait_for("the expected journey", |lines| expect::find(lines, pattern).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), pattern)))
}

#[test]
fn a_namespace_by_name_by_path_and_by_process() -> Result<()> {
    let netns = Netns::new()?;
    let inmate = Inmate::new(&netns)?;
    let specs =
        [netns.name().to_owned(), netns.path().display().to_string(), format!("pid:{}", inmate.0.id())];
    for spec in specs {
        let trace = Pathtrace::start(None, &["--netns", &spec, "--proto", "icmp"])?;
        traffic::ping(&netns, [127, 0, 0, 1].into(), *LONG)?;
        assert_sees(&trace, &echo_seen_in(&netns)?)?;
        let report = trace.stop()?;
        assert_eq!(report.of_type("start")[0]["netns"], json!([netns.inode()?]), "{spec}");
    }
    Ok(())
}

#[test]
fn only_the_namespace_it_runs_in_by_default() -> Result<()> {
    let (inside, beside) = (Netns::new()?, Netns::new()?);
    let trace = Pathtrace::start(Some(&inside), &["--proto", "icmp"])?;
    traffic::ping(&beside, [127, 0, 0, 1].into(), *LONG)?;
    traffic::ping(&inside, [127, 0, 0, 1].into(), *LONG)?;
    assert_sees(&trace, &echo_seen_in(&inside)?)?;
    let report = trace.stop()?;
    let elsewhere = json!({"stages": [{"netns": beside.inode()?}]});
    assert!(expect::find(&report.lines, &elsewhere).is_none());
    Ok(())
}

/// Chains of one table share its counters: each trace must look between them, whoever else does.
#[test]
fn two_traces_at_once_tell_the_same_of_two_chains_at_one_hook() -> Result<()> {
    if !machine::has_nft_types() {
        return Ok(());
    }
    let netns = Netns::new()?;
    let chain = |name: &str, priority: u32, rule: &str| {
        format!(
            "chain {name} {{\ntype filter hook input priority {priority}; policy accept;\ncounter\n{rule}\n}}\n"
        )
    };
    let (first, second) =
        (chain("first", 0, ""), chain("second", 10, "meta l4proto ipv6-icmp counter accept"));
    ruleset::nft(&netns, &format!("table inet both {{\n{first}{second}}}\n"))?;
    let traces = [(); 2].map(|()| Pathtrace::start(Some(&netns), &["--proto", "icmp6"]));
    traffic::ping(&netns, std::net::Ipv6Addr::LOCALHOST.into(), *LONG)?;
    let stage = |chain: &str, decided: &str, positions: &[u32]| {
        let rules: Vec<Value> = positions.iter().map(|p| json!({"chain": chain, "position": p})).collect();
        json!({"hook": "input", "chain": chain, "exact": true, "decided_by": decided, "rules": rules})
    };
    let stages = [stage("first", "policy", &[1]), stage("second", "rule", &[1, 2])];
    for trace in traces {
        assert_sees(&trace?, &json!({"packet": {"icmp_type": 128}, "stages": stages}))?;
    }
    Ok(())
}

#[test]
fn one_journey_across_client_host_and_server() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host, server) = (lab.netns("client")?, lab.netns("host")?, lab.netns("server")?);
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 80);
    let _server = Server::tcp(server, to)?;
    let scope = ["--netns", client.name(), "--netns", host.name(), "--netns", server.name()];
    let trace = Pathtrace::start(None, &[&scope[..], &["--port", "80"]].concat())?;
    traffic::tcp(client, to, *LONG)?;
    assert_sees(&trace, &across(client, host, server)?)?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

/// The server knows the port behind the translation only, and has no conntrack: its answers match all the same.
#[test]
fn an_answer_to_a_translated_packet_begins_where_it_is_sent() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host, server) = (lab.netns("client")?, lab.netns("host")?, lab.netns("server")?);
    let (own, inner) = (lab.address("host", Family::Ipv4)?, lab.address("server", Family::Ipv4)?);
    let _server = Server::tcp(server, SocketAddr::new(inner, 8080))?;
    let dnat = format!("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {inner}:8080");
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, &dnat)?;
    let scope = ["--netns", host.name(), "--netns", server.name(), "--port", "80"];
    let trace = Pathtrace::start(None, &scope)?;
    traffic::tcp(client, SocketAddr::new(own, 80), *LONG)?;
    assert_sees(
        &trace,
        &json!({
            "direction": "reply",
            "packet": {"tcp_flags": "SA", "source": inner.to_string(), "source_port": 8080},
            "stages": [
                {"kind": "device", "netns": server.inode()?, "device": "eth0", "direction": "out"},
                {"kind": "device", "netns": host.inode()?, "device": "eth1", "direction": "in"},
                {"kind": "netfilter", "netns": host.inode()?, "decided_by": "mapping", "nat": "snat",
                 "after": {"source": own.to_string(), "source_port": 80}}
            ],
            "outcome": {"result": "forwarded", "device": "eth0"}
        }),
    )
}

#[test]
fn all_namespaces_of_the_machine() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host, server) = (lab.netns("client")?, lab.netns("host")?, lab.netns("server")?);
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 47110);
    let _server = Server::tcp(server, to)?;
    let trace = Pathtrace::start(None, &["--all-netns", "--port", "47110"])?;
    traffic::tcp(client, to, *LONG)?;
    assert_sees(&trace, &across(client, host, server)?)?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

/// The first packet from the client's device through the host to the server's socket.
fn across(client: &Netns, host: &Netns, server: &Netns) -> Result<Value> {
    let (client, host, server) = (client.inode()?, host.inode()?, server.inode()?);
    Ok(json!({
        "packet": {"tcp_flags": "S"},
        "stages": [
            {"kind": "device", "netns": client, "device": "eth0", "direction": "out"},
            {"kind": "device", "netns": host, "device": "eth0", "direction": "in"},
            {"kind": "route", "netns": host, "device": "eth1"},
            {"kind": "device", "netns": host, "device": "eth1", "direction": "out"},
            {"kind": "device", "netns": server, "device": "eth0", "direction": "in"}
        ],
        "outcome": {"result": "delivered", "socket": {"pid": std::process::id()}}
    }))
}
