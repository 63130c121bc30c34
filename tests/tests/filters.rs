//! Which packets a filter takes: no others, and those that come to match on their way.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::json;
use tests::{
    expect,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT, Server},
};

/// A first packet of any connection may come to match by its translation; its reset is not asked for all the same.
#[test]
fn a_refused_connection_that_does_not_match_is_not_shown() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let own = lab.address("host", Family::Ipv4)?;
    // Somebody must ask for conntrack: there is NAT, and so a SYN that may come to match.
    ruleset::nft(
        host,
        "table ip nat {\nchain pre {\ntype nat hook prerouting priority -100;\ncounter\n}\n}\n",
    )?;
    let trace = Pathtrace::start(Some(host), &["--port", "553"])?;
    let (answer, _) = traffic::tcp(client, SocketAddr::new(own, 81), *LONG)?;
    assert!(matches!(answer, Answer::Refused), "{answer:?}");
    let answer = traffic::udp(client, 40_000, SocketAddr::new(own, 553), SHORT)?;
    assert!(!matches!(answer, Answer::Answered { .. }), "{answer:?}");
    let rejected = json!({"packet": {"protocol": "udp"}, "outcome": {"result": "rejected"}});
    trace.wait_for("the refused datagram", |lines| expect::find(lines, &rejected).is_some())?;
    let report = trace.stop()?;
    let others: Vec<_> = report.journeys().into_iter().filter(|j| j["packet"]["protocol"] == "tcp").collect();
    assert!(others.is_empty(), "{others:#?}");
    Ok(())
}

/// The answer comes to the router's own address; it is the client's once the mapping is undone.
#[test]
fn a_reply_matches_by_what_it_is_after_translation() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host, server) = (lab.netns("client")?, lab.netns("host")?, lab.netns("server")?);
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 553);
    let from = lab.address("client", Family::Ipv4)?;
    let _server = Server::udp(server, to)?;
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, "-t nat -A POSTROUTING -o eth1 -j MASQUERADE")?;
    let trace = Pathtrace::start(Some(host), &["--dst", &from.to_string()])?;
    let answer = traffic::udp(client, 40_001, to, *LONG)?;
    assert!(matches!(answer, Answer::Answered { .. }), "{answer:?}");
    let wanted = json!({"direction": "reply", "packet": {"protocol": "udp", "source_port": 553},
                        "stages": [{"kind": "netfilter", "hook": "prerouting", "decided_by": "mapping",
                                    "after": {"destination": from.to_string(), "destination_port": 40_001}}],
                        "outcome": {"result": "forwarded"}});
    trace
        .wait_for("the answer's journey", |lines| expect::find(lines, &wanted).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &wanted)))
}
