//! What a rule's expressions come to: which counter it has, what the counter proves, and what the rule does.

use std::rc::Rc;

use super::{
    deciding::{Deciding, Expression},
    expression::{Part, RuleEffect},
};
use crate::rules::{index::Effect, probes::Watch};

/// Hands the packet's connection to a flow table.
pub(super) const FLOW_OFFLOAD: &str = "flow_offload";
/// Types that may fail and yet ask nothing of the packet, but act on it. That one fails (a set that is full, a connection that is
/// not established yet) matters to what stands behind it in the rule alone (`nft_dynset_eval`, `nft_flow_offload_eval`, 6.12).
const ACTS: &[&str] = &["dynset", FLOW_OFFLOAD];
/// Types that get ready what such a type is to act with.
const GET_READY: &[&str] = &["bitwise", "byteorder", "ct", "hash", "immediate", "meta", "numgen", "payload"];

/// One expression of a rule.
pub(super) struct Evaluated {
    pub(super) expression: Expression,
    pub(super) type_name: Rc<str>,
    pub(super) part: Part,
}

impl Evaluated {
    fn may_fail(&self) -> bool {
        matches!(self.part, Part::MayFail | Part::Mystery(_))
    }

    /// A setter is of the same type as its getter, and cannot fail.
    fn gets_ready(&self) -> bool {
        let sets = self.part != Part::MayFail && matches!(&*self.type_name, "ct" | "meta");
        !sets && GET_READY.contains(&&*self.type_name)
    }
}

/// What is known of one rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RuleFacts {
    pub(super) handle: u64,
    /// Per-CPU address of the packet counter, and whether nothing that can fail stands behind it, but for the tail.
    pub(super) counter: Option<(u64, bool)>,
    pub(super) effect: RuleEffect,
    /// No expression can fail, but for the tail.
    pub(super) unconditional: bool,
    /// The last expression may fail, and is one of [`ACTS`].
    pub(super) tail_may_fail: bool,
    /// Types of its expressions, in order.
    pub(super) expressions: Vec<Rc<str>>,
    /// The expression that shows a match.
    pub(super) deciding: Option<(Expression, Watch)>,
}

impl RuleFacts {
    /// The rule of these expressions.
    pub(super) fn of(handle: u64, mut all: Vec<Evaluated>) -> Self {
        let acts = |last: &&mut Evaluated| last.part == Part::MayFail && ACTS.contains(&&*last.type_name);
        let tail = all.last_mut().filter(acts).map(|last| last.part = Part::GoesOn);
        let mut deciding = Deciding::default();
        all.iter().for_each(|one| deciding.see(one.expression, &one.type_name, &one.part));
        Self {
            handle,
            counter: counter(&all, tail.is_some()),
            unconditional: !all.iter().any(Evaluated::may_fail),
            tail_may_fail: tail.is_some(),
            expressions: all.iter().map(|one| one.type_name.clone()).collect(),
            deciding: deciding.found(),
            effect: effect(all),
        }
    }
}

/// The last counter proves most: that all before it matched, and all behind it, if nothing there can fail.
fn counter(all: &[Evaluated], tail: bool) -> Option<(u64, bool)> {
    let at = |one: &Evaluated| if let Part::Counter(address) = one.part { Some(address) } else { None };
    let (number, address) = all.iter().enumerate().rev().find_map(|(n, one)| Some((n, at(one)?)))?;
    let behind = &all[number + 1..];
    let (_, before_tail) = behind.split_last().filter(|_| tail).unzip();
    let only_tail = before_tail.is_some_and(|rest: &[Evaluated]| rest.iter().all(Evaluated::gets_ready));
    Some((address, only_tail || !behind.iter().any(Evaluated::may_fail)))
}

/// The first that ends the rule's evaluation says what it does, else the last that is worth naming.
fn effect(all: Vec<Evaluated>) -> RuleEffect {
    let mut named = None;
    for one in all {
        match one.part {
            Part::Effect(effect) => return effect,
            Part::Mystery(name) => return RuleEffect::Known(Effect::Unknown { target: name }),
            Part::Action(name) => named = Some(name),
            Part::Counter(_) | Part::GoesOn | Part::MayFail => {}
        }
    }
    RuleEffect::Known(Effect::Continue { target: named })
}
