//! Tables that no probe stands right behind: chains at the end of the priorities, where the kernel lets none of ours stand,
//! and nat tables, which the NAT engine asks for a connection's first packet only.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use tests::{
    expect, machine,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT, Server},
};

const LAST: i32 = i32::MAX;

fn late(hook: &str, verdict: &str) -> String {
    format!(
        "table ip late {{\nchain {hook} {{\ntype filter hook {hook} priority {LAST}; policy accept;\ntcp dport 80 counter {verdict}\n}}\n}}\n"
    )
}

/// One attempt to `to` while the host has a chain at the highest priority; the journey of its first packet.
fn first_packet(lab: &Lab, to: SocketAddr, answered: bool) -> Result<(Value, Value)> {
    let trace = Pathtrace::start(Some(lab.netns("host")?), &["--port", "80"])?;
    let patience = if answered { *LONG } else { SHORT };
    let (answer, _) = traffic::tcp(lab.netns("client")?, to, patience)?;
    assert_eq!(matches!(answer, Answer::Answered { .. }), answered, "{answer:?}");
    let syn = json!({"packet": {"tcp_flags": "S"}});
    trace.wait_for("the first packet", |lines| expect::find(lines, &syn).is_some())?;
    let report = trace.stop()?;
    assert!(report.status.success(), "{}", report.stderr);
    let journey = expect::find(&report.lines, &syn).cloned().unwrap_or_default();
    Ok((journey, report.of_type("start")[0].clone()))
}

fn fits(journey: &Value, pattern: &Value) {
    if let Err(wrong) = expect::matches(pattern, journey) {
        panic!("{wrong}\n{}", expect::pretty(journey));
    }
}

#[test]
fn a_chain_at_the_highest_priority_is_told_from_what_comes_next() -> Result<()> {
    for (verdict, result) in [("accept", "forwarded"), ("drop", "dropped")] {
        let lab = Lab::new(Topology::Routed)?;
        let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 80);
        let _server = Server::tcp(lab.netns("server")?, to)?;
        ruleset::nft(lab.netns("host")?, &late("forward", verdict))?;
        let (journey, start) = first_packet(&lab, to, verdict == "accept")?;
        let mut stage = json!({"hook": "forward", "table": "late", "chain": "forward", "priority": LAST,
                               "verdict": verdict});
        if machine::has_nft_types() {
            stage["rules"] = json!([{"position": 1}]);
        }
        fits(&journey, &json!({"stages": [stage], "outcome": {"result": result}}));
        // Kprobes stand on the chain itself: nothing is missing then.
        let has_links = start["probes"].as_array().is_some_and(|all| all.contains(&json!("netfilter")));
        let said = start["missing"].to_string();
        assert_eq!(said.contains(&format!("priority {LAST} of IPv4 FORWARD")), has_links, "{start}");
    }
    Ok(())
}

#[test]
fn delivery_behind_a_chain_at_the_highest_priority() -> Result<()> {
    for (verdict, result) in [("accept", "delivered"), ("drop", "dropped")] {
        let lab = Lab::new(Topology::Routed)?;
        let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
        let _server = Server::tcp(lab.netns("host")?, to)?;
        ruleset::nft(lab.netns("host")?, &late("input", verdict))?;
        let (journey, _) = first_packet(&lab, to, verdict == "accept")?;
        fits(
            &journey,
            &json!({"stages": [{"hook": "input", "table": "late", "priority": LAST, "verdict": verdict}],
                    "outcome": {"result": result}}),
        );
    }
    Ok(())
}

/// The kernel asks no NAT chain behind the one that translates: what it would have said is not told.
#[test]
fn a_nat_chain_behind_the_one_that_translates_does_not_judge() -> Result<()> {
    if !machine::has_nft_types() {
        return Ok(());
    }
    let lab = Lab::new(Topology::Routed)?;
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
    let inner = SocketAddr::new(lab.address("server", Family::Ipv4)?, 8080);
    let _server = Server::tcp(lab.netns("server")?, inner)?;
    let table = |name: &str, priority: i32, rule: &str| {
        format!(
            "table ip {name} {{\nchain pre {{\ntype nat hook prerouting priority {priority}; policy accept;\n{rule}\n}}\n}}\n"
        )
    };
    let dnat = format!("tcp dport 80 counter dnat to {inner}");
    let tables =
        [table("early", -110, "counter"), table("docker", -100, &dnat), table("late", -90, "counter")];
    ruleset::nft(lab.netns("host")?, &tables.concat())?;
    let (journey, _) = first_packet(&lab, to, true)?;
    let judged = journey["stages"].as_array().into_iter().flatten();
    let judged: Vec<&Value> = judged.filter(|stage| stage["hook"] == "prerouting").collect();
    let chains: Vec<_> = judged.iter().map(|stage| (&stage["table"], &stage["priority"])).collect();
    // The chain's own priority, not that of the engine that asks it.
    let expected = [(&json!("early"), &json!(-110)), (&json!("docker"), &json!(-100))];
    assert_eq!(chains, expected, "{}", expect::pretty(&journey));
    assert!(judged.iter().all(|stage| stage["exact"] == true), "{}", expect::pretty(&journey));
    assert_eq!(judged[1]["nat"], "dnat", "{}", expect::pretty(&journey));
    Ok(())
}

/// The same where the one that translates is not known for certain: that the other was not asked shows in its counters.
#[test]
fn a_legacy_nat_table_that_was_not_asked_did_not_translate() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
    let inner = SocketAddr::new(lab.address("server", Family::Ipv4)?, 8080);
    let _server = Server::tcp(lab.netns("server")?, inner)?;
    let rules = "-t nat -A PREROUTING -p tcp -m tcp --dport 99 -j DNAT --to-destination 10.2.0.2:99";
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, rules)?;
    let chain = "type nat hook prerouting priority -110; policy accept;";
    let either = format!("meta mark & 0xff == 0 tcp dport 80 dnat to {inner}\ntcp dport 80 dnat to {inner}");
    ruleset::nft(host, &format!("table ip docker {{\nchain pre {{\n{chain}\n{either}\n}}\n}}\n"))?;
    let (journey, _) = first_packet(&lab, to, true)?;
    let judged = journey["stages"].as_array().into_iter().flatten();
    let judged: Vec<&Value> = judged.filter(|stage| stage["hook"] == "prerouting").collect();
    let [only] = judged.as_slice() else { panic!("{}", expect::pretty(&journey)) };
    assert_eq!(
        (&only["table"], &only["nat"]),
        (&json!("docker"), &json!("dnat")),
        "{}",
        expect::pretty(&journey)
    );
    assert_eq!(only["after"]["destination"], inner.ip().to_string(), "{}", expect::pretty(&journey));
    Ok(())
}
