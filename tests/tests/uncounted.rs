//! nft rules without counters: what the packet's own fields, the rules' text and what came of the packet settle is told,
//! also where the kernel lets nobody look on.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};
use tests::{
    expect,
    netns::Netns,
    pathtrace::Pathtrace,
    ruleset,
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, SHORT, Server},
};

/// As many hosts have it: no counter anywhere.
fn firewall(lab: &Lab) -> Result<String> {
    let server = lab.address("server", Family::Ipv4)?;
    let client = lab.address("client", Family::Ipv4)?;
    Ok(format!(
        "table inet firewall {{\nset admins {{\ntype ipv4_addr\nelements = {{ {client} }}\n}}\n\
         map services {{\ntype inet_service : verdict\nelements = {{ 8001 : accept, 8002 : drop }}\n}}\n\
         chain input {{\ntype filter hook input priority filter; policy drop;\n\
         ct state vmap {{ established : accept, related : accept, invalid : drop }}\n\
         iifname \"lo\" accept\nmeta l4proto {{ icmp, ipv6-icmp }} accept\n\
         tcp dport {{ 22, 2200-2299 }} accept\ntcp dport vmap @services\n\
         ip saddr @admins tcp dport 9000 reject with tcp reset\n}}\n\
         chain forward {{\ntype filter hook forward priority filter; policy drop;\n\
         ct state established,related accept\niifname \"eth1\" drop\noifname \"eth1\" tcp dport 22 accept\n}}\n\
         chain pre {{\ntype nat hook prerouting priority dstnat;\niifname \"eth1\" tcp dport 80 redirect to :81\n\
         tcp dport 2022 dnat ip to {server}:22\n}}\n\
         chain post {{\ntype nat hook postrouting priority srcnat;\noifname \"eth0\" masquerade\noifname \"eth1\" masquerade\n}}\n}}\n"
    ))
}

/// Where a SYN to `port` must have been judged, by what, and what is found.
fn check(trace: &Pathtrace, client: &Netns, to: IpAddr, port: u16, stage: &Value, code: &str) -> Result<()> {
    let patience = if code.is_empty() { *LONG } else { SHORT };
    traffic::tcp(client, SocketAddr::new(to, port), patience)?;
    let findings = if code.is_empty() { json!([]) } else { json!([{"code": code}]) };
    let wanted = json!({"packet": {"tcp_flags": "S", "destination_port": port}, "stages": [stage], "findings": findings});
    trace
        .wait_for("the journey", |lines| expect::find(lines, &wanted).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &wanted)))
}

#[test]
fn what_a_packet_s_own_fields_settle_is_exact() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let own = lab.address("host", Family::Ipv4)?;
    let at = |host: &Netns, port| Server::tcp(host, SocketAddr::new(own, port));
    let (_ssh, _service) = (at(host, 22)?, at(host, 8001)?);
    let _inner =
        Server::tcp(lab.netns("server")?, SocketAddr::new(lab.address("server", Family::Ipv4)?, 22))?;
    ruleset::nft(host, &firewall(&lab)?)?;
    let trace = Pathtrace::start(Some(host), &["--proto", "tcp"])?;
    let rule = |verdict: &str, position: u32, text: &str| {
        json!({"hook": "input", "table": "firewall", "chain": "input", "exact": true, "verdict": verdict,
               "decided_by": "rule", "rules": [{"chain": "input", "position": position, "text": text}]})
    };
    let policy = json!({"hook": "input", "table": "firewall", "exact": true, "verdict": "drop",
                        "decided_by": "policy", "rules": []});
    check(&trace, client, own, 22, &rule("accept", 4, "tcp dport { 22, 2200-2299 } accept"), "")?;
    check(&trace, client, own, 23, &policy, "dropped-by-policy")?;
    check(&trace, client, own, 8001, &rule("accept", 5, "tcp dport vmap @services"), "")?;
    check(&trace, client, own, 8002, &rule("drop", 5, "tcp dport vmap @services"), "dropped-by-rule")?;
    let reset = rule("reject", 6, "ip saddr @admins tcp dport 9000 reject with tcp reset");
    check(&trace, client, own, 9000, &reset, "rejected-by-rule")?;
    let dnat = json!({"hook": "prerouting", "table": "firewall", "chain": "pre", "exact": true, "nat": "dnat",
                      "decided_by": "rule", "rules": [{"chain": "pre", "position": 2}]});
    check(&trace, client, own, 2022, &dnat, "")?;
    let masquerade = json!({"packet": {"tcp_flags": "S", "destination_port": 2022}, "stages": [
        {"hook": "forward", "exact": true, "rules": [{"chain": "forward", "position": 3}]},
        {"hook": "postrouting", "exact": true, "nat": "masquerade", "rules": [{"chain": "post", "position": 2}]}]});
    assert!(
        expect::find(&trace.lines(), &masquerade).is_some(),
        "{}",
        expect::explain(&trace.lines(), &masquerade)
    );
    Ok(())
}

/// firewalld's way: NAT is told by `ct status`, zones by devices, and chains go to each other.
#[test]
fn what_was_translated_is_let_through_by_its_status() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let (own, server) = (lab.address("host", Family::Ipv4)?, lab.address("server", Family::Ipv4)?);
    let _server = Server::tcp(lab.netns("server")?, SocketAddr::new(server, 8080))?;
    let rules = format!(
        "table inet firewalld {{\nset peers {{\ntype ipv4_addr . inet_service\nflags interval\n\
         elements = {{ 10.0.0.0/8 . 9000-9009 }}\n}}\n\
         chain pre {{\ntype nat hook prerouting priority dstnat + 10;\ntcp dport 80 dnat ip to {server}:8080\n}}\n\
         chain filter_FORWARD {{\ntype filter hook forward priority filter + 10; policy accept;\n\
         ct state established,related accept\nct status dnat accept\niifname \"lo\" accept\n\
         jump filter_FORWARD_ZONES\nct state invalid drop\nreject with icmpx admin-prohibited\n}}\n\
         chain filter_FORWARD_ZONES {{\niifname \"eth0\" goto filter_FWD_public\ngoto filter_FWD_internal\n}}\n\
         chain filter_FWD_public {{\nip saddr . tcp dport @peers accept\nct direction reply accept\n}}\n\
         chain filter_FWD_internal {{\naccept\n}}\n}}\n"
    );
    ruleset::nft(host, &rules)?;
    let trace = Pathtrace::start(Some(host), &["--proto", "tcp"])?;
    let forward = |verdict: &str, rules: Value| {
        json!({"hook": "forward", "table": "firewalld", "chain": "filter_FORWARD", "exact": true, "verdict": verdict,
               "rules": rules})
    };
    let translated = json!([{"chain": "filter_FORWARD", "position": 2, "text": "ct status dnat accept"}]);
    let dnat = forward("accept", translated);
    traffic::tcp(client, SocketAddr::new(own, 80), *LONG)?;
    let wanted = json!({"packet": {"tcp_flags": "S", "destination_port": 80}, "stages": [dnat]});
    trace
        .wait_for("the translated SYN", |lines| expect::find(lines, &wanted).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &wanted)))?;
    let zone = [("filter_FORWARD", 4), ("filter_FORWARD_ZONES", 1)];
    let path = |more: (&str, u32)| -> Value {
        zone.iter()
            .chain([&more])
            .map(|(chain, position)| json!({"chain": chain, "position": position}))
            .collect()
    };
    let refused = forward("reject", path(("filter_FORWARD", 6)));
    check(&trace, client, server, 22, &refused, "rejected-by-rule")?;
    let peer = forward("accept", path(("filter_FWD_public", 1)));
    check(&trace, client, server, 9001, &peer, "")
}

/// With NAT in OUTPUT alone, answers are translated back at INPUT, where no chain is hooked: the rule's table did it.
#[test]
fn a_mapping_undone_where_no_chain_is_hooked_is_of_its_rule_s_table() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let (server, nowhere) = (lab.address("server", Family::Ipv4)?, lab.address("nowhere", Family::Ipv4)?);
    let _server = Server::tcp(lab.netns("server")?, SocketAddr::new(server, 8080))?;
    ruleset::nft(
        host,
        &format!(
            "table inet own {{\nchain out {{\ntype nat hook output priority -100;\n\
             ip daddr {nowhere} tcp dport 80 counter dnat ip to {server}:8080\n}}\n}}\n"
        ),
    )?;
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    traffic::tcp(host, SocketAddr::new(nowhere, 80), *LONG)?;
    let wanted = json!({"direction": "reply", "packet": {"tcp_flags": "SA"}, "stages": [
        {"hook": "input", "family": "inet", "table": "own", "chain": "null", "backend": "nftables",
         "decided_by": "mapping", "mapping_rule": {"chain": "out", "position": 1}}]});
    trace
        .wait_for("the answer", |lines| expect::find(lines, &wanted).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &wanted)))
}

#[test]
fn asking_for_a_state_that_no_packet_has_is_said() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let trace = Pathtrace::start(Some(host), &["--ct-state", "new", "--port", "553"])?;
    traffic::udp(client, 40_000, SocketAddr::new(lab.address("host", Family::Ipv4)?, 553), SHORT)?;
    let notice = json!({"type": "notice", "level": "warning", "message": "~--ct-state"});
    trace.wait_for("the warning", |lines| {
        lines.iter().filter(|line| expect::matches(&notice, line).is_ok()).count() == 1
    })?;
    assert!(trace.stop()?.journeys().is_empty());
    Ok(())
}
