//! What pathtrace shows, in the witness's terms.

use serde_json::Value;

use super::story::{Key, Story};

/// One table's judgement in a journey.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) key: Key,
    pub(crate) exact: bool,
    pub(crate) story: Story,
    /// What is wrong with a rule's text, if something is.
    pub(crate) bad_text: Option<String>,
    pub(crate) stage: Value,
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Forwarded,
    Local,
    Incoming,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| port.try_into().ok())
}

/// Neighbour discovery and multicast membership: sent by the kernel when it likes, and all alike.
pub(crate) fn is_housekeeping(journey: &Value) -> bool {
    let kind = journey["packet"]["icmp_type"].as_u64().unwrap_or(0);
    journey["packet"]["protocol"] == "icmp6" && matches!(kind, 130..=143)
}

/// The tables that judged the packet, those left out that only followed a mapping, and the witness's.
pub(crate) fn judgements(journey: &Value, witness: &str, by_position: bool) -> Vec<Shown> {
    let stages = journey["stages"].as_array().map_or(&[][..], Vec::as_slice);
    stages
        .iter()
        .filter(|stage| stage["kind"] == "netfilter" && stage["table"] != witness)
        .filter(|stage| stage["decided_by"] != "mapping" && !stage["chain"].is_null())
        .map(|stage| judgement(journey, stage, by_position))
        .collect()
}

fn judgement(journey: &Value, stage: &Value, by_position: bool) -> Shown {
    let packet = &journey["packet"];
    let before = &stage["before"];
    let rules = stage["rules"].as_array().map_or(&[][..], Vec::as_slice);
    let id = |rule: &Value| if by_position { rule["position"].as_u64() } else { rule["handle"].as_u64() };
    let verdict = match stage["verdict"].as_str() {
        // To the kernel a REJECT is a DROP.
        Some("reject") => Some("drop".to_owned()),
        other => other.map(str::to_owned),
    };
    Shown {
        key: Key {
            family: text(&stage["family"]),
            table: text(&stage["table"]),
            chain: text(&stage["chain"]),
            protocol: text(&packet["protocol"]),
            ends: [
                (text(&before["source"]), port(&before["source_port"])),
                (text(&before["destination"]), port(&before["destination_port"])),
            ],
            ip_id: port(&packet["ip_id"]),
            flags: packet["tcp_flags"].as_str().map(str::to_owned),
        },
        exact: stage["exact"] == true,
        story: Story {
            steps: rules.iter().map(|rule| (text(&rule["chain"]), id(rule).unwrap_or(0))).collect(),
            by_rule: stage["decided_by"] == "rule",
            verdict: verdict.filter(|_| !by_position),
        },
        bad_text: bad_text(stage, rules),
        stage: stage.clone(),
    }
}

/// Every rule says in its comment where it stands, and all rules of a walk are of one ruleset.
fn bad_text(stage: &Value, rules: &[Value]) -> Option<String> {
    let mut tags: Vec<&str> = Vec::new();
    for rule in rules {
        // Where the ruleset was replaced before its text was read, there is none.
        let Some(text) = rule["text"].as_str() else { continue };
        let place = format!(".{}.{}.{}", stage["table"].as_str()?, rule["chain"].as_str()?, rule["position"]);
        let comment = text.split([' ', '"']).find(|word| word.starts_with('c') && word.ends_with(&place));
        match comment.and_then(|comment| comment.strip_suffix(&place)) {
            Some(tag) => tags.push(tag),
            None => return Some(format!("{text:?} is not the rule at {place}")),
        }
    }
    tags.dedup();
    (tags.len() > 1).then(|| format!("rules of several rulesets: {tags:?}"))
}

pub(crate) fn origin(journey: &Value) -> Origin {
    let hooks = || {
        let stages = journey["stages"].as_array().into_iter().flatten();
        stages.filter_map(|stage| stage["hook"].as_str())
    };
    if hooks().next() == Some("output") || (hooks().next() == Some("postrouting")) {
        Origin::Local
    } else if hooks().any(|hook| hook == "forward") {
        Origin::Forwarded
    } else {
        Origin::Incoming
    }
}
