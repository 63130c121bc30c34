//! Tables written as text, and a simulator of what the kernel does with one. It shares nothing with the search.

use tracer_common::records::Hit;

use super::{ChainRef, Decision, Step, Verdict};
use crate::{
    model::{Backend, Hook, TableFamily},
    rules::{
        index::{BaseChain, Chain, CounterAddress, Effect, Rule, RuleCounter, TableIndex},
        probes::Probes,
    },
};

/// One chain a line: `NAME [policy]: effect, effect`. Base chains have a policy and are named after their hook; `!`
/// before the colon leaves out the counter of the chain's end. An effect ending in `?` belongs to a rule without a
/// counter, one ending in `~` to a rule whose counter does not prove the match, one ending in `!` to a rule without a
/// counter that always matches.
pub(super) fn table(text: &str) -> TableIndex {
    let lines: Vec<(&str, &str)> = text.lines().map(|l| l.split_once(':').unwrap()).collect();
    let heads: Vec<&str> = lines.iter().map(|(head, _)| *head).collect();
    let known: Vec<&str> = heads.iter().map(|h| chain_name(h)).collect();
    let mut counters = 0;
    let chains = lines.iter().map(|(head, rules)| chain(head, rules, &known, &mut counters)).collect();
    TableIndex {
        backend: Backend::IptablesLegacy,
        family: TableFamily::Ip,
        name: "filter".into(),
        chains,
        counters: (0..counters as u64).map(CounterAddress::PerCpu).collect(),
        check: None,
        probes: Probes::default(),
        offloads: false,
    }
}

fn chain_name(head: &str) -> &str {
    head.split_whitespace().next().unwrap().trim_end_matches('!')
}

fn chain(head: &str, rules: &str, known: &[&str], counters: &mut usize) -> Chain {
    let policy = head.trim_end_matches('!').split_whitespace().nth(1).map(|word| verdict(word).unwrap());
    let base =
        policy.map(|policy| BaseChain { hook: hook(chain_name(head)), priority: 0, policy, address: 1 });
    let words = rules.split(',').map(str::trim).filter(|w| !w.is_empty());
    let rules = words.enumerate().map(|(n, word)| rule(n, word, known, counters)).collect();
    let end_counter = (!head.ends_with('!')).then(|| next(counters));
    Chain { name: chain_name(head).into(), base, rules, end_counter }
}

fn rule(number: usize, word: &str, known: &[&str], counters: &mut usize) -> Rule {
    let proves_match = !word.ends_with('~');
    let unconditional = word.ends_with('!');
    let counter = (!word.ends_with(['?', '!'])).then(|| RuleCounter { index: next(counters), proves_match });
    let effect = effect(word.trim_end_matches(['?', '~', '!']), known);
    Rule { position: number as u32 + 1, handle: None, counter, unconditional, tail_may_fail: false, effect }
}

fn next(counters: &mut usize) -> usize {
    *counters += 1;
    *counters - 1
}

fn effect(word: &str, known: &[&str]) -> Effect {
    let to = |name: &str| ChainRef(known.iter().position(|k| *k == name).unwrap());
    match word.split_once(' ') {
        Some(("of", words)) => Effect::OneOf {
            target: "vmap".into(),
            effects: words.split('|').map(|word| effect(word, known)).collect(),
        },
        Some(("jump", name)) => Effect::Jump(to(name)),
        Some(("goto", name)) => Effect::Goto(to(name)),
        _ => match (word, verdict(word)) {
            ("return", _) => Effect::Return,
            ("vmap", _) => Effect::Unknown { target: "vmap".into() },
            (_, Some(verdict)) => Effect::Final { verdict, target: word.to_uppercase() },
            _ => Effect::Continue { target: Some(word.to_uppercase()) },
        },
    }
}

fn verdict(word: &str) -> Option<Verdict> {
    Some(match word {
        "accept" => Verdict::Accept,
        "drop" => Verdict::Drop,
        "reject" => Verdict::Reject,
        _ => return None,
    })
}

fn hook(chain: &str) -> Hook {
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    hooks.into_iter().find(|h| h.iptables_name().eq_ignore_ascii_case(chain)).unwrap()
}

/// The counter of `CHAIN#POSITION` or `CHAIN#end`.
pub(super) fn counter(index: &TableIndex, name: &str) -> usize {
    let (chain, rule) = name.split_once('#').unwrap();
    let chain = index.chains.iter().find(|c| c.name == chain).unwrap();
    match rule.parse::<usize>() {
        Ok(position) => chain.rules[position - 1].counter.unwrap().index,
        Err(_) => chain.end_counter.unwrap(),
    }
}

/// `CHAIN#POSITION` of each step.
pub(super) fn names(index: &TableIndex, steps: &[Step]) -> String {
    let name = |s: &Step| {
        let chain = &index.chains[s.chain.0];
        format!("{}#{}", chain.name, chain.rules[s.rule].position)
    };
    steps.iter().map(name).collect::<Vec<_>>().join(" ")
}

/// What a packet does at a rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Sight {
    /// A condition before the counter failed.
    Fails,
    /// A condition behind the counter failed.
    FailsLate,
    Matches,
    /// Matches a verdict map or a rule of unknown effect, which then does this.
    Does(Effect),
}

/// A walk as the kernel takes it.
#[derive(Debug, PartialEq)]
pub(super) struct Taken {
    pub(super) steps: Vec<Step>,
    /// What each of them did.
    pub(super) effects: Vec<Effect>,
    pub(super) decision: Decision,
    pub(super) verdict: Verdict,
    /// By counter.
    pub(super) moved: Vec<u32>,
}

impl Taken {
    pub(super) fn hits(&self) -> Vec<Hit> {
        let moved = self.moved.iter().enumerate().filter(|(_, packets)| **packets > 0);
        moved.map(|(rule, packets)| Hit { rule: rule as u32, packets: *packets }).collect()
    }
}

pub(super) struct Kernel<'a, O: FnMut(Step) -> Sight> {
    index: &'a TableIndex,
    oracle: O,
    steps: Vec<Step>,
    effects: Vec<Effect>,
    moved: Vec<u32>,
}

impl<'a, O: FnMut(Step) -> Sight> Kernel<'a, O> {
    /// Sends one packet into `base`; `oracle` says what it does at each rule that it comes to.
    pub(super) fn judge(index: &'a TableIndex, base: ChainRef, oracle: O) -> Taken {
        let moved = vec![0; index.counters.len()];
        let mut kernel = Self { index, oracle, steps: Vec::new(), effects: Vec::new(), moved };
        let chain = &index.chains[base.0];
        let (decision, verdict) = kernel.walk(base).unwrap_or_else(|| {
            kernel.count(chain.end_counter);
            (Decision::Policy, chain.base.as_ref().unwrap().policy)
        });
        Taken { steps: kernel.steps, effects: kernel.effects, decision, verdict, moved: kernel.moved }
    }

    fn count(&mut self, counter: Option<usize>) {
        if let Some(counter) = counter {
            self.moved[counter] += 1;
        }
    }

    /// `None`: back to the caller.
    fn walk(&mut self, chain: ChainRef) -> Option<(Decision, Verdict)> {
        let index = self.index;
        for (number, rule) in index.chains[chain.0].rules.iter().enumerate() {
            let step = Step { chain, rule: number };
            let sight = (self.oracle)(step);
            if sight != Sight::Fails {
                self.count(rule.counter.map(|c| c.index));
            }
            let effect = match sight {
                Sight::Fails | Sight::FailsLate => continue,
                Sight::Matches => rule.effect.clone(),
                Sight::Does(effect) => effect,
            };
            self.steps.push(step);
            self.effects.push(effect.clone());
            match effect {
                Effect::Continue { .. } | Effect::Unknown { .. } | Effect::OneOf { .. } => {}
                Effect::Final { verdict, .. } => return Some((Decision::Rule(step), verdict)),
                Effect::Jump(to) => {
                    if let Some(end) = self.walk(to) {
                        return Some(end);
                    }
                }
                Effect::Goto(to) => return self.walk(to),
                Effect::Return => return None,
            }
        }
        let end = &index.chains[chain.0];
        if end.base.is_none() {
            self.count(end.end_counter);
        }
        None
    }
}
