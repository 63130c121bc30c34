//! A passage in terms of the ruleset's index: accepted only if it is a legal walk to its last step.

use super::{NftStepKind, NftVerdict, Passage};
use crate::{
    model::Verdict,
    rules::{
        index::{ChainRef, Effect, Rule, TableIndex},
        path::{Decision, Step, Walk},
    },
};

/// The walk from `base` that a passage tells; `None` for one that this ruleset does not allow, as when it was
/// replaced meanwhile or a step is missing.
#[must_use]
pub fn told(index: &TableIndex, base: ChainRef, passage: &Passage) -> Option<Walk> {
    let mut walker = Walker { index, frames: vec![Frame { chain: base, next: 0 }], steps: Vec::new() };
    let mut steps = passage.steps.iter();
    let (decision, verdict) = loop {
        let (chain, kind) = steps.next()?;
        let end = match kind {
            NftStepKind::Rule { handle, verdict } => walker.rule(chain, *handle, verdict)?,
            NftStepKind::Return => walker.fall_off(chain)?,
            NftStepKind::Policy { verdict } => Some(walker.policy(base, (*verdict)?)?),
        };
        if let Some(end) = end {
            break end;
        }
    };
    // What stands behind the end belongs to another packet.
    steps.next().is_none().then_some(Walk {
        steps: walker.steps,
        decision: Some(decision),
        verdict: Some(verdict),
        inexact: None,
    })
}

struct Frame {
    chain: ChainRef,
    next: usize,
}

struct Walker<'a> {
    index: &'a TableIndex,
    /// The base chain's, and one for each jump.
    frames: Vec<Frame>,
    steps: Vec<Step>,
}

type End = Option<(Decision, Verdict)>;

impl Walker<'_> {
    /// A rule that matched to its end.
    fn rule(&mut self, chain: &str, handle: u64, verdict: &NftVerdict) -> Option<End> {
        let index = self.index;
        let frame = self.frames.last_mut()?;
        let (here, known) = (frame.chain, index.chains.get(frame.chain.0)?);
        let number = known.rules.iter().position(|rule| rule.handle == Some(handle))?;
        let passed = known.rules.get(frame.next..number)?;
        if known.name != chain || passed.iter().any(must_match) {
            return None;
        }
        frame.next = number + 1;
        let step = Step { chain: here, rule: number };
        self.steps.push(step);
        self.follow(step, &known.rules[number].effect, verdict)
    }

    /// What the rule did, if it is among what the rule can do.
    fn follow(&mut self, step: Step, effect: &Effect, verdict: &NftVerdict) -> Option<End> {
        let any = matches!(effect, Effect::Unknown { .. });
        match verdict {
            NftVerdict::Continue if any || matches!(effect, Effect::Continue { .. }) => Some(None),
            NftVerdict::Jump(name) => {
                let chain = self.chain(name).filter(|to| any || *effect == Effect::Jump(*to))?;
                self.frames.push(Frame { chain, next: 0 });
                Some(None)
            }
            NftVerdict::Goto(name) => {
                let chain = self.chain(name).filter(|to| any || *effect == Effect::Goto(*to))?;
                *self.frames.last_mut()? = Frame { chain, next: 0 };
                Some(None)
            }
            NftVerdict::Return if any || *effect == Effect::Return => {
                self.leave();
                Some(None)
            }
            NftVerdict::Final(given) => Some(Some((Decision::Rule(step), decided(effect, *given)?))),
            NftVerdict::Continue | NftVerdict::Return | NftVerdict::Other(_) => None,
        }
    }

    /// The end of a chain. That of a base chain may be told like this, too, before its policy is.
    fn fall_off(&mut self, chain: &str) -> Option<End> {
        self.at_end(chain)?;
        if self.frames.len() > 1 {
            self.leave();
        }
        Some(None)
    }

    fn policy(&self, base: ChainRef, verdict: Verdict) -> Option<(Decision, Verdict)> {
        let chain = &self.index.chains.get(base.0)?;
        let frame = match self.frames.as_slice() {
            // A rule of the base chain, or of one that it went to, said `return`.
            [] => None,
            [only] => Some(only),
            _ => return None,
        };
        let rest =
            frame.map_or(Some([].as_slice()), |f| self.index.chains.get(f.chain.0)?.rules.get(f.next..))?;
        let policy = chain.base.as_ref()?.policy;
        (policy == verdict && !rest.iter().any(must_match)).then_some((Decision::Policy, verdict))
    }

    /// Whether the packet can have come to the end of the chain that it is in.
    fn at_end(&self, chain: &str) -> Option<()> {
        let frame = self.frames.last()?;
        let known = self.index.chains.get(frame.chain.0)?;
        let rest = known.rules.get(frame.next..)?;
        (known.name == chain && !rest.iter().any(must_match)).then_some(())
    }

    fn leave(&mut self) {
        self.frames.pop();
    }

    fn chain(&self, name: &str) -> Option<ChainRef> {
        self.index.chains.iter().position(|chain| chain.name == name).map(ChainRef)
    }
}

/// A packet that comes to this rule is told of.
fn must_match(rule: &Rule) -> bool {
    rule.unconditional && !rule.tail_may_fail
}

/// To the kernel a REJECT is a DROP.
fn decided(effect: &Effect, given: Verdict) -> Option<Verdict> {
    match effect {
        Effect::Unknown { .. } => Some(given),
        Effect::Final { verdict, .. } if *verdict == given => Some(given),
        Effect::Final { verdict: Verdict::Reject, .. } if given == Verdict::Drop => Some(Verdict::Reject),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Backend, Hook, TableFamily},
        rules::{
            index::{BaseChain, Chain},
            probes::Probes,
        },
    };

    fn chain(name: &str, policy: Option<Verdict>, effects: &[(u64, bool, Effect)]) -> Chain {
        let rule = |(position, (handle, unconditional, effect)): (u32, &(u64, bool, Effect))| Rule {
            position,
            handle: Some(*handle),
            counter: None,
            unconditional: *unconditional,
            tail_may_fail: false,
            effect: effect.clone(),
        };
        let base = policy.map(|policy| BaseChain { hook: Hook::Input, priority: 0, policy, address: 1 });
        Chain { name: name.into(), base, rules: (1..).zip(effects).map(rule).collect(), end_counter: None }
    }

    fn table() -> TableIndex {
        let accept = Effect::Final { verdict: Verdict::Accept, target: "accept".into() };
        let reject = Effect::Final { verdict: Verdict::Reject, target: "reject".into() };
        let vmap = Effect::Unknown { target: "vmap".into() };
        let input = [
            (10, false, Effect::Continue { target: None }),
            (11, false, Effect::Jump(ChainRef(1))),
            (12, false, Effect::Goto(ChainRef(2))),
            (13, false, vmap),
            (14, false, reject),
        ];
        let user = [(20, false, accept.clone()), (21, true, Effect::Return)];
        TableIndex {
            backend: Backend::Nftables,
            family: TableFamily::Inet,
            name: "fw".into(),
            chains: vec![
                chain("in", Some(Verdict::Drop), &input),
                chain("user", None, &user),
                chain("tail", None, &[(30, false, accept)]),
            ],
            counters: Vec::new(),
            check: None,
            probes: Probes::default(),
            offloads: false,
        }
    }

    fn rule(chain: &str, handle: u64, verdict: NftVerdict) -> (String, NftStepKind) {
        (chain.to_owned(), NftStepKind::Rule { handle, verdict })
    }

    fn policy(verdict: Verdict) -> (String, NftStepKind) {
        ("in".to_owned(), NftStepKind::Policy { verdict: Some(verdict) })
    }

    fn walk(steps: Vec<(String, NftStepKind)>) -> Option<(Vec<(usize, usize)>, Verdict)> {
        let walk = told(&table(), ChainRef(0), &Passage { steps, heard: 0 })?;
        Some((walk.steps.iter().map(|step| (step.chain.0, step.rule)).collect(), walk.verdict?))
    }

    #[test]
    fn a_walk_through_jump_return_and_reject() {
        let reject = NftVerdict::Final(Verdict::Drop);
        let steps = vec![
            rule("in", 10, NftVerdict::Continue),
            rule("in", 11, NftVerdict::Jump("user".into())),
            rule("user", 21, NftVerdict::Return),
            rule("in", 14, reject),
        ];
        let found = (vec![(0, 0), (0, 1), (1, 1), (0, 4)], Verdict::Reject);
        assert_eq!(walk(steps), Some(found));
    }

    #[test]
    fn goto_does_not_come_back_and_the_policy_decides() {
        let end = ("tail".to_owned(), NftStepKind::Return);
        for told_end in [vec![], vec![end]] {
            let steps = [
                vec![rule("in", 12, NftVerdict::Goto("tail".into()))],
                told_end,
                vec![policy(Verdict::Drop)],
            ];
            assert_eq!(walk(steps.concat()), Some((vec![(0, 2)], Verdict::Drop)));
        }
        let back = vec![
            rule("in", 12, NftVerdict::Goto("tail".into())),
            rule("in", 14, NftVerdict::Final(Verdict::Drop)),
        ];
        assert_eq!(walk(back), None);
    }

    #[test]
    fn a_verdict_map_may_do_anything() {
        let jump = vec![
            rule("in", 13, NftVerdict::Jump("tail".into())),
            rule("tail", 30, NftVerdict::Final(Verdict::Accept)),
        ];
        assert_eq!(walk(jump), Some((vec![(0, 3), (2, 0)], Verdict::Accept)));
        let drop = vec![rule("in", 13, NftVerdict::Final(Verdict::Drop))];
        assert_eq!(walk(drop), Some((vec![(0, 3)], Verdict::Drop)));
    }

    #[test]
    fn what_the_ruleset_does_not_allow_is_not_believed() {
        let user = || rule("in", 11, NftVerdict::Jump("user".into()));
        let illegal = [
            vec![rule("in", 99, NftVerdict::Continue), policy(Verdict::Drop)],
            vec![policy(Verdict::Accept)],
            vec![rule("in", 14, NftVerdict::Final(Verdict::Accept))],
            vec![user(), policy(Verdict::Drop)],
            // user's second rule matches everything.
            vec![user(), ("user".to_owned(), NftStepKind::Return), policy(Verdict::Drop)],
            vec![user(), rule("in", 21, NftVerdict::Return), policy(Verdict::Drop)],
            vec![rule("in", 11, NftVerdict::Continue), policy(Verdict::Drop)],
            vec![user(), rule("user", 20, NftVerdict::Final(Verdict::Accept)), policy(Verdict::Drop)],
            vec![rule("in", 10, NftVerdict::Continue)],
            vec![],
        ];
        for steps in illegal {
            assert_eq!(walk(steps.clone()), None, "{steps:?}");
        }
    }
}
