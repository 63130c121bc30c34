//! One gap between two probes: which of its tables judged, and how.

use std::borrow::Cow;

use tracer_common::records::HITS_UNSURE;

use super::{
    judgement::Judgement,
    mapping::{MappingKey, Mappings},
    traced::{Account, Told},
    unread,
};
use crate::{
    correlate::DraftTable,
    model::{Backend, DecidedBy, Direction, NatKind, NetfilterStage, Tuple, Verdict},
    plan::Judge,
    rules::{
        index::{ChainRef, TableIndex},
        path::{Fate, Inexact},
        resolve::{matched_rules, nat_kind},
        text::{KnownPacket, NamedChain, Texts},
    },
};

/// What came of a gap.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) stages: Vec<NetfilterStage>,
    /// The packet died in the gap, and no table there killed it.
    pub(super) dropped_elsewhere: bool,
}

/// Judges the tables of a gap in the order in which the kernel runs them.
pub(super) fn judge(
    tables: &[&DraftTable],
    flow: Option<u64>,
    direction: Option<Direction>,
    mappings: &mut Mappings,
    account: &mut Account<'_>,
) -> Judged {
    let netns = account.netns;
    let asked = asked(tables);
    let tables = &*asked;
    let mut judged = Judged::default();
    let Some(first) = tables.first() else { return judged };
    let mut before = first.before;
    let mut bound = false;
    for (number, table) in tables.iter().enumerate() {
        let judge = &table.gap.judges[table.judge];
        // Of several NAT chains at a hook, none is asked behind the one that translates (`nf_nat_inet_fn`,
        // net/netfilter/nf_nat_core.c, 6.12).
        if judge.nat && bound {
            continue;
        }
        let rest = &tables[number + 1..];
        let unread = unread::chain(table, judge);
        let stage = if judge.nat && (table.nat_is_set_up() || (judge.table.is_none() && unread.is_none())) {
            follow_mapping(table, judge, before, flow.map(|flow| (flow, netns)), direction, mappings)
        } else if judge.nat && !table.tracked {
            // The NAT engine leaves packets alone that connection tracking does not know.
            None
        } else if let Some(unread) = unread {
            Some(unread::stage(table, judge, unread, before, rest))
        } else {
            judge.table.as_ref().map(|(index, base)| {
                let known = judge.texts.get().map_or(&**index, |texts| texts.refined(index));
                let judgement = Judgement { table, judge, index: known, base: *base, before, rest };
                let walked = judgement.walk(account.read, account.probes_skipped());
                let told = account.complete(table, index, *base, before, !rest.is_empty(), walked);
                let told = settled(told, &judgement, account);
                bound |= judge.nat && nat_kind(index, table.hook, &told.walk).is_some();
                decided(table, judge, index, *base, &told, before, rest)
            })
        };
        let Some(stage) = stage else { continue };
        if let (Some(flow), Some(kind), Some(rule)) = (flow, stage.nat, stage.rules.last())
            && stage.decided_by == Some(DecidedBy::Rule)
        {
            let of_destination = stage.before.destination != stage.after.destination
                || stage.before.destination_port != stage.after.destination_port;
            mappings.learn(MappingKey { flow, netns, of_destination }, kind, rule, &stage);
        }
        before = stage.after;
        let died =
            stage.verdict.is_some_and(|verdict| verdict != Verdict::Accept) && table.fate == Fate::Dropped;
        judged.stages.push(stage);
        if died {
            return judged;
        }
    }
    judged.dropped_elsewhere = first.fate == Fate::Dropped
        && judged.stages.last().is_none_or(|stage| stage.verdict == Some(Verdict::Accept));
    judged
}

/// The tables of a gap without those that are known not to have judged: a table of iptables-legacy that is asked counts the
/// packet in a rule or a policy, so one of NAT where no counter moved stands behind the chain that translated, though that one's
/// rules may not be known.
fn asked<'t, 'a>(tables: &'t [&'a DraftTable]) -> Cow<'t, [&'a DraftTable]> {
    let others = || tables.iter().copied().filter(|table| !was_left_out(table));
    // Somebody else must have translated.
    let translated = |table: &DraftTable| table.gap.judges[table.judge].nat;
    let some_left_out = tables.len() > 1 && tables.iter().any(|table| was_left_out(table));
    if some_left_out && others().any(translated) { others().collect() } else { tables.into() }
}

fn was_left_out(table: &DraftTable) -> bool {
    let judge = &table.gap.judges[table.judge];
    let counts_all = judge.table.as_ref().is_some_and(|(index, _)| index.backend == Backend::IptablesLegacy);
    let first_of_connection = table.tracked && !table.nat_is_set_up();
    judge.nat
        && counts_all
        && first_of_connection
        && table.hits.as_ref().is_some_and(|read| read.hits.is_empty() && read.flags & HITS_UNSURE == 0)
}

/// Where counters, probes and the kernel's own trace leave the walk open, the packet's own fields may settle it.
fn settled(told: Told, judgement: &Judgement<'_>, account: &Account<'_>) -> Told {
    if told.walk.is_exact() {
        return told;
    }
    let Judgement { table, judge, index, before, .. } = *judgement;
    let packet = KnownPacket {
        family: account.looks.family,
        protocol: account.looks.protocol,
        tuple: before,
        input: table.around.input,
        output: table.around.output,
        state: table.state(),
        direction: table.direction(),
        status: table.status(),
    };
    let narrowed = judge.texts.get().and_then(|texts| texts.narrowed(index, &packet));
    let Some(narrowed) = narrowed else { return told };
    let known = Judgement { index: &narrowed, ..*judgement };
    let (walk, source) = known.walk(account.read, account.probes_skipped());
    // Where no way is left, something is not as it was told.
    if walk.inexact == Some(Inexact::NoWalk) {
        return told;
    }
    let alike = told.alike && !walk.is_exact();
    Told { walk, source, alike }
}

fn decided(
    table: &DraftTable,
    judge: &Judge,
    index: &TableIndex,
    base: ChainRef,
    told: &Told,
    before: Tuple,
    rest: &[&DraftTable],
) -> NetfilterStage {
    let walk = &told.walk;
    let without = Texts::default();
    let texts = judge.texts.get().unwrap_or(&without);
    let rules = if judge.reading.is_some() { matched_rules(index, walk, texts) } else { Vec::new() };
    let changed = judge.nat && before != table.after;
    let by_rule = nat_kind(index, table.hook, walk);
    // Of several NAT tables in a gap the one whose rule says so did it; without one, the last.
    let mine = changed && (by_rule.is_some() || rest.iter().all(|other| !other.gap.judges[other.judge].nat));
    // A rule of any table can write addresses (nft `ip daddr set`); of several that share a gap, which one is not known.
    let alone = !judge.nat && table.gap.judges.len() == 1;
    let after = if mine || alone { table.after } else { before };
    let exact = judge.reading.is_some() && walk.is_exact();
    let inexact_because = if exact {
        None
    } else if judge.reading.is_none() {
        Some("rule counters are not read".to_owned())
    } else if table.hits.is_none() && !table.changed_cpu {
        Some("no counter reading of this table arrived".to_owned())
    } else {
        walk.inexact.as_ref().map(|why| match told.alike {
            true => format!("{why}; and packets that look alike were traced in different ways"),
            false => why.to_string(),
        })
    };
    NetfilterStage {
        hook: table.hook,
        family: index.family,
        table: index.name.clone(),
        chain: index.chains.get(base.0).map(|chain| chain.name.clone()),
        priority: priority(judge),
        backend: Some(index.backend),
        verdict: walk.verdict.or((table.fate == Fate::Passed).then_some(Verdict::Accept)),
        decided_by: walk.decided_by(),
        rules,
        rules_source: judge.reading.map(|_| told.source),
        exact,
        inexact_because,
        nat: if mine { by_rule.or_else(|| kind_of_change(before, after)) } else { None },
        mapping_rule: None,
        before,
        after,
    }
}

/// A later packet of a connection, or an engine without chains: the mapping decides. `None` where it changes nothing.
fn follow_mapping(
    table: &DraftTable,
    judge: &Judge,
    before: Tuple,
    flow: Option<(u64, u32)>,
    direction: Option<Direction>,
    mappings: &Mappings,
) -> Option<NetfilterStage> {
    let after = table.after;
    let change = kind_of_change(before, after)?;
    let forward = direction != Some(Direction::Reply);
    // A reply's destination is rewritten back by the rule that rewrote the source.
    let of_destination = (change == NatKind::Dnat) == forward;
    let known = flow.and_then(|(flow, netns)| mappings.find(MappingKey { flow, netns, of_destination }));
    let named = named(table, judge);
    let backend =
        named.as_ref().map(|named| named.backend).or_else(|| known.as_ref().and_then(|known| known.backend));
    // Where no chain is hooked, only the engine is there: what it undoes is of the table that has the rule.
    let (family, name) = match (&named, &known) {
        (Some(named), _) => (named.family, named.table.clone()),
        (None, Some(known)) => (known.family, known.table.clone()),
        (None, None) => match judge.texts.get().and_then(|texts| texts.nat_chain(table.family)) {
            Some(only) => (only.family, only.table),
            None => (unread::family(table), "nat".to_owned()),
        },
    };
    Some(NetfilterStage {
        hook: table.hook,
        family,
        table: name,
        chain: named.map(|named| named.chain),
        priority: priority(judge),
        backend,
        verdict: Some(Verdict::Accept),
        decided_by: Some(DecidedBy::Mapping),
        rules: Vec::new(),
        rules_source: None,
        exact: true,
        inexact_because: None,
        nat: Some(known.as_ref().map_or(change, |known| if forward { known.kind } else { change })),
        mapping_rule: known.map(|known| known.rule.clone()),
        before,
        after,
    })
}

/// The base chain's own. The NAT engine, which asks the chains of type nat, is hooked at one of its own.
fn priority(judge: &Judge) -> i32 {
    let base = judge.table.as_ref().and_then(|(index, base)| index.chains.get(base.0)?.base.as_ref());
    base.map_or(judge.priority, |base| base.priority)
}

/// The base chain that judges there, by the kernel's word or that of its tools.
fn named(table: &DraftTable, judge: &Judge) -> Option<NamedChain> {
    let Some((index, base)) = &judge.table else {
        return unread::chain(table, judge).and_then(|chain| chain.named);
    };
    let chain = index.chains.get(base.0)?.name.clone();
    Some(NamedChain { backend: index.backend, family: index.family, table: index.name.clone(), chain })
}

pub(super) fn kind_of_change(before: Tuple, after: Tuple) -> Option<NatKind> {
    if (before.destination, before.destination_port) != (after.destination, after.destination_port) {
        Some(NatKind::Dnat)
    } else if before != after {
        Some(NatKind::Snat)
    } else {
        None
    }
}
