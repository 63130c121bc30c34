//! Where packets end outside the tables of IP, and what is said of it: a listener that is full, a chain at a device, a route.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::{
    expect,
    netns::Netns,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT},
};

fn assert_sees(trace: &Pathtrace, pattern: &Value) -> Result<()> {
    trace
        .wait_for("the expected journey", |lines| expect::find(lines, pattern).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), pattern)))
}

/// Listens, has room for one connection, and never accepts.
fn idle_listener(netns: &Netns, address: SocketAddr) -> Result<Socket> {
    netns.run(|| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&address.into())?;
        socket.listen(0)?;
        Ok(socket)
    })
}

#[test]
fn a_syn_for_a_listener_that_is_full_was_not_delivered() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
    let _listener = idle_listener(host, to)?;
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    let first = traffic::open(client, to, *LONG)?;
    assert!(first.is_ok(), "there was room for one");
    assert_sees(&trace, &json!({"packet": {"tcp_flags": "S"}, "outcome": {"result": "delivered"}}))?;
    let (answer, _) = traffic::tcp(client, to, SHORT)?;
    assert!(!matches!(answer, Answer::Answered { .. }), "{answer:?}");
    assert_sees(
        &trace,
        &json!({"packet": {"tcp_flags": "S"}, "outcome": {"result": "dropped", "reason": "null"},
                "findings": [{"code": "dropped-by-kernel",
                              "summary": "~most likely its queue of new connections is full"}]}),
    )
}

#[test]
fn a_chain_on_the_way_out_of_a_device_is_named() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 53);
    ruleset::nft(
        host,
        "table netdev late {\nchain out {\ntype filter hook egress device \"eth1\" priority 0; policy accept;\n\
         tcp dport 53 drop\nudp dport 53 drop\n}\n}\n\
         table ip seen {\nchain forward {\ntype filter hook forward priority 0; policy accept;\ncounter\n}\n}\n",
    )?;
    let trace = Pathtrace::start(Some(host), &["--port", "53"])?;
    let answer = traffic::udp(client, 40_000, to, SHORT)?;
    assert!(!matches!(answer, Answer::Answered { .. }), "{answer:?}");
    let wanted = json!({"outcome": {"result": "dropped", "reason": "NETFILTER_DROP"},
                        "findings": [{"code": "dropped-by-kernel", "summary": "~hook ingress or egress"}]});
    assert_sees(&trace, &wanted)?;
    let lines = trace.lines();
    let evidence =
        expect::find(&lines, &wanted).map(|journey| journey["findings"][0]["evidence"].to_string());
    let evidence = evidence.unwrap_or_default();
    assert!(evidence.contains("table netdev late, chain out, rule 2: `udp dport 53 drop`"), "{evidence}");
    assert!(!evidence.contains("tcp dport 53"), "{evidence}");
    Ok(())
}

/// `-m addrtype` looks the old destination up in table local; that is not where the route to the new one was found.
#[test]
fn a_packet_that_output_translates_has_the_route_of_its_new_destination() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let (own, server) = (lab.address("host", Family::Ipv4)?, lab.address("server", Family::Ipv4)?);
    ruleset::iptables(
        host,
        Backend::Nft,
        Family::Ipv4,
        &format!(
            "-t nat -A OUTPUT -m addrtype --dst-type LOCAL -p tcp --dport 80 -j DNAT --to-destination {server}:80"
        ),
    )?;
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    traffic::tcp(host, SocketAddr::new(own, 80), SHORT)?;
    let new_route =
        json!({"kind": "route", "destination": server.to_string(), "device": "eth1", "gateway": "null"});
    let wanted = json!({"packet": {"tcp_flags": "S"}, "stages": [
        {"kind": "route", "destination": own.to_string(), "device": "lo", "gateway": "null"},
        {"kind": "netfilter", "hook": "output", "nat": "dnat"},
        new_route,
    ]});
    assert_sees(&trace, &wanted)?;
    let in_local = json!({"packet": {"tcp_flags": "S"}, "stages": [
        {"kind": "route", "destination": server.to_string(), "table": 255}]});
    assert_eq!(expect::find(&trace.lines(), &in_local), None);
    Ok(())
}

/// nft rules of any chain can write addresses, without NAT and its mappings.
#[test]
fn an_address_that_a_filter_chain_wrote_shows_before_and_after() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let (server, nowhere) = (lab.address("server", Family::Ipv4)?, lab.address("nowhere", Family::Ipv4)?);
    ruleset::nft(
        host,
        &format!(
            "table ip early {{\nchain pre {{\ntype filter hook prerouting priority -150; policy accept;\n\
             udp dport 552 counter ip daddr set {server}\n}}\n}}\n"
        ),
    )?;
    let trace = Pathtrace::start(Some(host), &["--port", "552"])?;
    traffic::udp(client, 40_001, SocketAddr::new(nowhere, 552), SHORT)?;
    assert_sees(
        &trace,
        &json!({"packet": {"destination": nowhere.to_string()},
                "stages": [{"table": "early", "nat": "null",
                            "before": {"destination": nowhere.to_string()},
                            "after": {"destination": server.to_string()}},
                           {"kind": "route", "destination": server.to_string()}],
                "outcome": {"result": "forwarded"}}),
    )
}
