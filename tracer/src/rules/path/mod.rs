//! From moved counters to the walk: which rules of a table matched, in order, and what decided.
//!
//! A packet's walk through a table is decided by which rules match. Every rule's counter says how often it matched
//! while the table judged the packet, not when: a chain can be entered several times in one walk. So all walks that
//! the ruleset's structure permits are searched, and a walk is exact only when it alone explains every moved counter
//! to the last packet, and nothing that leaves no trace could have changed it.
//!
//! What "explains" means: if the counters themselves are wrong in a way that still forms a legal walk, that walk is
//! found. The record's flags are there to say that the counters are not to be trusted.

mod reach;
mod search;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;

use tracer_common::records::{
    HITS_CPU_CHANGED, HITS_INTERLEAVED, HITS_OVERWRITTEN, HITS_STALE, HITS_TRUNCATED, HITS_UNREADABLE,
    HITS_UNSWITCHED, Hit,
};

use self::search::{Others, Outcome, Search};
use super::{
    index::{ChainRef, Effect, RuleCounter, TableIndex},
    probes::Observed,
};
use crate::model::{DecidedBy, Hook, RULESET_CHANGED, Verdict};

/// A rule that the packet matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step {
    pub chain: ChainRef,
    /// Position in the chain's `rules`, from 0.
    pub rule: usize,
}

/// What ended a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    Rule(Step),
    Policy,
}

/// What became of the packet in this table, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It turned up behind the table.
    Passed,
    /// It turned up behind this NAT table, and nothing but this table can have rewritten it: a rule did.
    Translated,
    /// It was freed inside the table.
    Dropped,
    Unknown,
}

impl Fate {
    /// Whether a walk with this end can have had this fate. A queued packet may come back; a stolen one is freed by
    /// its thief. A repeated one is walked again, which no single walk explains.
    pub(crate) fn allows(self, verdict: Verdict) -> bool {
        match self {
            Self::Translated => verdict == Verdict::Accept,
            Self::Passed => matches!(verdict, Verdict::Accept | Verdict::Queue),
            Self::Dropped => !matches!(verdict, Verdict::Accept | Verdict::Repeat),
            Self::Unknown => verdict != Verdict::Repeat,
        }
    }

    /// Whether a walk that ended so explains it.
    fn explained_by(self, index: &TableIndex, decision: Decision, verdict: Verdict) -> bool {
        self.allows(verdict) && (self != Self::Translated || translates(index, decision))
    }

    /// What is known of the verdict without any rule.
    fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Passed | Self::Translated => Some(Verdict::Accept),
            Self::Dropped => Some(Verdict::Drop),
            Self::Unknown => None,
        }
    }
}

/// Whether what decided can have rewritten the packet. What accepts it plainly leaves it as it is.
fn translates(index: &TableIndex, decision: Decision) -> bool {
    match decision {
        Decision::Policy => false,
        Decision::Rule(step) => match &index.chains[step.chain.0].rules[step.rule].effect {
            Effect::Final { target, .. } => !target.eq_ignore_ascii_case("accept"),
            _ => true,
        },
    }
}

/// A packet's way through one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The rules that matched, in order: all of them when exact, else those that are certain.
    pub steps: Vec<Step>,
    /// `None` while it cannot be told.
    pub decision: Option<Decision>,
    pub verdict: Option<Verdict>,
    /// Why this is not the whole truth; `None` when it is.
    pub inexact: Option<Inexact>,
}

impl Walk {
    /// Whether `steps`, `decision` and `verdict` are certain and complete.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.inexact.is_none()
    }

    #[must_use]
    pub fn decided_by(&self) -> Option<DecidedBy> {
        self.decision.map(|decision| match decision {
            Decision::Rule(_) => DecidedBy::Rule,
            Decision::Policy => DecidedBy::Policy,
        })
    }

    fn unknown(fate: Fate, inexact: Inexact) -> Self {
        Self { steps: Vec::new(), decision: None, verdict: fate.verdict(), inexact: Some(inexact) }
    }
}

/// Why a walk is not exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inexact {
    Interleaved,
    CpuChanged,
    Stale,
    Truncated,
    Unreadable,
    Overwritten,
    /// No legal walk moves these counters.
    NoWalk,
    /// Several legal walks move these counters.
    SeveralWalks,
    /// The walk passed a rule whose match leaves no trace.
    Traceless {
        chain: String,
        /// From 1.
        position: u32,
        /// It has a counter, before what may fail.
        counted: bool,
    },
    /// Too many walks to look at them all.
    TooMany,
    /// The counters that moved are those of one walk, and the rules that were seen to match those of another.
    Contradiction,
}

impl fmt::Display for Inexact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interleaved => f.write_str("another packet passed on this CPU at the same time"),
            Self::CpuChanged => f.write_str("the packet changed CPU in this table"),
            Self::Stale => f.write_str(RULESET_CHANGED),
            Self::Truncated => f.write_str("more rules matched than one record holds"),
            Self::Unreadable => f.write_str("a rule counter could not be read"),
            Self::Overwritten => f.write_str("the reading was lost to another packet's"),
            Self::NoWalk => f.write_str("the counters that moved form no way through the chains"),
            Self::SeveralWalks => f.write_str("several ways through the chains move these counters"),
            Self::Traceless { chain, position, counted: false } => {
                write!(f, "{chain} #{position} has no counter that shows whether it matched")
            }
            Self::Traceless { chain, position, counted: true } => {
                write!(
                    f,
                    "{chain} #{position} was come to, and what stands behind its counter may not have matched"
                )
            }
            Self::TooMany => f.write_str("too many possible ways through the chains"),
            Self::Contradiction => f.write_str("counters and probes tell different ways through the chains"),
        }
    }
}

/// Finds the walk from `base` that moved the counters in `hits`.
///
/// `hits` must come from a reading of all counters of the table, the chains of other hooks included. `base` must be a
/// base chain of `index`; any other chain gives [`Inexact::NoWalk`].
///
/// Other packets may pass between the readings. At hooks that run with bottom halves off (`netif_receive_skb`: all but
/// OUTPUT and POSTROUTING) those are what the packet itself set off, such as the answer of a REJECT or a copy made by
/// TEE, which passes OUTPUT and POSTROUTING whole. At OUTPUT and POSTROUTING a packet that comes in may interrupt as
/// well, and passes whole; but the task may also be switched out, and the packet be judged on another CPU: such a
/// reading is used only with [`HITS_UNSWITCHED`]. The walk is exact if it is the same however the counters are shared
/// out between the packet and the others.
#[must_use]
pub fn solve(index: &TableIndex, base: ChainRef, hits: &[Hit], flags: u32, fate: Fate) -> Walk {
    search(index, base, (hits, flags), fate, None)
}

/// As [`solve`], where matches of some rules were seen, each of this packet and in order: of those it is known whether they
/// matched. The reading is needed all the same, of a table without a counter too: it says that the ruleset was
/// `index`.
#[must_use]
pub fn solve_seen(
    index: &TableIndex,
    base: ChainRef,
    hits: &[Hit],
    flags: u32,
    fate: Fate,
    seen: &Observed<'_>,
) -> Walk {
    // What other packets did shows in counters alone.
    let others =
        if index.counters.is_empty() { HITS_INTERLEAVED | HITS_TRUNCATED | HITS_UNREADABLE } else { 0 };
    search(index, base, (hits, flags & !others), fate, Some(seen))
}

fn search(
    index: &TableIndex,
    base: ChainRef,
    (hits, flags): (&[Hit], u32),
    fate: Fate,
    seen: Option<&Observed<'_>>,
) -> Walk {
    if let Some(reason) = worthless(flags) {
        return Walk::unknown(fate, reason);
    }
    let Some(hook) = index.chains.get(base.0).and_then(|c| c.base.as_ref()).map(|b| b.hook) else {
        return Walk::unknown(fate, Inexact::NoWalk);
    };
    let interleaved = flags & HITS_INTERLEAVED != 0;
    if let Some(reason) = partial(flags) {
        let steps = if interleaved { Vec::new() } else { proven(index, hits) };
        return Walk { steps, ..Walk::unknown(fate, reason) };
    }
    let others = match hook {
        _ if !interleaved => Others::None,
        Hook::Output | Hook::Postrouting | Hook::Egress if flags & HITS_UNSWITCHED == 0 => Others::None,
        Hook::Output | Hook::Postrouting | Hook::Egress => Others::Any,
        _ => Others::Leaving,
    };
    let outcome = Search::new(index, hits, fate, others, seen).run(base);
    let mut walk = judge(index, hits, fate, outcome, interleaved);
    if interleaved && others == Others::None {
        walk.inexact = Some(Inexact::Interleaved);
    }
    walk
}

/// Whether a complete walk through `index` moves these counters, which were read as for [`solve`]. More may have
/// moved where other packets passed.
#[must_use]
pub fn agrees(index: &TableIndex, steps: &[Step], hits: &[Hit], flags: u32) -> bool {
    if worthless(flags).is_some() {
        return false;
    }
    let moved =
        |counter: usize| hits.iter().find(|hit| hit.rule as usize == counter).map_or(0, |hit| hit.packets);
    let others = flags & HITS_INTERLEAVED != 0 || partial(flags).is_some();
    let rules = index.chains.iter().enumerate().flat_map(|(chain, c)| {
        c.rules.iter().enumerate().map(move |(rule, r)| (Step { chain: ChainRef(chain), rule }, r))
    });
    let mut expected = vec![(0, true); index.counters.len()];
    for (step, rule) in rules {
        let proves = |counter: RuleCounter| counter.proves_match && !rule.tail_may_fail;
        let Some(slot) = rule.counter.and_then(|c| Some((expected.get_mut(c.index)?, proves(c)))) else {
            continue;
        };
        let ((times, proven), proves) = slot;
        *times += steps.iter().filter(|known| **known == step).count();
        *proven &= proves;
    }
    (0..).zip(expected).all(|(counter, (times, proven))| {
        let moved = moved(counter) as usize;
        if others || !proven { moved >= times || partial(flags).is_some() } else { moved == times }
    })
}

/// Flags that leave nothing to conclude from.
fn worthless(flags: u32) -> Option<Inexact> {
    let reasons = [
        (HITS_STALE, Inexact::Stale),
        (HITS_CPU_CHANGED, Inexact::CpuChanged),
        (HITS_OVERWRITTEN, Inexact::Overwritten),
    ];
    reasons.into_iter().find(|(flag, _)| flags & flag != 0).map(|(_, reason)| reason)
}

/// Flags that leave the moved counters true but not complete.
fn partial(flags: u32) -> Option<Inexact> {
    let reasons = [(HITS_TRUNCATED, Inexact::Truncated), (HITS_UNREADABLE, Inexact::Unreadable)];
    reasons.into_iter().find(|(flag, _)| flags & flag != 0).map(|(_, reason)| reason)
}

fn judge(index: &TableIndex, hits: &[Hit], fate: Fate, outcome: Outcome, interleaved: bool) -> Walk {
    let Outcome { mut walks, complete } = outcome;
    let certain = |reason| {
        let steps = if interleaved { Vec::new() } else { proven(index, hits) };
        Walk { steps, ..Walk::unknown(fate, reason) }
    };
    if !complete {
        return certain(Inexact::TooMany);
    }
    match walks.len() {
        0 if interleaved => certain(Inexact::Interleaved),
        0 => certain(Inexact::NoWalk),
        1 => {
            let only = walks.remove(0);
            let inexact = only.traceless.map(|step| traceless(index, step));
            Walk { steps: only.steps, decision: Some(only.decision), verdict: Some(only.verdict), inexact }
        }
        _ => in_common(&walks, if interleaved { Inexact::Interleaved } else { Inexact::SeveralWalks }),
    }
}

fn traceless(index: &TableIndex, step: Step) -> Inexact {
    let chain = &index.chains[step.chain.0];
    let rule = &chain.rules[step.rule];
    Inexact::Traceless { chain: chain.name.clone(), position: rule.position, counted: rule.counter.is_some() }
}

/// What all of several walks share.
fn in_common(walks: &[search::Candidate], reason: Inexact) -> Walk {
    let first = &walks[0];
    let count = |steps: &[Step], step: Step| steps.iter().filter(|s| **s == step).count();
    let mut steps: Vec<Step> = Vec::new();
    for step in &first.steps {
        let everywhere = walks.iter().map(|w| count(&w.steps, *step)).min().unwrap_or(0);
        if count(&steps, *step) < everywhere {
            steps.push(*step);
        }
    }
    let decision = Some(first.decision).filter(|d| walks.iter().all(|w| w.decision == *d));
    let verdict = Some(first.verdict).filter(|v| walks.iter().all(|w| w.verdict == *v));
    Walk { steps, decision, verdict, inexact: Some(reason) }
}

/// The rules whose counter moved and proves the match, in table order.
fn proven(index: &TableIndex, hits: &[Hit]) -> Vec<Step> {
    let moved = |counter: usize| hits.iter().any(|h| h.rule as usize == counter && h.packets > 0);
    let rules = index.chains.iter().enumerate().flat_map(|(chain, c)| {
        c.rules.iter().enumerate().map(move |(rule, r)| (Step { chain: ChainRef(chain), rule }, r))
    });
    rules
        .filter(|(_, r)| r.counter.is_some_and(|c| c.proves_match && moved(c.index)))
        .map(|(step, _)| step)
        .collect()
}
