//! A journey's stages as rows of the page. What matters little is joined: devices that hand a packet on, tables
//! that did nothing.

use crate::{
    model::{
        Backend, DecidedBy, DeviceDirection, DeviceStage, Direction, Journey, MatchedRule, NetfilterStage,
        ProgramFate, ProgramStage, ProgramType, RouteStage, StageKind, Verdict,
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
    Devices {
        names: Vec<String>,
        direction: DeviceDirection,
    },
    Route {
        text: String,
        failed: bool,
    },
    /// Tables that let the packet pass and did nothing else; `doubt`: why that is not certain.
    Quiet {
        tables: Vec<String>,
        doubt: Option<String>,
    },
    /// A table that has something to say; `way` in parts between which a line may break.
    Judged {
        verdict: String,
        ink: Ink,
        way: Vec<String>,
    },
}

/// The rows of a journey. `verbose`: every rule, nothing joined.
pub(super) fn rows(journey: &Journey, verbose: bool) -> Vec<Row> {
    let tables = Tables { verbose, journey, name_backend: names_backends(journey) };
    let judged_by: Vec<u32> = journey.programs().map(|program| program.id).collect();
    let mut rows: Vec<Row> = Vec::new();
    for stage in &journey.stages {
        let (label, body, details) = match &stage.kind {
            StageKind::Device(device) => device_row(device, &judged_by),
            StageKind::Route(route) => route_row(route),
            StageKind::Program(program) => program_row(program),
            StageKind::Netfilter(table) => tables.row(table),
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

/// Whether tables of the same name must be told apart: both iptables backends judged the packet.
pub(super) fn names_backends(journey: &Journey) -> bool {
    let judged_by = |backend| {
        journey.stages.iter().any(|stage| match &stage.kind {
            StageKind::Netfilter(table) => table.backend == Some(backend),
            StageKind::Device(_) | StageKind::Route(_) | StageKind::Program(_) => false,
        })
    };
    judged_by(Backend::IptablesLegacy) && judged_by(Backend::IptablesNft)
}

impl Row {
    /// Takes the next row in, if both together say no less; else gives it back.
    fn absorb(&mut self, next: Self) -> Option<Self> {
        match (&mut self.body, &next.body) {
            (Body::Devices { names, .. }, Body::Devices { names: more, .. }) => {
                names.extend_from_slice(more);
                self.details.extend(next.details);
                None
            }
            (Body::Quiet { tables, doubt }, Body::Quiet { tables: more, doubt: same }) if doubt == same => {
                tables.extend_from_slice(more);
                None
            }
            _ => Some(next),
        }
    }
}

type Parts = (&'static str, Body, Vec<Detail>);

fn device_row(device: &DeviceStage, judged_by: &[u32]) -> Parts {
    let label = match device.direction {
        DeviceDirection::In => "in",
        DeviceDirection::Out => "out",
    };
    let name = if device.xdp { format!("{} (XDP)", device.device) } else { device.device.clone() };
    let body = Body::Devices { names: vec![name], direction: device.direction };
    (label, body, details::of_device(device, judged_by))
}

fn program_row(program: &ProgramStage) -> Parts {
    let label = match (program.program_type, program.direction) {
        (ProgramType::Xdp, _) => "XDP",
        (ProgramType::Tc, DeviceDirection::In) => "tc ingress",
        (ProgramType::Tc, DeviceDirection::Out) => "tc egress",
    };
    let ink = match program.verdict.fate() {
        ProgramFate::Passed => Ink::Plain,
        ProgramFate::Dropped => Ink::Bad,
        ProgramFate::Taken | ProgramFate::Redirected => Ink::Strong,
    };
    let way = vec![format!("{} on {}", program.label(), program.device)];
    (label, Body::Judged { verdict: program.verdict.name().into_owned(), ink, way }, Vec::new())
}

/// In the word order of `ip route get`.
fn route_row(route: &RouteStage) -> Parts {
    let mut text = Vec::new();
    text.extend(route.route_type.clone().filter(|kind| kind != "unicast"));
    text.push(route.destination.to_string());
    text.extend(route.gateway.map(|gateway| format!("via {gateway}")));
    text.extend(route.device.as_ref().map(|device| format!("dev {device}")));
    text.extend(route.table.map(|table| format!("table {}", words::routing_table(table))));
    text.extend(route.mark.map(|mark| format!("mark {mark:#x}")));
    text.extend(route.error.as_ref().map(|error| format!("FAILED: {error}")));
    ("route", Body::Route { text: text.join(" "), failed: route.error.is_some() }, Vec::new())
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

/// How this journey's tables are shown.
struct Tables<'a> {
    journey: &'a Journey,
    verbose: bool,
    name_backend: bool,
}

impl Tables<'_> {
    fn row(&self, stage: &NetfilterStage) -> Parts {
        let body = if is_quiet(stage) {
            let doubt = is_doubtful(stage).then(|| stage.inexact_because.clone().unwrap_or_default());
            Body::Quiet { tables: vec![format!("{}{}", table_name(stage), self.tag(stage))], doubt }
        } else {
            let (verdict, ink) = self.verdict(stage);
            let mut way = way(stage);
            if let Some(last) = way.last_mut() {
                last.push_str(&self.tag(stage));
            }
            Body::Judged { verdict, ink, way }
        };
        (stage.hook.iptables_name(), body, details::of_table(stage, self.verbose))
    }

    /// What tells a table from others of its name.
    fn tag(&self, stage: &NetfilterStage) -> String {
        let backend = stage.backend.map_or("backend unknown", Backend::name);
        match (self.verbose, self.name_backend) {
            (true, _) => format!(" [{backend}, priority {}]", stage.priority),
            (false, true) => format!(" [{backend}]"),
            (false, false) => String::new(),
        }
    }

    fn verdict(&self, stage: &NetfilterStage) -> (String, Ink) {
        let is_reply = self.journey.direction == Some(Direction::Reply);
        let (word, ink) = match (stage.nat, stage.verdict) {
            (Some(_), Some(Verdict::Accept) | None)
                if is_reply && stage.decided_by == Some(DecidedBy::Mapping) =>
            {
                ("reverse NAT", Ink::Change)
            }
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
}

/// Table, and what led to the verdict.
fn way(stage: &NetfilterStage) -> Vec<String> {
    let table = table_name(stage);
    let chain = stage.chain.as_deref().unwrap_or_else(|| stage.hook.iptables_name());
    let possibly = if is_doubtful(stage) { "possibly " } else { "" };
    match stage.decided_by {
        Some(DecidedBy::Mapping) => vec![format!("{table}, {}", mapping(stage.mapping_rule.as_ref()))],
        Some(DecidedBy::Policy) => {
            vec![format!("{possibly}{table} {chain} policy{}", undecided(stage, chain))]
        }
        Some(DecidedBy::Rule) if stage.rules.is_empty() => {
            vec![format!("{table} {chain}, by a rule that is not known")]
        }
        None if stage.rules.is_empty() => vec![format!("{table} {chain}")],
        Some(DecidedBy::Rule) | None => {
            let jumps = walk::jumps_to_last(&stage.rules);
            let mut parts: Vec<String> =
                jumps.iter().map(|r| format!("{} #{}", r.chain, r.position)).collect();
            parts[0].insert_str(0, &format!("{possibly}{table} "));
            parts
        }
    }
}

fn mapping(made_by: Option<&MatchedRule>) -> String {
    match made_by {
        Some(rule) => format!("by the connection's mapping, which {} #{} made", rule.chain, rule.position),
        None => "by the connection's mapping".to_owned(),
    }
}

/// What was passed before the policy of `chain` decided.
fn undecided(stage: &NetfilterStage, chain: &str) -> String {
    if stage.rules.is_empty() {
        return ", no rule matched".to_owned();
    }
    let mut chains: Vec<&str> = Vec::new();
    for rule in &stage.rules {
        let entered = walk::entered_chain(rule).unwrap_or(&rule.chain);
        if entered != chain && !chains.contains(&entered) {
            chains.push(entered);
        }
    }
    if chains.is_empty() { String::new() } else { format!(", nothing decided in {}", chains.join(", ")) }
}
