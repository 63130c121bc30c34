//! Where netfilter probes stand: before each table and after the last, at priorities that nobody uses
//! (`nf_hook_entries_grow`, net/netfilter/core.c, refuses a BPF program a priority that is taken).

use tracer_common::settings::role;

use crate::{
    kernel::hooks::{HookFunction, HookKind, HookList},
    model::{Family, Hook},
};

/// A probe, and what lies between it and the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GapPlan {
    pub priority: i32,
    /// [`role`] bits.
    pub role: u32,
    /// Tables and the NAT engine, in the order in which the kernel runs them; empty behind the last probe.
    pub functions: Vec<HookFunction>,
}

/// The probes at one hook, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookPlan {
    pub gaps: Vec<GapPlan>,
    /// Priority of connection tracking here, when it is hooked.
    pub conntrack: Option<i32>,
    /// Priorities of functions that have no probe before them, or none behind them: the kernel leaves the lowest and the
    /// highest priority to itself (`bpf_nf_check_pf_and_hooks`, net/netfilter/nf_bpf_link.c).
    pub unbounded: Vec<i32>,
}

/// Places probes at one hook; our own must not be in the list.
#[must_use]
pub fn plan_hook(list: &HookList) -> HookPlan {
    let functions: Vec<&HookFunction> = list.functions.iter().collect();
    let conntrack = conntrack(list);
    let mut gaps: Vec<GapPlan> = Vec::new();
    let mut previous: Option<i32> = None;
    let mut unbounded = Vec::new();
    for function in functions.iter().copied().filter(|function| judges(function)) {
        let place = free_below(function.priority, previous, &functions);
        let own = place.filter(|place| gaps.last().is_none_or(|gap| gap.priority < *place));
        match (own, gaps.last_mut()) {
            (Some(priority), _) => {
                gaps.push(GapPlan { priority, role: role::FOLLOW, functions: vec![function.clone()] });
            }
            // More than the kernel side reads in one gap are shown without their rules.
            (None, Some(gap)) => gap.functions.push(function.clone()),
            (None, None) => unbounded.push(function.priority),
        }
        previous = Some(function.priority);
    }
    let last_judge = functions.iter().rev().find(|f| judges(f)).map(|f| f.priority);
    let after = last_judge.map_or(default_priority(list.hook), |priority| priority.saturating_add(1));
    match (free_from(after, &functions), last_judge) {
        (Some(priority), _) => gaps.push(GapPlan { priority, role: role::FOLLOW, functions: Vec::new() }),
        (None, Some(priority)) => unbounded.push(priority),
        (None, None) => {}
    }
    assign_roles(list.hook, conntrack, &mut gaps);
    HookPlan { gaps, conntrack, unbounded }
}

/// Says of each table that no two probes enclose that it is so.
pub fn unbounded((list, plan): (&HookList, &HookPlan)) -> Vec<String> {
    let family = if list.family == Family::Ipv4 { "IPv4" } else { "IPv6" };
    let hook = list.hook.iptables_name();
    let say = |priority: &i32| {
        format!(
            "what judges at priority {priority} of {family} {hook}: the kernel lets no probe stand beyond it, so its verdict is taken from what comes next"
        )
    };
    plan.unbounded.iter().map(say).collect()
}

/// Priority of connection tracking at a hook.
pub(super) fn conntrack(list: &HookList) -> Option<i32> {
    list.functions.iter().find(|f| is_conntrack(f)).map(|f| f.priority)
}

/// Whether a function judges packets by a ruleset, or rewrites them.
pub(super) fn judges(function: &HookFunction) -> bool {
    matches!(function.kind, HookKind::XtTable { .. } | HookKind::NftChain { .. } | HookKind::Nat { .. })
}

/// `ipv4_conntrack_in`, `ipv4_conntrack_local`, `ipv6_...` (net/netfilter/nf_conntrack_proto.c), at
/// `NF_IP_PRI_CONNTRACK`.
fn is_conntrack(function: &HookFunction) -> bool {
    match &function.symbol {
        Some(symbol) => symbol.ends_with("_conntrack_in") || symbol.ends_with("_conntrack_local"),
        None => function.kind == HookKind::Other && function.priority == -200,
    }
}

/// The nearest free priority before a table and behind the one that judges before it: what else stands there, such as the
/// probes of another trace, may have the places next to it.
fn free_below(priority: i32, previous: Option<i32>, functions: &[&HookFunction]) -> Option<i32> {
    // The lowest is the kernel's own.
    let floor = previous.unwrap_or(i32::MIN);
    let mut candidates = (floor.saturating_add(1)..priority).rev();
    candidates.find(|candidate| functions.iter().all(|f| f.priority != *candidate))
}

/// The nearest free priority from one upwards, if there is one below the highest.
fn free_from(priority: i32, functions: &[&HookFunction]) -> Option<i32> {
    (priority..i32::MAX).find(|candidate| functions.iter().all(|f| f.priority != *candidate))
}

/// Where the only probe stands when no table is hooked: behind what conntrack and NAT would do there.
pub(super) fn default_priority(hook: Hook) -> i32 {
    match hook {
        Hook::Output => -199,
        Hook::Prerouting => -99,
        Hook::Postrouting => 101,
        _ => 1,
    }
}

/// The first probe of OUTPUT decides about local packets; the first behind conntrack looks at connections.
pub(super) fn assign_roles(hook: Hook, conntrack: Option<i32>, gaps: &mut [GapPlan]) {
    if hook == Hook::Output
        && let Some(first) = gaps.first_mut()
    {
        first.role |= role::GATE;
    }
    if hook == Hook::Prerouting
        && let Some(first) = gaps.first_mut()
    {
        first.role |= role::ENTRY;
    }
    if !matches!(hook, Hook::Output | Hook::Prerouting) {
        return;
    }
    if let Some(conntrack) = conntrack
        && let Some(late) = gaps.iter_mut().find(|gap| gap.priority > conntrack)
    {
        late.role |= role::LATE;
    }
}

#[cfg(test)]
mod tests;
