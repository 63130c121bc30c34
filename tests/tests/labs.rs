//! The labs themselves, without pathtrace: what they promise to those who trace in them.

use std::{net::SocketAddr, panic, path::Path};

use anyhow::Result;
use tests::{
    machine::Fingerprint,
    netns::Netns,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT, Server},
};

#[test]
fn a_namespace_is_gone_after_a_panic() -> Result<()> {
    let netns = Netns::new()?;
    let path = netns.path();
    assert!(path.exists());
    let panicked = panic::catch_unwind(panic::AssertUnwindSafe(move || {
        let _held = netns;
        panic!("a failing test");
    }));
    assert!(panicked.is_err());
    assert!(!path.exists(), "{} is still there", path.display());
    Ok(())
}

#[test]
fn what_dead_processes_left_is_swept_and_what_living_ones_have_is_not() -> Result<()> {
    let dead = format!("pt{}-0", u32::MAX);
    Netns::new()?.exec(&format!("ip netns add {dead}"))?;
    let swept = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "a_namespace_is_gone_after_a_panic"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()?;
    assert!(swept.success());
    assert!(!Path::new("/run/netns").join(&dead).exists());
    Ok(())
}

#[test]
fn every_topology_connects_in_both_families() -> Result<()> {
    for (topology, from, to) in [
        (Topology::Routed, "client", "server"),
        (Topology::Routed, "outside", "client"),
        (Topology::Docker, "web", "client"),
        (Topology::Docker, "app", "web"),
        (Topology::DockerTwoNetworks, "web", "other"),
    ] {
        let lab = Lab::new(topology)?;
        for family in Family::BOTH {
            // Without translation the Docker client would not know the way back.
            ruleset::iptables(
                lab.netns("host")?,
                Backend::Nft,
                family,
                "-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
            )?;
            let answer = traffic::ping(lab.netns(from)?, lab.address(to, family)?, *LONG)?;
            assert_eq!(answer, Answer::Answered { seen_as: None }, "{topology:?} {from} -> {to} {family:?}");
        }
    }
    Ok(())
}

#[test]
fn a_translated_exchange_works_in_both_backends() -> Result<()> {
    for backend in Backend::BOTH {
        let lab = Lab::new(Topology::Routed)?;
        let server = lab.address("server", Family::Ipv4)?;
        let _server = Server::tcp(lab.netns("server")?, SocketAddr::new(server, 8080))?;
        let rules = format!("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {server}:8080");
        ruleset::iptables(lab.netns("host")?, backend, Family::Ipv4, &rules)?;
        let published = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
        let (answer, _) = traffic::tcp(lab.netns("client")?, published, *LONG)?;
        let client = lab.address("client", Family::Ipv4)?;
        assert_eq!(answer, Answer::Answered { seen_as: Some(client) }, "{backend:?}");
    }
    Ok(())
}

#[test]
fn refusal_and_silence_are_told_apart() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let closed = SocketAddr::new(lab.address("host", Family::Ipv4)?, 9);
    assert_eq!(traffic::tcp(client, closed, *LONG)?.0, Answer::Refused);
    assert_eq!(traffic::udp(client, 0, closed, *LONG)?, Answer::Refused);
    let wall = "chain in { type filter hook input priority 0; ip protocol { tcp, udp } drop; }";
    ruleset::nft(host, &format!("table inet wall {{\n{wall}\n}}"))?;
    assert_eq!(traffic::tcp(client, closed, SHORT)?.0, Answer::Silence);
    assert_eq!(traffic::udp(client, 0, closed, SHORT)?, Answer::Silence);
    Ok(())
}

#[test]
fn a_fingerprint_sees_a_change_and_traffic_is_none() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-A FORWARD -j ACCEPT")?;
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, "-A FORWARD -j ACCEPT")?;
    // The first packet fills the neighbour tables.
    traffic::ping(lab.netns("client")?, lab.address("server", Family::Ipv4)?, *LONG)?;
    let before = Fingerprint::of(host)?;
    traffic::ping(lab.netns("client")?, lab.address("server", Family::Ipv4)?, *LONG)?;
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new());
    host.set_sysctl("net.ipv4.conf.all.rp_filter", "2")?;
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-A FORWARD -j DROP")?;
    let differences = before.differences(&Fingerprint::of(host)?);
    assert_eq!(differences.len(), 2, "{differences:#?}");
    Ok(())
}
