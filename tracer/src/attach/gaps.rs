//! What lies behind each probe of a hook, written for the kernel side and for the view.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Context, Result};
use aya::{Ebpf, maps::HashMap as BpfHashMap};
use tracer_common::settings::{Gap as RawGap, GapKey, MAX_TABLES, Table};

use super::{placement::protocol_family, readings::Readings};
use crate::{
    kernel::hooks::{HookFunction, HookKind, HookList},
    model::Hook,
    plan::{Gap, HookPlan, Judge, ProbeKey, View},
    rules::{
        index::{ChainRef, TableIndex},
        late::LateTexts,
    },
};

/// Tables with the base chains that hook functions point at. An `xt_table` serves several hooks.
pub(super) type ByAddress = HashMap<(u64, Hook), (Arc<TableIndex>, ChainRef)>;

pub(super) fn by_address(tables: &[Arc<TableIndex>]) -> ByAddress {
    let mut found = HashMap::new();
    for table in tables {
        for (number, chain) in table.chains.iter().enumerate() {
            if let Some(base) = &chain.base {
                found.insert((base.address, base.hook), (table.clone(), ChainRef(number)));
            }
        }
    }
    found
}

/// Writes what lies behind each probe of a hook, for the kernel side and for the view.
pub(super) struct GapWriter<'a> {
    pub(super) netns: u32,
    /// Number of all gaps of the namespace that are written together.
    pub(super) generation: u32,
    pub(super) list: &'a HookList,
    pub(super) plan: &'a HookPlan,
    pub(super) by_address: &'a ByAddress,
    pub(super) texts: &'a Arc<LateTexts>,
    pub(super) view: &'a mut View,
}

impl GapWriter<'_> {
    pub(super) fn write(
        &mut self,
        readings: &mut Readings,
        ebpf: &mut Ebpf,
        known: &mut HashMap<u64, Table>,
    ) -> Result<()> {
        for (number, gap) in self.plan.gaps.iter().enumerate() {
            let mut raw = RawGap { generation: self.generation, ..RawGap::default() };
            let mut judges = Vec::new();
            for function in gap.functions.iter().flat_map(judging) {
                let table = self.table(function.chain);
                let reading = match &table {
                    Some((index, _)) if (raw.count as usize) < MAX_TABLES => {
                        let entry = reading(readings, ebpf, known, index)?;
                        raw.tables[raw.count as usize] = entry;
                        raw.count += 1;
                        Some(entry.id)
                    }
                    _ => {
                        if function.chain.is_some() {
                            // Holds a table that is read elsewhere, perhaps: what passes here passes unread.
                            raw.generation = readings.generation();
                        }
                        None
                    }
                };
                judges.push(Judge {
                    reading,
                    table,
                    nat: function.nat,
                    priority: function.priority,
                    texts: self.texts.clone(),
                });
            }
            let key = ProbeKey {
                netns: self.netns,
                family: self.list.family,
                hook: self.list.hook,
                priority: gap.priority,
            };
            let next = self.plan.gaps.get(number + 1);
            let after_conntrack = self.plan.conntrack.is_some_and(|conntrack| conntrack < gap.priority);
            let gap = Gap {
                judges,
                last: next.is_none(),
                after_conntrack,
                holds_conntrack: !after_conntrack
                    && self
                        .plan
                        .conntrack
                        .is_some_and(|conntrack| next.is_none_or(|next| conntrack < next.priority)),
            };
            self.view.insert(key, gap);
            write_gap(ebpf, key, &raw)?;
        }
        Ok(())
    }

    fn table(&self, address: Option<u64>) -> Option<(Arc<TableIndex>, ChainRef)> {
        self.by_address.get(&(address?, self.list.hook)).cloned()
    }
}

/// A base chain that a hook function runs.
struct Judging {
    chain: Option<u64>,
    nat: bool,
    priority: i32,
}

fn judging(function: &HookFunction) -> Vec<Judging> {
    let one = |chain, nat| Judging { chain, nat, priority: function.priority };
    match &function.kind {
        HookKind::XtTable { table } => vec![one(Some(*table), false)],
        HookKind::NftChain { chain } => vec![one(Some(*chain), false)],
        HookKind::Nat { chains, .. } if chains.is_empty() => vec![one(None, true)],
        HookKind::Nat { chains, .. } => chains
            .iter()
            .map(|chain| match chain.kind {
                HookKind::XtTable { table: address } | HookKind::NftChain { chain: address } => {
                    one(Some(address), true)
                }
                _ => one(None, true),
            })
            .collect(),
        HookKind::Bpf | HookKind::Other => Vec::new(),
    }
}

fn reading(
    readings: &mut Readings,
    ebpf: &mut Ebpf,
    known: &mut HashMap<u64, Table>,
    index: &Arc<TableIndex>,
) -> Result<Table> {
    let key = Arc::as_ptr(index) as u64;
    if let Some(table) = known.get(&key) {
        return Ok(*table);
    }
    let table = readings.add(ebpf, index)?;
    known.insert(key, table);
    Ok(table)
}

fn write_gap(ebpf: &mut Ebpf, key: ProbeKey, gap: &RawGap) -> Result<()> {
    let mut map: BpfHashMap<_, GapKey, RawGap> =
        BpfHashMap::try_from(ebpf.map_mut("GAPS").context("kernel object: no map GAPS")?)?;
    let key = GapKey {
        netns: key.netns,
        priority: key.priority,
        hook: u32::from(key.hook.inet_number().unwrap_or(0)),
        pf: u32::from(protocol_family(key.family)),
    };
    map.insert(key, gap, 0)?;
    Ok(())
}
