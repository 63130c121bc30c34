//! Random hook lists, and what must hold for the plan of each.

use tracer_common::settings::{MAX_TABLES, role};

use super::{GapPlan, judges, plan_hook};
use crate::{
    kernel::hooks::{HookFunction, HookKind, HookList},
    model::{Family, Hook},
};

const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
const CONNTRACK: i32 = -200;

/// Numbers that repeat with the seed (a linear congruential generator's upper half).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % limit
    }
}

fn function(priority: i32, kind: HookKind) -> HookFunction {
    HookFunction { priority, address: 0, symbol: Some("accept_all".to_owned()), kind }
}

fn conntrack() -> HookFunction {
    HookFunction { symbol: Some("ipv4_conntrack_in".to_owned()), ..function(CONNTRACK, HookKind::Other) }
}

fn list(hook: Hook, mut functions: Vec<HookFunction>) -> HookList {
    functions.sort_by_key(|function| function.priority);
    for (address, function) in (1..).zip(&mut functions) {
        function.address = address;
    }
    HookList { family: Family::Ipv4, hook, functions }
}

/// At most as many tables as one gap holds; priorities close together, some shared.
fn random_list(numbers: &mut Numbers) -> HookList {
    let hook = HOOKS[numbers.below(5) as usize];
    let span = [4, 40, 600][numbers.below(3) as usize];
    let mut functions: Vec<HookFunction> = (0..numbers.below(MAX_TABLES as u32 + 1))
        .map(|_| {
            let kind = match numbers.below(5) {
                0 => HookKind::XtTable { table: 1 },
                1 => HookKind::NftChain { chain: 1 },
                2 => HookKind::Nat { private: 2, chains: Vec::new() },
                3 => HookKind::Bpf,
                _ => HookKind::Other,
            };
            function(numbers.below(span) as i32 - span as i32 / 2, kind)
        })
        .collect();
    if numbers.below(2) == 0 {
        functions.push(conntrack());
    }
    list(hook, functions)
}

/// The functions that run between two probes.
fn between<'a>(list: &'a HookList, gaps: &[GapPlan], number: usize) -> Vec<&'a HookFunction> {
    let end = gaps.get(number + 1).map_or(i32::MAX, |next| next.priority);
    let inside = |f: &&HookFunction| f.priority > gaps[number].priority && f.priority < end;
    list.functions.iter().filter(|f| judges(f)).filter(inside).collect()
}

#[test]
fn probes_stand_where_nobody_does_and_surround_every_table() {
    let mut numbers = Numbers(7);
    for _ in 0..5_000 {
        let list = random_list(&mut numbers);
        let gaps = plan_hook(&list).gaps;
        assert!(gaps.is_sorted_by(|a, b| a.priority < b.priority), "{gaps:?}");
        let taken = |gap: &GapPlan| list.functions.iter().any(|f| f.priority == gap.priority);
        assert!(!gaps.iter().any(taken), "{list:?} {gaps:?}");
        for (number, gap) in gaps.iter().enumerate() {
            let planned: Vec<&HookFunction> = gap.functions.iter().collect();
            assert_eq!(planned, between(&list, &gaps, number), "{list:?} {gaps:?}");
        }
        let planned: usize = gaps.iter().map(|gap| gap.functions.len()).sum();
        assert_eq!(planned, list.functions.iter().filter(|f| judges(f)).count(), "{list:?} {gaps:?}");
        assert!(gaps.last().is_some_and(|gap| gap.functions.is_empty()));
    }
}

#[test]
fn roles_stand_where_they_belong() {
    let mut numbers = Numbers(11);
    for _ in 0..5_000 {
        let list = random_list(&mut numbers);
        let plan = plan_hook(&list);
        let having = |role| -> Vec<usize> {
            (0..plan.gaps.len()).filter(|number| plan.gaps[*number].role & role != 0).collect()
        };
        assert_eq!(having(role::GATE), if list.hook == Hook::Output { vec![0] } else { vec![] }, "{list:?}");
        let late = plan
            .conntrack
            .filter(|_| matches!(list.hook, Hook::Output | Hook::Prerouting))
            .and_then(|conntrack| plan.gaps.iter().position(|gap| gap.priority > conntrack));
        assert_eq!(having(role::LATE), Vec::from_iter(late), "{list:?}");
    }
}

#[test]
fn a_usual_host_needs_one_probe_a_table_and_one_behind() {
    let table = || HookKind::XtTable { table: 1 };
    let nat = HookKind::Nat { private: 2, chains: Vec::new() };
    let functions = vec![function(-300, table()), conntrack(), function(-150, table()), function(-100, nat)];
    let plan = plan_hook(&list(Hook::Prerouting, functions));
    let priorities: Vec<i32> = plan.gaps.iter().map(|gap| gap.priority).collect();
    assert_eq!(priorities, [-301, -151, -101, -99]);
    assert_eq!(plan.conntrack, Some(CONNTRACK));
    assert_eq!(plan.gaps[1].role, role::LATE);
}

/// Of a second trace all tables would share a gap, and two chains of one table could not be told apart there.
#[test]
fn tables_stand_apart_beside_the_probes_of_other_traces() {
    let chain = |priority| function(priority, HookKind::NftChain { chain: 1 });
    let chains = [chain(-300), conntrack(), chain(-10), chain(0), chain(10)];
    let mut functions = chains.to_vec();
    for _ in 0..4 {
        let plan = plan_hook(&list(Hook::Prerouting, functions.clone()));
        let judging = plan.gaps.iter().filter(|gap| gap.functions.len() == 1).count();
        assert_eq!((plan.gaps.len(), judging), (5, 4), "{plan:?}");
        let late = plan.gaps.iter().find(|gap| gap.role & role::LATE != 0).expect("conntrack is there");
        assert_eq!(late.functions[0].priority, -10);
        functions.extend(plan.gaps.iter().map(|gap| function(gap.priority, HookKind::Bpf)));
    }
}

#[test]
fn a_hook_without_tables_has_one_probe() {
    for hook in HOOKS {
        let plan = plan_hook(&list(hook, vec![conntrack()]));
        assert_eq!(plan.gaps.len(), 1);
        assert!(plan.gaps[0].priority > CONNTRACK);
    }
}

#[test]
fn a_table_at_either_end_is_named() {
    let table = || HookKind::XtTable { table: 1 };
    let last = plan_hook(&list(Hook::Forward, vec![function(0, table()), function(i32::MAX, table())]));
    let priorities: Vec<i32> = last.gaps.iter().map(|gap| gap.priority).collect();
    assert_eq!(priorities, [-1, i32::MAX - 1]);
    assert_eq!(last.unbounded, [i32::MAX]);
    let first = plan_hook(&list(Hook::Forward, vec![function(i32::MIN, table())]));
    assert_eq!(first.unbounded, [i32::MIN]);
}
