//! Many short connections at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    thread,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{
    expect,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Server},
};

const SENDERS: usize = 4;
const EACH: usize = 500;
/// KiB: the budget.
const MEMORY: u64 = 64 << 10;

#[test]
fn every_journey_of_2000_connections_is_there_or_counted_as_lost_and_none_is_wrong() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let inner = SocketAddr::new(lab.address("server", Family::Ipv4)?, 8080);
    let _server = Server::tcp(lab.netns("server")?, inner)?;
    let rule = format!("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {inner}");
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, &rule)?;
    let published = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);

    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    let connections: Vec<SocketAddr> = thread::scope(|scope| {
        let senders: Vec<_> =
            (0..SENDERS).map(|_| scope.spawn(|| traffic::tcp_burst(client, published, EACH))).collect();
        senders
            .into_iter()
            .map(|sender| sender.join().expect("a sender panicked"))
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    let memory = trace.peak_memory()?;
    let report = trace.stop()?;

    let summary = report.summary()?;
    let lost = summary["events_lost"].as_u64().context("events_lost")?;
    let translated = json!({
        "packet": {"destination": published.ip().to_string(), "destination_port": 80},
        "stages": [{"hook": "prerouting", "nat": "dnat", "after": {"destination": inner.ip().to_string(), "destination_port": 8080}}],
    });
    let mut opened = BTreeSet::new();
    let mut port_of_flow: BTreeMap<u64, u64> = BTreeMap::new();
    for journey in report.journeys() {
        if journey["direction"] != "original" || journey["outcome"]["result"] == "incomplete" {
            continue;
        }
        // Events were lost, which the journey itself says: it does not claim to be whole.
        if lost > 0 && journey["notes"].to_string().contains("events were lost") {
            continue;
        }
        if let Err(wrong) = expect::matches(&translated, journey) {
            panic!("{wrong}\n{}", expect::pretty(journey));
        }
        let port = journey["packet"]["source_port"].as_u64().context("a journey without source port")?;
        let flow =
            journey["flow"].as_u64().with_context(|| format!("no flow: {}", expect::pretty(journey)))?;
        assert_eq!(*port_of_flow.entry(flow).or_insert(port), port, "flow {flow} has two connections");
        assert!(sources_agree(journey), "two packets in one journey:\n{}", expect::pretty(journey));
        if journey["packet"]["tcp_flags"] == "S" {
            opened.insert(port);
        }
    }
    let missing = connections.iter().filter(|address| !opened.contains(&u64::from(address.port()))).count();
    assert_eq!(connections.len(), SENDERS * EACH);
    assert!(
        missing == 0 || lost > 0,
        "{missing} journeys are missing and none is counted as lost: {summary}"
    );
    assert_eq!(summary["complete"] == true, lost == 0, "{summary}");
    assert!(memory <= MEMORY, "{memory} KiB were resident");
    Ok(())
}

/// Whether every stage speaks of the same source port: DNAT leaves it alone.
fn sources_agree(journey: &Value) -> bool {
    let port = &journey["packet"]["source_port"];
    let stages =
        journey["stages"].as_array().into_iter().flatten().filter(|stage| stage["kind"] == "netfilter");
    stages
        .into_iter()
        .all(|stage| stage["before"]["source_port"] == *port && stage["after"]["source_port"] == *port)
}
