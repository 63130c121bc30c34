//! Rules that were seen to match, by hand and at random.

use tracer_common::records::HITS_INTERLEAVED;

use super::{
    lab::{Taken, names, table},
    random::{Dice, NFT, fate, random_packet, random_table},
    *,
};
use crate::{
    decode::{PartEvent, PartWhen},
    rules::probes::{Probe, Probes, Watch},
};

/// Address of a rule's expression.
fn expression(step: Step) -> u64 {
    0x1000 + step.chain.0 as u64 * 0x100 + step.rule as u64 * 8
}

fn chain_address(chain: ChainRef) -> u64 {
    0x9_0000 + chain.0 as u64 * 0x100
}

/// Looks at the rules of a table for which `is_watched`.
fn watch(index: &mut TableIndex, mut is_watched: impl FnMut(Step) -> bool) {
    let chains = (0..index.chains.len()).map(|chain| (chain_address(ChainRef(chain)), ChainRef(chain)));
    let mut probes = Vec::new();
    for (number, chain) in index.chains.iter().enumerate() {
        for (rule, known) in chain.rules.iter().enumerate() {
            let step = Step { chain: ChainRef(number), rule };
            let watch = match known.effect {
                Effect::Unknown { .. } | Effect::OneOf { .. } => Watch::Returned,
                _ => Watch::Reached,
            };
            if is_watched(step) {
                let expression = expression(step);
                probes.push((step, Probe { expression, function: 1, watch, needed: true }));
            }
        }
    }
    index.probes = Probes::new(chains.collect(), probes);
}

fn returned(effect: &Effect) -> PartWhen {
    let (verdict, chain) = match effect {
        Effect::Jump(to) => (-3, chain_address(*to)),
        Effect::Goto(to) => (-4, chain_address(*to)),
        Effect::Return => (-5, 0),
        Effect::Final { verdict: Verdict::Accept, .. } => (libc::NF_ACCEPT, 0),
        Effect::Final { .. } => (libc::NF_DROP, 0),
        _ => (-1, 0),
    };
    PartWhen::Returned { verdict, chain }
}

/// What the probes of a table tell of a packet's matches.
fn parts(index: &TableIndex, steps: &[Step], effects: &[Effect]) -> Vec<PartEvent> {
    let part = |(step, effect): (&Step, &Effect)| {
        let when = match index.chains[step.chain.0].rules[step.rule].effect {
            Effect::Unknown { .. } | Effect::OneOf { .. } => returned(effect),
            _ => PartWhen::Reached,
        };
        PartEvent { journey: 1, expression: expression(*step), when }
    };
    steps.iter().zip(effects).map(part).collect()
}

/// The walk of a packet that was seen to match these rules (`input#1`), each for its rule's own effect or the one given.
fn solve_parts(index: &TableIndex, matched: &[(&str, Option<Effect>)], fate: Fate) -> Walk {
    let step = |name: &str| {
        let (chain, position) = name.split_once('#').unwrap();
        let chain = index.chains.iter().position(|c| c.name == chain).unwrap();
        Step { chain: ChainRef(chain), rule: position.parse::<usize>().unwrap() - 1 }
    };
    let steps: Vec<Step> = matched.iter().map(|(name, _)| step(name)).collect();
    let own = |step: &Step| index.chains[step.chain.0].rules[step.rule].effect.clone();
    let effects: Vec<Effect> = steps
        .iter()
        .zip(matched)
        .map(|(step, (_, effect))| effect.clone().unwrap_or_else(|| own(step)))
        .collect();
    let parts = parts(index, &steps, &effects);
    let seen = index.probes.observe(&parts).unwrap();
    solve_seen(index, ChainRef(0), &[], 0, fate, &seen)
}

fn watched(text: &str) -> TableIndex {
    let mut index = table(text);
    watch(&mut index, |_| true);
    index
}

#[test]
fn rules_without_counters_are_those_that_were_seen() {
    let t = watched("input accept!: accept?, log?, jump web?, drop?\nweb!: drop?, return?, drop?");
    let walk = solve_parts(&t, &[("input#2", None), ("input#3", None), ("web#2", None)], Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "input#2 input#3 web#2");
    assert_eq!((walk.decided_by(), walk.verdict), (Some(DecidedBy::Policy), Some(Verdict::Accept)));
    assert!(walk.is_exact());
    let dropped = solve_parts(&t, &[("input#3", None), ("web#3", None)], Fate::Dropped);
    assert_eq!(names(&t, &dropped.steps), "input#3 web#3");
    assert!(dropped.is_exact());
}

#[test]
fn nothing_seen_is_the_policy() {
    let t = watched("input drop!: accept?, drop?");
    let walk = solve_parts(&t, &[], Fate::Dropped);
    assert_eq!((walk.steps.len(), walk.decided_by()), (0, Some(DecidedBy::Policy)));
    assert!(walk.is_exact());
}

#[test]
fn a_verdict_map_did_what_it_returned() {
    let t = watched("input drop!: vmap?, accept?\nlan!: accept?\nwan!: log?, return?");
    let jumped = [("input#1", Some(Effect::Jump(ChainRef(2)))), ("wan#2", None), ("input#2", None)];
    let walk = solve_parts(&t, &jumped, Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "input#1 wan#2 input#2");
    assert!(walk.is_exact());
    let drop = Effect::Final { verdict: Verdict::Drop, target: "drop".into() };
    let walk = solve_parts(&t, &[("input#1", Some(drop))], Fate::Dropped);
    assert_eq!((names(&t, &walk.steps).as_str(), walk.decided_by()), ("input#1", Some(DecidedBy::Rule)));
    assert!(walk.is_exact());
}

#[test]
fn a_jump_out_of_the_table_is_not_believed() {
    let t = watched("input drop!: vmap?");
    let when = PartWhen::Returned { verdict: -3, chain: 0x77 };
    let part = PartEvent { journey: 1, expression: expression(Step { chain: ChainRef(0), rule: 0 }), when };
    assert!(t.probes.observe(&[part]).is_none());
}

#[test]
fn a_match_that_was_lost_shows_where_the_rest_cannot_be() {
    let t = watched("input drop!: jump web?\nweb!: accept?");
    assert_eq!(solve_parts(&t, &[("web#1", None)], Fate::Passed).inexact, Some(Inexact::NoWalk));
    assert_eq!(solve_parts(&t, &[("input#1", None)], Fate::Passed).inexact, Some(Inexact::NoWalk));
}

#[test]
fn expressions_of_other_tables_say_nothing() {
    let t = watched("input accept!: accept?");
    let foreign = PartEvent { journey: 1, expression: 0xdead, when: PartWhen::Reached };
    let seen = t.probes.observe(&[foreign]).unwrap();
    assert!(seen.matches().is_empty());
}

#[test]
fn what_other_packets_did_does_not_matter_where_nothing_is_counted() {
    let mut t = table("OUTPUT accept!: accept?, drop?");
    watch(&mut t, |_| true);
    let one = parts(&t, &[Step { chain: ChainRef(0), rule: 1 }], &[Effect::Return]);
    let seen = t.probes.observe(&one).unwrap();
    let walk = solve_seen(&t, ChainRef(0), &[], HITS_INTERLEAVED, Fate::Dropped, &seen);
    assert!(walk.is_exact());
    let stale = solve_seen(&t, ChainRef(0), &[], HITS_STALE, Fate::Dropped, &seen);
    assert_eq!(stale.inexact, Some(Inexact::Stale));
}

#[test]
fn a_counter_that_did_not_move_contradicts_the_match() {
    let mut t = table("input accept!: drop, accept?");
    watch(&mut t, |_| true);
    let one = parts(&t, &[Step { chain: ChainRef(0), rule: 0 }], &[Effect::Return]);
    let seen = t.probes.observe(&one).unwrap();
    assert_eq!(solve_seen(&t, ChainRef(0), &[], 0, Fate::Dropped, &seen).inexact, Some(Inexact::NoWalk));
    assert!(solve_seen(&t, ChainRef(0), &hits(&[(0, 1)]), 0, Fate::Dropped, &seen).is_exact());
}

fn solved(index: &TableIndex, taken: &Taken, fate: Fate) -> Walk {
    let parts = parts(index, &taken.steps, &taken.effects);
    let seen = index.probes.observe(&parts).unwrap();
    solve_seen(index, ChainRef(0), &taken.hits(), 0, fate, &seen)
}

fn assert_is(walk: &Walk, index: &TableIndex, taken: &Taken, seed: u64) {
    let told = (names(index, &walk.steps), walk.decision, walk.verdict);
    assert_eq!(told, (names(index, &taken.steps), Some(taken.decision), Some(taken.verdict)), "seed {seed}");
}

#[test]
fn where_every_rule_is_watched_every_walk_is_exact() {
    for seed in 0..4_000 {
        let dice = &mut Dice(seed);
        let mut index = random_table(dice, NFT);
        watch(&mut index, |_| true);
        let taken = random_packet(dice, &index, ChainRef(0));
        let walk = solved(&index, &taken, fate(dice, &taken));
        assert!(walk.is_exact(), "seed {seed}: {:?}", walk.inexact);
        assert_is(&walk, &index, &taken, seed);
    }
}

/// Probes that were refused leave some rules unwatched.
#[test]
fn exact_walks_are_the_real_ones_where_some_rules_are_watched() {
    let mut exact = 0;
    for seed in 0..4_000 {
        let dice = &mut Dice(seed);
        let mut index = random_table(dice, NFT);
        watch(&mut index, |_| !dice.one_in(3));
        let taken = random_packet(dice, &index, ChainRef(0));
        let walk = solved(&index, &taken, fate(dice, &taken));
        assert_ne!(walk.inexact, Some(Inexact::NoWalk), "seed {seed}: the real walk was not found");
        if walk.is_exact() {
            exact += 1;
            assert_is(&walk, &index, &taken, seed);
        }
    }
    assert!(exact > 2_400, "only {exact} exact");
}
