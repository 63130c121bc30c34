//! Hand-built journeys: for each cause one that has it, one that nearly has it, and healthy ones.

mod bridges;
mod conntrack;
mod lab;
mod listeners;
mod places;
mod program;
mod published;
mod replies;
mod routing;
mod verdicts;
mod world;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    enrich::{
        Address, Containers, DeviceSettings, Endpoint, IpvsService, JudgingPrograms, Limits, Link, Network,
        Nexthop, NfQueue, Owner, PolicyRule, Prefix, Reading, Route, RouteKind, Settings, SocketEntry,
        SocketState, Sockets, Surroundings,
    },
    model::{
        Backend, Conntrack, CtState, DecidedBy, DeviceDirection, DeviceStage, Direction, Family, Finding,
        Hook, Journey, MatchedRule, NatKind, NetfilterStage, Outcome, OutcomeKind, Packet, Protocol,
        RouteStage, RulesSource, Stage, StageKind, TableFamily, Tuple, Verdict,
    },
};

use self::{lab::*, world::*};
use super::*;

#[test]
fn codes_are_unique_and_documented() {
    let document = include_str!("../../../../docs/findings.md");
    let all: Vec<_> = codes().collect();
    for code in &all {
        assert_eq!(all.iter().filter(|other| *other == code).count(), 1, "{code}");
        assert!(document.contains(&format!("\n## {code}\n")), "{code} is not in docs/findings.md");
    }
    let described = document.lines().filter_map(|line| line.strip_prefix("## "));
    for code in described {
        assert!(all.contains(&code), "docs/findings.md describes {code}, which does not exist");
    }
}

#[test]
fn nothing_is_said_where_nothing_is_known() {
    let lab = Lab::tcp("10.1.0.2:40000", "10.1.0.1:80").comes_in("c0");
    let unread = Arc::new(Surroundings::unread(NETNS, "not read"));
    let end_of_trace = lab.diagnose_in(std::slice::from_ref(&unread));
    assert_eq!(end_of_trace, Diagnosis::default());
    let lab = lab.dropped("IP_INADDRERRORS", "ip_error");
    for surroundings in [vec![], vec![unread]] {
        let findings = lab.diagnose_in(&surroundings).findings;
        assert_eq!(findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["dropped-by-kernel"]);
        assert!(findings[0].summary.contains("may not take or forward"), "{}", findings[0].summary);
    }
}

#[test]
fn nothing_in_a_finding_can_move_the_cursor() {
    let text = "-A INPUT -m comment --comment \"\u{1b}[2J\n\" -j DROP";
    let lab = Lab::tcp("10.1.0.2:40000", "10.1.0.1:80").comes_in("c0").judged(
        Hook::Input,
        Verdict::Drop,
        Some(("INPUT", 1, text)),
    );
    let finding = lab.only("dropped-by-rule");
    for line in finding.evidence.iter().chain([&finding.summary, &finding.fix]) {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}
