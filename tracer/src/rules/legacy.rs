//! Tables of iptables-legacy as the kernel holds them: one block of entries, base chains between
//! `hook_entry` and `underflow`, user chains behind an ERROR target each (include/linux/netfilter/x_tables.h).

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

use super::{
    effect,
    index::{BaseChain, Chain, ChainRef, Check, CounterAddress, Effect, Rule, RuleCounter, TableIndex},
    live::Content,
    probes::Probes,
};
use crate::{
    kernel::{Block, KernelTypes, Memory, ReadError, btf::kernel_layout},
    model::{Backend, Hook, TableFamily, Verdict},
};

/// `XT_TABLE_MAXNAMELEN`, `XT_EXTENSION_MAXNAMELEN`, `XT_FUNCTION_MAXNAMELEN` (include/uapi/linux/netfilter/x_tables.h).
const TABLE_NAME: u32 = 32;
const TARGET_NAME: u32 = 29;
const CHAIN_NAME: u32 = 30;
/// `XT_RETURN`: `-NF_REPEAT - 1`.
const XT_RETURN: i32 = -5;
/// The kernel's own limit is 512 MiB (`XT_MAX_TABLE_SIZE`); what is larger than this is torn.
const MAX_ENTRIES_BYTES: u32 = 512 << 20;

kernel_layout! {
    /// Where x_tables keeps things.
    XtLayout {
        table_size: size("xt_table"),
        table_name: offset("xt_table", "name"),
        table_private: offset("xt_table", "private"),
        table_valid_hooks: offset("xt_table", "valid_hooks"),
        info_size: offset("xt_table_info", "size"),
        info_number: offset("xt_table_info", "number"),
        info_hook_entry: offset("xt_table_info", "hook_entry"),
        info_underflow: offset("xt_table_info", "underflow"),
        info_entries: offset("xt_table_info", "entries"),
        target_pointer: offset("xt_entry_target", "u.kernel.target"),
        target_data: offset("xt_entry_target", "data"),
        standard_verdict: offset("xt_standard_target", "verdict"),
        target_name: offset("xt_target", "name"),
        counters_size: size("xt_counters"),
        counter_packets: offset("xt_counters", "pcnt"),
    }
}

/// What differs between `struct ipt_entry` and `struct ip6t_entry`.
#[derive(Clone, Debug)]
pub(crate) struct EntryLayout {
    flags: u32,
    target_offset: u32,
    next_offset: u32,
    counters: u32,
    matches: u32,
    /// `IPT_F_GOTO` or `IP6T_F_GOTO`.
    goto: u8,
}

impl EntryLayout {
    fn ipv4(types: &KernelTypes) -> Result<Self, ReadError> {
        Ok(Self {
            flags: types.require("ipt_entry", "ip.flags")?,
            target_offset: types.require("ipt_entry", "target_offset")?,
            next_offset: types.require("ipt_entry", "next_offset")?,
            counters: types.require("ipt_entry", "counters")?,
            matches: types.require("ipt_entry", "elems")?,
            goto: 0x02,
        })
    }

    fn ipv6(types: &KernelTypes) -> Result<Self, ReadError> {
        Ok(Self {
            flags: types.require("ip6t_entry", "ipv6.flags")?,
            target_offset: types.require("ip6t_entry", "target_offset")?,
            next_offset: types.require("ip6t_entry", "next_offset")?,
            counters: types.require("ip6t_entry", "counters")?,
            matches: types.require("ip6t_entry", "elems")?,
            goto: 0x04,
        })
    }
}

/// Reads tables of one family.
pub(crate) struct LegacyReader<'a> {
    pub(crate) memory: &'a dyn Memory,
    pub(crate) layout: XtLayout,
    pub(crate) entry: EntryLayout,
    pub(crate) family: TableFamily,
    /// Whether entries hold per-CPU addresses instead of counters (more than one possible CPU).
    pub(crate) per_cpu: bool,
}

/// One `struct ipt_entry`.
struct Entry {
    /// From the start of the entries.
    offset: u32,
    next: u32,
    goto: bool,
    target: Target,
    /// Index in `TableIndex::counters`; the heads of user chains and the table's end have none.
    counter: usize,
}

enum Target {
    /// Heads a user chain, or ends the table.
    Error(String),
    Standard(i32),
    Module(String),
}

/// A chain as a run of entries.
struct Run {
    name: String,
    hook: Option<Hook>,
    entries: Range<usize>,
}

impl<'a> LegacyReader<'a> {
    /// # Errors
    /// [`ReadError::NoMember`] for a kernel without ip_tables (ip6_tables).
    pub(crate) fn new(
        memory: &'a dyn Memory,
        types: &KernelTypes,
        family: TableFamily,
        per_cpu: bool,
    ) -> Result<Self, ReadError> {
        let entry =
            if family == TableFamily::Ip6 { EntryLayout::ipv6(types) } else { EntryLayout::ipv4(types) }?;
        Ok(Self { memory, layout: XtLayout::resolve(types)?, entry, family, per_cpu })
    }

    /// The table at `address` (`struct xt_table`); `priorities` holds the priority at each hook where it is hooked.
    ///
    /// # Errors
    /// [`ReadError`]; when the table is replaced meanwhile, its memory may be gone or say something else.
    pub(crate) fn table(
        &self,
        address: u64,
        priorities: &BTreeMap<Hook, i32>,
    ) -> Result<(TableIndex, Content), ReadError> {
        let table = Block::read(self.memory, "xt_table", address, self.layout.table_size)?;
        let info_address = table.u64(self.layout.table_private)?;
        let info = Block::read(self.memory, "xt_table_info", info_address, self.layout.info_entries)?;
        let size = info.u32(self.layout.info_size)?;
        if size > MAX_ENTRIES_BYTES {
            return Err(info.impossible(self.layout.info_size, format!("{size} bytes of entries")));
        }
        let start = info_address.wrapping_add(u64::from(self.layout.info_entries));
        let block = Block::read(self.memory, "the entries of an xt_table", start, size)?;
        let (entries, counters) = self.entries(&block)?;
        if info.u32(self.layout.info_number)? as usize != entries.len() {
            return Err(info.impossible(self.layout.info_number, format!("{} entries found", entries.len())));
        }
        let runs = self.runs(&table, &info, &entries)?;
        let chains = chains(&block, &entries, &runs, address, priorities)?;
        let check = Check {
            address: address.wrapping_add(u64::from(self.layout.table_private)),
            length: 8,
            value: info_address,
        };
        let index = TableIndex {
            backend: Backend::IptablesLegacy,
            family: self.family,
            name: table.text(self.layout.table_name, TABLE_NAME)?,
            chains,
            counters,
            check: Some(check),
            probes: Probes::default(),
            offloads: false,
        };
        let inside = |entry: &Entry| {
            let counter = entry.offset + self.entry.counters;
            counter..counter + self.layout.counters_size
        };
        let inside: Vec<_> = if self.per_cpu { Vec::new() } else { entries.iter().map(inside).collect() };
        let hash = block.hash_without(&inside);
        Ok((index, Content { check, start, length: size, counters: inside, hash }))
    }

    fn entries(&self, block: &Block) -> Result<(Vec<Entry>, Vec<CounterAddress>), ReadError> {
        let (mut entries, mut counters) = (Vec::new(), Vec::new());
        let mut names = HashMap::new();
        let mut offset = 0;
        while offset < block.len() {
            let to_target = u32::from(block.u16(offset + self.entry.target_offset)?);
            let length = u32::from(block.u16(offset + self.entry.next_offset)?);
            if to_target < self.entry.matches || length < to_target + self.layout.target_data {
                return Err(block.impossible(offset, format!("target at {to_target}, {length} bytes in all")));
            }
            let target = self.target(block, offset + to_target, &mut names)?;
            entries.push(Entry {
                offset,
                next: offset + length,
                goto: block.u8(offset + self.entry.flags)? & self.entry.goto != 0,
                counter: counters.len(),
                target,
            });
            if !matches!(entries.last(), Some(Entry { target: Target::Error(_), .. })) {
                counters.push(self.counter(block, offset + self.entry.counters)?);
            }
            offset += length;
        }
        Ok((entries, counters))
    }

    fn counter(&self, block: &Block, offset: u32) -> Result<CounterAddress, ReadError> {
        let packets = u64::from(self.layout.counter_packets);
        Ok(if self.per_cpu {
            CounterAddress::PerCpu(block.u64(offset)?.wrapping_add(packets))
        } else {
            CounterAddress::Plain(block.address().wrapping_add(u64::from(offset)).wrapping_add(packets))
        })
    }

    fn target(
        &self,
        block: &Block,
        offset: u32,
        names: &mut HashMap<u64, String>,
    ) -> Result<Target, ReadError> {
        let pointer = block.u64(offset + self.layout.target_pointer)?;
        let name = match names.get(&pointer) {
            Some(name) => name.clone(),
            None => {
                let at = pointer.wrapping_add(u64::from(self.layout.target_name));
                let name =
                    Block::read(self.memory, "xt_target.name", at, TARGET_NAME)?.text(0, TARGET_NAME)?;
                names.insert(pointer, name.clone());
                name
            }
        };
        // XT_STANDARD_TARGET and XT_ERROR_TARGET.
        Ok(match name.as_str() {
            "" => Target::Standard(block.i32(offset + self.layout.standard_verdict)?),
            "ERROR" => Target::Error(block.text(offset + self.layout.target_data, CHAIN_NAME)?),
            _ => Target::Module(name),
        })
    }

    /// Base chains first, in the order of their hooks, then user chains in the order of the entries.
    fn runs(&self, table: &Block, info: &Block, entries: &[Entry]) -> Result<Vec<Run>, ReadError> {
        let valid_hooks = table.u32(self.layout.table_valid_hooks)?;
        let index_of = |offset: u32| {
            entries.binary_search_by_key(&offset, |entry| entry.offset).map_err(|_| {
                info.impossible(self.layout.info_hook_entry, format!("no entry starts at {offset}"))
            })
        };
        let mut runs = Vec::new();
        for number in 0..5u8 {
            let Some(hook) = Hook::from_inet_number(number).filter(|_| valid_hooks >> number & 1 == 1) else {
                continue;
            };
            let slot = 4 * u32::from(number);
            let first = index_of(info.u32(self.layout.info_hook_entry + slot)?)?;
            let last = index_of(info.u32(self.layout.info_underflow + slot)?)?;
            if last < first {
                return Err(info.impossible(self.layout.info_underflow, "a chain that ends before it starts"));
            }
            runs.push(Run {
                name: hook.iptables_name().to_owned(),
                hook: Some(hook),
                entries: first..last + 1,
            });
        }
        let base_starts: Vec<_> = runs.iter().map(|run| run.entries.start).collect();
        let ends = |i: &usize| matches!(entries[*i].target, Target::Error(_)) || base_starts.contains(i);
        for (i, entry) in entries.iter().enumerate() {
            let Target::Error(name) = &entry.target else { continue };
            // The last entry ends the table.
            if i + 1 < entries.len() {
                let end = (i + 1..entries.len()).find(ends).unwrap_or(entries.len());
                runs.push(Run { name: name.clone(), hook: None, entries: i + 1..end });
            }
        }
        Ok(runs)
    }
}

fn chains(
    block: &Block,
    entries: &[Entry],
    runs: &[Run],
    table: u64,
    priorities: &BTreeMap<Hook, i32>,
) -> Result<Vec<Chain>, ReadError> {
    let starts: HashMap<u32, ChainRef> = runs
        .iter()
        .enumerate()
        .filter_map(|(i, run)| Some((entries.get(run.entries.start)?.offset, ChainRef(i))))
        .collect();
    let mut chains = Vec::with_capacity(runs.len());
    for run in runs {
        let mut body = &entries[run.entries.clone()];
        let end = body
            .last()
            .filter(|entry| run.hook.is_some() || matches!(entry.target, Target::Standard(XT_RETURN)));
        if end.is_some() {
            body = &body[..body.len() - 1];
        }
        let base = match (run.hook, end) {
            (Some(hook), Some(end)) => Some(BaseChain {
                hook,
                priority: *priorities.get(&hook).ok_or_else(|| {
                    ReadError::impossible(
                        "xt_table",
                        table,
                        format!("its {} is not hooked", hook.iptables_name()),
                    )
                })?,
                policy: policy(block, end)?,
                address: table,
            }),
            _ => None,
        };
        let rules = body.iter().zip(1..).map(|(entry, position)| rule(block, entry, position, &starts));
        chains.push(Chain {
            name: run.name.clone(),
            base,
            rules: rules.collect::<Result<_, _>>()?,
            end_counter: end.map(|entry| entry.counter),
        });
    }
    Ok(chains)
}

fn policy(block: &Block, underflow: &Entry) -> Result<Verdict, ReadError> {
    match underflow.target {
        // -NF_DROP - 1 and -NF_ACCEPT - 1; the kernel takes nothing else (check_underflow).
        Target::Standard(-1) => Ok(Verdict::Drop),
        Target::Standard(-2) => Ok(Verdict::Accept),
        _ => Err(block.impossible(underflow.offset, "a policy that is neither ACCEPT nor DROP")),
    }
}

fn rule(
    block: &Block,
    entry: &Entry,
    position: u32,
    starts: &HashMap<u32, ChainRef>,
) -> Result<Rule, ReadError> {
    let effect = match &entry.target {
        Target::Module(name) => effect::of_target(name),
        Target::Standard(XT_RETURN) => Effect::Return,
        Target::Standard(verdict @ ..0) => effect::of_verdict(!verdict)
            .ok_or_else(|| block.impossible(entry.offset, format!("verdict {verdict}")))?,
        // A rule without a target jumps to the entry behind itself.
        Target::Standard(next) if next.cast_unsigned() == entry.next && !entry.goto => {
            Effect::Continue { target: None }
        }
        Target::Standard(offset) => {
            let chain = *starts.get(&offset.cast_unsigned()).ok_or_else(|| {
                block.impossible(entry.offset, format!("a jump to {offset}, where no chain starts"))
            })?;
            if entry.goto { Effect::Goto(chain) } else { Effect::Jump(chain) }
        }
        Target::Error(_) => return Err(block.impossible(entry.offset, "an ERROR target inside a chain")),
    };
    let counter = Some(RuleCounter { index: entry.counter, proves_match: true });
    // Its counter says whether it matched.
    Ok(Rule { position, handle: None, counter, unconditional: false, tail_may_fail: false, effect })
}

#[cfg(test)]
mod tests;
