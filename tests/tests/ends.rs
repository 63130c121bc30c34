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

/// A static entry for `MAC` in the host's bridge, and a packet of web's for it.
fn to_behind(lab: &Lab, port: &str, source_port: u16) -> Result<()> {
    const MAC: &str = "02:00:00:00:00:09";
    let (host, web) = (lab.netns("host")?, lab.netns("web")?);
    let app = lab.address("app", Family::Ipv4)?;
    web.exec(&format!("ip neigh replace {app} lladdr {MAC} dev eth0 nud permanent"))?;
    host.exec(&format!("bridge fdb replace {MAC} dev {port} master static"))?;
    let answer = traffic::udp(web, source_port, SocketAddr::new(app, 80), SHORT)?;
    assert!(!matches!(answer, Answer::Answered { .. }), "{answer:?}");
    Ok(())
}

/// The frame's address is behind the port that it came in by, or ports are isolated from each other: no routing took place,
/// whether br_netfilter shows the packet to PREROUTING or not, and whether this host forwards or not.
#[test]
fn what_a_bridge_does_not_pass_on_is_no_matter_of_routing() -> Result<()> {
    for (filters, forwards) in [("1", "0"), ("0", "0"), ("1", "1")] {
        let lab = Lab::new(Topology::Docker)?;
        let host = lab.netns("host")?;
        // Without br_netfilter there is no such setting, and bridged packets are not filtered.
        if std::path::Path::new("/proc/sys/net/bridge").exists() {
            host.set_sysctl("net.bridge.bridge-nf-call-iptables", filters)?;
        }
        host.set_sysctl("net.ipv4.ip_forward", forwards)?;
        let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
        to_behind(&lab, "veth-web", 40_000)?;
        for port in ["veth-web", "veth-app"] {
            host.exec(&format!("bridge link set dev {port} isolated on"))?;
        }
        to_behind(&lab, "veth-app", 40_001)?;
        for source_port in [40_000, 40_001] {
            assert_sees(
                &trace,
                &json!({"packet": {"source_port": source_port},
                        "stages": [{"kind": "device", "device": "veth-web", "direction": "in"}],
                        "no_stages": [{"kind": "route"}],
                        "outcome": {"result": "dropped"},
                        "findings": [{"code": "bridge-did-not-forward",
                                      "summary": "~which came in by its port veth-web"}]}),
            )?;
        }
    }
    Ok(())
}
