//! Where two machines' stories of one case differ, apart from what a kernel cannot know.

use serde_json::{Map, Value};

use super::{Knows, Story};
use crate::scenario::{OF_RULES, as_rewriting, is_refusal};

/// How many differences are told of one case.
const TOLD: usize = 4;

/// What rules are known from with the ruleset as it is.
const SOURCES: [Option<&str>; 2] = [Some("counters"), Some("probes")];

/// Both kernels, in the order of the values.
#[derive(Clone, Copy)]
struct Both<'a>(&'a Knows, &'a Knows);

/// The first differences, one a line, `ours` before `theirs`; none where both tell the same.
pub(super) fn between(ours: &Story, theirs: &Story) -> Option<String> {
    let both = Both(&ours.knows, &theirs.knows);
    let (ours, theirs) = (&ours.journeys, &theirs.journeys);
    let mut found = Vec::new();
    for journey in ours {
        match theirs.iter().find(|other| other["packet"] == journey["packet"]) {
            Some(other) => both.value(&name(journey), journey, other, &mut found),
            None => found.push(format!("{}: only the first has it", name(journey))),
        }
    }
    for other in theirs.iter().filter(|other| ours.iter().all(|j| j["packet"] != other["packet"])) {
        found.push(format!("{}: only the second has it", name(other)));
    }
    if found.is_empty() {
        return None;
    }
    let more = found.len().saturating_sub(TOLD);
    found.truncate(TOLD);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    Some(found.join("\n"))
}

/// A journey by its packet, in a few words.
fn name(journey: &Value) -> String {
    let packet = &journey["packet"];
    let word = |key: &str| match &packet[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let kind = if packet["tcp_flags"].is_null() { word("icmp_type") } else { word("tcp_flags") };
    format!(
        "{} {} {}:{} > {}:{}",
        word("protocol"),
        kind,
        word("source"),
        word("source_port"),
        word("destination"),
        word("destination_port")
    )
}

impl Both<'_> {
    fn value(self, path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
        match (ours, theirs) {
            (Value::Object(a), Value::Object(b)) => self.object(path, a, b, found),
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                for (number, (a, b)) in a.iter().zip(b).enumerate() {
                    self.value(&format!("{path} [{number}]"), a, b, found);
                }
            }
            (Value::Array(a), Value::Array(b)) => {
                found.push(format!("{path}: {} | {}", listed(a), listed(b)));
            }
            _ if ours == theirs => {}
            _ => found.push(format!("{path}: {ours} | {theirs}")),
        }
    }

    /// Whether one of the kernels can say neither which rule of nft refused this journey nor, so, why.
    fn cause_is_apart(self, ours: &Map<String, Value>, theirs: &Map<String, Value>) -> bool {
        let stages = |journey: &Map<String, Value>| journey.get("stages").and_then(Value::as_array).cloned();
        let (ours, theirs) = (stages(ours).unwrap_or_default(), stages(theirs).unwrap_or_default());
        let pairs = || ours.iter().zip(&theirs).filter_map(|(a, b)| a.as_object().zip(b.as_object()));
        let refused = |stage: &Map<String, Value>| stage.get("verdict").is_some_and(is_refusal);
        // That rules of several backends judged is seen only where all can be read.
        let unread = self.is_unreadable() && pairs().any(|(a, b)| is_nft(a) || is_nft(b));
        pairs().any(|(a, b)| (unread || self.rules_are_apart(a, b)) && (refused(a) || refused(b)))
    }

    /// Whether one of the kernels cannot read rules of nft.
    fn is_unreadable(self) -> bool {
        !(self.0.nft_types && self.1.nft_types)
    }

    /// Whether one of the kernels does not know what the other says of a table's rules: it does not describe nft's types,
    /// or has no probes to see what the other saw by them, and says so.
    fn rules_are_apart(self, ours: &Map<String, Value>, theirs: &Map<String, Value>) -> bool {
        let seen = |stage: &Map<String, Value>| {
            stage.get("rules_source").is_some_and(|source| source == "probes")
                && stage.get("exact") == Some(&Value::Bool(true))
        };
        let unknown = |stage: &Map<String, Value>| stage.get("exact") == Some(&Value::Bool(false));
        (self.is_unreadable() && (is_nft(ours) || is_nft(theirs)))
            || (seen(ours) && unknown(theirs))
            || (unknown(ours) && seen(theirs))
    }

    fn object(
        self,
        path: &str,
        ours: &Map<String, Value>,
        theirs: &Map<String, Value>,
        found: &mut Vec<String>,
    ) {
        let apart = self.rules_are_apart(ours, theirs);
        let mut keys: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let of = |side: &Map<String, Value>| side.get(key).cloned().unwrap_or_default();
            let (a, b) = (of(ours), of(theirs));
            let excused = match key.as_str() {
                "reason" => self.same_reason(&a, &b),
                "error" => self.are_reasons(&a, &b) && self.same_reason(&a, &b),
                "findings" => self.cause_is_apart(ours, theirs),
                // How a kernel lets rules be seen is its own affair.
                "rules_source" if SOURCES.contains(&a.as_str()) && SOURCES.contains(&b.as_str()) => true,
                "verdict" => apart && ((is_refusal(&a) && is_refusal(&b)) || a.is_null() || b.is_null()),
                "nat" => apart && as_rewriting(&a) == as_rewriting(&b),
                // Of a mapping that is undone where no chain is hooked, only the rule would tell.
                "backend" => apart && (a.is_null() || b.is_null()),
                key => apart && OF_RULES.contains(&key),
            };
            if !excused {
                self.value(&format!("{path} {key}"), &a, &b, found);
            }
        }
    }

    /// A route's error may be the reason of the drop, where no lookup said why.
    fn are_reasons(self, ours: &Value, theirs: &Value) -> bool {
        let is_one = |error: &Value, of: &Knows| {
            error.as_str().is_some_and(|name| is_vague(error) || of.reasons.contains(name))
        };
        is_one(ours, self.0) && is_one(theirs, self.1)
    }

    /// Whether each kernel says what it has a word for: where it has none, it gives no reason, or a vague one.
    fn same_reason(self, ours: &Value, theirs: &Value) -> bool {
        let unknown =
            |reason: &Value, to: &Knows| reason.as_str().is_some_and(|name| !to.reasons.contains(name));
        ours == theirs
            || (is_vague(ours) && unknown(theirs, self.0))
            || (is_vague(theirs) && unknown(ours, self.1))
            || (unknown(theirs, self.0) && unknown(ours, self.1))
    }
}

/// What a kernel says that has no word for a reason; `unknown` of a route that failed.
fn is_vague(reason: &Value) -> bool {
    reason.is_null() || reason == "NOT_SPECIFIED" || reason == "unknown"
}

/// Whether this is the judgement of a table of nft.
fn is_nft(stage: &Map<String, Value>) -> bool {
    stage.get("backend").is_some_and(|backend| backend == "iptables-nft" || backend == "nftables")
}

/// Items in a few words each: the places of a way, the rules of a table.
fn listed(items: &[Value]) -> String {
    let words = |item: &Value| -> String {
        let keys = ["kind", "hook", "table", "device", "direction", "chain", "position"];
        let words: Vec<String> = keys
            .iter()
            .filter_map(|key| match &item[key] {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            })
            .collect();
        if words.is_empty() { item.to_string() } else { words.join(" ") }
    };
    format!("[{}]", items.iter().map(words).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Knows, Story, between};

    fn knows(reasons: &[&str], nft_types: bool) -> Knows {
        Knows { reasons: reasons.iter().map(|name| (*name).to_owned()).collect(), nft_types }
    }

    fn story(knows: &Knows, reason: &str, backend: &str, position: u32) -> Story {
        let journey = json!({"packet": {"protocol": "tcp", "tcp_flags": "S"}, "outcome": {"reason": reason},
            "stages": [{"hook": "input", "backend": backend, "verdict": "drop", "rules": [{"position": position}]}]});
        Story { knows: knows.clone(), journeys: vec![journey] }
    }

    #[test]
    fn a_reason_that_a_kernel_has_no_name_for_is_no_difference() {
        let (old, new) = (knows(&["NOT_SPECIFIED"], true), knows(&["NOT_SPECIFIED", "NO_SOCKET"], true));
        let said = story(&new, "NO_SOCKET", "nftables", 1);
        assert_eq!(between(&said, &story(&old, "NOT_SPECIFIED", "nftables", 1)), None);
        let found = between(&said, &story(&new, "NOT_SPECIFIED", "nftables", 1)).unwrap();
        assert!(found.contains("reason: \"NO_SOCKET\" | \"NOT_SPECIFIED\""), "{found}");
    }

    #[test]
    fn only_rules_of_nft_may_differ_and_only_where_its_types_are_unknown() {
        let (old, new) = (knows(&[], false), knows(&[], true));
        for (backend, other, excused) in
            [("nftables", &old, true), ("nftables", &new, false), ("iptables-legacy", &old, false)]
        {
            let found = between(&story(&new, "A", backend, 1), &story(other, "A", backend, 2));
            assert_eq!(found.is_none(), excused, "{backend}");
        }
    }

    #[test]
    fn what_only_probes_see_may_be_unknown_elsewhere_and_not_otherwise() {
        let told = |source: &str, exact: bool, position: u32| {
            let stage = json!({"backend": "nftables", "verdict": "drop", "rules_source": source, "exact": exact,
                "rules": [{"position": position}]});
            let code = if exact { "dropped-by-rule" } else { "dropped-by-table" };
            let journey = json!({"packet": {}, "stages": [stage], "findings": [code]});
            Story { knows: knows(&[], true), journeys: vec![journey] }
        };
        let seen = told("probes", true, 2);
        assert_eq!(between(&seen, &told("counters", false, 1)), None);
        assert_eq!(between(&seen, &told("counters", true, 2)), None);
        assert!(between(&seen, &told("counters", true, 1)).is_some());
        assert!(between(&told("counters", true, 2), &told("counters", false, 1)).is_some());
    }

    #[test]
    fn a_missing_journey_is_a_difference() {
        let all = knows(&[], true);
        let none = Story { knows: all.clone(), journeys: Vec::new() };
        let found = between(&story(&all, "A", "nftables", 1), &none).unwrap();
        assert!(found.contains("only the first has it"), "{found}");
    }
}
