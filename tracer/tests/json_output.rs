//! The JSON lines against the contract in the design: every key with its type, null for what is unknown.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod journeys;

use std::time::Duration;

use serde_json::{Value, json};
use tracer::{
    model::{
        Backend, Journey, Line, Notice, NoticeLevel, OutcomeKind, ProgramType, Protocol, Start, TableFamily,
    },
    render::{Json, Render},
    summary::{Events, Shown, Tally},
};

use journeys::Way;

fn printed(line: &Line) -> String {
    let mut out = Vec::new();
    Json::new(&mut out).line(line).unwrap();
    String::from_utf8(out).unwrap()
}

fn parsed(line: &Line) -> Value {
    let text = printed(line);
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    serde_json::from_str(&text).unwrap()
}

fn journey(journey: Journey) -> Value {
    parsed(&Line::Journey(Box::new(journey)))
}

/// Every key of `expected` is in `actual`, with the same value, or, where `expected` says so, of the type.
fn assert_contains(actual: &Value, expected: &Value, path: &str) {
    match expected {
        Value::Object(keys) => {
            for (key, expected) in keys {
                let actual = actual.get(key).unwrap_or_else(|| panic!("{path}: no key {key} in {actual}"));
                assert_contains(actual, expected, &format!("{path}.{key}"));
            }
        }
        Value::Array(items) => {
            assert_eq!(actual.as_array().map(Vec::len), Some(items.len()), "{path}: {actual}");
            for (index, expected) in items.iter().enumerate() {
                assert_contains(&actual[index], expected, &format!("{path}[{index}]"));
            }
        }
        Value::String(kind) if kind == "<number>" => assert!(actual.is_u64(), "{path}: {actual}"),
        _ => assert_eq!(actual, expected, "{path}"),
    }
}

#[test]
fn a_journey_has_every_key_of_the_contract() {
    let translated = json!({"source": "10.1.0.2", "source_port": 40000, "destination": "172.17.0.2", "destination_port": 8080});
    let original = json!({"source": "10.1.0.2", "source_port": 40000, "destination": "10.1.0.1", "destination_port": 80});
    let dnat = "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080";
    let quiet =
        json!({"kind": "netfilter", "verdict": "accept", "decided_by": "policy", "rules": [], "nat": null});
    let expected = json!({
        "type": "journey", "id": 7, "flow": 3, "direction": "original", "time": "2026-11-21T02:00:00.123007Z",
        "packet": {"family": "ipv4", "protocol": "tcp", "source": "10.1.0.2", "source_port": 40000,
                   "destination": "10.1.0.1", "destination_port": 80, "length": 60, "tcp_flags": "S", "ip_id": 55060},
        "stages": [
            {"kind": "device", "elapsed_ns": 0, "netns": 4_026_531_840_u32, "device": "eth0", "direction": "in"},
            quiet, quiet,
            {"kind": "netfilter", "elapsed_ns": "<number>", "netns": "<number>", "hook": "prerouting", "family": "ip",
             "table": "nat", "chain": "PREROUTING", "priority": -100, "backend": "iptables-nft", "verdict": "accept",
             "decided_by": "rule",
             "rules": [
                {"chain": "PREROUTING", "position": 1, "handle": 101, "action": "jump DOCKER",
                 "text": "-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER"},
                {"chain": "DOCKER", "position": 2, "handle": 102, "action": "DNAT", "text": dnat}],
             "rules_source": "counters", "exact": true, "nat": "dnat", "before": original, "after": translated},
            {"kind": "route", "elapsed_ns": "<number>", "netns": "<number>", "table": 254,
             "destination": "172.17.0.2", "device": "docker0", "gateway": null, "error": null},
            quiet,
            {"kind": "netfilter", "hook": "forward", "table": "filter", "chain": "FORWARD", "priority": 0,
             "verdict": "drop", "decided_by": "policy", "rules": [], "rules_source": "counters", "exact": true,
             "nat": null, "before": translated, "after": translated}],
        "conntrack": {"state": "new", "original": original, "reply": {"source": "10.1.0.1"}, "mark": 0, "zone": 0},
        "outcome": {"result": "dropped", "stage": 6, "reason": "NETFILTER_DROP", "location": "nf_hook_slow",
                    "device": null, "socket": null, "answer": null},
        "findings": [{"code": "forward-drop-after-dnat"}],
    });
    let actual = journey(journeys::forward_policy_drop(7));
    assert_contains(&actual, &expected, "journey");
    let finding = &actual["findings"][0];
    assert!(finding["summary"].is_string() && finding["evidence"].is_array() && finding["fix"].is_string());
}

#[test]
fn outcomes_carry_what_is_known_of_them() {
    let delivered = journey(journeys::delivered(1));
    let socket = json!({"local": "10.1.0.1:22", "process": "sshd", "pid": 812});
    assert_contains(&delivered["outcome"], &json!({"result": "delivered", "socket": socket}), "outcome");
    let rejected = journey(journeys::rejected_by_rule(1));
    assert_contains(&rejected["outcome"], &json!({"result": "rejected", "answer": "tcp-reset"}), "outcome");
    let mut as_other = journeys::docker_forwarded(1);
    as_other.outcome.left_as = Some(journeys::tuple("10.1.0.2:40000", "172.17.0.2:8080"));
    let left_as = json!({"source": "10.1.0.2", "source_port": 40000, "destination": "172.17.0.2", "destination_port": 8080});
    assert_contains(&journey(as_other)["outcome"]["left_as"], &left_as, "outcome.left_as");
    let forwarded = journey(journeys::docker_forwarded(1));
    assert_contains(&forwarded["outcome"], &json!({"result": "forwarded", "device": "docker0"}), "outcome");
}

#[test]
fn what_is_unknown_is_null() {
    let bare = Way::of(1, Protocol::ICMP6, "fd00::1", "fd00::2").with(|journey| {
        journey.flow = None;
        journey.direction = None;
        journey.conntrack = None;
    });
    let actual = journey(bare.route(|route| route.table = None).ends(OutcomeKind::Incomplete, |_| {}));
    let nulls = json!({
        "flow": null, "direction": null, "conntrack": null,
        "packet": {"family": "ipv6", "protocol": "icmp6", "source_port": null, "destination_port": null,
                   "tcp_flags": null, "ip_id": null, "icmp_type": null, "quoted": null},
        "stages": [{"kind": "route", "table": null, "device": null, "gateway": null, "error": null}],
        "outcome": {"result": "incomplete", "stage": null, "reason": null, "location": null, "device": null,
                    "socket": null, "answer": null},
        "findings": [],
    });
    assert_contains(&actual, &nulls, "journey");
}

#[test]
fn mappings_and_uncertain_walks_are_told() {
    let reply = journey(journeys::docker_reply(1));
    let nat =
        reply["stages"].as_array().unwrap().iter().find(|stage| stage["decided_by"] == "mapping").unwrap();
    assert_contains(
        nat,
        &json!({"nat": "snat", "mapping_rule": {"chain": "DOCKER", "position": 2}}),
        "stage",
    );
    let inexact = journey(journeys::inexact(1));
    let blind = json!({"exact": false, "inexact_because": "its rules carry no counters", "decided_by": null});
    assert_contains(&inexact["stages"][1], &blind, "stage");
}

#[test]
fn the_other_kinds_of_line() {
    let start = Start { kernel: "6.18.0".into(), netns: vec![7], ready_ms: 120, ..Start::default() };
    let expected = json!({"type": "start", "kernel": "6.18.0", "netns": [7], "probes": [], "missing": [], "ready_ms": 120});
    assert_contains(&parsed(&Line::Start(start)), &expected, "start");
    let notice = Notice { level: NoticeLevel::Warning, message: "x".into() };
    let expected = json!({"type": "notice", "level": "warning", "message": "x"});
    assert_contains(&parsed(&Line::Notice(notice)), &expected, "notice");
}

#[test]
fn the_summary_of_some_journeys() {
    let mut tally = Tally::default();
    tally.add(&journeys::forward_policy_drop(4), Shown::Yes);
    tally.add(&journeys::forward_policy_drop(5), Shown::Yes);
    tally.add(&journeys::rejected_by_rule(6), Shown::Yes);
    tally.add(&journeys::delivered(7), Shown::NotBad);
    tally.add(&journeys::inexact(8), Shown::AfterCount);
    // The kernel refused it after the last table had let it pass: no rule did.
    tally.add(&journeys::refused_no_socket(9), Shown::Yes);
    let lost = [("ring-full".to_owned(), 3), ("flows-full".to_owned(), 0)].into();
    let summary = tally.finish(Events { received: 90, lost }, Duration::from_millis(1500));
    let expected = json!({
        "type": "summary", "journeys": 6,
        "by_result": {"dropped": 3, "rejected": 2, "delivered": 1},
        "by_reason": {"NETFILTER_DROP": 4, "NO_SOCKET": 1},
        "by_rule": {
            "filter FORWARD policy": 2,
            "filter FORWARD #6: -A FORWARD -p tcp -j REJECT --reject-with tcp-reset": 1,
            "filter OUTPUT #3: -A OUTPUT -p tcp --dport 443 -j DROP": 1},
        "by_finding": [{"code": "forward-drop-after-dnat", "count": 2, "first": 4},
                       {"code": "listener-on-other-address", "count": 1, "first": 9}],
        "events_received": 90, "events_lost": 3, "lost_where": {"ring-full": 3},
        "not_shown": {"neither dropped nor rejected (--drops)": 1, "after the last one asked for (--count)": 1},
        "complete": false, "duration_ms": 1500,
    });
    let actual = parsed(&Line::Summary(summary));
    assert_contains(&actual, &expected, "summary");
    assert_eq!(actual["by_rule"].as_object().unwrap().len(), 3);
    assert_eq!(actual["lost_where"].as_object().unwrap().len(), 1, "what lost nothing is left out");
}

#[test]
fn a_trace_without_losses_is_complete_unless_a_journey_has_no_end() {
    let complete = |journey: &Journey| {
        let mut tally = Tally::default();
        tally.add(journey, Shown::Yes);
        tally.finish(Events::default(), Duration::ZERO).complete
    };
    assert!(complete(&journeys::delivered(1)));
    let unfinished =
        Way::of(1, Protocol::UDP, "10.0.0.1:1", "10.0.0.2:2").ends(OutcomeKind::Incomplete, |_| {});
    assert!(!complete(&unfinished));
}

#[test]
fn the_names_in_texts_are_those_of_the_contract() {
    let same = |name: &str, value: Value| assert_eq!(Value::from(name), value);
    for kind in [
        OutcomeKind::Delivered,
        OutcomeKind::Forwarded,
        OutcomeKind::Dropped,
        OutcomeKind::Rejected,
        OutcomeKind::Incomplete,
    ] {
        same(kind.name(), json!(kind));
    }
    for backend in [Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nftables] {
        same(backend.name(), json!(backend));
    }
    for family in [
        TableFamily::Ip,
        TableFamily::Ip6,
        TableFamily::Inet,
        TableFamily::Bridge,
        TableFamily::Netdev,
        TableFamily::Arp,
    ] {
        same(family.name(), json!(family));
    }
}

#[test]
fn strings_keep_their_meaning_and_do_nothing_to_a_terminal() {
    let hostile = journeys::hostile(1);
    let line = Line::Journey(Box::new(hostile.clone()));
    let text = printed(&line);
    assert!(
        !text.trim_end().contains(|c: char| c.is_control() || matches!(c, '\u{202e}' | '\u{2028}')),
        "{text}"
    );
    let actual = parsed(&line);
    assert_eq!(actual["outcome"]["socket"]["process"], json!(hostile.outcome.socket.unwrap().process));
    assert_eq!(actual["stages"][0]["device"], "eth\u{1b}[2J0");
    let outside_the_basic_plane = Notice { level: NoticeLevel::Info, message: "a\u{e0001}b\u{1f600}".into() };
    assert_eq!(parsed(&Line::Notice(outside_the_basic_plane))["message"], "a\u{e0001}b\u{1f600}");
}

#[test]
fn a_verdict_of_somebody_elses_program_is_a_stage() {
    let way = Way::of(1, Protocol::UDP, "10.1.0.2:40000", "10.1.0.1:53").enters("eth0");
    let way = way.program("eth0", ProgramType::Xdp, 12, 2).program("eth0", ProgramType::Tc, 0, 2);
    let shown = journey(way.dies(OutcomeKind::Dropped, "TC_INGRESS", "sch_handle_ingress", |_| {}));
    let xdp = json!({"kind": "program", "elapsed_ns": 2100, "netns": journeys::HOST, "device": "eth0", "ifindex": 2,
                     "direction": "in", "program_type": "xdp", "program": "their_prog", "id": 12, "verdict": "XDP_PASS"});
    let tc = json!({"kind": "program", "elapsed_ns": 4200, "netns": journeys::HOST, "device": "eth0", "ifindex": 2,
                    "direction": "in", "program_type": "tc", "program": null, "id": 0, "verdict": "TC_ACT_SHOT"});
    assert_eq!((&shown["stages"][1], &shown["stages"][2]), (&xdp, &tc));
    assert_eq!(shown["outcome"]["stage"], 2);
}
