//! What a chain would do to a packet, as far as its rules are understood. Used to ask "could any rule accept
//! this?", never to say what happened to a packet that was seen.

use crate::model::Verdict;

use super::{ChainView, Maybe, Placed, Question, RuleView, TableView, Target};

/// How a walk ends for certain, when no rule that is only possible ends it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending<'a> {
    Rule { chain: &'a ChainView, rule: &'a RuleView, verdict: Verdict },
    Policy { chain: &'a ChainView, verdict: Verdict },
}

impl Ending<'_> {
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Rule { verdict, .. } | Self::Policy { verdict, .. } => *verdict,
        }
    }
}

/// A walk's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk<'a> {
    pub ending: Ending<'a>,
    /// A rule on the way may accept, on a condition that is not known.
    pub may_accept: bool,
    /// A rule on the way may drop or reject.
    pub may_drop: bool,
}

/// The kernel allows 16 jumps deep (`NFT_JUMP_STACK_SIZE`, include/net/netfilter/nf_tables.h); loops are refused.
const DEEPEST: usize = 16;

enum Left<'a> {
    Ended(&'a ChainView, &'a RuleView, Verdict),
    /// Fell off the end or returned.
    Back,
}

impl TableView {
    /// Walks from a base chain; `None` for a chain that is none.
    #[must_use]
    pub fn walk<'a>(&'a self, from: &'a ChainView, question: &Question<'_>) -> Option<Walk<'a>> {
        let policy = from.base?.policy;
        let mut walk = Walk {
            ending: Ending::Policy { chain: from, verdict: policy },
            may_accept: false,
            may_drop: false,
        };
        if let Left::Ended(chain, rule, verdict) = self.walk_chain(from, question, true, 0, &mut walk) {
            walk.ending = Ending::Rule { chain, rule, verdict };
        }
        Some(walk)
    }

    /// Every rule that may match the packet on some way from `from` on.
    #[must_use]
    pub fn possible<'a>(&'a self, from: &'a ChainView, question: &Question<'_>) -> Vec<Placed<'a>> {
        let mut found = Vec::new();
        self.collect_possible(from, question, 0, &mut found);
        found
    }

    /// True when the packet goes no further than this chain, for certain.
    fn collect_possible<'a>(
        &'a self,
        chain: &'a ChainView,
        question: &Question<'_>,
        depth: usize,
        found: &mut Vec<Placed<'a>>,
    ) -> bool {
        for rule in &chain.rules {
            let matches = rule.facts.matches(question);
            if matches == Maybe::No {
                continue;
            }
            found.push(Placed { table: self, chain, rule });
            let sure = matches == Maybe::Yes;
            let ends = match &rule.facts.target {
                Target::Continue | Target::Unknown => false,
                Target::Jump(to) | Target::Goto(to) => self
                    .chain(to)
                    .filter(|_| depth < DEEPEST)
                    .is_some_and(|next| self.collect_possible(next, question, depth + 1, found)),
                Target::Return if sure => return false,
                _ => true,
            };
            if sure && ends {
                return true;
            }
        }
        false
    }

    /// `certain`: this chain is reached for certain.
    fn walk_chain<'a>(
        &'a self,
        chain: &'a ChainView,
        question: &Question<'_>,
        certain: bool,
        depth: usize,
        walk: &mut Walk<'a>,
    ) -> Left<'a> {
        for rule in &chain.rules {
            let sure = match rule.facts.matches(question) {
                Maybe::No => continue,
                Maybe::Yes => certain,
                Maybe::Unknown => false,
            };
            match &rule.facts.target {
                Target::Accept => match sure {
                    true => return Left::Ended(chain, rule, Verdict::Accept),
                    false => walk.may_accept = true,
                },
                Target::Drop | Target::Reject if sure => {
                    let rejects = rule.facts.target == Target::Reject;
                    let verdict = if rejects { Verdict::Reject } else { Verdict::Drop };
                    return Left::Ended(chain, rule, verdict);
                }
                Target::Drop | Target::Reject => walk.may_drop = true,
                Target::Return if sure => return Left::Back,
                Target::Jump(to) | Target::Goto(to) => {
                    let next = self.chain(to).filter(|_| depth < DEEPEST);
                    let left = next.map(|next| self.walk_chain(next, question, sure, depth + 1, walk));
                    if let Some(ended @ Left::Ended(..)) = left {
                        return ended;
                    }
                    if sure && matches!(rule.facts.target, Target::Goto(_)) {
                        return Left::Back;
                    }
                }
                Target::Unknown => (walk.may_accept, walk.may_drop) = (true, true),
                _ => {}
            }
        }
        Left::Back
    }
}
