//! The text that people read, as reviewed snapshots (`tests/snapshots`), and what must hold of every text.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod journeys;

use std::{cell::RefCell, io, rc::Rc};

use insta::assert_snapshot;
use jiff::tz::TimeZone;
use tracer::{
    model::{
        Journey, Line, Notice, NoticeLevel, OutcomeKind, Packet, ProgramType, Protocol, StageKind, Start,
        Summary, SummaryFinding,
    },
    render::{Render, Text, TextOptions},
};

use journeys::Way;

/// A writer whose content can be looked at.
#[derive(Clone, Default)]
struct Paper(Rc<RefCell<Vec<u8>>>);

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn plain() -> TextOptions {
    TextOptions {
        every: false,
        verbose: false,
        several_netns: false,
        color: false,
        unicode: true,
        time_zone: TimeZone::UTC,
    }
}

fn verbose() -> TextOptions {
    TextOptions { verbose: true, ..plain() }
}

/// Standard output and standard error after these lines.
fn printed(options: TextOptions, lines: &[Line]) -> (String, String) {
    let (out, status) = (Paper::default(), Paper::default());
    let mut text = Text::new(options, out.clone(), status.clone());
    text.name_netns(journeys::HOST, "host");
    for line in lines {
        text.line(line).unwrap();
    }
    (out.text(), status.text())
}

fn shown(options: TextOptions, journeys: impl IntoIterator<Item = Journey>) -> String {
    let lines: Vec<Line> = journeys.into_iter().map(|journey| Line::Journey(Box::new(journey))).collect();
    printed(options, &lines).0
}

#[test]
fn docker_published_port_and_its_reply() {
    assert_snapshot!(shown(plain(), [journeys::docker_forwarded(1), journeys::docker_reply(2)]));
}

#[test]
fn docker_published_port_verbose() {
    assert_snapshot!(shown(verbose(), [journeys::docker_forwarded(1), journeys::docker_reply(2)]));
}

#[test]
fn masqueraded_and_back() {
    assert_snapshot!(shown(plain(), journeys::masqueraded(1)));
}

#[test]
fn taken_past_all_hooks_by_a_flowtable() {
    let note = "passed no hook: a flowtable took it past FORWARD, whatever rules say there now";
    let way = Way::of(1, Protocol::TCP, "10.1.0.2:40000", "10.1.0.1:80").enters("rc").leaves("rs");
    let way = way.with(|journey| {
        (journey.flow, journey.direction, journey.conntrack) = (None, None, None);
        journey.notes.push(note.into());
    });
    assert_snapshot!(shown(
        plain(),
        [way.ends(OutcomeKind::Forwarded, |outcome| {
            outcome.device = Some("rs".into());
            outcome.left_as = Some(journeys::tuple("10.2.0.1:40000", "10.2.0.2:8080"));
        })]
    ));
}

#[test]
fn long_walks_programs_of_others_and_a_rule_without_text() {
    let text = shown(plain(), [journeys::kube_service_dropped(1)]);
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    assert_snapshot!(text);
}

#[test]
fn verdicts_of_programs_of_others_are_rows_and_the_one_that_dropped_is_the_end() {
    let way = Way::of(1, Protocol::UDP, "10.1.0.2:40000", "10.1.0.1:53").enters("eth0").with(|journey| {
        let StageKind::Device(device) = &mut journey.stages[0].kind else { unreachable!() };
        device.programs = vec!["XDP their_prog (program 12, generic)".into(), "tcx other (program 5)".into()];
    });
    let way = way.program("eth0", ProgramType::Xdp, 12, 2).program("eth0", ProgramType::Tc, 0, 2);
    let text = shown(plain(), [way.dies(OutcomeKind::Dropped, "TC_INGRESS", "sch_handle_ingress", |_| {})]);
    for line in [
        "programs of others judge on eth0: tcx other (program 5)",
        "XDP          XDP_PASS     their_prog (program 12) on eth0",
        "tc ingress   TC_ACT_SHOT  program 0 on eth0",
        "DROPPED by tc program 0 on eth0: TC_INGRESS in sch_handle_ingress",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains("generic"), "its verdict is shown: {text}");
}

#[test]
fn verdicts_alone_when_rules_were_not_asked_for() {
    assert_snapshot!(shown(plain(), [journeys::without_rules(1)]));
}

#[test]
fn dropped_by_policy_with_finding() {
    assert_snapshot!(shown(plain(), [journeys::forward_policy_drop(1)]));
}

#[test]
fn rejected_by_a_rule_after_log_and_mark() {
    assert_snapshot!(shown(plain(), [journeys::rejected_by_rule(1)]));
}

#[test]
fn refused_because_nobody_listens() {
    assert_snapshot!(shown(plain(), [journeys::refused_no_socket(1)]));
}

#[test]
fn delivered_to_a_local_process() {
    assert_snapshot!(shown(plain(), [journeys::delivered(1)]));
}

#[test]
fn two_backends_at_one_hook() {
    assert_snapshot!(shown(plain(), [journeys::mixed_backends(1)]));
}

#[test]
fn a_walk_that_is_not_certain() {
    assert_snapshot!(shown(plain(), [journeys::inexact(1)]));
}

#[test]
fn ipv6_across_two_namespaces() {
    assert_snapshot!(shown(plain(), [journeys::ipv6_two_namespaces(1)]));
}

#[test]
fn ends_that_the_kernel_makes() {
    let start = |id| {
        Way::of(id, Protocol::ICMP, "10.1.0.2", "127.0.0.1").enters("eth0").with(|journey| {
            journey.flow = None;
            journey.conntrack = None;
            journey.direction = None;
            (journey.packet.icmp_type, journey.packet.icmp_code) = (Some(8), Some(0));
        })
    };
    let martian = start(1).route(|route| {
        route.table = None;
        route.error = Some("EINVAL".into());
        route.route_type = None;
    });
    let martian = martian.dies(OutcomeKind::Dropped, "IP_LOCALNET", "ip_route_input_slow", |_| {});
    let device = start(2).dies(OutcomeKind::Dropped, "XDP", "bpf_prog_run", |_| {});
    let unknown = start(3).ends(OutcomeKind::Dropped, |_| {});
    let unfinished = start(4).ends(OutcomeKind::Incomplete, |_| {});
    let quoting = start(5)
        .with(|journey| {
            let about = journeys::tuple("10.1.0.1:5000", "10.9.0.1:53");
            let error = Packet {
                icmp_type: Some(3),
                icmp_code: Some(3),
                quoted: Some(about),
                ..journey.packet.clone()
            };
            journey.packet = error;
        })
        .ends(OutcomeKind::Delivered, |_| {});
    assert_snapshot!(shown(plain(), [martian, device, unknown, unfinished, quoting]));
}

#[test]
fn nothing_hostile_reaches_the_terminal() {
    for options in [plain(), verbose(), TextOptions { several_netns: true, ..plain() }] {
        let text = shown(options, [journeys::hostile(1)]);
        let active = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{2028}');
        assert!(!text.contains(active), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("02:00:00 DELIVERED")), "a forged line: {text}");
        assert!(!text.lines().any(|line| line.trim_start().starts_with("rm")), "a forged fix: {text}");
    }
    assert_snapshot!(shown(plain(), [journeys::hostile(1)]));
}

#[test]
fn repeats_of_a_flow_are_counted() {
    let later = |id: u64, flags: &str| {
        let mut journey = journeys::docker_forwarded(id);
        journey.packet.tcp_flags = Some(flags.into());
        journey.packet.length = 1500;
        journey.packet.ip_id = Some(1);
        journey.stages.iter_mut().for_each(|stage| stage.elapsed_ns += 7);
        journey
    };
    let mut other_flow = journeys::docker_forwarded(6);
    other_flow.flow = Some(4);
    let all = || {
        [
            later(1, "S"),
            later(2, "A"),
            later(3, "AP"),
            journeys::docker_reply(4),
            later(5, "A"),
            other_flow.clone(),
        ]
    };
    let text = shown(plain(), all());
    assert_eq!(text.matches("FORWARDED out docker0").count(), 2, "first of each flow: {text}");
    assert_eq!(text.matches("FORWARDED out eth0").count(), 1);
    let told: Vec<&str> = text.lines().filter(|line| line.starts_with("  + ")).collect();
    assert_eq!(
        told,
        [
            "  + 2 more like #1 [ACK ACK,PSH] until 02:00:00.123003",
            "  + 1 more like #1 [ACK] until 02:00:00.123005"
        ]
    );
    let every = shown(TextOptions { every: true, ..plain() }, all());
    assert_eq!(every.matches("FORWARDED").count(), 6);
}

#[test]
fn a_repeat_that_ends_otherwise_is_shown() {
    let text = shown(plain(), [journeys::docker_forwarded(1), journeys::forward_policy_drop(2)]);
    assert!(text.contains("FORWARDED") && text.contains("DROPPED"), "{text}");
}

#[test]
fn a_segment_that_tcp_took_is_a_repeat_whatever_the_reason_it_gives() {
    let mut taken = journeys::delivered(2);
    taken.outcome.reason = Some("TCP_OLD_ACK".into());
    assert_eq!(shown(plain(), [journeys::delivered(1), taken]).matches("DELIVERED").count(), 1);
    let mut dropped = journeys::refused_no_socket(2);
    dropped.outcome.reason = Some("TCP_OLD_ACK".into());
    assert_eq!(shown(plain(), [journeys::refused_no_socket(1), dropped]).matches("REJECTED").count(), 2);
}

#[test]
fn repeats_are_told_when_nothing_else_happens_and_at_the_end() {
    let (out, status) = (Paper::default(), Paper::default());
    let mut text = Text::new(plain(), out.clone(), status);
    for id in 1..=3 {
        text.line(&Line::Journey(Box::new(journeys::delivered(id)))).unwrap();
    }
    assert!(!out.text().contains("more like"));
    text.idle().unwrap();
    assert_eq!(out.text().matches("2 more like #1").count(), 1);
    text.idle().unwrap();
    assert_eq!(out.text().matches("more like").count(), 1, "told once");
    text.line(&Line::Journey(Box::new(journeys::delivered(4)))).unwrap();
    text.line(&Line::Summary(Summary::default())).unwrap();
    assert!(out.text().contains("1 more like #1"));
}

#[test]
fn colour_adds_nothing_but_colour() {
    let every = || {
        [
            journeys::docker_forwarded(1),
            journeys::forward_policy_drop(2),
            journeys::inexact(3),
            journeys::refused_no_socket(4),
        ]
    };
    let colored = shown(TextOptions { color: true, ..plain() }, every());
    assert!(colored.contains('\u{1b}'));
    assert_eq!(without_styles(&colored), shown(plain(), every()));
}

/// Takes `ESC [ ... m` out.
fn without_styles(text: &str) -> String {
    let mut pieces = text.split("\u{1b}[");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| text + piece.split_once('m').unwrap().1)
}

#[test]
fn a_terminal_without_unicode_gets_ascii() {
    let options = TextOptions { unicode: false, ..plain() };
    let text = shown(options, [journeys::docker_forwarded(1), journeys::ipv6_two_namespaces(2)]);
    assert!(text.is_ascii(), "{text}");
}

#[test]
fn status_and_warnings_keep_off_standard_output() {
    let start = Start {
        version: "0.1.0".into(),
        kernel: "6.18.0".into(),
        netns: vec![journeys::HOST],
        probes: vec!["netfilter".into(), "kfree_skb".into()],
        missing: vec!["rules of nftables without counters".into()],
        ready_ms: 120,
    };
    let notice = Notice { level: NoticeLevel::Warning, message: "namespace web\u{1b} is gone".into() };
    let (out, status) = printed(plain(), &[Line::Start(start), Line::Notice(notice)]);
    assert_eq!(out, "");
    assert_snapshot!(status);
}

#[test]
fn the_summary() {
    let counts = |all: &[(&str, u64)]| all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    let finding = SummaryFinding {
        code: "forward-drop-after-dnat".into(),
        count: 3,
        first: 7,
        summary: "10.1.0.1:80 was translated, but no rule accepts it".into(),
    };
    let summary = Summary {
        journeys: 12,
        by_result: counts(&[("forwarded", 8), ("dropped", 3), ("incomplete", 1)]),
        by_reason: counts(&[("NETFILTER_DROP", 3)]),
        by_rule: counts(&[
            ("filter FORWARD policy", 2),
            ("filter DOCKER-USER #1: -A DOCKER-USER -s 10.1.0.9/32 -j DROP", 1),
        ]),
        by_finding: vec![finding],
        events_received: 140,
        events_lost: 6,
        lost_where: counts(&[("ring-full", 6)]),
        not_shown: counts(&[("neither dropped nor rejected (--drops)", 9)]),
        complete: false,
        duration_ms: 30_040,
    };
    assert_snapshot!(printed(plain(), &[Line::Summary(summary)]).0);
}
