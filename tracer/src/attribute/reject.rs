//! A packet that a REJECT rule dropped is rejected, with the answer that was seen, or that the rule says.

use crate::model::{Family, Journey, OutcomeKind, StageKind, Verdict};

/// Makes the outcome of a journey that died in a rule with a REJECT verdict `rejected`.
pub(super) fn complete(journey: &mut Journey) {
    if journey.outcome.result != OutcomeKind::Dropped {
        return;
    }
    let Some(stage) = journey.outcome.stage.and_then(|stage| journey.stages.get(stage)) else { return };
    let StageKind::Netfilter(stage) = &stage.kind else { return };
    if stage.verdict != Some(Verdict::Reject) {
        return;
    }
    let text = stage.rules.last().and_then(|rule| rule.text.as_deref());
    let answer = text.and_then(|text| answer_of_rule(text, journey.packet.family));
    journey.outcome.result = OutcomeKind::Rejected;
    if let Some(answer) = answer {
        journey.notes.push(format!("the answer was not seen leaving: {answer} is what the rule says"));
        journey.outcome.answer = Some(answer);
    }
}

/// What a rule answers with, from its text: `--reject-with X` (with iptables's default), `reject with ...` of nft.
fn answer_of_rule(text: &str, family: Family) -> Option<String> {
    let mut words = text.split_whitespace();
    if text.starts_with("-A ") {
        return words
            .by_ref()
            .skip_while(|word| *word != "--reject-with")
            .nth(1)
            .map(str::to_owned)
            .or_else(|| Some(default_answer(family).to_owned()));
    }
    words.by_ref().find(|word| *word == "reject")?;
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("with"), Some("tcp"), Some("reset"), _) => Some("tcp-reset".to_owned()),
        (Some("with"), Some("icmp" | "icmpx"), Some("type"), Some(kind))
        | (Some("with"), Some("icmp" | "icmpx"), Some(kind), _) => Some(format!("icmp-{kind}")),
        (Some("with"), Some("icmpv6"), Some("type"), Some(kind))
        | (Some("with"), Some("icmpv6"), Some(kind), _) => Some(format!("icmp6-{kind}")),
        _ => Some(default_answer(family).to_owned()),
    }
}

fn default_answer(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "icmp-port-unreachable",
        Family::Ipv6 => "icmp6-port-unreachable",
    }
}
