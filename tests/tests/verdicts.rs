//! Verdicts of XDP and tc programs of others, on kernels that let programs look on when others return.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{
    expect,
    foreign::{At, Foreign, Says, is_loaded},
    machine,
    netns::Netns,
    pathtrace::{self, Pathtrace},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, SHORT},
    wait,
};

const PORT: u16 = 9099;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const TC_OK: i32 = 0;
const TC_SHOT: i32 = 2;
const TC_STOLEN: i32 = 4;

/// What doctor says of a feature: why there is none.
fn missing(feature: &str) -> Result<Option<String>> {
    let output = pathtrace::command(None)?.args(["doctor", "--json"]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("doctor's report")?;
    let items = report["items"].as_array().context("doctor's items")?;
    let says = |item: &&Value| item["summary"].as_str().is_some_and(|summary| summary.starts_with(feature));
    let item = items.iter().find(says).with_context(|| format!("doctor says nothing of {feature}"))?;
    Ok((item["level"] != "ok").then(|| item["evidence"][0].as_str().unwrap_or_default().to_owned()))
}

/// Whether the test cannot be here, which it says.
fn skips_without(feature: &str) -> Result<bool> {
    let why = missing(feature)?;
    if let Some(why) = &why {
        eprintln!("skipped, no {feature}: {why}");
    }
    Ok(why.is_some())
}

fn skips() -> Result<bool> {
    skips_without("fexit on programs")
}

/// A router between a client and a server, which know each other's neighbours, and where the server is asked.
fn warm_lab() -> Result<(Lab, SocketAddr)> {
    let lab = Lab::new(Topology::Routed)?;
    let server = SocketAddr::new(lab.address("server", Family::Ipv4)?, PORT);
    traffic::ping(lab.netns("client")?, server.ip(), *LONG)?;
    Ok((lab, server))
}

fn start(host: &Netns) -> Result<Pathtrace> {
    Pathtrace::start(Some(host), &["--dport", &PORT.to_string(), "--every", "-v"])
}

fn says(lines: &[Value], text: &str) -> bool {
    lines.iter().any(|line| {
        line["type"] == "notice" && line["message"].as_str().is_some_and(|said| said.contains(text))
    })
}

/// Waits until a program is looked on.
fn wait_for_program(trace: &Pathtrace, name: &str) -> Result<()> {
    trace.wait_for("the program to be looked on", |lines| says(lines, &format!(" {name} (program ")))
}

fn assert_sees(trace: &Pathtrace, pattern: &Value) -> Result<Value> {
    trace
        .wait_for_some("the expected journey", *LONG, |lines| expect::find(lines, pattern).cloned())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), pattern)))
}

fn send(client: &Netns, to: SocketAddr, patience: std::time::Duration) -> Result<Answer> {
    traffic::udp(client, 9100, to, patience)
}

fn stage(at: At, id: u32, name: &str, verdict: &str) -> Value {
    let (program_type, direction) = match at {
        At::Xdp | At::XdpNative => ("xdp", "in"),
        At::TcxIngress | At::FilterIngress => ("tc", "in"),
        At::TcxEgress | At::FilterEgress => ("tc", "out"),
    };
    json!({"kind": "program", "program_type": program_type, "direction": direction, "program": name, "id": id,
           "verdict": verdict})
}

/// A program on a device of the host, and what is to be seen of a packet that it stops.
struct Case {
    at: At,
    device: &'static str,
    verdict: i32,
    name: &'static str,
    word: &'static str,
}

const ENDS: [Case; 4] = [
    Case { at: At::Xdp, device: "eth0", verdict: XDP_DROP, name: "xdp_generic", word: "XDP_DROP" },
    Case { at: At::XdpNative, device: "eth0", verdict: XDP_DROP, name: "xdp_native", word: "XDP_DROP" },
    Case { at: At::FilterIngress, device: "eth0", verdict: TC_SHOT, name: "tc_in", word: "TC_ACT_SHOT" },
    Case { at: At::FilterEgress, device: "eth1", verdict: TC_SHOT, name: "tc_out", word: "TC_ACT_SHOT" },
];

#[test]
fn who_dropped_it_is_a_stage_and_a_finding() -> Result<()> {
    if skips()? {
        return Ok(());
    }
    for Case { at, device, verdict, name, word } in ENDS {
        let lab = Lab::new(Topology::Routed)?;
        let (client, host) = (lab.netns("client")?, lab.netns("host")?);
        host.exec(&format!("tc qdisc add dev {device} clsact"))?;
        let server = lab.address("server", Family::Ipv4)?;
        traffic::ping(client, server, *LONG)?;
        let says = Says::OfUdp { port: PORT, verdict };
        let theirs = Foreign::attach_described(host, device, at, says, name)?;
        let id = theirs.id()?;
        let trace = start(host)?;
        wait_for_program(&trace, name)?;
        send(client, SocketAddr::new(server, PORT), SHORT)?;
        let reason = match at {
            // No sk_buff is freed: what it returned is the reason.
            At::XdpNative => word,
            _ if machine::drop_reasons().is_empty() => "null",
            _ => "any",
        };
        let journey = assert_sees(
            &trace,
            &json!({
                "packet": {"protocol": "udp", "destination_port": PORT},
                "stages": [
                    {"kind": "device", "device": "eth0", "direction": "in"},
                    stage(at, id, name, word)
                ],
                "outcome": {"result": "dropped", "reason": reason},
                "findings": [{"code": "dropped-by-program", "summary": format!("~{name} (id {id}) dropped udp "),
                              "fix": format!("~bpftool prog show id {id}")}]
            }),
        )?;
        let last = journey["stages"].as_array().map_or(0, Vec::len) - 1;
        assert_eq!(journey["outcome"]["stage"], json!(last), "{}", expect::pretty(&journey));
        let report = trace.stop()?;
        assert_eq!(report.summary()?["events_lost"], 0);
        assert_eq!(report.summary()?["by_result"], json!({"dropped": 1}), "{name}");
    }
    Ok(())
}

#[test]
fn what_they_let_pass_goes_on_in_one_journey() -> Result<()> {
    if skips()? {
        return Ok(());
    }
    for at in [At::Xdp, At::XdpNative] {
        let lab = Lab::new(Topology::Routed)?;
        let (client, host) = (lab.netns("client")?, lab.netns("host")?);
        let server = lab.address("server", Family::Ipv4)?;
        traffic::ping(client, server, *LONG)?;
        for device in ["eth0", "eth1"] {
            host.exec(&format!("tc qdisc add dev {device} clsact"))?;
        }
        let of_udp = |verdict| Says::OfUdp { port: PORT, verdict };
        let xdp = Foreign::attach_described(host, "eth0", at, of_udp(XDP_PASS), "lets_in")?;
        let tc_in = Foreign::attach_described(host, "eth0", At::FilterIngress, of_udp(TC_OK), "lets_by")?;
        let tc_out = Foreign::attach_described(host, "eth1", At::FilterEgress, of_udp(TC_OK), "lets_out")?;
        let trace = start(host)?;
        for name in ["lets_in", "lets_by", "lets_out"] {
            wait_for_program(&trace, name)?;
        }
        send(client, SocketAddr::new(server, PORT), SHORT)?;
        let journey = assert_sees(
            &trace,
            &json!({
                "packet": {"protocol": "udp", "destination_port": PORT},
                "stages": [
                    {"kind": "device", "device": "eth0", "direction": "in", "elapsed_ns": 0},
                    stage(at, xdp.id()?, "lets_in", "XDP_PASS"),
                    stage(At::FilterIngress, tc_in.id()?, "lets_by", "TC_ACT_OK"),
                    {"kind": "route", "device": "eth1"},
                    stage(At::FilterEgress, tc_out.id()?, "lets_out", "TC_ACT_OK"),
                    {"kind": "device", "device": "eth1", "direction": "out"}
                ],
                "outcome": {"result": "forwarded", "device": "eth1"},
                "notes": "null"
            }),
        )?;
        let stages = journey["stages"].as_array().context("stages")?;
        let programs = stages.iter().filter(|stage| stage["kind"] == "program").count();
        assert_eq!(programs, 3, "{}", expect::pretty(&journey));
        assert!(trace.stop()?.status.success());
    }
    Ok(())
}

#[test]
fn programs_are_followed_as_they_come_and_go() -> Result<()> {
    if skips()? {
        return Ok(());
    }
    let (lab, server) = warm_lab()?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let trace = start(host)?;
    let says = Says::OfUdp { port: PORT, verdict: XDP_DROP };
    let theirs = Foreign::attach_described(host, "eth0", At::Xdp, says, "comes_late")?;
    wait_for_program(&trace, "comes_late")?;
    send(client, server, SHORT)?;
    let dropped = json!({"stages": [stage(At::Xdp, theirs.id()?, "comes_late", "XDP_DROP")],
                         "outcome": {"result": "dropped"}});
    assert_sees(&trace, &dropped)?;
    // A program that is looked on would stay for ever.
    let id = theirs.id()?;
    drop(theirs);
    wait::until("the program to go", || !is_loaded(id))?;
    send(client, server, SHORT)?;
    assert_sees(&trace, &json!({"outcome": {"result": "forwarded"}, "no_stages": [{"kind": "program"}]}))?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn a_program_without_description_is_named_and_said_to_be_unseen() -> Result<()> {
    if skips()? {
        return Ok(());
    }
    let (lab, server) = warm_lab()?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let _theirs = Foreign::attach(host, "eth0", At::Xdp, Says::Pass, "bare")?;
    let trace = start(host)?;
    wait_for_program(&trace, "bare")?;
    send(client, server, SHORT)?;
    let seen = json!({
        "stages": [{"kind": "device", "device": "eth0", "programs": ["~XDP bare (program "]}],
        "no_stages": [{"kind": "program"}],
        "outcome": {"result": "forwarded"}
    });
    assert_sees(&trace, &seen)?;
    let unseen = trace.lines();
    let about: Vec<&str> = unseen
        .iter()
        .filter_map(|line| line["message"].as_str())
        .filter(|said| said.contains("verdicts are not seen of XDP bare (program "))
        .collect();
    assert_eq!(about.len(), 1, "{about:?}");
    assert!(
        about[0].ends_with("on eth0: it was loaded without a description of its functions (BTF)"),
        "{about:?}"
    );
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn a_packet_that_tc_keeps_ends_there() -> Result<()> {
    if skips()? {
        return Ok(());
    }
    let (lab, server) = warm_lab()?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    host.exec("tc qdisc add dev eth0 clsact")?;
    let says = Says::OfUdp { port: PORT, verdict: TC_STOLEN };
    let theirs = Foreign::attach_described(host, "eth0", At::FilterIngress, says, "thief")?;
    let trace = start(host)?;
    wait_for_program(&trace, "thief")?;
    send(client, server, SHORT)?;
    let kept = json!({
        "stages": [stage(At::FilterIngress, theirs.id()?, "thief", "TC_ACT_STOLEN")],
        "outcome": {"result": "dropped", "reason": "TC_ACT_STOLEN"},
        "findings": ["dropped-by-program"]
    });
    assert_sees(&trace, &kept)?;
    assert!(trace.stop()?.status.success());
    Ok(())
}

#[test]
fn they_are_seen_too_once_tcx_watches_the_devices() -> Result<()> {
    if skips()? || skips_without("tcx links")? {
        return Ok(());
    }
    for (at, verdict, word, result) in [
        (At::Xdp, XDP_DROP, "XDP_DROP", "dropped"),
        (At::Xdp, XDP_PASS, "XDP_PASS", "forwarded"),
        (At::TcxIngress, TC_SHOT, "TC_ACT_SHOT", "dropped"),
        (At::TcxEgress, TC_SHOT, "TC_ACT_SHOT", "dropped"),
    ] {
        let (lab, server) = warm_lab()?;
        let (client, host) = (lab.netns("client")?, lab.netns("host")?);
        let trace = start(host)?;
        trace.wait_for_devices()?;
        let device = if at == At::TcxEgress { "eth1" } else { "eth0" };
        let says = Says::OfUdp { port: PORT, verdict };
        let theirs = Foreign::attach_described(host, device, at, says, "theirs")?;
        wait_for_program(&trace, "theirs")?;
        send(client, server, SHORT)?;
        let seen = json!({
            "stages": [
                {"kind": "device", "device": "eth0", "direction": "in", "elapsed_ns": 0},
                stage(at, theirs.id()?, "theirs", word)
            ],
            "outcome": {"result": result},
            "notes": "null"
        });
        assert_sees(&trace, &seen)?;
        // The server may answer with an ICMP error about it, which is another packet.
        let report = trace.stop()?;
        let told = expect::journeys(&report.lines).filter(|line| line["packet"]["protocol"] == "udp");
        assert_eq!(told.count(), 1, "{at:?} {word}");
    }
    Ok(())
}
