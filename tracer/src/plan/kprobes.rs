//! Places for kprobes: before each function that judges, and behind the last of the hook. The functions themselves are
//! probed, so nobody's priority stands in the way, and each has a gap to itself.

use tracer_common::{
    kprobe::{BARE, END, Place},
    settings::role,
};

use super::{
    GapPlan, HookPlan,
    places::{assign_roles, conntrack, default_priority, judges},
};
use crate::kernel::hooks::{HookFunction, HookKind, HookList};

/// Gaps for one hook. Their priorities only tell them apart: functions that share one get two.
#[must_use]
pub fn plan_functions(list: &HookList) -> HookPlan {
    let conntrack = conntrack(list);
    let judging: Vec<&HookFunction> = list.functions.iter().filter(|function| judges(function)).collect();
    let mut gaps: Vec<GapPlan> = Vec::with_capacity(judging.len() + 1);
    let priority_of = |wanted: i32, gaps: &[GapPlan]| {
        let above = gaps.last().map_or(i32::MIN, |gap| gap.priority.saturating_add(1));
        // Room for those behind it.
        let most = i32::MAX.saturating_sub(i32::try_from(judging.len() - gaps.len()).unwrap_or(i32::MAX));
        wanted.min(most).max(above)
    };
    for function in &judging {
        let priority = priority_of(function.priority, &gaps);
        gaps.push(GapPlan { priority, role: role::FOLLOW, functions: vec![(*function).clone()] });
    }
    // It stands behind whatever is hooked, judge or not.
    let highest = list.functions.iter().map(|function| function.priority).max();
    let wanted = highest.map_or(default_priority(list.hook), |highest| highest.saturating_add(1));
    gaps.push(GapPlan { priority: priority_of(wanted, &gaps), role: role::FOLLOW, functions: Vec::new() });
    assign_roles(list.hook, conntrack, &mut gaps);
    HookPlan { gaps, conntrack, unbounded: Vec::new() }
}

/// What the programs are told about a planned hook: what a function is given (or [`END`], or [`BARE`]), and what to do.
#[must_use]
pub fn places(list: &HookList, plan: &HookPlan) -> Vec<(u64, Place)> {
    let begins = u32::from(plan.gaps.iter().any(|gap| gap.role != role::FOLLOW));
    let last = if list.functions.is_empty() { BARE } else { END };
    plan.gaps
        .iter()
        .map(|gap| {
            let function = gap.functions.first().and_then(given);
            (function.unwrap_or(last), Place { priority: gap.priority, role: gap.role, begins })
        })
        .collect()
}

/// The pointer that a judging function is given.
fn given(function: &HookFunction) -> Option<u64> {
    match &function.kind {
        HookKind::XtTable { table } => Some(*table),
        HookKind::NftChain { chain } => Some(*chain),
        HookKind::Nat { private, .. } => Some(*private),
        HookKind::Bpf | HookKind::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Hook};

    fn function(priority: i32, kind: HookKind) -> HookFunction {
        HookFunction { priority, address: 1, symbol: None, kind }
    }

    fn list(hook: Hook, functions: Vec<HookFunction>) -> HookList {
        HookList { family: Family::Ipv4, hook, functions }
    }

    #[test]
    fn every_function_that_judges_has_a_place_of_its_own() {
        let functions = vec![
            function(-300, HookKind::XtTable { table: 10 }),
            function(0, HookKind::XtTable { table: 11 }),
            function(0, HookKind::NftChain { chain: 12 }),
            function(1, HookKind::NftChain { chain: 13 }),
            function(300, HookKind::Other),
        ];
        let list = list(Hook::Forward, functions);
        let plan = plan_functions(&list);
        let places = places(&list, &plan);
        assert_eq!(places.iter().map(|(given, _)| *given).collect::<Vec<_>>(), [10, 11, 12, 13, END]);
        assert!(plan.gaps.windows(2).all(|pair| pair[0].priority < pair[1].priority), "{plan:?}");
        assert!(places.iter().all(|(_, place)| place.begins == 0 && place.role == role::FOLLOW));
    }

    #[test]
    fn an_output_hook_without_tables_still_recognises_local_packets() {
        let bare = list(Hook::Output, Vec::new());
        let found = places(&bare, &plan_functions(&bare));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0, found[0].1.role), (BARE, role::GATE));
        let tracked = HookFunction {
            symbol: Some("ipv4_conntrack_local".to_owned()),
            ..function(-200, HookKind::Other)
        };
        let tracked = list(Hook::Output, vec![tracked]);
        let found = places(&tracked, &plan_functions(&tracked));
        assert_eq!((found[0].0, found[0].1.role), (END, role::GATE | role::LATE));
        assert_ne!(found[0].1.begins, 0);
    }

    /// A packet that dies between a raw table and the hook's end may have died in connection tracking.
    #[test]
    fn the_end_is_behind_connection_tracking_also_where_no_table_is() {
        let tracking =
            HookFunction { symbol: Some("ipv4_conntrack_in".to_owned()), ..function(-200, HookKind::Other) };
        let raw = function(-300, HookKind::XtTable { table: 10 });
        let plan = plan_functions(&list(Hook::Prerouting, vec![raw, tracking]));
        let [table, end] = plan.gaps.as_slice() else { panic!("{plan:?}") };
        assert!(table.priority < -200 && end.priority > -200, "{plan:?}");
        assert_eq!((table.role, end.role), (role::FOLLOW | role::ENTRY, role::FOLLOW | role::LATE));
    }

    #[test]
    fn the_nat_engine_is_one_place_whatever_hangs_off_it() {
        let chain = function(-100, HookKind::NftChain { chain: 5 });
        let list =
            list(Hook::Prerouting, vec![function(-100, HookKind::Nat { private: 7, chains: vec![chain] })]);
        let found = places(&list, &plan_functions(&list));
        assert_eq!(found.iter().map(|(given, _)| *given).collect::<Vec<_>>(), [7, END]);
    }

    #[test]
    fn functions_at_the_highest_priority_do_not_overflow() {
        let functions = vec![
            function(i32::MAX, HookKind::XtTable { table: 10 }),
            function(i32::MAX, HookKind::NftChain { chain: 11 }),
        ];
        let plan = plan_functions(&list(Hook::Input, functions));
        let priorities: Vec<i32> = plan.gaps.iter().map(|gap| gap.priority).collect();
        assert_eq!(priorities, [i32::MAX - 2, i32::MAX - 1, i32::MAX]);
    }
}
