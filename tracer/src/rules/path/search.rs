//! The search for every legal walk that explains a set of moved counters. Depth first over a table's rules; a choice
//! is taken where a counter leaves one open, and each choice not taken is kept as a state to come back to.

use tracer_common::records::Hit;

use super::{
    Decision, Fate, Step,
    reach::{bases, entered, leaving, reachable},
    state::State,
};
use crate::{
    model::Verdict,
    rules::{
        index::{BaseChain, ChainRef, Effect, Rule, RuleCounter, TableIndex},
        probes::Observed,
    },
};

/// Rules looked at before the search gives up: enough for six walks through 5,000 rules.
const MAX_VISITS: usize = 30_000;
/// Different walks after which the search gives up.
const MAX_WALKS: usize = 32;

/// A walk that explains the counters.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) steps: Vec<Step>,
    pub(super) decision: Decision,
    pub(super) verdict: Verdict,
    /// The first rule on the way that may or may not have matched, without a trace and without changing the way.
    pub(super) traceless: Option<Step>,
}

impl Candidate {
    fn looks_like(&self, other: &Self) -> bool {
        (&self.steps, self.decision, self.verdict) == (&other.steps, other.decision, other.verdict)
    }
}

/// Which chains packets that passed meanwhile may have walked, each of them whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    None,
    /// The table's OUTPUT and POSTROUTING.
    Leaving,
    /// Any of its base chains.
    Any,
}

pub(super) struct Outcome {
    /// No two look alike.
    pub(super) walks: Vec<Candidate>,
    /// False when there may be more.
    pub(super) complete: bool,
}

/// Where a state stands after one rule.
enum Next {
    Walk(State),
    End(State, Decision, Verdict),
    /// No legal walk goes on from here.
    Dead,
}

pub(super) struct Search<'a> {
    index: &'a TableIndex,
    fate: Fate,
    /// Counter and number of packets, sorted by counter.
    hits: Vec<(usize, u32)>,
    /// For each hit, the chains that its rules enter.
    enters: Vec<Vec<ChainRef>>,
    /// For each hit, how many rules and chain ends share its counter.
    owners: Vec<usize>,
    /// For each chain, whether it can be entered without a counter moving.
    open: Vec<bool>,
    /// For each chain, whether a packet that passed meanwhile can have walked it.
    elsewhere: Vec<bool>,
    /// Base chains that other packets may have passed meanwhile.
    others: Vec<ChainRef>,
    /// Rules that the packet was seen to match.
    seen: Option<&'a Observed<'a>>,
    /// A chain may be entered twice without a match that is seen in between.
    blind: bool,
    work: Vec<State>,
    found: Vec<Candidate>,
    visits: usize,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        index: &'a TableIndex,
        hits: &[Hit],
        fate: Fate,
        others: Others,
        seen: Option<&'a Observed<'a>>,
    ) -> Self {
        let mut sorted: Vec<(usize, u32)> =
            hits.iter().filter(|h| h.packets > 0).map(|h| (h.rule as usize, h.packets)).collect();
        sorted.sort_unstable();
        let others = match others {
            Others::None => Vec::new(),
            Others::Leaving => leaving(index),
            Others::Any => bases(index),
        };
        let mut search = Self {
            index,
            fate,
            enters: vec![Vec::new(); sorted.len()],
            owners: vec![0; sorted.len()],
            hits: sorted,
            open: vec![false; index.chains.len()],
            elsewhere: reachable(index, &others),
            others,
            seen,
            blind: seen.is_some_and(|seen| seen.misses_entries(index)),
            work: Vec::new(),
            found: Vec::new(),
            visits: 0,
        };
        search.survey();
        search
    }

    /// Notes what each hit's rules enter, and which chains can be entered unseen.
    fn survey(&mut self) {
        for chain in &self.index.chains {
            if let Some(slot) = chain.end_counter.and_then(|c| self.slot(c)) {
                self.owners[slot] += 1;
            }
            for rule in &chain.rules {
                let target = match rule.effect {
                    Effect::Jump(to) | Effect::Goto(to) => Some(to),
                    _ => None,
                };
                let slot = rule.counter.and_then(|c| self.slot(c.index));
                if let Some(slot) = slot {
                    self.owners[slot] += 1;
                    self.enters[slot].extend(target);
                }
                match (&rule.effect, rule.counter) {
                    (Effect::Unknown { .. }, _) => self.open.fill(true),
                    (Effect::OneOf { effects, .. }, _) => {
                        entered(effects).for_each(|to| self.open[to.0] = true);
                    }
                    (_, None) => target.into_iter().for_each(|to| self.open[to.0] = true),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn run(mut self, base: ChainRef) -> Outcome {
        let mut first = State {
            base,
            frames: Vec::new(),
            trail: Vec::new(),
            left: self.hits.iter().map(|(_, packets)| *packets).collect(),
            steps: Vec::new(),
            traceless: None,
            matches: 0,
            own: None,
        };
        first.start(base);
        self.work.push(first);
        while let Some(mut state) = self.work.pop() {
            if state.own.as_ref().is_some_and(|(own, _)| self.says_nothing_new(own)) {
                continue;
            }
            loop {
                self.visits += 1;
                if self.visits > MAX_VISITS || self.found.len() > MAX_WALKS {
                    return Outcome { walks: self.found, complete: false };
                }
                match self.advance(state) {
                    Next::Walk(next) => state = next,
                    Next::End(end, decision, verdict) => {
                        self.finish(end, decision, verdict);
                        break;
                    }
                    Next::Dead => break,
                }
            }
        }
        Outcome { walks: self.found, complete: true }
    }

    /// Looks at one rule, or at the end of a chain.
    fn advance(&mut self, mut state: State) -> Next {
        let index = self.index;
        let Some(frame) = state.frames.last_mut() else { return Next::Dead };
        let chain = frame.chain;
        let step = Step { chain, rule: frame.next };
        let Some(rule) = index.chains[chain.0].rules.get(frame.next) else {
            return self.end_of_chain(state, chain);
        };
        frame.next += 1;
        if state.own.is_none()
            && let Some(seen) = self.seen
            && seen.watches(step)
        {
            return self.watched(state, step, rule, seen);
        }
        match rule.counter {
            None => self.unseen(state, step, rule),
            Some(counter) => self.counted(state, step, rule, counter),
        }
    }

    /// A rule of which it is seen when it matches.
    fn watched(&mut self, mut state: State, step: Step, rule: &Rule, seen: &Observed<'_>) -> Next {
        let counter = rule.counter.map(|counter| {
            (self.slot(counter.index).filter(|slot| state.left[*slot] > 0), counter.proves_match)
        });
        let found = seen.matches().get(state.matches).filter(|found| found.step == step);
        // Where it may be come to again, the match may be that one's; and what fails may do so behind the counter.
        let may_fail = found.is_none() || self.blind;
        if let Some((Some(slot), false)) = counter
            && may_fail
        {
            let mut failed = state.clone();
            failed.left[slot] -= 1;
            self.work.push(failed);
        }
        let Some(found) = found else { return Next::Walk(state) };
        if may_fail {
            self.work.push(state.clone());
        }
        match counter {
            Some((None, _)) => return Next::Dead,
            Some((Some(slot), _)) => state.left[slot] -= 1,
            None => {}
        }
        state.matches += 1;
        state.steps.push(step);
        self.follow(state, step, found.effect.as_ref().unwrap_or(&rule.effect))
    }

    /// A rule without a counter: whether it matched shows only by what follows.
    fn unseen(&mut self, mut state: State, step: Step, rule: &Rule) -> Next {
        if rule.unconditional {
            return self.matched(state, step, rule);
        }
        if matches!(rule.effect, Effect::Continue { .. }) {
            state.traceless.get_or_insert(step);
            return Next::Walk(state);
        }
        self.work.push(state.clone());
        self.matched(state, step, rule)
    }

    fn counted(&mut self, mut state: State, step: Step, rule: &Rule, counter: RuleCounter) -> Next {
        let Some(slot) = self.slot(counter.index).filter(|slot| state.left[*slot] > 0) else {
            return Next::Walk(state);
        };
        if self.can_match_later(&state, step.chain, slot) {
            self.work.push(state.clone());
        }
        state.left[slot] -= 1;
        if counter.proves_match { self.matched(state, step, rule) } else { self.unseen(state, step, rule) }
    }

    /// Whether what is left of a hit of a rule in `chain` can be used up without this visit.
    fn can_match_later(&self, state: &State, chain: ChainRef, slot: usize) -> bool {
        if self.elsewhere[chain.0] || self.open[chain.0] || self.owners[slot] > 1 {
            return true;
        }
        let entries: u64 = self
            .enters
            .iter()
            .zip(&state.left)
            .filter(|(to, _)| to.contains(&chain))
            .map(|(_, left)| u64::from(*left))
            .sum();
        u64::from(state.left[slot]) <= entries
    }

    fn matched(&mut self, mut state: State, step: Step, rule: &Rule) -> Next {
        state.steps.push(step);
        self.follow(state, step, &rule.effect)
    }

    /// What a rule that matched does to the walk.
    fn follow(&mut self, state: State, step: Step, effect: &Effect) -> Next {
        let walk = |state: Option<State>| state.map_or(Next::Dead, Next::Walk);
        match effect {
            Effect::Continue { .. } => Next::Walk(state),
            Effect::Final { verdict, .. } => Next::End(state, Decision::Rule(step), *verdict),
            Effect::Jump(to) => walk(state.jump(*to)),
            Effect::Goto(to) => walk(state.goto(*to)),
            Effect::Return => self.leave(state),
            Effect::OneOf { effects, .. } => {
                for effect in effects {
                    match self.follow(state.clone(), step, effect) {
                        Next::Walk(state) => self.work.push(state),
                        Next::End(state, decision, verdict) => self.finish(state, decision, verdict),
                        Next::Dead => {}
                    }
                }
                Next::Dead
            }
            Effect::Unknown { .. } => self.anything(state, step),
        }
    }

    /// All that a rule of unknown effect may do.
    fn anything(&mut self, state: State, step: Step) -> Next {
        for (number, chain) in self.index.chains.iter().enumerate() {
            if chain.base.is_none() {
                self.work.extend(state.clone().jump(ChainRef(number)));
                self.work.extend(state.clone().goto(ChainRef(number)));
            }
        }
        for verdict in [Verdict::Accept, Verdict::Drop] {
            self.finish(state.clone(), Decision::Rule(step), verdict);
        }
        match self.leave(state.clone()) {
            Next::Walk(state) => self.work.push(state),
            Next::End(state, decision, verdict) => self.finish(state, decision, verdict),
            Next::Dead => {}
        }
        Next::Walk(state)
    }

    /// Falls off the end of a chain.
    fn end_of_chain(&self, mut state: State, chain: ChainRef) -> Next {
        let chain = &self.index.chains[chain.0];
        let explained = chain.base.is_some() || self.take(&mut state, chain.end_counter);
        if explained { self.leave(state) } else { Next::Dead }
    }

    fn leave(&self, mut state: State) -> Next {
        if state.leave() {
            return Next::Walk(state);
        }
        let base = &self.index.chains[state.base.0];
        let Some(BaseChain { policy, .. }) = base.base else { return Next::Dead };
        if !self.take(&mut state, base.end_counter) {
            return Next::Dead;
        }
        Next::End(state, Decision::Policy, policy)
    }

    /// Explains one movement of an end counter; false when it did not move.
    fn take(&self, state: &mut State, counter: Option<usize>) -> bool {
        let Some(counter) = counter else { return true };
        let Some(slot) = self.slot(counter).filter(|slot| state.left[*slot] > 0) else { return false };
        state.left[slot] -= 1;
        true
    }

    /// A walk has ended; it counts if nothing is left to explain.
    fn finish(&mut self, mut state: State, decision: Decision, verdict: Verdict) {
        let left = state.total_left();
        let own = match state.own.take() {
            Some((own, before)) if left < before => own,
            Some(_) => return,
            None if self.seen.is_some_and(|seen| state.matches < seen.matches().len()) => return,
            None if !self.fate.explained_by(self.index, decision, verdict) => return,
            None => {
                let steps = std::mem::take(&mut state.steps);
                Candidate { steps, decision, verdict, traceless: state.traceless }
            }
        };
        if left == 0 {
            return self.record(own);
        }
        if self.says_nothing_new(&own) {
            return;
        }
        for base in &self.others {
            let mut other = state.clone();
            other.start(*base);
            other.own = Some((own.clone(), left));
            self.work.push(other);
        }
    }

    fn says_nothing_new(&self, walk: &Candidate) -> bool {
        let covers = |known: &Candidate| known.traceless.is_some() || walk.traceless.is_none();
        self.found.iter().any(|known| known.looks_like(walk) && covers(known))
    }

    fn record(&mut self, walk: Candidate) {
        match self.found.iter_mut().find(|known| known.looks_like(&walk)) {
            Some(known) => known.traceless = known.traceless.or(walk.traceless),
            None => self.found.push(walk),
        }
    }

    fn slot(&self, counter: usize) -> Option<usize> {
        self.hits.binary_search_by_key(&counter, |(c, _)| *c).ok()
    }
}
