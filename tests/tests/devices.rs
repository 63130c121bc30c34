//! Devices: who else judges on them, and packets on them before and after tcx takes over from the tracepoints.

use anyhow::Result;
use serde_json::{Value, json};
use tests::{
    expect,
    foreign::{At, Foreign, Says},
    netns::Netns,
    pathtrace::Pathtrace,
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, SHORT},
};

fn assert_sees(trace: &Pathtrace, pattern: &Value) -> Result<()> {
    trace
        .wait_for("the expected journey", |lines| expect::find(lines, pattern).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), pattern)))
}

/// Starts a trace of pings, and waits until tcx programs watch the devices.
fn trace_by_tcx(host: &Netns) -> Result<Pathtrace> {
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp", "-v"])?;
    trace.wait_for_devices()?;
    Ok(trace)
}

#[test]
fn programs_of_others_are_named_on_their_device() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let _xdp = Foreign::attach(host, "eth0", At::Xdp, Says::Pass, "their_xdp")?;
    let _tcx = Foreign::attach(host, "eth0", At::TcxIngress, Says::Pass, "their_tcx")?;
    host.exec("tc qdisc add dev eth1 clsact")?;
    host.exec("tc filter add dev eth1 egress protocol ip u32 match u32 0 0 flowid 1:1")?;
    let trace = Pathtrace::start(Some(host), &["--proto", "icmp"])?;
    traffic::ping(client, lab.address("server", Family::Ipv4)?, *LONG)?;
    assert_sees(
        &trace,
        &json!({
            "packet": {"icmp_type": 8},
            "stages": [
                {"kind": "device", "device": "eth0", "direction": "in",
                 "programs": ["~XDP their_xdp (program ", "~tcx their_tcx (program "]},
                {"kind": "device", "device": "eth1", "direction": "out", "programs": ["tc filter u32"]}
            ],
            "outcome": {"result": "forwarded"}
        }),
    )?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn tcx_sees_what_the_tracepoints_saw() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let server = lab.address("server", Family::Ipv4)?;
    let trace = trace_by_tcx(host)?;
    let before = trace.lines().len();
    traffic::ping(client, server, *LONG)?;
    let there_and_back = |kind: u8, from: &str, to: &str| {
        json!({
            "packet": {"icmp_type": kind},
            "stages": [
                {"kind": "device", "device": from, "direction": "in", "elapsed_ns": 0},
                {"kind": "route", "device": to},
                {"kind": "device", "device": to, "direction": "out"}
            ],
            "outcome": {"result": "forwarded", "device": to}
        })
    };
    assert_sees(&trace, &there_and_back(8, "eth0", "eth1"))?;
    assert_sees(&trace, &there_and_back(0, "eth1", "eth0"))?;
    let report = trace.stop()?;
    // Each packet once, with each device once.
    let journeys: Vec<&Value> =
        report.lines[before..].iter().filter(|line| line["type"] == "journey").collect();
    assert_eq!(journeys.len(), 2, "{journeys:#?}");
    for journey in journeys {
        let devices = journey["stages"]
            .as_array()
            .map(|stages| stages.iter().filter(|s| s["kind"] == "device").count());
        assert_eq!(devices, Some(2), "{}", expect::pretty(journey));
    }
    Ok(())
}

#[test]
fn a_drop_by_somebody_else_s_tcx_program_is_shown_with_its_name() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    // So that no address has to be asked for past the wall.
    traffic::ping(client, lab.address("server", Family::Ipv4)?, *LONG)?;
    let _tcx = Foreign::attach(host, "eth0", At::TcxIngress, Says::Drop, "their_wall")?;
    let dropped = json!({
        "packet": {"icmp_type": 8},
        "stages": [{"kind": "device", "device": "eth0", "direction": "in", "programs": ["~tcx their_wall (program "]}],
        "outcome": {"result": "dropped", "reason": "TC_INGRESS"}
    });
    for by_tcx in [false, true] {
        let trace =
            if by_tcx { trace_by_tcx(host)? } else { Pathtrace::start(Some(host), &["--proto", "icmp"])? };
        drop(traffic::ping(client, lab.address("server", Family::Ipv4)?, SHORT));
        assert_sees(&trace, &dropped)?;
        trace.stop()?;
    }
    Ok(())
}

#[test]
fn a_device_that_comes_while_tcx_watches_is_watched_too() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let trace = trace_by_tcx(host)?;
    client.exec(&format!("ip link add late0 type veth peer name late1 netns {}", host.name()))?;
    client.exec("ip addr add 10.9.0.2/24 dev late0")?;
    client.exec("ip link set late0 up")?;
    host.exec("ip addr add 10.9.0.1/24 dev late1")?;
    host.exec("ip link set late1 up")?;
    let seen = json!({
        "packet": {"icmp_type": 8, "destination": "10.9.0.1"},
        "stages": [{"kind": "device", "device": "late1", "direction": "in", "elapsed_ns": 0}],
        "outcome": {"result": "delivered"}
    });
    // The link is placed a moment after the device has come.
    tests::wait::until("a packet on the new device", || {
        traffic::ping(client, [10, 9, 0, 1].into(), SHORT).is_ok()
            && expect::find(&trace.lines(), &seen).is_some()
    })
    .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &seen)))?;
    assert!(trace.stop()?.status.success());
    Ok(())
}
