//! Which expression of each nft rule shows, when the kernel evaluates it for a packet, that the rule matches: a rule
//! without a counter matches unseen otherwise. Pure.

use std::collections::HashMap;

use super::{
    effect,
    index::{ChainRef, Effect, TableIndex},
    path::Step,
};
use crate::decode::{PartEvent, PartWhen};

/// `enum nft_verdicts` (include/uapi/linux/netfilter/nf_tables.h).
pub(super) const NFT_CONTINUE: i32 = -1;
pub(super) const NFT_JUMP: i32 = -3;
pub(super) const NFT_GOTO: i32 = -4;
pub(super) const NFT_RETURN: i32 = -5;

/// At which end of its evaluation an expression is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Watch {
    /// At its beginning: neither it nor anything behind it can fail, so the rule matches.
    Reached,
    /// At its end: it may give any verdict, or none (a verdict map).
    Returned,
}

/// The expression that tells of one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Address of the `struct nft_expr`: another one after each change of the chain's rules.
    pub expression: u64,
    /// Address of the function that evaluates it (`nft_expr_ops.eval`).
    pub function: u64,
    pub watch: Watch,
    /// Neither a counter nor the rule itself says whether it matches.
    pub needed: bool,
}

/// The probes of one table's rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    rules: HashMap<Step, Probe>,
    /// By address of the expression.
    steps: HashMap<u64, Step>,
    /// By address of the `struct nft_chain`.
    chains: HashMap<u64, ChainRef>,
}

impl Probes {
    /// Of these rules, in a table with these chains by address of the `struct nft_chain`. None are kept where none is
    /// needed.
    #[must_use]
    pub fn new(chains: HashMap<u64, ChainRef>, rules: Vec<(Step, Probe)>) -> Self {
        if rules.iter().all(|(_, probe)| !probe.needed) {
            return Self::default();
        }
        let steps = rules.iter().map(|(step, probe)| (probe.expression, *step)).collect();
        Self { rules: rules.into_iter().collect(), steps, chains }
    }

    /// What tells of a rule.
    #[must_use]
    pub fn of(&self, rule: Step) -> Option<Probe> {
        self.rules.get(&rule).copied()
    }

    /// The functions without which a rule's match is not seen.
    pub fn functions(&self) -> impl Iterator<Item = (Watch, u64)> {
        self.rules.values().filter(|probe| probe.needed).map(|probe| (probe.watch, probe.function))
    }

    /// Keeps those whose function is looked at.
    pub fn keep(&mut self, mut is_watched: impl FnMut(Watch, u64) -> bool) {
        self.rules.retain(|_, probe| is_watched(probe.watch, probe.function));
        let rules = &self.rules;
        self.steps.retain(|_, step| rules.contains_key(step));
    }

    /// Whether they say what counters do not.
    #[must_use]
    pub fn tell_more(&self) -> bool {
        self.rules.values().any(|probe| probe.needed)
    }

    /// Whether a rule of this table was come to.
    #[must_use]
    pub fn have_seen(&self, parts: &[PartEvent]) -> bool {
        parts.iter().any(|part| self.steps.contains_key(&part.expression))
    }

    /// What a packet did in this table, from what it did in all that it passed meanwhile; `None` where it jumped to a
    /// chain that this table does not have.
    #[must_use]
    pub fn observe(&self, parts: &[PartEvent]) -> Option<Observed<'_>> {
        let mine = parts.iter().filter_map(|part| Some((part, *self.steps.get(&part.expression)?)));
        let mut matches = Vec::new();
        for (part, step) in mine {
            let watch = self.of(step).map(|probe| probe.watch);
            match (part.when, watch) {
                (PartWhen::Reached, Some(Watch::Reached)) => matches.push(Match { step, effect: None }),
                (PartWhen::Returned { verdict, chain }, Some(Watch::Returned)) => {
                    matches.push(Match { step, effect: Some(self.effect(verdict, chain)?) });
                }
                // Its function is looked at for other expressions' sake.
                _ => {}
            }
        }
        Some(Observed { probes: self, matches })
    }

    fn effect(&self, verdict: i32, chain: u64) -> Option<Effect> {
        let chain = || self.chains.get(&chain).copied();
        Some(match verdict {
            NFT_CONTINUE => Effect::Continue { target: None },
            NFT_JUMP => Effect::Jump(chain()?),
            NFT_GOTO => Effect::Goto(chain()?),
            NFT_RETURN => Effect::Return,
            // The high half of a drop is an errno, of a queue its number (include/uapi/linux/netfilter.h).
            code => match effect::of_verdict(code & NF_VERDICT_MASK)? {
                Effect::Final { verdict, target } => {
                    Effect::Final { verdict, target: target.to_ascii_lowercase() }
                }
                other => other,
            },
        })
    }
}

/// `NF_VERDICT_MASK` (include/uapi/linux/netfilter.h).
const NF_VERDICT_MASK: i32 = 0xff;

/// A rule that a packet was seen to match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    pub step: Step,
    /// What it did, where the rule alone does not say it.
    pub effect: Option<Effect>,
}

/// The rules of a table that a packet matched, in order, as far as they are watched.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    probes: &'a Probes,
    matches: Vec<Match>,
}

impl Observed<'_> {
    /// Whether a match of this rule is seen.
    #[must_use]
    pub fn watches(&self, rule: Step) -> bool {
        self.probes.rules.contains_key(&rule)
    }

    #[must_use]
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// Whether a rule of `table`, whose probes these are, may enter a chain without being seen.
    #[must_use]
    pub fn misses_entries(&self, table: &TableIndex) -> bool {
        let enters = |effect: &Effect| match effect {
            Effect::Jump(_) | Effect::Goto(_) | Effect::OneOf { .. } | Effect::Unknown { .. } => true,
            Effect::Continue { .. } | Effect::Final { .. } | Effect::Return => false,
        };
        table.chains.iter().enumerate().any(|(chain, c)| {
            let unseen = |rule| !self.watches(Step { chain: ChainRef(chain), rule });
            c.rules.iter().enumerate().any(|(number, rule)| enters(&rule.effect) && unseen(number))
        })
    }
}
