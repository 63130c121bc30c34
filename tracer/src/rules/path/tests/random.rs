//! Random tables and packets: what `solve` calls exact is what the simulated kernel did.

use tracer_common::records::{HITS_INTERLEAVED, HITS_UNSWITCHED, Hit};

use super::{
    lab::{Kernel, Sight, Taken, names, table},
    *,
};
use crate::rules::index::Effect;

/// splitmix64: a seed gives the same case for ever.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

/// What a table may hold.
#[derive(Clone, Copy)]
pub(super) struct Style {
    /// Every rule counted, every chain end too: iptables-legacy.
    counted: bool,
    unknown: bool,
}

const LEGACY: Style = Style { counted: true, unknown: false };
pub(super) const NFT: Style = Style { counted: false, unknown: true };

/// Chain 0 and 1 are base chains; a chain enters only later ones.
pub(super) fn random_table(dice: &mut Dice, style: Style) -> TableIndex {
    let users = dice.below(6);
    let mut text = Vec::new();
    for chain in 0..2 + users {
        let policy = dice.pick(&["accept", "drop"]);
        let mut head = match chain {
            0 => format!("FORWARD {policy}"),
            1 => format!("OUTPUT {policy}"),
            _ => format!("U{chain}"),
        };
        if !style.counted {
            head.push('!');
        }
        let later = chain.max(1) + 1..2 + users;
        let rules: Vec<String> =
            (0..dice.below(7)).map(|_| random_rule(dice, style, later.clone())).collect();
        text.push(format!("{head}: {}", rules.join(", ")));
    }
    table(&text.join("\n"))
}

fn random_rule(dice: &mut Dice, style: Style, later: std::ops::Range<usize>) -> String {
    let mut rule = match dice.below(10) {
        0..=3 if !later.is_empty() => {
            let to = later.start + dice.below(later.len());
            format!("{} U{to}", if dice.one_in(4) { "goto" } else { "jump" })
        }
        4 => "return".into(),
        5 if style.unknown && dice.one_in(2) => "vmap".into(),
        5 if style.unknown => match later.clone().next() {
            Some(to) => format!("of accept|drop|jump U{to}|goto U{to}"),
            None => "of accept|return".into(),
        },
        6 => dice.pick(&["accept", "drop", "reject"]).into(),
        _ => "log".into(),
    };
    if !style.counted {
        rule += dice.pick(if rule == "vmap" || rule.starts_with("of ") {
            &["", "?", "~"]
        } else {
            &["", "", "?", "~", "!"]
        });
    }
    rule
}

fn random_sight(dice: &mut Dice, index: &TableIndex, step: Step) -> Sight {
    let rule = &index.chains[step.chain.0].rules[step.rule];
    let late = rule.counter.is_some_and(|c| !c.proves_match);
    if rule.unconditional {
        return Sight::Matches;
    }
    match dice.below(5) {
        0..2 => Sight::Fails,
        2 if late => Sight::FailsLate,
        _ if matches!(rule.effect, Effect::Unknown { .. }) => Sight::Does(random_effect(dice, index, step)),
        _ => match &rule.effect {
            Effect::OneOf { effects, .. } => Sight::Does(effects[dice.below(effects.len())].clone()),
            _ => Sight::Matches,
        },
    }
}

fn random_effect(dice: &mut Dice, index: &TableIndex, step: Step) -> Effect {
    let later = step.chain.0.max(1) + 1..index.chains.len();
    let finish = |verdict| Effect::Final { verdict, target: String::new() };
    match dice.below(6) {
        0 if !later.is_empty() => Effect::Jump(ChainRef(later.start + dice.below(later.len()))),
        1 if !later.is_empty() => Effect::Goto(ChainRef(later.start + dice.below(later.len()))),
        2 => Effect::Return,
        3 => finish(Verdict::Accept),
        4 => finish(Verdict::Drop),
        _ => Effect::Continue { target: None },
    }
}

pub(super) fn random_packet(dice: &mut Dice, index: &TableIndex, base: ChainRef) -> Taken {
    Kernel::judge(index, base, |step| random_sight(dice, index, step))
}

pub(super) fn fate(dice: &mut Dice, taken: &Taken) -> Fate {
    match taken.verdict {
        _ if dice.one_in(4) => Fate::Unknown,
        Verdict::Accept => Fate::Passed,
        _ => Fate::Dropped,
    }
}

fn assert_same(seed: u64, index: &TableIndex, walk: &Walk, taken: &Taken) {
    let found = (names(index, &walk.steps), walk.decision, walk.verdict);
    let truth = (names(index, &taken.steps), Some(taken.decision), Some(taken.verdict));
    assert_eq!(found, truth, "seed {seed}: exact and wrong in {index:#?}");
}

/// `steps` can be made of `all`'s members, each used once.
fn part_of(steps: &[Step], all: &[Step]) -> bool {
    let mut rest = all.to_vec();
    steps.iter().all(|s| rest.iter().position(|r| r == s).map(|at| rest.remove(at)).is_some())
}

/// Share of exact walks, in percent.
fn percent_exact(style: Style, seeds: std::ops::Range<u64>) -> u64 {
    let total = seeds.end - seeds.start;
    let mut exact = 0;
    for seed in seeds {
        let dice = &mut Dice(seed);
        let index = random_table(dice, style);
        let taken = random_packet(dice, &index, ChainRef(0));
        let walk = solve(&index, ChainRef(0), &taken.hits(), 0, fate(dice, &taken));
        if walk.is_exact() {
            exact += 1;
            assert_same(seed, &index, &walk, &taken);
        }
        assert_ne!(walk.inexact, Some(Inexact::NoWalk), "seed {seed}: the real walk was not found");
        assert!(part_of(&walk.steps, &taken.steps), "seed {seed}: shown as certain, but did not match");
        if let Some(decision) = walk.decision {
            assert_eq!(decision, taken.decision, "seed {seed}: shown as certain, but did not decide");
        }
    }
    exact * 100 / total
}

#[test]
fn exact_walks_are_the_real_ones_when_all_is_counted() {
    let exact = percent_exact(LEGACY, 0..20_000);
    assert!(exact >= 95, "only {exact} % exact");
}

#[test]
fn exact_walks_are_the_real_ones_when_much_is_not_counted() {
    let exact = percent_exact(NFT, 0..20_000);
    assert!(exact >= 25, "only {exact} % exact");
}

/// A packet that passed FORWARD while the kernel sent others through OUTPUT.
#[test]
fn exact_walks_are_the_real_ones_among_others() {
    let exact = exact_among_others(ChainRef(0), |_| ChainRef(1));
    assert!(exact >= 600, "only {exact} of 2000 exact");
}

/// A packet that passed OUTPUT while others passed any chain.
#[test]
fn exact_walks_on_the_way_out_are_the_real_ones_among_others() {
    let exact = exact_among_others(ChainRef(1), |dice| ChainRef(dice.below(2)));
    assert!(exact >= 200, "only {exact} of 2000 exact");
}

fn exact_among_others(base: ChainRef, mut other_base: impl FnMut(&mut Dice) -> ChainRef) -> u32 {
    let mut exact = 0;
    for seed in 0..2_000 {
        let dice = &mut Dice(seed);
        let style = if dice.one_in(2) { LEGACY } else { NFT };
        let index = random_table(dice, style);
        let taken = random_packet(dice, &index, base);
        let mut moved = taken.moved.clone();
        for _ in 0..1 + dice.below(2) {
            let other_base = other_base(dice);
            let other = random_packet(dice, &index, other_base);
            moved.iter_mut().zip(&other.moved).for_each(|(sum, n)| *sum += n);
        }
        let hits = Taken { moved, ..Kernel::judge(&index, ChainRef(0), |_| Sight::Fails) }.hits();
        let walk = solve(&index, base, &hits, HITS_INTERLEAVED | HITS_UNSWITCHED, fate(dice, &taken));
        if walk.is_exact() {
            exact += 1;
            assert_same(seed, &index, &walk, &taken);
        }
        assert!(part_of(&walk.steps, &taken.steps), "seed {seed}: shown as certain, but did not match");
    }
    exact
}

/// A hit too many, one too few, one that counts wrong.
fn corrupt(dice: &mut Dice, index: &TableIndex, hits: &mut Vec<Hit>) {
    let at = dice.below(hits.len().max(1));
    match dice.below(3) {
        0 if !hits.is_empty() => drop(hits.remove(at)),
        1 if !hits.is_empty() => hits[at].packets += 1,
        _ => {
            let rule = dice.below(index.counters.len()) as u32;
            match hits.iter_mut().find(|h| h.rule == rule) {
                Some(hit) => hit.packets += 1,
                None => hits.push(Hit { rule, packets: 1 }),
            }
        }
    }
    hits.sort_unstable_by_key(|h| h.rule);
}

/// Damaged hits may still form a legal walk, and then that walk is found: it must be one that moves exactly these
/// counters, which the simulator checks. Any other damage is never exact.
#[test]
fn corrupt_hits_are_exact_only_where_they_form_a_legal_walk() {
    let mut refused = 0;
    for seed in 0..20_000 {
        let dice = &mut Dice(seed);
        let index = random_table(dice, LEGACY);
        let taken = random_packet(dice, &index, ChainRef(0));
        let mut hits = taken.hits();
        corrupt(dice, &index, &mut hits);
        let walk = solve(&index, ChainRef(0), &hits, 0, fate(dice, &taken));
        if !walk.is_exact() {
            refused += 1;
            continue;
        }
        let mut steps = walk.steps.iter().peekable();
        let replay = Kernel::judge(&index, ChainRef(0), |step| match steps.next_if(|s| **s == step) {
            Some(_) => Sight::Matches,
            None => Sight::Fails,
        });
        assert_eq!(replay.hits(), hits, "seed {seed}: exact, but these counters tell another story");
        assert_eq!(
            (Some(replay.decision), Some(replay.verdict)),
            (walk.decision, walk.verdict),
            "seed {seed}"
        );
    }
    assert!(refused >= 15_000, "{refused} of 20000 refused");
}
