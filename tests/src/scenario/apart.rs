//! What is not expected of a kernel that does not describe nftables' types: which rule of nft judged, and whether a rule or
//! the policy did; so what was found of a drop by nft, too. Tables, verdicts and translations are expected all the same, a
//! REJECT as the drop that it is. Of a packet in a queue it is not expected which queue that is.

use serde_json::Value;

use crate::{machine, ruleset::Backend};

/// Keys of a stage that say which rule judged.
pub(crate) const OF_RULES: [&str; 6] =
    ["rules", "rules_source", "decided_by", "exact", "inexact_because", "mapping_rule"];

/// What this kernel can say of a journey that other kernels tell as `pattern`: it may have no words for drop reasons, and
/// not describe nftables' types. `backend` is that of stages that do not name theirs.
#[must_use]
pub fn told_here(mut pattern: Value, backend: Backend) -> Value {
    if !machine::has_nft_types() {
        without_nft_rules(&mut pattern, backend);
    }
    let named = |reason: &Value| reason.as_str().is_some_and(|name| name.starts_with(char::is_uppercase));
    if let Some(reason) = pattern.pointer_mut("/outcome/reason").filter(|reason| named(reason)) {
        *reason = machine::drop_reason(reason.as_str().unwrap_or_default()).into();
    }
    pattern
}

/// Takes the rules of nft out of a journey's pattern; `backend` is that of stages that do not name theirs.
pub(super) fn without_nft_rules(pattern: &mut Value, backend: Backend) {
    let (mut refused, mut queued) = (false, false);
    // Whether the last of them or what came behind it dropped the packet, its rules would tell.
    let died = pattern["outcome"]["result"] == "dropped";
    let last = pattern.get_mut("stages").and_then(Value::as_array_mut).and_then(|stages| stages.last_mut());
    if let Some(stage) = last.filter(|stage| died && is_nft(stage, backend) && stage["verdict"] == "accept") {
        stage.as_object_mut().map(|stage| stage.remove("verdict"));
    }
    for list in ["stages", "no_stages"] {
        let stages = pattern.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for stage in stages.filter(|stage| is_nft(stage, backend)).filter_map(Value::as_object_mut) {
            stage.retain(|key, _| !OF_RULES.contains(&key.as_str()));
            if let Some(nat) = stage.get_mut("nat") {
                *nat = as_rewriting(nat);
            }
            queued |= list == "stages" && stage.get("verdict").is_some_and(|verdict| verdict == "queue");
            if let Some(verdict) = stage.get_mut("verdict").filter(|verdict| is_refusal(verdict)) {
                *verdict = "drop".into();
                refused |= list == "stages";
            }
        }
    }
    if let Some(keys) = pattern.as_object_mut().filter(|_| refused) {
        keys.remove("findings");
    }
    let found = pattern.get_mut("findings").and_then(Value::as_array_mut).into_iter().flatten();
    for finding in found.filter(|_| queued).filter_map(Value::as_object_mut) {
        finding.remove("summary");
    }
}

/// What an address that was rewritten tells of the rule that did it.
pub(crate) fn as_rewriting(nat: &Value) -> Value {
    match nat.as_str() {
        Some("masquerade") => "snat".into(),
        Some("redirect") => "dnat".into(),
        _ => nat.clone(),
    }
}

/// A REJECT is a drop with an answer; only the rule tells the two apart.
pub(crate) fn is_refusal(verdict: &Value) -> bool {
    verdict == "drop" || verdict == "reject"
}

fn is_nft(stage: &Value, backend: Backend) -> bool {
    match stage["backend"].as_str() {
        Some(named) => named != Backend::Legacy.name(),
        None => backend == Backend::Nft,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Backend, without_nft_rules};

    #[test]
    fn only_rules_of_nft_are_taken_out() {
        let mut pattern = json!({"findings": ["dropped-by-rule"], "stages": [
            {"hook": "input", "verdict": "reject", "exact": true, "rules": []},
            {"hook": "input", "backend": "iptables-legacy", "rules": []}]});
        without_nft_rules(&mut pattern, Backend::Nft);
        let expected = json!({"stages": [
            {"hook": "input", "verdict": "drop"}, {"hook": "input", "backend": "iptables-legacy", "rules": []}]});
        assert_eq!(pattern, expected);
    }

    #[test]
    fn which_queue_only_the_rule_tells() {
        let queued = json!({"hook": "forward", "verdict": "queue"});
        let finding = json!({"code": "dropped-by-kernel", "summary": "~queue 3", "fix": "~bypass"});
        let mut pattern = json!({"findings": [finding], "stages": [queued]});
        without_nft_rules(&mut pattern, Backend::Nft);
        let less = json!({"code": "dropped-by-kernel", "fix": "~bypass"});
        assert_eq!(pattern, json!({"findings": [less], "stages": [queued]}));
    }
}
