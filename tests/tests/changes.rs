//! What comes and goes while a trace runs: base chains, devices, namespaces.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use tests::{
    expect,
    netns::Netns,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    scenario::told_here,
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, SHORT, Server},
    wait,
};

/// Sends until a journey fits: a change reaches the probes a moment after the tool that made it has ended.
fn repeat_until(
    trace: &Pathtrace,
    what: &str,
    pattern: &Value,
    mut send: impl FnMut() -> Result<()>,
) -> Result<()> {
    wait::until(what, || send().is_ok() && expect::find(&trace.lines(), pattern).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), pattern)))
}

#[test]
fn base_chains_that_appear_are_seen_and_those_that_vanish_are_forgotten() -> Result<()> {
    for backend in Backend::BOTH {
        let lab = Lab::new(Topology::Routed)?;
        let (client, host) = (lab.netns("client")?, lab.netns("host")?);
        let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 80);
        let _server = Server::tcp(lab.netns("server")?, to)?;
        let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
        let passed = json!({"packet": {"tcp_flags": "S"}, "outcome": {"result": "forwarded"}, "no_stages": [{"table": "filter"}]});
        repeat_until(&trace, "a journey without rules", &passed, || {
            traffic::tcp(client, to, *LONG).map(drop)
        })?;

        ruleset::iptables(host, backend, Family::Ipv4, "-A FORWARD -p tcp -m tcp --dport 80 -j DROP")?;
        let dropped = json!({
            "packet": {"tcp_flags": "S"},
            "stages": [{"hook": "forward", "table": "filter", "backend": backend.name(), "verdict": "drop", "decided_by": "rule",
                        "exact": true, "rules": [{"chain": "FORWARD", "position": 1, "text": "-A FORWARD -p tcp -m tcp --dport 80 -j DROP"}]}],
            "outcome": {"result": "dropped", "reason": "NETFILTER_DROP"}
        });
        let dropped = told_here(dropped, backend);
        repeat_until(&trace, "the new chain's drop", &dropped, || traffic::tcp(client, to, SHORT).map(drop))?;

        ruleset::iptables(
            host,
            backend,
            Family::Ipv4,
            "-R FORWARD 1 -p tcp -m tcp --dport 80 -m comment --comment again -j ACCEPT",
        )?;
        let accepted = json!({
            "packet": {"tcp_flags": "S"},
            "stages": [{"hook": "forward", "table": "filter", "verdict": "accept", "exact": true,
                        "rules": [{"position": 1, "text": "~--comment again"}]}],
            "outcome": {"result": "forwarded"}
        });
        let accepted = told_here(accepted, backend);
        repeat_until(&trace, "the rule that replaced it", &accepted, || {
            traffic::tcp(client, to, *LONG).map(drop)
        })?;

        if backend == Backend::Nft {
            ruleset::nft(host, "delete table ip filter")?;
            let seen = expect::journeys(&trace.lines()).count();
            wait::until("a journey without the chain", || {
                traffic::tcp(client, to, *LONG).is_ok()
                    && expect::journeys(&trace.lines())
                        .skip(seen)
                        .any(|journey| expect::matches(&passed, journey).is_ok())
            })?;
        }
        assert!(trace.stop()?.status.success());
    }
    Ok(())
}

#[test]
fn an_nft_chain_between_two_tables_is_seen_when_it_appears() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = lab.address("server", Family::Ipv6)?;
    ruleset::iptables(host, Backend::Nft, Family::Ipv6, "-A FORWARD -j ACCEPT")?;
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp6"])?;
    ruleset::nft(
        host,
        "table inet late {\nchain pass { type filter hook forward priority -7; policy accept; counter; }\n}",
    )?;
    let pattern = json!({
        "packet": {"protocol": "icmp6", "icmp_type": 128},
        "stages": [
            {"hook": "forward", "family": "inet", "table": "late", "chain": "pass", "priority": -7, "backend": "nftables", "verdict": "accept"},
            {"hook": "forward", "family": "ip6", "table": "filter", "priority": 0, "backend": "iptables-nft", "verdict": "accept"}
        ]
    });
    repeat_until(&trace, "both chains in the kernel's order", &pattern, || {
        traffic::ping(client, to, *LONG).map(drop)
    })?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn a_device_that_appears_is_seen_and_one_that_vanishes_does_no_harm() -> Result<()> {
    let lab = Lab::new(Topology::Docker)?;
    let host = lab.netns("host")?;
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp"])?;
    let container = Netns::new()?;
    container.exec(&format!("ip link add eth0 type veth peer name veth-late netns {}", host.name()))?;
    host.exec("ip link set veth-late master docker0 up")?;
    container.exec("ip address add 172.17.0.44/16 dev eth0")?;
    container.exec("ip link set eth0 up")?;
    let bridge = lab.address("bridge", Family::Ipv4)?;
    let late = json!({"packet": {"source": "172.17.0.44", "icmp_type": 8}, "stages": [{"kind": "device", "device": "veth-late", "direction": "in"}]});
    repeat_until(&trace, "the new device", &late, || traffic::ping(&container, bridge, SHORT).map(drop))?;

    host.exec("ip link del veth-late")?;
    let web = lab.address("web", Family::Ipv4)?;
    let other =
        json!({"packet": {"source": web.to_string(), "icmp_type": 8}, "outcome": {"result": "delivered"}});
    repeat_until(&trace, "a journey after that", &other, || {
        traffic::ping(lab.netns("web")?, bridge, *LONG).map(drop)
    })?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn a_namespace_that_appears_is_traced_and_one_that_vanishes_does_no_harm() -> Result<()> {
    let staying = Netns::new()?;
    let trace = Pathtrace::start(None, &["--all-netns", "--proto", "icmp", "--host", "127.0.0.1"])?;
    let coming = Netns::new()?;
    let here = |netns: &Netns| {
        Ok::<_, anyhow::Error>(json!({"packet": {"icmp_type": 8}, "stages": [{"netns": netns.inode()?}]}))
    };
    let ping = |netns: &Netns| traffic::ping(netns, [127, 0, 0, 1].into(), *LONG).map(drop);
    repeat_until(&trace, "the namespace that appeared", &here(&coming)?, || ping(&coming))?;
    drop(coming);
    repeat_until(&trace, "the namespace that stayed", &here(&staying)?, || ping(&staying))?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn one_of_two_traced_namespaces_vanishes() -> Result<()> {
    let (staying, going) = (Netns::new()?, Netns::new()?);
    let trace =
        Pathtrace::start(None, &["--netns", staying.name(), "--netns", going.name(), "--proto", "icmp"])?;
    let pattern = json!({"packet": {"icmp_type": 8}, "stages": [{"netns": going.inode()?}]});
    repeat_until(&trace, "the one that goes", &pattern, || {
        traffic::ping(&going, [127, 0, 0, 1].into(), *LONG).map(drop)
    })?;
    drop(going);
    let pattern = json!({"packet": {"icmp_type": 8}, "stages": [{"netns": staying.inode()?}]});
    repeat_until(&trace, "the one that stays", &pattern, || {
        traffic::ping(&staying, [127, 0, 0, 1].into(), *LONG).map(drop)
    })?;
    assert!(trace.stop()?.status.success());
    Ok(())
}
