//! From start to end: signals, limits, closed pipes, and what is left afterwards.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::Stdio,
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use tests::{
    expect,
    machine::{self, BpfObjects, Fingerprint},
    pathtrace::{self, Pathtrace},
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, Server},
    wait,
};

/// client - host - server with rules of both backends, and a server on port 80.
struct Traced {
    lab: Lab,
    to: SocketAddr,
    _server: Server,
}

impl Traced {
    fn new() -> Result<Self> {
        let lab = Lab::new(Topology::Routed)?;
        for backend in Backend::BOTH {
            ruleset::iptables(
                lab.netns("host")?,
                backend,
                Family::Ipv4,
                "-A FORWARD -p tcp --dport 80 -j ACCEPT",
            )?;
            ruleset::iptables(
                lab.netns("host")?,
                backend,
                Family::Ipv4,
                "-t nat -A POSTROUTING -o eth2 -j MASQUERADE",
            )?;
        }
        let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 80);
        let server = Server::tcp(lab.netns("server")?, to)?;
        Ok(Self { lab, to, _server: server })
    }

    fn trace(&self, arguments: &[&str]) -> Result<Pathtrace> {
        Pathtrace::start(Some(self.lab.netns("host")?), arguments)
    }

    fn exchange(&self) -> Result<()> {
        traffic::tcp(self.lab.netns("client")?, self.to, *LONG).map(drop)
    }
}

#[test]
fn the_start_line_says_what_is_in_use_and_the_summary_adds_up() -> Result<()> {
    let traced = Traced::new()?;
    let trace = traced.trace(&["--port", "80"])?;
    traced.exchange()?;
    trace.wait_for("both directions", |lines| {
        ["original", "reply"].iter().all(|way| expect::find(lines, &json!({"direction": way})).is_some())
    })?;
    let report = trace.stop()?;
    assert!(report.status.success(), "{}: {}", report.status, report.stderr);
    let start = report.of_type("start")[0];
    assert_eq!(start["netns"], json!([traced.lab.netns("host")?.inode()?]));
    assert!(start["probes"].as_array().is_some_and(|probes| !probes.is_empty()), "{start}");
    let summary = report.summary()?;
    assert_eq!(summary["journeys"], report.journeys().len());
    let by_result: u64 =
        summary["by_result"].as_object().context("by_result")?.values().filter_map(|n| n.as_u64()).sum();
    assert_eq!(summary["journeys"], by_result);
    assert_eq!(summary["events_lost"], 0);
    Ok(())
}

#[test]
fn sigterm_ends_a_trace_as_ctrl_c_does() -> Result<()> {
    let traced = Traced::new()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let trace = traced.trace(&["--port", "80"])?;
        trace.signal(signal)?;
        let report = trace.wait()?;
        assert!(report.status.success(), "{signal}: {} {}", report.status, report.stderr);
        report.summary()?;
    }
    Ok(())
}

#[test]
fn count_and_duration_end_a_trace() -> Result<()> {
    let traced = Traced::new()?;
    let counted = traced.trace(&["--port", "80", "--count", "2"])?;
    traced.exchange()?;
    let report = counted.wait()?;
    assert!(report.status.success());
    assert_eq!(report.journeys().len(), 2);

    let timed = traced.trace(&["--port", "80", "--duration", "100ms"])?;
    let report = timed.wait()?;
    assert!(report.status.success());
    assert!(
        report.summary()?["duration_ms"].as_u64().is_some_and(|took| took >= 100),
        "{:?}",
        report.summary()
    );
    Ok(())
}

#[test]
fn a_closed_pipe_is_success() -> Result<()> {
    let traced = Traced::new()?;
    let mut command = pathtrace::command(Some(traced.lab.netns("host")?))?;
    let mut child =
        command.args(["--json", "--port", "80"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
    let mut start = String::new();
    stdout.read_line(&mut start)?;
    drop(stdout);
    let ended = wait::until_some("the end after the pipe was closed", || {
        traced.exchange().ok()?;
        child.try_wait().ok().flatten()
    });
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(start.contains("\"start\""), "{start} {stderr}");
    assert_eq!(ended?.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    Ok(())
}

#[test]
fn nothing_is_changed_while_tracing_or_after() -> Result<()> {
    let traced = Traced::new()?;
    let host = traced.lab.netns("host")?;
    traced.exchange()?;
    let (before, log_before) = (Fingerprint::of(host)?, machine::kernel_complaints()?);
    let trace = traced.trace(&["--port", "80"])?;
    traced.exchange()?;
    trace.wait_for("a journey", |lines| expect::journeys(lines).next().is_some())?;
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new(), "while tracing");
    assert!(trace.stop()?.status.success());
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new(), "after tracing");
    let log_after = machine::kernel_complaints()?;
    let news: Vec<&String> = log_after.iter().filter(|line| !log_before.contains(line)).collect();
    assert!(news.is_empty(), "{news:#?}");
    Ok(())
}

#[test]
fn sigkill_leaves_nothing() -> Result<()> {
    let traced = Traced::new()?;
    let host = traced.lab.netns("host")?;
    traced.exchange()?;
    let before = Fingerprint::of(host)?;
    let trace = traced.trace(&["--port", "80"])?;
    let held = BpfObjects::of_process(trace.pid())?;
    assert!(held.count("link_id") > 0 && held.count("prog_id") > 0, "{held:?}");
    assert_eq!(held.still_there(), held);
    trace.signal(Signal::SIGKILL)?;
    trace.wait()?;
    wait::until("the kernel to free what the trace held", || held.still_there().is_empty())
        .with_context(|| format!("of {held:?} there are still {:?}", held.still_there()))?;
    assert_eq!(before.differences(&Fingerprint::of(host)?), Vec::<String>::new());
    Ok(())
}
