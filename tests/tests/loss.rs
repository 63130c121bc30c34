//! More events than the ring buffer holds: counted, shown, and nothing wrong for it.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{expect, pathtrace::Pathtrace, published::Published, traffic};

const SENDERS: usize = 2;
/// One connection makes more than fifty records of 272 bytes; the ring buffer holds 8 MiB.
const EACH: usize = 400;

#[test]
fn packets_that_find_no_room_are_counted_and_shown_and_the_others_are_whole() -> Result<()> {
    let lab = Published::new()?;
    let trace = Pathtrace::start(Some(lab.host()?), &["--port", "80", "-vv"])?;
    // A reader that gets no time: the kernel side goes on, and finds the ring more than half full.
    trace.signal(Signal::SIGSTOP)?;
    lab.burst(SENDERS, EACH)?;
    trace.signal(Signal::SIGCONT)?;
    let warned = json!({"type": "notice", "level": "warning", "message": "~some are lost"});
    trace.wait_for("the warning that events are lost", |lines| {
        lines.iter().any(|line| expect::matches(&warned, line).is_ok())
    })?;
    // What comes after the loss is seen as ever.
    let (_, ours) = traffic::tcp(lab.client()?, lab.outer, *traffic::LONG)?;
    let last = json!({"packet": {"source_port": ours.context("a connection")?.port(), "tcp_flags": "S"}});
    trace.wait_for("a journey after the loss", |lines| expect::find(lines, &last).is_some())?;
    let report = trace.stop()?;
    assert!(report.status.success(), "{}", report.stderr);

    let summary = report.summary()?;
    assert!(summary["events_lost"].as_u64().is_some_and(|lost| lost > 0), "{summary}");
    assert!(summary["lost_where"]["ring-busy"].as_u64().is_some_and(|lost| lost > 0), "{summary}");
    assert_eq!(summary["complete"], false);
    // The kernel side says so itself, since it was asked to.
    let said = |line: &str| {
        line.starts_with("pathtrace: kernel side: warn: CPU ")
            && line.ends_with("since user space lagged behind")
    };
    assert!(report.stderr.lines().any(said), "{}", report.stderr);
    check(&report.journeys(), lab.inner)
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
        // The ring buffer has room for those that are followed: they are whole.
        whole += 1;
        if let Err(wrong) = expect::matches(&translated, journey) {
            panic!("{wrong}\n{}\n{}", expect::pretty(journey), journey["notes"]);
        }
        assert!(!journey["notes"].to_string().contains("lost"), "{}", expect::pretty(journey));
    }
    assert!(whole > 0, "no journey was seen in full");
    Ok(())
}
