//! The kernel's own trace of real packets, in namespaces of their own.

#![allow(clippy::unwrap_used)]

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, UdpSocket},
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use tracer::{
    model::{Family, TableFamily, Verdict},
    rules::nftrace::{
        LegacyLog, LegacyStep, LoggerError, NftStep, NftStepKind, NftVerdict, TraceEvent, Witness,
    },
};
use tracer_common::filter::Filter;

#[expect(dead_code, reason = "its readers of kernel memory are for other tests")]
mod lab;
use lab::Lab;

static PATIENCE: LazyLock<Duration> = LazyLock::new(|| lab::scaled(Duration::from_secs(20)));

/// Sends a datagram from the namespace to itself.
fn send_udp(lab: &Lab, port: u16) {
    lab.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        // A rule may refuse it, which is one of the things under test.
        let _ = socket.send_to(b"x", (Ipv4Addr::LOCALHOST, port));
    });
}

/// Events until one satisfies `last`, that one included.
fn until(witness: &mut Witness, last: impl Fn(&TraceEvent) -> bool) -> Vec<TraceEvent> {
    let deadline = Instant::now() + *PATIENCE;
    let mut events = Vec::new();
    while !events.iter().any(&last) {
        assert!(Instant::now() < deadline, "only {events:#?}");
        events.extend(witness.wait(*PATIENCE).unwrap());
    }
    events
}

fn nft_steps<'a>(events: &'a [TraceEvent], table: &str) -> Vec<&'a NftStep> {
    let nft = |event: &'a TraceEvent| match event {
        TraceEvent::Nft(step) if step.table == table => Some(step),
        _ => None,
    };
    events.iter().filter_map(nft).collect()
}

fn legacy_steps<'a>(events: &'a [TraceEvent]) -> Vec<&'a LegacyStep> {
    let legacy = |event: &'a TraceEvent| match event {
        TraceEvent::Legacy(step) => Some(step),
        _ => None,
    };
    events.iter().filter_map(legacy).collect()
}

fn is_drop(event: &TraceEvent) -> bool {
    matches!(event, TraceEvent::Nft(step)
        if matches!(step.kind, NftStepKind::Rule { verdict: NftVerdict::Final(Verdict::Drop), .. }))
}

fn everything() -> Filter {
    Filter { protocol: Filter::ANY_PROTOCOL, ..Filter::default() }
}

/// The filter of `--proto udp --port N`.
fn udp_port(port: u16) -> Filter {
    let mut filter = Filter { protocol: 17, active: 1, ..everything() };
    filter.port.ranges[0] = [port, port];
    filter.port.count = 1;
    filter
}

const NFT: &str = "table inet fw {
    chain in { type filter hook input priority 0; policy accept; jump user; counter drop; }
    chain user { udp dport 1 accept; meta mark 5 return; counter return; }
}";

#[test]
fn nft_rules_in_order() {
    let lab = Lab::new();
    lab.nft(NFT);
    let mut witness = lab.inside(|| Witness::start(&everything(), None)).unwrap();
    send_udp(&lab, 5001);
    let events = until(&mut witness, is_drop);
    let steps = nft_steps(&events, "fw");
    let story: Vec<(&str, &NftStepKind)> = steps.iter().map(|s| (s.chain.as_str(), &s.kind)).collect();
    let [(_, NftStepKind::Rule { handle: jump, .. }), (_, NftStepKind::Rule { handle: back, .. }), _] =
        story[..]
    else {
        panic!("{story:#?}");
    };
    let rule = |handle: u64, verdict| NftStepKind::Rule { handle, verdict };
    assert_eq!(story[0], ("in", &rule(*jump, NftVerdict::Jump("user".into()))));
    assert_eq!(story[1], ("user", &rule(*back, NftVerdict::Return)));
    assert_eq!(story[2].0, "in");
    let listed = lab.run("nft -a list table inet fw");
    assert!(listed.contains(&format!("jump user # handle {jump}")), "{listed}");
    assert!(listed.contains(&format!("return # handle {back}")), "{listed}");
    let packet = steps[0].packet.as_ref().unwrap();
    assert_eq!((packet.family, packet.tuple.destination_text()), (Family::Ipv4, "127.0.0.1:5001".into()));
    assert_eq!(
        (steps[0].family, steps[0].in_ifindex, steps[0].out_ifindex),
        (Some(TableFamily::Inet), Some(1), None)
    );
    assert!(steps.iter().all(|s| s.id == steps[0].id));
}

#[test]
fn a_policy_ends_the_walk() {
    let lab = Lab::new();
    lab.run("iptables-nft -P INPUT DROP");
    let mut witness = lab.inside(|| Witness::start(&everything(), None)).unwrap();
    send_udp(&lab, 5001);
    let policy = NftStepKind::Policy { verdict: Some(Verdict::Drop) };
    let of_policy = |event: &TraceEvent| matches!(event, TraceEvent::Nft(step) if step.kind == policy);
    let events = until(&mut witness, of_policy);
    let last = nft_steps(&events, "filter").into_iter().find(|step| step.kind == policy).unwrap();
    assert_eq!((last.family, last.chain.as_str()), (Some(TableFamily::Ip), "INPUT"));
}

#[test]
fn only_packets_of_the_filter_are_traced() {
    let lab = Lab::new();
    lab.nft(NFT);
    let mut witness = lab.inside(|| Witness::start(&udp_port(5002), None)).unwrap();
    send_udp(&lab, 5001);
    send_udp(&lab, 5002);
    let events = until(&mut witness, is_drop);
    let ports: Vec<_> =
        nft_steps(&events, "fw").iter().filter_map(|s| s.packet.as_ref()?.tuple.destination_port).collect();
    assert_eq!(ports, [5002]);
}

/// `udp dport 5003` becomes 5004 in OUTPUT, and only 5004 is asked for.
#[test]
fn a_packet_that_matches_after_translation_is_traced_from_there() {
    let lab = Lab::new();
    lab.run("iptables-nft -t nat -A OUTPUT -p udp --dport 5003 -j REDIRECT --to-ports 5004");
    lab.nft(NFT);
    let mut witness = lab.inside(|| Witness::start(&udp_port(5004), None)).unwrap();
    send_udp(&lab, 5003);
    let events = until(&mut witness, is_drop);
    let steps = nft_steps(&events, "fw");
    assert_eq!(steps[0].packet.as_ref().unwrap().tuple.destination_port, Some(5004));
}

fn loggers(lab: &Lab) -> String {
    lab.run("cat /proc/thread-self/net/netfilter/nf_log")
}

#[test]
fn legacy_rules_in_order_and_the_logger_put_back() {
    let lab = Lab::new();
    lab.feed(
        &["iptables-legacy-restore"],
        "*filter\n:INPUT DROP [0:0]\n:USER - [0:0]\n-A INPUT -p udp -j USER\n\
         -A USER -p tcp -j ACCEPT\n-A USER -p udp -m udp --dport 5001 -j LOG\nCOMMIT\n",
    );
    let before = (loggers(&lab), lab.run("nft list ruleset"));
    let mut witness =
        lab.inside(|| Witness::start(&udp_port(5001), Some(LegacyLog::bind().unwrap()))).unwrap();
    assert_ne!(loggers(&lab), before.0);
    send_udp(&lab, 5001);
    let ends =
        |event: &TraceEvent| matches!(event, TraceEvent::Legacy(s) if s.chain == "INPUT" && s.position == 2);
    let events = until(&mut witness, ends);
    let story: Vec<_> = legacy_steps(&events)
        .iter()
        .filter(|s| s.hook == Some(1))
        .map(|s| format!("{}:{}:{:?}:{}", s.table, s.chain, s.kind, s.position))
        .collect();
    let expected =
        ["filter:INPUT:Rule:1", "filter:USER:Rule:2", "filter:USER:Return:3", "filter:INPUT:Policy:2"];
    assert_eq!(story, expected);
    let packet = legacy_steps(&events)[0].packet.clone().unwrap();
    assert_eq!(packet.tuple.destination_text(), "127.0.0.1:5001");
    drop(witness);
    assert_eq!((loggers(&lab), lab.run("nft list ruleset")), before);
}

#[test]
fn a_taken_log_group_is_said_and_left_alone() {
    let lab = Lab::new();
    let first = lab.inside(LegacyLog::bind).unwrap();
    let taken = loggers(&lab);
    assert!(matches!(lab.inside(LegacyLog::bind), Err(LoggerError::Taken)));
    assert_eq!(loggers(&lab), taken);
    drop(first);
    assert!(lab.inside(LegacyLog::bind).is_ok());
}

const CHILD: &str = "PATHTRACE_TEST_WITNESS_CHILD";

/// Not a test but the process that `the_table_dies_with_the_process` kills.
#[test]
fn witness_child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let mut witness = Witness::start(&everything(), None).unwrap();
    eprintln!("\n{} is up", witness.table());
    loop {
        witness.wait(*PATIENCE).unwrap();
    }
}

/// Ends a child that a failing test leaves behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_table_dies_with_the_process() {
    let lab = Lab::new();
    lab.nft(NFT);
    let before = lab.run("nft list ruleset");
    let child = lab.inside(|| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "witness_child", "--nocapture"])
            .env(CHILD, "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.ends_with(" is up")));
    let during = lab.run("nft list ruleset");
    assert!(during.contains("flags owner") && during.contains("meta nftrace set 1"), "{during}");
    drop(child);
    assert_eq!(lab.run("nft list ruleset"), before);
}
