//! Tables of nftables (iptables-nft's are such too) as the kernel holds them: chains in a list, each with the
//! rules of the current generation in one block (include/net/netfilter/nf_tables.h).

mod backend;
mod deciding;
mod expression;
mod facts;
mod generation;

use std::collections::{HashMap, HashSet};

pub(super) use self::generation::Generation;
use self::{
    backend::Shape,
    expression::{ExpressionLayout, Expressions},
    facts::{FLOW_OFFLOAD, RuleFacts},
    generation::Generations,
};
use super::{
    index::{BaseChain, Chain, ChainRef, CounterAddress, Effect, Rule, RuleCounter, TableIndex},
    path::Step,
    probes::{Probe, Probes, Watch},
};
use crate::{
    kernel::{
        Block, KernelTypes, Memory, ReadError, Symbols,
        btf::{BitField, kernel_layout},
    },
    model::{Backend, Hook, TableFamily, Verdict},
};

/// A chain's rules are one kvmalloc (at most INT_MAX bytes); what is larger than this is torn.
const MAX_BLOB_BYTES: u64 = 512 << 20;
/// `NFT_CHAIN_BASE` (include/uapi/linux/netfilter/nf_tables.h).
const NFT_CHAIN_BASE: u64 = 1;
/// `NF_INET_INGRESS` (include/uapi/linux/netfilter.h).
const NF_INET_INGRESS: u32 = 5;

kernel_layout! {
    /// Where nf_tables keeps things.
    NftLayout {
        table_size: size("nft_table"),
        table_name: offset("nft_table", "name"),
        table_family: bits("nft_table", "family"),
        table_genmask: bits("nft_table", "genmask"),
        table_chains: offset("nft_table", "chains"),
        chain_size: size("nft_chain"),
        chain_list: offset("nft_chain", "list"),
        chain_blob_0: offset("nft_chain", "blob_gen_0"),
        chain_blob_1: offset("nft_chain", "blob_gen_1"),
        chain_table: offset("nft_chain", "table"),
        chain_name: offset("nft_chain", "name"),
        chain_flags: bits("nft_chain", "flags"),
        chain_genmask: bits("nft_chain", "genmask"),
        base_size: size("nft_base_chain"),
        base_chain: offset("nft_base_chain", "chain"),
        base_hook: offset("nft_base_chain", "ops.hooknum"),
        base_priority: offset("nft_base_chain", "ops.priority"),
        base_policy: offset("nft_base_chain", "policy"),
        base_type: offset("nft_base_chain", "type"),
        type_name: offset("nft_chain_type", "name"),
        blob_size: offset("nft_rule_blob", "size"),
        blob_data: offset("nft_rule_blob", "data"),
        rule_is_last: bits("nft_rule_dp", "is_last"),
        rule_length: bits("nft_rule_dp", "dlen"),
        rule_handle: bits("nft_rule_dp", "handle"),
        rule_data: offset("nft_rule_dp", "data"),
    }
}

/// Reads nft tables of one namespace.
pub(super) struct NftReader<'a> {
    memory: &'a dyn Memory,
    layout: NftLayout,
    expressions: Expressions<'a>,
    generations: Generations<'a>,
}

/// A chain in force, as read from the table's list.
struct RawChain {
    address: u64,
    name: String,
    base: Option<(BaseChain, String)>,
    blob: Option<u64>,
}

impl<'a> NftReader<'a> {
    /// # Errors
    /// [`ReadError::NoMember`] for a kernel before 5.17 (rules lie differently there) or without nf_tables' BTF.
    pub(super) fn new(
        memory: &'a dyn Memory,
        types: &KernelTypes,
        symbols: &'a Symbols,
        net: u64,
    ) -> Result<Self, ReadError> {
        Ok(Self {
            memory,
            layout: NftLayout::resolve(types)?,
            expressions: Expressions::new(memory, symbols, ExpressionLayout::resolve(types)?),
            generations: Generations::new(memory, types, symbols, net)?,
        })
    }

    /// The generation in force now.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`].
    pub(super) fn generation(&self) -> Result<Generation, ReadError> {
        self.generations.current()
    }

    /// Address of the `struct nft_table` that a chain belongs to.
    ///
    /// # Errors
    /// [`ReadError`].
    pub(super) fn table_of(&self, chain: u64) -> Result<u64, ReadError> {
        Block::read(self.memory, "nft_chain", chain, self.layout.chain_size)?.u64(self.layout.chain_table)
    }

    /// The table at `address`, as `generation` has it; `None` for one that a transaction is about to add (its
    /// base chains are hooked already, and have no rules) or has deleted.
    ///
    /// # Errors
    /// [`ReadError`]; when rules are replaced meanwhile, their memory may be gone or say something else.
    pub(super) fn table(
        &self,
        address: u64,
        generation: Generation,
    ) -> Result<Option<TableIndex>, ReadError> {
        let layout = &self.layout;
        let table = Block::read(self.memory, "nft_table", address, layout.table_size)?;
        if !generation.has(layout.table_genmask, &table)? {
            return Ok(None);
        }
        let number = layout.table_family.extract(table.u64(layout.table_family.unit())?);
        let family = family(number)
            .ok_or_else(|| table.impossible(layout.table_family.unit(), format!("family {number}")))?;
        let name = self.text("nft_table.name", table.u64(layout.table_name)?)?;
        let raw = self.chains(address.wrapping_add(u64::from(layout.table_chains)), generation)?;
        let by_address: HashMap<_, _> =
            raw.iter().enumerate().map(|(i, c)| (c.address, ChainRef(i))).collect();

        let mut shape = Shape::new(family, &name);
        let mut probes = Vec::new();
        let mut offloads = false;
        let (mut chains, mut counters) = (Vec::with_capacity(raw.len()), Vec::new());
        for chain in raw {
            if let Some((base, chain_type)) = &chain.base {
                shape.base_chain(&chain.name, base, chain_type);
            }
            let mut rules = Vec::new();
            for facts in self.rules(chain.blob)? {
                shape.rule(&facts);
                offloads |= facts.expressions.iter().any(|name| &**name == FLOW_OFFLOAD);
                let position = rules.len() as u32 + 1;
                if let Some(probe) = probe(&facts) {
                    probes.push((Step { chain: ChainRef(chains.len()), rule: rules.len() }, probe));
                }
                rules.push(rule(facts, position, &by_address, &mut counters)?);
            }
            let base = chain.base.map(|(base, _)| base);
            chains.push(Chain { name: chain.name, base, rules, end_counter: None });
        }
        let backend = shape.backend();
        if backend == Backend::IptablesNft {
            chains
                .iter_mut()
                .flat_map(|chain| &mut chain.rules)
                .for_each(|rule| in_iptables_words(&mut rule.effect));
        }
        let probes = Probes::new(by_address, probes);
        Ok(Some(TableIndex {
            backend,
            family,
            name,
            chains,
            counters,
            check: Some(generation.check),
            probes,
            offloads,
        }))
    }

    fn text(&self, what: &'static str, address: u64) -> Result<String, ReadError> {
        self.memory.read_text(address).map_err(|source| ReadError::Unreadable { what, address, source })
    }

    /// Follows the table's list of chains; those of a coming or past generation are left out.
    fn chains(&self, head: u64, generation: Generation) -> Result<Vec<RawChain>, ReadError> {
        let layout = &self.layout;
        let list = |address: u64| {
            self.memory.read_u64(address).map_err(|source| ReadError::Unreadable {
                what: "nft_table.chains",
                address,
                source,
            })
        };
        let (mut chains, mut seen) = (Vec::new(), HashSet::new());
        let mut link = list(head)?;
        while link != head {
            if !seen.insert(link) {
                return Err(ReadError::impossible("nft_table.chains", head, "the list runs in a circle"));
            }
            let address = link.wrapping_sub(u64::from(layout.chain_list));
            let chain = Block::read(self.memory, "nft_chain", address, layout.chain_size)?;
            if generation.has(layout.chain_genmask, &chain)? {
                chains.push(self.chain(&chain, generation)?);
            }
            link = chain.u64(layout.chain_list)?;
        }
        Ok(chains)
    }

    fn chain(&self, chain: &Block, generation: Generation) -> Result<RawChain, ReadError> {
        let layout = &self.layout;
        let flags = layout.chain_flags.extract(chain.u64(layout.chain_flags.unit())?);
        let blob_at = if generation.cursor == 0 { layout.chain_blob_0 } else { layout.chain_blob_1 };
        Ok(RawChain {
            address: chain.address(),
            name: self.text("nft_chain.name", chain.u64(layout.chain_name)?)?,
            base: if flags & NFT_CHAIN_BASE != 0 { self.base(chain.address())? } else { None },
            blob: chain.pointer(blob_at)?,
        })
    }

    /// What makes it a base chain, and its type (`filter`, `nat`, `route`); `None` for a hook that is not followed.
    fn base(&self, chain: u64) -> Result<Option<(BaseChain, String)>, ReadError> {
        let layout = &self.layout;
        let address = chain.wrapping_sub(u64::from(layout.base_chain));
        let base = Block::read(self.memory, "nft_base_chain", address, layout.base_size)?;
        let Some(hook) = hook(base.u32(layout.base_hook)?) else { return Ok(None) };
        let policy = match i32::from(base.u8(layout.base_policy)?) {
            libc::NF_ACCEPT => Verdict::Accept,
            libc::NF_DROP => Verdict::Drop,
            other => return Err(base.impossible(layout.base_policy, format!("policy {other}"))),
        };
        let type_name = base.u64(layout.base_type)?.wrapping_add(u64::from(layout.type_name));
        let type_name = self.memory.read_u64(type_name).map_err(|source| ReadError::Unreadable {
            what: "nft_chain_type",
            address: type_name,
            source,
        })?;
        let found = BaseChain { hook, priority: base.i32(layout.base_priority)?, policy, address: chain };
        Ok(Some((found, self.text("nft_chain_type.name", type_name)?)))
    }

    /// The rules in a `struct nft_rule_blob`.
    fn rules(&self, blob: Option<u64>) -> Result<Vec<RuleFacts>, ReadError> {
        // A chain without a block has no rules yet.
        let Some(address) = blob else { return Ok(Vec::new()) };
        let layout = &self.layout;
        let head = Block::read(self.memory, "nft_rule_blob", address, layout.blob_data)?;
        let size = u32::try_from(head.u64(layout.blob_size)?).unwrap_or(u32::MAX);
        if u64::from(size) > MAX_BLOB_BYTES {
            return Err(head.impossible(layout.blob_size, format!("{size} bytes of rules")));
        }
        // `size` leaves the end marker out.
        let start = address.wrapping_add(u64::from(layout.blob_data));
        let block = Block::read(self.memory, "nft_rule_blob.data", start, size + layout.rule_data)?;
        let (mut rules, mut offset) = (Vec::new(), 0);
        loop {
            let bits = |field: BitField| Ok(field.extract(block.u64(offset + field.unit())?));
            if bits(layout.rule_is_last)? != 0 {
                return Ok(rules);
            }
            let length = bits(layout.rule_length)? as u32;
            let data = offset + layout.rule_data;
            rules.push(self.expressions.rule(&block, data..data + length, bits(layout.rule_handle)?)?);
            offset = data + length;
        }
    }
}

/// What shows that a packet matches the rule, where an expression does.
fn probe(facts: &RuleFacts) -> Option<Probe> {
    let (expression, watch) = facts.deciding?;
    let told = facts.unconditional || facts.counter.is_some_and(|(_, proves_match)| proves_match);
    let needed = watch == Watch::Returned || !told;
    Some(Probe { expression: expression.address, function: expression.function, watch, needed })
}

fn rule(
    facts: RuleFacts,
    position: u32,
    chains: &HashMap<u64, ChainRef>,
    counters: &mut Vec<CounterAddress>,
) -> Result<Rule, ReadError> {
    let chain = |address: u64| {
        chains.get(&address).copied().ok_or_else(|| {
            ReadError::impossible(
                "nft_verdict.chain",
                address,
                format!("rule {} jumps out of its table", facts.handle),
            )
        })
    };
    let effect = match facts.effect {
        expression::RuleEffect::Known(effect) => effect,
        expression::RuleEffect::Jump(address) => Effect::Jump(chain(address)?),
        expression::RuleEffect::Goto(address) => Effect::Goto(chain(address)?),
    };
    let counter = facts.counter.map(|(address, proves_match)| {
        counters.push(CounterAddress::PerCpu(address));
        RuleCounter { index: counters.len() - 1, proves_match }
    });
    Ok(Rule {
        position,
        handle: Some(facts.handle),
        counter,
        unconditional: facts.unconditional,
        tail_may_fail: facts.tail_may_fail,
        effect,
    })
}

/// nft's words for a verdict, as iptables' users know them.
fn in_iptables_words(effect: &mut Effect) {
    match effect {
        // The only logging that iptables-nft expresses without nft_compat.
        Effect::Continue { target: Some(target) } if target == "log" => *target = "NFLOG".to_owned(),
        Effect::Continue { target: Some(target) }
        | Effect::Final { target, .. }
        | Effect::OneOf { target, .. }
        | Effect::Unknown { target } => target.make_ascii_uppercase(),
        _ => {}
    }
}

/// From `NFPROTO_*`.
fn family(number: u64) -> Option<TableFamily> {
    Some(match i32::try_from(number).ok()? {
        libc::NFPROTO_IPV4 => TableFamily::Ip,
        libc::NFPROTO_IPV6 => TableFamily::Ip6,
        libc::NFPROTO_INET => TableFamily::Inet,
        libc::NFPROTO_BRIDGE => TableFamily::Bridge,
        libc::NFPROTO_NETDEV => TableFamily::Netdev,
        libc::NFPROTO_ARP => TableFamily::Arp,
        _ => return None,
    })
}

/// From `enum nf_inet_hooks`; tables reached through IP hooks have no other numbers.
fn hook(number: u32) -> Option<Hook> {
    if number == NF_INET_INGRESS {
        return Some(Hook::Ingress);
    }
    Hook::from_inet_number(u8::try_from(number).ok()?)
}

#[cfg(test)]
mod tests;
