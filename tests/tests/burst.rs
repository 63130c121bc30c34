//! Many short connections at once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{expect, pathtrace::Pathtrace, published::Published};

const SENDERS: usize = 4;
const EACH: usize = 500;
/// KiB: the budget.
const MEMORY: u64 = 64 << 10;

#[test]
fn every_journey_of_2000_connections_is_there_or_counted_as_lost_and_none_is_wrong() -> Result<()> {
    let lab = Published::new()?;
    let trace = Pathtrace::start(Some(lab.host()?), &["--port", "80"])?;
    let connections = lab.burst(SENDERS, EACH)?;
    let memory = trace.peak_memory()?;
    let report = trace.stop()?;

    let summary = report.summary()?;
    let lost = summary["events_lost"].as_u64().context("events_lost")?;
    let translated = json!({
        "packet": {"destination": lab.outer.ip().to_string(), "destination_port": 80},
        "stages": [{"hook": "prerouting", "nat": "dnat", "after": {"destination": lab.inner.ip().to_string(), "destination_port": 8080}}],
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
