//! The end of a journey in one line, and what the diagnosis says about it.

use crate::{
    model::{
        Finding, Journey, LocalSocket, NetfilterStage, Outcome, OutcomeKind, Packet, ProgramFate, Stage,
        StageKind, Tuple,
    },
    summary::{decider, fatal_stage, program_decider, table_name},
};

use super::{
    page::{Ink, Page, Rail},
    rows::{is_doubtful, names_backends},
    words,
};

/// `DROPPED by filter FORWARD policy`
pub(super) fn end(page: &mut Page, journey: &Journey) {
    let (word, ink) = match journey.outcome.result {
        OutcomeKind::Delivered => ("DELIVERED", Ink::Good),
        OutcomeKind::Forwarded => ("FORWARDED", Ink::Good),
        OutcomeKind::Dropped => ("DROPPED", Ink::Bad),
        OutcomeKind::Rejected => ("REJECTED", Ink::Bad),
        OutcomeKind::Incomplete => ("INCOMPLETE", Ink::Doubt),
    };
    page.rail(Rail::End).ink(ink, word).put(ending(journey)).end_line();
}

fn ending(journey: &Journey) -> String {
    let outcome = &journey.outcome;
    match outcome.result {
        OutcomeKind::Delivered => delivered(outcome.socket.as_ref()),
        OutcomeKind::Forwarded => forwarded(journey),
        OutcomeKind::Dropped => died(journey),
        OutcomeKind::Rejected => match &outcome.answer {
            Some(answer) => format!(" with {answer}{}", died(journey)),
            None => died(journey),
        },
        OutcomeKind::Incomplete => incomplete(journey),
    }
}

fn delivered(socket: Option<&LocalSocket>) -> String {
    match socket {
        None => " to this host (which socket took it was not seen)".to_owned(),
        Some(LocalSocket { local, process: Some(process), pid: Some(pid) }) => {
            format!(" to {process}[{pid}] at {local}")
        }
        Some(LocalSocket { local, process: Some(process), pid: None }) => format!(" to {process} at {local}"),
        Some(LocalSocket { local, process: None, pid: Some(pid) }) => format!(" to process {pid} at {local}"),
        Some(LocalSocket { local, process: None, pid: None }) => format!(" to the socket at {local}"),
    }
}

fn forwarded(journey: &Journey) -> String {
    let device = journey.outcome.device.as_ref().map(|device| format!(" out {device}")).unwrap_or_default();
    let last = journey.outcome.left_as.or_else(|| last_tuple(&journey.stages));
    match last.filter(|last| *last != journey.packet.tuple) {
        Some(tuple) => format!("{device} as {} -> {}", tuple.source_text(), tuple.destination_text()),
        None => device,
    }
}

fn last_tuple(stages: &[Stage]) -> Option<Tuple> {
    stages.iter().rev().find_map(|stage| table(stage).map(|table| table.after))
}

fn table(stage: &Stage) -> Option<&NetfilterStage> {
    match &stage.kind {
        StageKind::Netfilter(table) => Some(table),
        StageKind::Device(_) | StageKind::Route(_) | StageKind::Program(_) => None,
    }
}

/// Who or what ended it.
fn died(journey: &Journey) -> String {
    match fatal_stage(journey) {
        Some(stage) => died_in_table(journey, stage),
        None => format!("{}{}", died_at(journey), cause(&journey.outcome)),
    }
}

fn died_in_table(journey: &Journey, stage: &NetfilterStage) -> String {
    let possibly = if is_doubtful(stage) { ", possibly" } else { "" };
    let hook = stage.hook.iptables_name();
    let decider = decider(stage);
    let place = if decider.contains(hook) { String::new() } else { format!(" in {hook}") };
    let backend =
        stage.backend.filter(|_| names_backends(journey)).map(|backend| format!(" [{}]", backend.name()));
    let reason = journey.outcome.reason.as_deref().filter(|reason| *reason != "NETFILTER_DROP");
    let reason = reason.map(|reason| format!(" ({reason})"));
    format!("{possibly} by {decider}{place}{}{}", backend.unwrap_or_default(), reason.unwrap_or_default())
}

/// Where the kernel itself ended it.
fn died_at(journey: &Journey) -> String {
    match journey.outcome.stage.and_then(|index| journey.stages.get(index)).map(|stage| &stage.kind) {
        Some(StageKind::Device(device)) => format!(" at device {}", device.device),
        Some(StageKind::Program(program)) if program.verdict.fate() == ProgramFate::Passed => {
            format!(" at device {}", program.device)
        }
        Some(StageKind::Program(program)) => format!(" by {}", program_decider(program)),
        Some(StageKind::Route(route)) if route.error.is_some() => " by routing".to_owned(),
        // Routing let it pass: it died behind that.
        Some(StageKind::Route(route)) => match route.route_type.as_deref() {
            Some("local" | "broadcast" | "multicast") => " by this host".to_owned(),
            _ => " by the kernel after routing".to_owned(),
        },
        Some(StageKind::Netfilter(table)) => format!(" by the kernel after {}", table.hook.iptables_name()),
        None => " by the kernel".to_owned(),
    }
}

/// In the kernel's words; what they mean is the finding's to say.
fn cause(outcome: &Outcome) -> String {
    match (&outcome.reason, &outcome.location) {
        (Some(reason), Some(location)) => format!(": {reason} in {location}"),
        (Some(reason), None) => format!(": {reason}"),
        (None, Some(location)) => format!(" in {location}, reason unknown"),
        (None, None) => ", reason unknown".to_owned(),
    }
}

fn incomplete(journey: &Journey) -> String {
    let last = match journey.stages.last().map(|stage| &stage.kind) {
        Some(StageKind::Netfilter(table)) => {
            format!("last seen in {} {}", table_name(table), table.hook.iptables_name())
        }
        Some(StageKind::Device(device)) => format!("last seen at device {}", device.device),
        Some(StageKind::Program(program)) => format!("last seen by {}", program_decider(program)),
        Some(StageKind::Route(_)) => "last seen at routing".to_owned(),
        None => "never seen whole".to_owned(),
    };
    match &journey.outcome.location {
        Some(location) => format!(": {last}, let go by {location}"),
        None => format!(": {last}, its end was not seen"),
    }
}

/// Cause, evidence, fix, set apart from the journey.
pub(super) fn finding(page: &mut Page, finding: &Finding) {
    let cause = format!("{} ({})", finding.summary, finding.code);
    let cause = words::fill(cause.split(' '), " ", words::WIDTH - INDENT);
    block(page, "cause", Ink::Strong, cause.iter().map(String::as_str));
    block(page, "evidence", Ink::Plain, finding.evidence.iter().map(String::as_str));
    block(page, "fix", Ink::Good, [finding.fix.as_str()].into_iter().filter(|fix| !fix.is_empty()));
}

/// Columns before the text of a finding.
const INDENT: usize = 12;

fn block<'a>(page: &mut Page, label: &str, ink: Ink, lines: impl IntoIterator<Item = &'a str>) {
    for (index, line) in lines.into_iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        page.ink(Ink::Faint, format_args!("  {label:width$}", width = INDENT - 2)).ink(ink, line).end_line();
    }
}

/// What of a packet identifies it, beside its addresses.
pub(super) fn particulars(packet: &Packet, verbose: bool) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(packet.tcp_flags.as_deref().map(words::tcp_flags));
    words.extend(words::icmp(packet).map(|name| name.into_owned()));
    words.push(format!("{} bytes", packet.length));
    words.extend(packet.segments.map(|segments| format!("{segments} segments")));
    words.extend(packet.fragment.as_ref().map(|fragment| format!("fragment {fragment}")));
    words.extend(packet.quoted.map(|q| format!("about {} -> {}", q.source_text(), q.destination_text())));
    if verbose {
        words.push(format!("ttl {}", packet.ttl));
        words.extend(packet.ip_id.map(|id| format!("id {id}")));
    }
    words
}
