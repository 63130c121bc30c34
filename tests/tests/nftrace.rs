//! `--rules nftrace` changes the ruleset, says so, and takes everything back however it ends.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::{
    expect,
    machine::Fingerprint,
    netns::Netns,
    pathtrace::{Pathtrace, Report},
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, Server},
    wait,
};

/// Two rules, neither counted, either of which may have let the packet in.
const UNCOUNTED: &str = "table inet fw {\n chain pass { type filter hook forward priority 5; policy accept;\n \
                         udp dport 1 accept\n tcp dport 80 accept\n }\n}";

/// client - host - server, and a server on port 80.
struct Traced {
    lab: Lab,
    to: SocketAddr,
    _server: Server,
}

impl Traced {
    /// With tables of iptables-legacy, tracing takes over the packet logger, too.
    fn new(with_legacy: bool) -> Result<Self> {
        let lab = Lab::new(Topology::Routed)?;
        let host = lab.netns("host")?;
        ruleset::nft(host, UNCOUNTED)?;
        if with_legacy {
            let rule = "-A FORWARD -p tcp --dport 80 -j ACCEPT";
            ruleset::iptables(host, Backend::Legacy, Family::Ipv4, rule)?;
        }
        let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 80);
        let server = Server::tcp(lab.netns("server")?, to)?;
        Ok(Self { lab, to, _server: server })
    }

    fn host(&self) -> Result<&Netns> {
        self.lab.netns("host")
    }

    /// The lab has been used: what the kernel sets up on first use does not count as a change.
    fn fingerprint(&self) -> Result<Fingerprint> {
        self.exchange()?;
        Fingerprint::of(self.host()?)
    }

    fn trace(&self) -> Result<Pathtrace> {
        Pathtrace::start(Some(self.host()?), &["--port", "80", "--rules", "nftrace"])
    }

    fn exchange(&self) -> Result<()> {
        traffic::tcp(self.lab.netns("client")?, self.to, *LONG).map(drop)
    }

    /// Until a journey names the rule that let it pass.
    fn see_the_rule(&self, trace: &Pathtrace) -> Result<()> {
        self.exchange()?;
        trace
            .wait_for("the rule without a counter", |lines| expect::find(lines, &named_rule()).is_some())
            .with_context(|| expect::explain(&trace.lines(), &named_rule()))
    }
}

fn named_rule() -> Value {
    json!({
        "packet": {"tcp_flags": "S"},
        "stages": [{"hook": "forward", "table": "fw", "verdict": "accept", "decided_by": "rule", "exact": true,
                    "rules_source": "nftrace", "rules": [{"chain": "pass", "position": 2, "text": "tcp dport 80 accept"}]}],
        "outcome": {"result": "forwarded"}
    })
}

fn assert_unchanged(before: &Fingerprint, traced: &Traced) -> Result<()> {
    assert_eq!(before.differences(&Fingerprint::of(traced.host()?)?), Vec::<String>::new());
    Ok(())
}

/// No journey names the table that only tracing needs.
fn assert_hidden(report: &Report) {
    let shown = report.journeys().iter().any(|journey| journey["stages"].to_string().contains("pathtrace_"));
    assert!(!shown, "{:#?}", report.journeys());
}

#[test]
fn the_table_is_announced_hidden_and_taken_back() -> Result<()> {
    let traced = Traced::new(false)?;
    let before = traced.fingerprint()?;
    let trace = traced.trace()?;
    let table = format!("inet pathtrace_{}", trace.pid());
    let during = traced.host()?.exec("nft list ruleset")?;
    assert!(during.contains(&table) && during.contains("flags owner"), "{during}");
    assert!(during.contains("th sport 80") || during.contains("@th,0,16"), "limited to the filter: {during}");
    traced.see_the_rule(&trace)?;
    let report = trace.stop()?;
    assert!(report.stderr.contains(&table), "{}", report.stderr);
    assert_hidden(&report);
    assert_unchanged(&before, &traced)
}

#[test]
fn the_logger_of_legacy_tables_is_put_back() -> Result<()> {
    let traced = Traced::new(true)?;
    let before = traced.fingerprint()?;
    let trace = traced.trace()?;
    let during = Fingerprint::of(traced.host()?)?;
    assert!(during.differences(&before).iter().any(|change| change.contains("nfnetlink_log")));
    traced.see_the_rule(&trace)?;
    let legacy = json!({"stages": [{"backend": "iptables-legacy", "table": "filter", "exact": true, "rules": [{"position": 1}]}]});
    assert!(expect::find(&trace.lines(), &legacy).is_some(), "{}", expect::explain(&trace.lines(), &legacy));
    let report = trace.stop()?;
    assert!(report.stderr.contains("nfnetlink_log"), "{}", report.stderr);
    assert_unchanged(&before, &traced)
}

#[test]
fn sigkill_takes_table_and_logger_back_too() -> Result<()> {
    let traced = Traced::new(true)?;
    let before = traced.fingerprint()?;
    let trace = traced.trace()?;
    traced.see_the_rule(&trace)?;
    trace.signal(Signal::SIGKILL)?;
    trace.wait()?;
    let mut left = Vec::new();
    wait::until("ruleset and loggers to be as before", || {
        let now = traced.host().and_then(Fingerprint::of);
        left = now.map_or_else(|error| vec![error.to_string()], |now| before.differences(&now));
        left.is_empty()
    })
    .with_context(|| format!("{left:#?}"))
}

/// Whoever reads group 0 keeps it; the trace goes on.
#[test]
fn a_taken_log_group_is_said_and_the_trace_goes_on() -> Result<()> {
    let traced = Traced::new(true)?;
    let before = traced.fingerprint()?;
    let other = traced.trace()?;
    let trace = traced.trace()?;
    // The first trace moves its probes for the second's table: what the second reads of the ruleset meanwhile is overtaken,
    // and a packet of that time is shown without its rules' texts.
    wait::until("the rule without a counter", || {
        traced.exchange().is_ok() && expect::find(&trace.lines(), &named_rule()).is_some()
    })
    .with_context(|| expect::explain(&trace.lines(), &named_rule()))?;
    let report = trace.stop()?;
    assert!(report.stderr.contains("another program holds nfnetlink_log group 0"), "{}", report.stderr);
    other.stop()?;
    assert_unchanged(&before, &traced)
}

/// A ruleset that is loaded while the trace runs is told like the one before.
#[test]
fn rules_that_are_replaced_are_told_anew() -> Result<()> {
    let traced = Traced::new(false)?;
    let trace = traced.trace()?;
    traced.see_the_rule(&trace)?;
    let again = UNCOUNTED.replace("tcp dport 80 accept", "udp dport 2 accept\n ct state new accept");
    ruleset::nft(traced.host()?, &format!("delete table inet fw\n{again}"))?;
    let named = json!({
        "packet": {"tcp_flags": "S"},
        "stages": [{"table": "fw", "exact": true, "rules_source": "nftrace", "rules": [{"position": 3, "text": "ct state new accept"}]}],
    });
    wait::until("the new rule", || {
        traced.exchange().is_ok() && expect::find(&trace.lines(), &named).is_some()
    })
    .with_context(|| expect::explain(&trace.lines(), &named))?;
    trace.stop().map(drop)
}
