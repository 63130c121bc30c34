//! `--clsact`: tc filters on devices, as on kernels without tcx; everything is put back.

use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    expect,
    machine::Fingerprint,
    netns::Netns,
    pathtrace::Pathtrace,
    topology::{Family, Lab, Topology},
    traffic::{self, LONG},
    wait,
};

/// Starts a trace of pings as on a kernel without tcx, and waits until filters watch the devices.
fn trace_by_filters(host: &Netns) -> Result<Pathtrace> {
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp", "-vv", "--clsact", "--without", "tcx"])?;
    trace.wait_for_devices()?;
    Ok(trace)
}

fn filters(netns: &Netns, device: &str) -> Result<String> {
    Ok(netns.exec(&format!("tc filter show dev {device} ingress"))?
        + &netns.exec(&format!("tc filter show dev {device} egress"))?)
}

fn has_qdisc(netns: &Netns, device: &str) -> Result<bool> {
    Ok(netns.exec(&format!("tc qdisc show dev {device}"))?.contains("clsact"))
}

#[test]
fn filters_see_what_tcx_would_and_go_with_the_trace() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let server = lab.address("server", Family::Ipv4)?;
    traffic::ping(client, server, *LONG)?;
    let before = Fingerprint::of(host)?;
    let trace = trace_by_filters(host)?;
    for device in ["eth0", "eth1"] {
        assert!(has_qdisc(host, device)?);
        assert_eq!(filters(host, device)?.matches("pathtrace-").count(), 2, "{}", filters(host, device)?);
    }
    let from = trace.lines().len();
    traffic::ping(client, server, *LONG)?;
    for (kind, into, out) in [(8, "eth0", "eth1"), (0, "eth1", "eth0")] {
        let journey = json!({
            "packet": {"icmp_type": kind},
            "stages": [
                {"kind": "device", "device": into, "direction": "in", "elapsed_ns": 0},
                {"kind": "route", "device": out},
                {"kind": "device", "device": out, "direction": "out"}
            ],
            "outcome": {"result": "forwarded", "device": out}
        });
        trace.wait_for("the ping's journey", |lines| expect::find(&lines[from..], &journey).is_some())?;
    }
    let report = trace.stop()?;
    assert!(report.status.success());
    let journeys: Vec<&Value> =
        report.lines[from..].iter().filter(|line| line["type"] == "journey").collect();
    assert_eq!(journeys.len(), 2, "{journeys:#?}");
    for journey in journeys {
        let stages = journey["stages"].as_array().map_or(&[][..], Vec::as_slice);
        let devices: Vec<&Value> = stages.iter().filter(|stage| stage["kind"] == "device").collect();
        assert_eq!(devices.len(), 2, "{}", expect::pretty(journey));
        assert!(devices.iter().all(|device| device.get("programs").is_none()), "{}", expect::pretty(journey));
    }
    for said in ["--clsact: devices get tc filters", "with them, a clsact qdisc comes to "] {
        assert!(report.stderr.contains(said), "{}", report.stderr);
    }
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new());
    Ok(())
}

#[test]
fn what_others_use_stays() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let theirs = "protocol ip pref 7 u32 match u32 0 0 flowid 1:1";
    host.exec("tc qdisc add dev eth0 clsact")?;
    host.exec(&format!("tc filter add dev eth0 ingress {theirs}"))?;
    let trace = trace_by_filters(host)?;
    // Our qdisc is taken into use.
    host.exec(&format!("tc filter add dev eth1 egress {theirs}"))?;
    assert!(trace.stop()?.status.success());
    for device in ["eth0", "eth1"] {
        assert!(has_qdisc(host, device)?);
        let left = filters(host, device)?;
        assert!(left.contains("u32") && !left.contains("pathtrace"), "{left}");
    }
    assert!(!has_qdisc(host, "lo")?);
    Ok(())
}

#[test]
fn the_next_trace_sweeps_what_a_killed_one_left_and_spares_a_living_one() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let before = Fingerprint::of(host)?;
    let killed = trace_by_filters(host)?;
    killed.signal(Signal::SIGKILL)?;
    killed.wait()?;
    assert_eq!(filters(host, "eth0")?.matches("pathtrace-").count(), 2);
    let living = trace_by_filters(host)?;
    assert_eq!(filters(host, "eth0")?.matches("pathtrace-").count(), 2, "only its own");
    let another = trace_by_filters(host)?;
    assert_eq!(filters(host, "eth0")?.matches("pathtrace-").count(), 4, "of two");
    let report = living.stop()?;
    assert!(report.status.success());
    assert_eq!(filters(host, "eth0")?.matches("pathtrace-").count(), 2);
    // The qdisc that the first brought goes with the last.
    assert!(another.stop()?.status.success());
    assert!(report.stderr.contains("what a killed trace had left was removed from "), "{}", report.stderr);
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new());
    Ok(())
}

#[test]
fn with_tcx_no_device_is_changed() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let before = Fingerprint::of(host)?;
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp", "-vv", "--clsact"])?;
    wait::until("who watches devices", || {
        trace
            .lines()
            .iter()
            .any(|line| line["message"].as_str().is_some_and(|said| said.contains("watch devices")))
    })?;
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new());
    let report = trace.stop()?;
    assert!(report.stderr.contains("--clsact is not needed: "), "{}", report.stderr);
    Ok(())
}
