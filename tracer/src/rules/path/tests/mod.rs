//! Walks by hand; random ones are in `random`, on the simulator in `lab`.

mod lab;
mod random;
mod seen;

use tracer_common::records::{
    HITS_CPU_CHANGED, HITS_INTERLEAVED, HITS_OVERWRITTEN, HITS_STALE, HITS_TRUNCATED, HITS_UNREADABLE,
    HITS_UNSWITCHED, Hit,
};

use self::lab::{names, table};
use super::*;
use crate::rules::index::TableIndex;

fn hits(moved: &[(usize, u32)]) -> Vec<Hit> {
    moved.iter().map(|(rule, packets)| Hit { rule: *rule as u32, packets: *packets }).collect()
}

/// The counters of the named rules (`FORWARD#1`) and chain ends (`FORWARD#end`), each moved once a mention.
fn moved(index: &TableIndex, rules: &str) -> Vec<Hit> {
    let mut moved: Vec<(usize, u32)> = Vec::new();
    for counter in rules.split_whitespace().map(|name| lab::counter(index, name)) {
        match moved.iter_mut().find(|(c, _)| *c == counter) {
            Some((_, packets)) => *packets += 1,
            None => moved.push((counter, 1)),
        }
    }
    hits(&moved)
}

fn solve_first(index: &TableIndex, rules: &str, fate: Fate) -> Walk {
    solve(index, ChainRef(0), &moved(index, rules), 0, fate)
}

#[test]
fn jump_return_and_policy() {
    let t = table("FORWARD drop: log, jump USER, accept\nUSER: return, drop");
    let walk = solve_first(&t, "FORWARD#1 FORWARD#2 USER#1 FORWARD#end", Fate::Dropped);
    assert_eq!(names(&t, &walk.steps), "FORWARD#1 FORWARD#2 USER#1");
    assert_eq!(walk.decision, Some(Decision::Policy));
    assert_eq!(walk.verdict, Some(Verdict::Drop));
    assert_eq!(walk.inexact, None);
}

#[test]
fn goto_returns_to_the_callers_caller() {
    let t = table("INPUT accept: jump A, drop\nA: goto B, drop\nB: log");
    let walk = solve_first(&t, "INPUT#1 A#1 B#1 B#end INPUT#2", Fate::Dropped);
    assert_eq!(names(&t, &walk.steps), "INPUT#1 A#1 B#1 INPUT#2");
    assert!(walk.is_exact());
    let came_back_to_a = solve_first(&t, "INPUT#1 A#1 B#1 B#end A#2", Fate::Dropped);
    assert_eq!(came_back_to_a.inexact, Some(Inexact::NoWalk));
}

#[test]
fn goto_from_the_base_chain_ends_in_its_policy() {
    let t = table("INPUT accept: goto B, drop\nB: log");
    let walk = solve_first(&t, "INPUT#1 B#1 B#end INPUT#end", Fate::Passed);
    assert_eq!((walk.decision, walk.verdict), (Some(Decision::Policy), Some(Verdict::Accept)));
    assert!(walk.is_exact());
}

#[test]
fn return_in_a_base_chain_is_the_policy() {
    let t = table("INPUT drop: return, accept");
    let walk = solve_first(&t, "INPUT#1 INPUT#end", Fate::Dropped);
    assert_eq!(names(&t, &walk.steps), "INPUT#1");
    assert_eq!(walk.decided_by(), Some(DecidedBy::Policy));
    assert!(walk.is_exact());
}

#[test]
fn a_chain_entered_twice_moves_its_counter_twice() {
    let t = table("FORWARD accept: jump A, jump A\nA: log");
    let walk = solve_first(&t, "FORWARD#1 FORWARD#2 A#1 A#1 A#end A#end FORWARD#end", Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "FORWARD#1 A#1 FORWARD#2 A#1");
    assert!(walk.is_exact());
}

#[test]
fn a_chain_entered_twice_and_matched_once_is_not_exact() {
    let t = table("FORWARD accept: jump A, jump A\nA: log");
    let walk = solve_first(&t, "FORWARD#1 FORWARD#2 A#1 A#end A#end FORWARD#end", Fate::Passed);
    assert_eq!(walk.inexact, Some(Inexact::SeveralWalks));
    assert_eq!(names(&t, &walk.steps), "FORWARD#1 A#1 FORWARD#2");
    assert_eq!((walk.decision, walk.verdict), (Some(Decision::Policy), Some(Verdict::Accept)));
}

#[test]
fn a_final_rule_in_a_chain_entered_twice_matched_at_the_second_visit() {
    let t = table("FORWARD accept: jump A, jump A\nA: drop");
    let walk = solve_first(&t, "FORWARD#1 A#end FORWARD#2 A#1", Fate::Dropped);
    assert_eq!(names(&t, &walk.steps), "FORWARD#1 FORWARD#2 A#1");
    assert!(walk.is_exact());
}

#[test]
fn fate_contradicts_the_walk() {
    let t = table("INPUT accept: accept, drop");
    assert_eq!(solve_first(&t, "INPUT#1", Fate::Dropped).inexact, Some(Inexact::NoWalk));
    assert_eq!(solve_first(&t, "INPUT#2", Fate::Passed).inexact, Some(Inexact::NoWalk));
    assert!(solve_first(&t, "INPUT#1", Fate::Unknown).is_exact());
}

#[test]
fn a_translation_is_a_rule_s_work() {
    let mut t = table("PREROUTING accept!: nat~");
    t.chains[0].rules[0].effect = Effect::Final { verdict: Verdict::Accept, target: "nat".into() };
    let plain = solve_first(&t, "PREROUTING#1", Fate::Passed);
    assert_eq!(plain.inexact, Some(Inexact::SeveralWalks), "the map behind the counter may hold nothing");
    let translated = solve_first(&t, "PREROUTING#1", Fate::Translated);
    assert!(translated.is_exact());
    assert_eq!(names(&t, &translated.steps), "PREROUTING#1");
}

#[test]
fn a_verdict_map_does_only_what_it_holds() {
    let after = |map: &str| {
        let t = table(&format!("FORWARD drop!: {map}?, jump OK\nOK!: accept"));
        let walk = solve_first(&t, "FORWARD#2 OK#1", Fate::Passed);
        (names(&t, &walk.steps), walk.is_exact())
    };
    assert_eq!(after("vmap"), ("FORWARD#2 OK#1".into(), false), "it may have gone there itself");
    assert_eq!(after("of accept|drop"), ("FORWARD#2 OK#1".into(), true));
    assert_eq!(after("of accept|continue"), ("FORWARD#2 OK#1".into(), false), "no trace of a match");
}

#[test]
fn nothing_moved_in_a_legacy_table_is_no_walk() {
    let t = table("INPUT accept: drop");
    assert_eq!(solve_first(&t, "", Fate::Passed).inexact, Some(Inexact::NoWalk));
}

#[test]
fn a_policy_without_a_counter_decides_when_nothing_else_can() {
    let t = table("input accept!: drop, log");
    let walk = solve_first(&t, "input#2", Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "input#2");
    assert_eq!(walk.decision, Some(Decision::Policy));
    assert!(walk.is_exact());
}

#[test]
fn rules_without_a_counter_matter_only_where_they_could_change_the_walk() {
    let t = table("input drop!: accept?, drop?, accept, drop?");
    let counted = solve_first(&t, "input#3", Fate::Passed);
    assert_eq!(names(&t, &counted.steps), "input#3");
    assert!(counted.is_exact());
    let only_accept_left = solve_first(&t, "", Fate::Passed);
    assert_eq!(names(&t, &only_accept_left.steps), "input#1");
    assert!(only_accept_left.is_exact(), "no other rule can have accepted it");
    let dropped = solve_first(&t, "", Fate::Dropped);
    assert_eq!(dropped.inexact, Some(Inexact::SeveralWalks));
    assert_eq!((dropped.steps.len(), dropped.decision, dropped.verdict), (0, None, Some(Verdict::Drop)));
}

#[test]
fn a_traceless_rule_that_goes_on_costs_exactness_but_not_the_verdict() {
    let t = table("input drop!: log?, accept");
    let walk = solve_first(&t, "input#2", Fate::Passed);
    assert_eq!(walk.inexact, Some(Inexact::Traceless { chain: "input".into(), position: 1, counted: false }));
    assert_eq!(names(&t, &walk.steps), "input#2");
    assert_eq!((walk.decided_by(), walk.verdict), (Some(DecidedBy::Rule), Some(Verdict::Accept)));
    let behind = table("input drop!: accept, log?");
    assert!(solve_first(&behind, "input#1", Fate::Passed).is_exact(), "the walk never got there");
}

#[test]
fn what_stands_behind_a_counter_is_not_called_uncounted() {
    let t = table("input drop!: log~, accept");
    let walk = solve_first(&t, "input#1 input#2", Fate::Passed);
    let why = walk.inexact.expect("it may have failed behind its counter").to_string();
    assert_eq!(why, "input #1 was come to, and what stands behind its counter may not have matched");
}

/// A flow table may have refused the connection: the kernel's trace leaves the rule out then, and its counter has moved.
#[test]
fn a_story_without_a_rule_whose_tail_failed_agrees_with_its_counter() {
    let mut t = table("input drop!: flow, accept");
    let accept = Step { chain: ChainRef(0), rule: 1 };
    let hits = moved(&t, "input#1 input#2");
    assert!(!agrees(&t, &[accept], &hits, 0));
    t.chains[0].rules[0].tail_may_fail = true;
    assert!(agrees(&t, &[accept], &hits, 0));
}

#[test]
fn rules_that_always_match_need_no_counter() {
    let t = table("input drop!: log!, jump web!\nweb!: accept, drop!");
    let dropped = solve_first(&t, "", Fate::Dropped);
    assert_eq!(names(&t, &dropped.steps), "input#1 input#2 web#2");
    assert_eq!(dropped.decided_by(), Some(DecidedBy::Rule));
    assert!(dropped.is_exact());
    assert_eq!(names(&t, &solve_first(&t, "web#1", Fate::Passed).steps), "input#1 input#2 web#1");
}

#[test]
fn a_counter_in_front_of_a_condition_proves_nothing() {
    let t = table("input accept!: accept~, log");
    assert_eq!(solve_first(&t, "input#1", Fate::Passed).inexact, Some(Inexact::SeveralWalks));
    let went_on = solve_first(&t, "input#1 input#2", Fate::Passed);
    assert_eq!(names(&t, &went_on.steps), "input#2");
    assert!(went_on.is_exact());
    let not_reached = solve_first(&t, "input#2", Fate::Passed);
    assert!(not_reached.is_exact());
}

#[test]
fn an_unseen_jump_shows_by_what_moved_behind_it() {
    let t = table("input drop!: jump web?, accept\nweb: accept, log");
    let walk = solve_first(&t, "web#1", Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "input#1 web#1");
    assert!(walk.is_exact());
}

#[test]
fn a_verdict_map_may_lead_anywhere() {
    let t = table("input drop!: vmap?\nlan!: accept\nwan!: accept, drop");
    let walk = solve_first(&t, "wan#1", Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "input#1 wan#1");
    assert!(walk.is_exact());
    let dropped = solve_first(&t, "", Fate::Dropped);
    assert!(!dropped.is_exact());
    assert_eq!(dropped.verdict, Some(Verdict::Drop));
}

#[test]
fn flags_forbid_exact() {
    let t = table("OUTPUT accept: drop\nINPUT accept: drop");
    let good = moved(&t, "OUTPUT#1");
    for (flag, reason) in [
        (HITS_CPU_CHANGED, Inexact::CpuChanged),
        (HITS_STALE, Inexact::Stale),
        (HITS_TRUNCATED, Inexact::Truncated),
        (HITS_UNREADABLE, Inexact::Unreadable),
        (HITS_OVERWRITTEN, Inexact::Overwritten),
        (HITS_INTERLEAVED, Inexact::Interleaved),
    ] {
        let walk = solve(&t, ChainRef(0), &good, flag, Fate::Dropped);
        assert_eq!(walk.inexact, Some(reason));
        assert_eq!(walk.verdict, Some(Verdict::Drop));
    }
    let truncated = solve(&t, ChainRef(0), &good, HITS_TRUNCATED, Fate::Dropped);
    assert_eq!(names(&t, &truncated.steps), "OUTPUT#1");
    assert!(solve(&t, ChainRef(0), &good, HITS_STALE, Fate::Dropped).steps.is_empty());
}

/// REJECT sends its answer through OUTPUT of the same table before the rejected packet dies.
#[test]
fn the_answer_of_a_reject_is_told_apart() {
    let t = table("FORWARD accept: log, jump W\nW: accept, log, reject\nOUTPUT accept: jump LOGS\nLOGS: log");
    let reading = moved(&t, "FORWARD#1 FORWARD#2 W#2 W#3 OUTPUT#1 LOGS#1 LOGS#end OUTPUT#end");
    let walk = solve(&t, ChainRef(0), &reading, HITS_INTERLEAVED, Fate::Dropped);
    assert_eq!(names(&t, &walk.steps), "FORWARD#1 FORWARD#2 W#2 W#3");
    assert_eq!(walk.verdict, Some(Verdict::Reject));
    assert!(walk.is_exact());
    let alone = solve(&t, ChainRef(0), &reading, 0, Fate::Dropped);
    assert_eq!(alone.inexact, Some(Inexact::NoWalk), "without the flag every counter must be its own");
}

/// At OUTPUT the answer walks the very chain that rejects; whether it does so whole is known only of a task that was
/// not switched out.
#[test]
fn the_answer_of_a_reject_at_output_is_told_apart() {
    let unswitched = HITS_INTERLEAVED | HITS_UNSWITCHED;
    let t = table("OUTPUT accept: reject, log");
    let passed = moved(&t, "OUTPUT#1 OUTPUT#2 OUTPUT#end");
    let rejected_too = moved(&t, "OUTPUT#1 OUTPUT#1");
    for reading in [passed, rejected_too] {
        let walk = solve(&t, ChainRef(0), &reading, unswitched, Fate::Dropped);
        assert_eq!((names(&t, &walk.steps).as_str(), walk.verdict), ("OUTPUT#1", Some(Verdict::Reject)));
        assert!(walk.is_exact());
        let unsure = solve(&t, ChainRef(0), &reading, HITS_INTERLEAVED, Fate::Dropped);
        assert_eq!(unsure.inexact, Some(Inexact::Interleaved));
    }
}

#[test]
fn a_chain_shared_with_the_answer_is_not_exact() {
    let t = table("FORWARD accept: jump LOGS, reject\nOUTPUT accept: jump LOGS\nLOGS: log");
    let reading = moved(&t, "FORWARD#1 LOGS#1 LOGS#end LOGS#end FORWARD#2 OUTPUT#1 OUTPUT#end");
    let walk = solve(&t, ChainRef(0), &reading, HITS_INTERLEAVED, Fate::Dropped);
    assert_eq!(walk.inexact, Some(Inexact::Interleaved), "either may have been logged");
    assert_eq!(names(&t, &walk.steps), "FORWARD#1 FORWARD#2");
    assert_eq!((walk.decided_by(), walk.verdict), (Some(DecidedBy::Rule), Some(Verdict::Reject)));
}

#[test]
fn a_user_chain_or_a_stranger_cannot_be_the_base() {
    let t = table("INPUT accept: drop\nUSER: drop");
    for chain in [1, 7] {
        let walk = solve(&t, ChainRef(chain), &[], 0, Fate::Passed);
        assert_eq!(walk.inexact, Some(Inexact::NoWalk));
    }
    let foreign = solve(&t, ChainRef(0), &hits(&[(99, 1)]), 0, Fate::Passed);
    assert_eq!(foreign.inexact, Some(Inexact::NoWalk));
}

#[test]
fn the_search_ends_where_ways_explode() {
    let chains: String = (0..40).map(|_| "log, ").collect();
    let t = table(&format!("FORWARD accept: jump A, jump A\nA: {chains} log"));
    let mut names = String::from("FORWARD#1 FORWARD#2 A#end A#end FORWARD#end");
    for rule in 1..=41 {
        names += &format!(" A#{rule}");
    }
    let walk = solve_first(&t, &names, Fate::Passed);
    assert_eq!(walk.inexact, Some(Inexact::TooMany));
    assert_eq!(walk.steps.len(), 43, "each of them matched for certain");
}

#[test]
fn five_thousand_rules() {
    let rules = vec!["accept"; 5000].join(", ");
    let t = table(&format!("FORWARD drop: {rules}"));
    let walk = solve_first(&t, "FORWARD#5000", Fate::Passed);
    assert_eq!(names(&t, &walk.steps), "FORWARD#5000");
    assert!(walk.is_exact());
}
