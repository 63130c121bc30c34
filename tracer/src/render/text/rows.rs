//! A journey's stages as rows of the page: what happened next to each other and matters little is joined.

use crate::{
    model::{
        DecidedBy, DeviceDirection, DeviceStage, Journey, NetfilterStage, RouteStage, StageKind, Verdict,
    },
    summary::table_name,
};

use super::{
    details::{self, Detail},
    page::Ink,
    walk, words,
};

/// One place on the way.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) elapsed_ns: u64,
    pub(super) netns: u32,
    /// `in`, `route`, `FORWARD`
    pub(super) label: &'static str,
    pub(super) body: Body,
    pub(super) details: Vec<Detail>,
}

#[derive(Debug)]
pub(super) enum Body {
    Device { names: Vec<String>, direction: DeviceDirection },
    Route { text: String, failed: bool },
    Tables { names: Vec<String>, verdict: String, ink: Ink, how: Vec<String>, quiet: Option<Doubt> },
}

/// Why tables that did nothing are not certain to have done nothing; the same for those in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doubt(Option<String>);

/// The rows of a journey. `verbose`: every rule, nothing joined.
pub(super) fn rows(journey: &Journey, verbose: bool) -> Vec<Row> {
    let backends = verbose || has_several_backends(journey);
    let mut rows: Vec<Row> = Vec::new();
    for stage in &journey.stages {
        let (label, body, details) = match &stage.kind {
            StageKind::Device(device) => device_row(device),
            StageKind::Route(route) => route_row(route),
            StageKind::Netfilter(table) => table_row(table, verbose, backends),
        };
        let row = Row { elapsed_ns: stage.elapsed_ns, netns: stage.netns, label, body, details };
        let joinable =
            rows.last_mut().filter(|last| !verbose && last.netns == row.netns && last.label == row.label);
        let left = match joinable {
            Some(last) => last.absorb(row),
            None => Some(row),
        };
        rows.extend(left);
    }
    rows
}

fn has_several_backends(journey: &Journey) -> bool {
    let mut backends = journey.stages.iter().filter_map(|stage| match &stage.kind {
        StageKind::Netfilter(table) => table.backend,
        StageKind::Device(_) | StageKind::Route(_) => None,
    });
    let first = backends.next();
    backends.any(|backend| Some(backend) != first)
}

impl Row {
    /// Takes the next row in, if both together say no less; else gives it back.
    fn absorb(&mut self, next: Self) -> Option<Self> {
        match (&mut self.body, &next.body) {
            (Body::Device { names, .. }, Body::Device { names: more, .. }) => {
                names.extend_from_slice(more);
                self.details.extend(next.details);
                None
            }
            (
                Body::Tables { names, quiet: Some(doubt), .. },
                Body::Tables { names: more, quiet: Some(same), .. },
            ) if doubt == same => {
                names.extend_from_slice(more);
                None
            }
            _ => Some(next),
        }
    }
}

fn device_row(device: &DeviceStage) -> (&'static str, Body, Vec<Detail>) {
    let label = match device.direction {
        DeviceDirection::In => "in",
        DeviceDirection::Out => "out",
    };
    let body = Body::Device { names: vec![device.device.clone()], direction: device.direction };
    (label, body, details::of_programs(device))
}

fn route_row(route: &RouteStage) -> (&'static str, Body, Vec<Detail>) {
    // In the word order of `ip route get`.
    let mut words = Vec::new();
    match route.route_type.as_deref() {
        None | Some("unicast") => {}
        Some(other) => words.push(other.to_owned()),
    }
    words.push(route.destination.to_string());
    words.extend(route.gateway.map(|gateway| format!("via {gateway}")));
    words.extend(route.device.as_ref().map(|device| format!("dev {device}")));
    words.extend(route.table.map(|table| format!("table {}", words::routing_table(table))));
    words.extend(route.mark.map(|mark| format!("mark {mark:#x}")));
    words.extend(route.error.as_ref().map(|error| format!("FAILED: {error}")));
    ("route", Body::Route { text: words.join(" "), failed: route.error.is_some() }, Vec::new())
}

fn table_row(stage: &NetfilterStage, verbose: bool, backends: bool) -> (&'static str, Body, Vec<Detail>) {
    let (verdict, ink) = verdict(stage);
    let quiet = is_quiet(stage).then(|| Doubt(stage.inexact_because.clone()));
    let mut name = table_name(stage);
    if let Some(backend) = stage.backend.filter(|_| backends) {
        name = if verbose {
            format!("{name} ({}, {})", backend.name(), stage.priority)
        } else {
            format!("{name} ({})", backend.name())
        };
    }
    let body = Body::Tables { names: vec![name], verdict, ink, how: how(stage, verbose), quiet };
    (stage.hook.iptables_name(), body, details::of_table(stage, verbose))
}

/// Whether all that is to be said of a table is that the packet passed.
fn is_quiet(stage: &NetfilterStage) -> bool {
    stage.verdict == Some(Verdict::Accept)
        && stage.decided_by != Some(DecidedBy::Rule)
        && stage.rules.is_empty()
        && stage.nat.is_none()
        && stage.before == stage.after
}

/// Whether what is said of the rules may be wrong.
pub(super) fn is_doubtful(stage: &NetfilterStage) -> bool {
    !stage.exact && (stage.rules_source.is_some() || stage.inexact_because.is_some())
}

fn verdict(stage: &NetfilterStage) -> (String, Ink) {
    let (word, ink) = match (stage.nat, stage.verdict) {
        (Some(nat), Some(Verdict::Accept) | None) => (words::nat(nat), Ink::Change),
        (_, Some(Verdict::Accept)) if stage.decided_by == Some(DecidedBy::Rule) => ("ACCEPT", Ink::Good),
        (_, Some(Verdict::Accept)) => ("accept", Ink::Plain),
        (_, Some(verdict @ (Verdict::Drop | Verdict::Reject))) => (words::verdict(verdict), Ink::Bad),
        (_, Some(verdict)) => (words::verdict(verdict), Ink::Strong),
        (None, None) => ("unknown", Ink::Doubt),
    };
    let doubt = if is_doubtful(stage) { "~" } else { "" };
    (format!("{doubt}{word}"), ink)
}

/// What led to the verdict, in parts between which a line may break.
fn how(stage: &NetfilterStage, verbose: bool) -> Vec<String> {
    let possibly = if is_doubtful(stage) { "possibly " } else { "" };
    let chain = stage.chain.as_deref().unwrap_or_else(|| stage.hook.iptables_name());
    match (stage.decided_by, stage.rules.len()) {
        (Some(DecidedBy::Mapping), _) => vec!["by the connection's mapping".to_owned()],
        (Some(DecidedBy::Policy), 0) if is_quiet(stage) => Vec::new(),
        (Some(DecidedBy::Policy), 0) => vec![format!("{possibly}policy of {chain}, no rule matched")],
        (Some(DecidedBy::Policy), count) => {
            vec![format!("{possibly}policy of {chain}, {}", passed(count, verbose))]
        }
        (_, 0) => Vec::new(),
        (Some(DecidedBy::Rule) | None, _) => {
            let way = walk::jumps_to_last(&stage.rules);
            let mut parts: Vec<String> = way.iter().map(|r| format!("{} #{}", r.chain, r.position)).collect();
            if let Some(first) = parts.first_mut() {
                first.insert_str(0, possibly);
            }
            parts
        }
    }
}

fn passed(count: usize, verbose: bool) -> String {
    let rules = if count == 1 {
        "1 rule matched and led back".to_owned()
    } else {
        format!("{count} rules matched and led back")
    };
    if verbose { rules } else { format!("{rules} (-v lists)") }
}
