//! A walk in the terms that people read: rules with their text and action, and what a NAT rule did.

use super::{
    index::{ChainRef, Effect, TableIndex},
    path::{Decision, Step, Walk},
    text::Texts,
};
use crate::model::{Backend, Hook, MatchedRule, NatKind};

/// The rules of a walk, in order. `walk` must be one of `table`'s.
#[must_use]
pub fn matched_rules(table: &TableIndex, walk: &Walk, texts: &Texts) -> Vec<MatchedRule> {
    walk.steps.iter().map(|step| matched_rule(table, *step, texts)).collect()
}

/// One rule of `table`, also for a mapping that it made.
#[must_use]
pub fn matched_rule(table: &TableIndex, step: Step, texts: &Texts) -> MatchedRule {
    let chain = &table.chains[step.chain.0];
    let rule = &chain.rules[step.rule];
    let text = texts.of(table, step);
    MatchedRule {
        chain: chain.name.clone(),
        position: rule.position,
        handle: rule.handle,
        text: text.map(str::to_owned),
        action: action(table, &rule.effect, text),
    }
}

fn action(table: &TableIndex, effect: &Effect, text: Option<&str>) -> Option<String> {
    let name = |chain: &ChainRef| &table.chains[chain.0].name;
    match effect {
        Effect::Jump(to) => Some(format!("jump {}", name(to))),
        Effect::Goto(to) => Some(format!("goto {}", name(to))),
        Effect::Return if table.backend == Backend::Nftables => Some("return".into()),
        Effect::Return => Some("RETURN".into()),
        Effect::Continue { target } => target.clone(),
        Effect::Final { target, .. } | Effect::OneOf { target, .. } | Effect::Unknown { target } => {
            Some(statement(target, text).to_owned())
        }
    }
}

/// nft's own word for a translation, where the kernel's name of the expression is another.
fn statement<'a>(target: &'a str, text: Option<&str>) -> &'a str {
    let says = |word| text.is_some_and(|text| text.split(' ').any(|w| w == word));
    match target {
        "masq" => "masquerade",
        "redir" => "redirect",
        "nat" if says("dnat") => "dnat",
        "nat" if says("snat") => "snat",
        _ => target,
    }
}

/// The rewriting that the deciding rule asked for; `None` when a policy decided, or the rule translates nothing.
#[must_use]
pub fn nat_kind(table: &TableIndex, hook: Hook, walk: &Walk) -> Option<NatKind> {
    let Some(Decision::Rule(step)) = walk.decision else { return None };
    let (Effect::Final { target, .. }
    | Effect::OneOf { target, .. }
    | Effect::Unknown { target }
    | Effect::Continue { target: Some(target) }) = &table.chains[step.chain.0].rules[step.rule].effect
    else {
        return None;
    };
    match target.to_ascii_uppercase().as_str() {
        "DNAT" => Some(NatKind::Dnat),
        "SNAT" => Some(NatKind::Snat),
        "MASQUERADE" | "MASQ" => Some(NatKind::Masquerade),
        "REDIRECT" | "REDIR" => Some(NatKind::Redirect),
        // These translate whichever end their hook is for.
        "NETMAP" | "NAT" => match hook {
            Hook::Prerouting | Hook::Output => Some(NatKind::Dnat),
            Hook::Postrouting | Hook::Input => Some(NatKind::Snat),
            Hook::Forward | Hook::Ingress | Hook::Egress => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{TableFamily, Verdict},
        rules::{
            index::{Chain, Rule},
            probes::Probes,
        },
    };

    fn rule(position: u32, effect: Effect) -> Rule {
        Rule { position, handle: None, counter: None, unconditional: false, tail_may_fail: false, effect }
    }

    fn table(backend: Backend, effects: Vec<Effect>) -> TableIndex {
        let rules = effects.into_iter().zip(1..).map(|(effect, position)| rule(position, effect)).collect();
        let chain = |name: &str, rules| Chain { name: name.into(), base: None, rules, end_counter: None };
        TableIndex {
            backend,
            family: TableFamily::Ip,
            name: "nat".into(),
            chains: vec![chain("PREROUTING", rules), chain("DOCKER", Vec::new())],
            counters: Vec::new(),
            check: None,
            probes: Probes::default(),
            offloads: false,
        }
    }

    fn decided_by(rule: usize) -> Walk {
        let step = Step { chain: ChainRef(0), rule };
        Walk { steps: vec![step], decision: Some(Decision::Rule(step)), verdict: None, inexact: None }
    }

    fn finish(target: &str) -> Effect {
        Effect::Final { verdict: Verdict::Accept, target: target.into() }
    }

    #[test]
    fn actions_use_the_terms_of_the_field() {
        let effects = vec![
            Effect::Jump(ChainRef(1)),
            Effect::Goto(ChainRef(1)),
            Effect::Return,
            finish("DNAT"),
            Effect::Continue { target: Some("LOG".into()) },
            Effect::Continue { target: None },
            Effect::Unknown { target: "vmap".into() },
        ];
        let steps = (0..effects.len()).map(|rule| Step { chain: ChainRef(0), rule }).collect();
        let walk = Walk { steps, decision: None, verdict: None, inexact: None };
        let legacy =
            matched_rules(&table(Backend::IptablesLegacy, effects.clone()), &walk, &Texts::default());
        let actions: Vec<_> = legacy.iter().map(|r| r.action.as_deref().unwrap_or("-")).collect();
        assert_eq!(actions, ["jump DOCKER", "goto DOCKER", "RETURN", "DNAT", "LOG", "-", "vmap"]);
        assert_eq!((legacy[3].chain.as_str(), legacy[3].position, &legacy[3].text), ("PREROUTING", 4, &None));
        let nft = matched_rules(&table(Backend::Nftables, effects), &walk, &Texts::default());
        assert_eq!(nft[2].action.as_deref(), Some("return"));
    }

    #[test]
    fn translations_of_nft_have_nfts_words() {
        assert_eq!(statement("masq", None), "masquerade");
        assert_eq!(statement("nat", Some("tcp dport 80 dnat to 10.0.0.2:8080")), "dnat");
        assert_eq!(statement("nat", Some("oifname \"eth1\" snat to 1.2.3.4")), "snat");
        assert_eq!(statement("nat", None), "nat");
        assert_eq!(statement("DNAT", None), "DNAT");
    }

    #[test]
    fn nat_comes_from_the_deciding_rule() {
        let kinds =
            |target, hook| nat_kind(&table(Backend::IptablesNft, vec![finish(target)]), hook, &decided_by(0));
        assert_eq!(kinds("DNAT", Hook::Prerouting), Some(NatKind::Dnat));
        assert_eq!(kinds("masquerade", Hook::Postrouting), Some(NatKind::Masquerade));
        assert_eq!(kinds("REDIRECT", Hook::Output), Some(NatKind::Redirect));
        assert_eq!(kinds("NETMAP", Hook::Postrouting), Some(NatKind::Snat));
        assert_eq!(kinds("TPROXY", Hook::Prerouting), None);
        assert_eq!(kinds("ACCEPT", Hook::Prerouting), None);
    }

    #[test]
    fn a_policy_translates_nothing() {
        let walk = Walk { decision: Some(Decision::Policy), ..decided_by(0) };
        assert_eq!(
            nat_kind(&table(Backend::IptablesNft, vec![finish("DNAT")]), Hook::Prerouting, &walk),
            None
        );
    }
}
