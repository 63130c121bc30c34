//! A table dropped or rejected the packet.

use std::net::IpAddr;

use crate::model::{Backend, DecidedBy, NetfilterStage, Verdict};

use super::{
    Answer, Case, Check,
    case::decided,
    leg::Leg,
    ruleset::{Ending, TableView, Target},
    words,
};

/// A rule dropped it.
pub(super) struct DroppedByRule;

impl Check for DroppedByRule {
    fn code(&self) -> &'static str {
        "dropped-by-rule"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let found = case.judge().filter(|(leg, stage)| {
            stage.verdict == Some(Verdict::Drop)
                && !unseen_refusal(case, stage)
                && (decided(stage, DecidedBy::Rule) || unseen_rule(case, leg, stage))
        });
        found.map(|(leg, stage)| by_rule(self.code(), case, &leg, stage, "dropped")).into()
    }
}

/// Which rule decided was not seen (an nft rule without a counter), but the policy accepts: some rule it was. Not where the
/// ruleset was being changed: the policy that it has now need not be the one of then.
fn unseen_rule(case: &Case<'_>, leg: &Leg<'_>, stage: &NetfilterStage) -> bool {
    let base = case.ruleset(leg.netns).and_then(|ruleset| {
        let same = |table: &&TableView| {
            table.name == stage.table && table.family == stage.family && Some(table.backend) == stage.backend
        };
        ruleset.tables.iter().find(same)?.chain(stage.chain.as_deref()?)?.base
    });
    stage.decided_by.is_none()
        && !stage.was_being_changed()
        && base.is_some_and(|base| base.policy == Verdict::Accept)
}

/// Which rule decided was not seen, but an answer was sent, as no policy does.
fn unseen_refusal(case: &Case<'_>, stage: &NetfilterStage) -> bool {
    stage.decided_by.is_none()
        && stage.verdict == Some(Verdict::Drop)
        && case.journey.outcome.answer.is_some()
}

/// A rule rejected it and sent an answer.
pub(super) struct RejectedByRule;

impl Check for RejectedByRule {
    fn code(&self) -> &'static str {
        "rejected-by-rule"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let found = case.judge().filter(|(_, stage)| {
            unseen_refusal(case, stage)
                || (decided(stage, DecidedBy::Rule) && stage.verdict == Some(Verdict::Reject))
        });
        found.map(|(leg, stage)| by_rule(self.code(), case, &leg, stage, "rejected")).into()
    }
}

fn by_rule(
    code: &'static str,
    case: &Case<'_>,
    leg: &Leg<'_>,
    stage: &NetfilterStage,
    did: &str,
) -> crate::model::Finding {
    let what = match words::deciding_rule(stage) {
        Some(rule) => words::rule(rule),
        None => format!("a rule of chain {} that was not seen", stage.chain.as_deref().unwrap_or("?")),
    };
    let answer = match &case.journey.outcome.answer {
        Some(answer) => format!(" and answered {} with {answer}", stage.before.source),
        None => String::new(),
    };
    let summary = format!(
        "{} in table {} ({}) {did} {} at {}{answer}.",
        capital(&what),
        stage.table,
        words::backend(stage),
        words::packet(case.protocol(), stage.before),
        stage.hook.iptables_name(),
    );
    let mut evidence: Vec<String> = leg.destination_rewritten().map(words::rewriting).into_iter().collect();
    evidence.push(words::judgement(stage));
    evidence.extend(case.containers_of(stage.before));
    let member = ip_set(stage).or_else(|| nft_set(stage));
    if let Some(Member { set, address, .. }) = &member {
        evidence.push(format!("the rule asks the set {set}: {address} is in it, or should be"));
    }
    let accept = words::accept_command(case, stage, Some(stage.before.source));
    let fix = match (member, words::delete_command(case, stage)) {
        (Some(member), _) => format!("{}  # or let this one through: {accept}", member.removal),
        (None, Some(delete)) => format!("{accept}  # or, if the rule is not wanted at all: {delete}"),
        (None, None) => accept,
    };
    words::finding(code, &summary, &evidence, &fix)
}

/// An address in a set that the deciding rule asks.
struct Member<'a> {
    set: &'a str,
    address: IpAddr,
    /// The command that takes it out.
    removal: String,
}

/// The ipset, when it is a single one and asked positively.
fn ip_set(stage: &NetfilterStage) -> Option<Member<'_>> {
    let text = words::deciding_rule(stage)?.text.as_deref()?;
    let (before, after) = text.split_once("--match-set ")?;
    let set = after.split(' ').next().filter(|_| !before.trim_end().ends_with('!'))?;
    let (quoted, address) = (words::quoted(set), stage.before.source);
    Some(Member {
        set,
        address,
        removal: format!("ipset test {quoted} {address} && ipset del {quoted} {address}"),
    })
}

/// The named set of nft, when it is a single one of addresses, and asked positively.
fn nft_set(stage: &NetfilterStage) -> Option<Member<'_>> {
    let rule = words::deciding_rule(stage).filter(|_| stage.backend == Some(Backend::Nftables))?;
    let text: Vec<&str> = rule.text.as_deref()?.split(' ').collect();
    let at = text.iter().position(|word| word.starts_with('@'))?;
    let alone = text.iter().filter(|word| word.starts_with('@')).count() == 1;
    let set = text[at].strip_prefix('@').filter(|_| alone)?;
    let address = match text.get(at.checked_sub(2)?..at)? {
        ["ip" | "ip6", "saddr"] => stage.before.source,
        ["ip" | "ip6", "daddr"] => stage.before.destination,
        _ => return None,
    };
    // Part of a longer key otherwise.
    let whole = text.get(at.wrapping_sub(3)) != Some(&".");
    let element = format!(
        "{} {} {} '{{ {address} }}'",
        stage.family.name(),
        words::quoted(&stage.table),
        words::quoted(set)
    );
    let removal = format!("nft get element {element} && nft delete element {element}");
    whole.then_some(Member { set, address, removal })
}

fn capital(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

/// No rule decided, the chain's policy did.
pub(super) struct DroppedByPolicy;

impl Check for DroppedByPolicy {
    fn code(&self) -> &'static str {
        "dropped-by-policy"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some((leg, stage)) = case.judge().filter(|(_, stage)| decided(stage, DecidedBy::Policy)) else {
            return Answer::No;
        };
        let chain = stage.chain.as_deref().unwrap_or_else(|| stage.hook.iptables_name());
        let summary = format!(
            "No rule of chain {chain} in table {} ({}) decided about {}, so the chain's policy DROP dropped it at {}.",
            stage.table,
            words::backend(stage),
            words::packet(case.protocol(), stage.before),
            stage.hook.iptables_name(),
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        evidence.push(words::judgement(stage));
        evidence.extend(case.containers_of(stage.before));
        if !stage.rules.is_empty() {
            let matched: Vec<_> = stage.rules.iter().map(words::rule).collect();
            evidence.push(format!("matched on the way, without deciding: {}", matched.join(", ")));
        }
        let fix = words::accept_command(case, stage, Some(stage.before.source));
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// Two owners judge at one hook: what one accepts, the other drops.
pub(super) struct MixedBackends;

impl Check for MixedBackends {
    fn code(&self) -> &'static str {
        "mixed-backends"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &["dropped-by-rule", "dropped-by-policy", "rejected-by-rule", "forward-drop-after-dnat"]
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some((leg, judge)) = case.judge() else { return Answer::No };
        let Some(accepted) = accepted_by_other(case, &leg, judge) else { return Answer::No };
        let summary = format!(
            "Two rulesets judge at {}: {} accepts {}, but {} drops it, and both must let it through.",
            judge.hook.iptables_name(),
            accepted.backend,
            words::packet(case.protocol(), judge.before),
            words::backend(judge),
        );
        let evidence = vec![accepted.evidence, words::judgement(judge)];
        let fix = format!(
            "{}  # then keep all rules in one backend: `update-alternatives --display iptables` shows which one `iptables` writes to",
            words::accept_command(case, judge, Some(judge.before.source))
        );
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

struct Accepted {
    backend: &'static str,
    evidence: String,
}

/// Another backend that accepts by a rule: seen to do so before, or, where the packet never got there, its
/// rules say so for certain. An accepting policy is nobody's decision.
fn accepted_by_other(case: &Case<'_>, leg: &Leg<'_>, judge: &NetfilterStage) -> Option<Accepted> {
    let owner = judge.backend?;
    let seen = leg.netfilter().find(|stage| {
        stage.hook == judge.hook
            && stage.backend.is_some_and(|backend| backend != owner)
            && stage.verdict == Some(Verdict::Accept)
            && stage.decided_by == Some(DecidedBy::Rule)
            && stage.table != "nat"
    });
    if let Some(stage) = seen {
        return Some(Accepted { backend: words::backend(stage), evidence: words::judgement(stage) });
    }
    let question =
        case.question(leg, judge.before, leg.is_local(judge.before.destination, case.network(leg.netns)));
    case.ruleset(leg.netns)?.base_chains(judge.hook, case.is_ipv6()).find_map(|(table, chain)| {
        let seen: Vec<_> = leg
            .netfilter()
            .filter(|stage| stage.hook == judge.hook && stage.backend == Some(table.backend))
            .collect();
        // It may have let the packet pass where this kernel tells nothing of its rules.
        let passed = seen.iter().any(|stage| stage.verdict == Some(Verdict::Accept));
        let decided = seen.iter().any(|stage| stage.decided_by.is_some());
        let walk = table.walk(chain, &question).filter(|walk| {
            table.backend != owner && !decided && !walk.may_drop && walk.ending.verdict() == Verdict::Accept
        })?;
        let Ending::Rule { chain, rule, .. } = walk.ending else { return None };
        let backend = table.backend.name();
        (rule.facts.target == Target::Accept).then(|| Accepted {
            backend,
            evidence: format!(
                "{}: table {} ({backend}) {} by rule {} of {} (`{}`)",
                judge.hook.iptables_name(),
                table.name,
                if passed { "let it pass, which its rules do" } else { "comes later and would accept it" },
                rule.position,
                chain.name,
                rule.text
            ),
        })
    })
}
