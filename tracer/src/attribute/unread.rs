//! A base chain whose rules this kernel does not let us read: that it judged is known, and what came of it, but not how.

use super::table::kind_of_change;
use crate::{
    correlate::DraftTable,
    model::{Family, NetfilterStage, TableFamily, Tuple, Verdict},
    plan::Judge,
    rules::{path::Fate, text::NamedChain},
};

/// What a table is called of which no tool says how.
const UNKNOWN: &str = "unknown";

/// Such a chain, with its name where the tools told it.
pub(super) struct Unread {
    pub(super) named: Option<NamedChain>,
}

/// `None` for a chain that was read, and for the NAT engine alone.
pub(super) fn chain(table: &DraftTable, judge: &Judge) -> Option<Unread> {
    if judge.table.is_some() {
        return None;
    }
    let named =
        judge.texts.get().and_then(|texts| texts.base_chain(table.family, table.hook, judge.priority));
    // Where no chain hangs there by any tool's word, it is the engine that acted.
    (named.is_some() || !judge.nat).then_some(Unread { named })
}

/// What is known of its judgement.
pub(super) fn stage(
    table: &DraftTable,
    judge: &Judge,
    unread: Unread,
    before: Tuple,
    rest: &[&DraftTable],
) -> NetfilterStage {
    let translates = judge.nat && rest.iter().all(|other| !other.gap.judges[other.judge].nat);
    // A rule of any table can write addresses (nft `ip daddr set`); of several that share a gap, which one is not known.
    let alone = table.gap.judges.len() == 1;
    let after = if translates || alone { table.after } else { before };
    let verdict = match table.fate {
        Fate::Passed | Fate::Translated => Some(Verdict::Accept),
        // Of several in a gap any may have dropped it, connection tracking too.
        Fate::Dropped => (rest.is_empty() && !table.gap.holds_conntrack).then_some(Verdict::Drop),
        Fate::Unknown => None,
    };
    let named = unread.named;
    NetfilterStage {
        hook: table.hook,
        family: named.as_ref().map_or(family(table), |named| named.family),
        table: named.as_ref().map_or_else(|| UNKNOWN.to_owned(), |named| named.table.clone()),
        backend: named.as_ref().map(|named| named.backend),
        chain: named.map(|named| named.chain),
        priority: judge.priority,
        verdict,
        decided_by: None,
        rules: Vec::new(),
        rules_source: None,
        exact: false,
        inexact_because: Some("this kernel does not describe its rules".to_owned()),
        nat: if judge.nat { kind_of_change(before, after) } else { None },
        mapping_rule: None,
        before,
        after,
    }
}

/// The family of a table that judges only these packets.
pub(super) fn family(table: &DraftTable) -> TableFamily {
    match table.family {
        Family::Ipv4 => TableFamily::Ip,
        Family::Ipv6 => TableFamily::Ip6,
    }
}
