//! More events than the ring buffer holds: counted, shown, and nothing wrong for it.

use std::{collections::BTreeMap, net::SocketAddr, thread};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    expect,
    pathtrace::Pathtrace,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Server},
};

const SENDERS: usize = 2;
/// One connection makes more than fifty records of 272 bytes; the ring buffer holds 8 MiB.
const EACH: usize = 400;

fn notes(journey: &Value) -> impl Iterator<Item = &str> {
    journey["notes"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether the journey says itself that it is not shown in full.
fn is_marked(journey: &Value) -> bool {
    let words = ["events were lost", "its beginning was not seen"];
    journey["outcome"]["result"] == "incomplete"
        || notes(journey).any(|note| words.iter().any(|word| note.starts_with(word)))
}

#[test]
fn a_full_ring_is_counted_and_shown_and_no_journey_is_wrong() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let inner = SocketAddr::new(lab.address("server", Family::Ipv4)?, 8080);
    let _server = Server::tcp(lab.netns("server")?, inner)?;
    let rule = format!("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {inner}");
    ruleset::iptables(host, Backend::Nft, Family::Ipv4, &rule)?;
    let published = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);

    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    // A reader that gets no time: the kernel side goes on, and finds the ring full.
    trace.signal(Signal::SIGSTOP)?;
    thread::scope(|scope| {
        let senders: Vec<_> =
            (0..SENDERS).map(|_| scope.spawn(|| traffic::tcp_burst(client, published, EACH))).collect();
        senders.into_iter().try_for_each(|sender| sender.join().expect("a sender panicked").map(drop))
    })?;
    trace.signal(Signal::SIGCONT)?;
    let warned = json!({"type": "notice", "level": "warning", "message": "~some are lost"});
    trace.wait_for("the warning that events are lost", |lines| {
        lines.iter().any(|line| expect::matches(&warned, line).is_ok())
    })?;
    // What comes after the loss is seen as ever.
    let (_, ours) = traffic::tcp(client, published, *traffic::LONG)?;
    let last = json!({"packet": {"source_port": ours.context("a connection")?.port(), "tcp_flags": "S"}});
    trace.wait_for("a journey after the loss", |lines| expect::find(lines, &last).is_some())?;
    let report = trace.stop()?;
    assert!(report.status.success(), "{}", report.stderr);

    let summary = report.summary()?;
    assert!(summary["events_lost"].as_u64().is_some_and(|lost| lost > 0), "{summary}");
    assert!(summary["lost_where"]["ring-full"].as_u64().is_some_and(|lost| lost > 0), "{summary}");
    assert_eq!(summary["complete"], false);
    check(&report.journeys(), inner)
}

fn check(journeys: &[&Value], inner: SocketAddr) -> Result<()> {
    let translated = json!({
        "stages": [{"hook": "prerouting", "nat": "dnat",
                    "after": {"destination": inner.ip().to_string(), "destination_port": inner.port()}},
                   {"kind": "device", "direction": "out", "device": "eth1"}],
        "outcome": {"result": "forwarded", "device": "eth1"},
    });
    let mut port_of_flow: BTreeMap<u64, u64> = BTreeMap::new();
    let mut whole = 0;
    for journey in journeys.iter().filter(|journey| journey["direction"] == "original") {
        let port = journey["packet"]["source_port"].as_u64().context("a journey without source port")?;
        if let Some(flow) = journey["flow"].as_u64() {
            assert_eq!(*port_of_flow.entry(flow).or_insert(port), port, "flow {flow} has two connections");
        }
        for stage in
            journey["stages"].as_array().into_iter().flatten().filter(|stage| stage["kind"] == "netfilter")
        {
            assert_eq!(stage["before"]["source_port"], port, "{}", expect::pretty(journey));
            assert_eq!(stage["after"]["source_port"], port, "{}", expect::pretty(journey));
        }
        assert!(
            !["dropped", "rejected"].iter().any(|bad| journey["outcome"]["result"] == *bad),
            "{}",
            expect::pretty(journey)
        );
        if !is_marked(journey) {
            whole += 1;
            if let Err(wrong) = expect::matches(&translated, journey) {
                panic!("{wrong}\n{}\n{}", expect::pretty(journey), journey["notes"]);
            }
        }
    }
    assert!(whole > 0, "no journey was seen in full");
    Ok(())
}
