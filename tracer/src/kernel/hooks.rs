//! Every function that is hooked into netfilter in one namespace, in the order in which the kernel runs them.

use super::{Block, KernelTypes, Memory, ReadError, Symbols, btf::kernel_layout};
use crate::model::{Family, Hook};

/// The kernel's limit (`MAX_HOOK_COUNT`, net/netfilter/core.c).
const MAX_FUNCTIONS: u16 = 1024;

/// What a hooked function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// A table of iptables-legacy.
    XtTable { table: u64 },
    /// A base chain of nftables (iptables-nft is one too).
    NftChain { chain: u64 },
    /// The NAT engine. It runs what hangs off it, in order and at its own priority, for the first packet of a
    /// connection; later packets follow the mapping.
    Nat {
        /// The `nf_nat_lookup_hook_priv` of this hook.
        private: u64,
        chains: Vec<HookFunction>,
    },
    /// A BPF program; ours are such too.
    Bpf,
    /// Connection tracking, defragmentation, others; `symbol` tells.
    Other,
}

/// One function at one hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFunction {
    /// Lower runs earlier. For what hangs off the NAT engine: its order there.
    pub priority: i32,
    /// Kernel address of the function.
    pub address: u64,
    /// Its name, where the kernel shows symbols.
    pub symbol: Option<String>,
    pub kind: HookKind,
}

/// The functions at one hook, for packets of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookList {
    pub family: Family,
    pub hook: Hook,
    /// In the order in which they run.
    pub functions: Vec<HookFunction>,
}

kernel_layout! {
    /// Where hook lists lie (include/linux/netfilter.h, include/net/netns/netfilter.h).
    HookLayout {
        hooks_ipv4: offset("net", "nf.hooks_ipv4"),
        hooks_ipv6: offset("net", "nf.hooks_ipv6"),
        entries_count: offset("nf_hook_entries", "num_hook_entries"),
        entries: offset("nf_hook_entries", "hooks"),
        entry_size: size("nf_hook_entry"),
        entry_function: offset("nf_hook_entry", "hook"),
        entry_priv: offset("nf_hook_entry", "priv"),
        ops_size: size("nf_hook_ops"),
        ops_function: offset("nf_hook_ops", "hook"),
        ops_type: maybe_bits("nf_hook_ops", "hook_ops_type"),
        ops_priority: offset("nf_hook_ops", "priority"),
    }
}

/// `enum nf_hook_ops_type`, the values that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OpsTypes {
    nf_tables: Option<u64>,
    bpf: Option<u64>,
}

/// Reads hook lists.
pub struct HookReader<'a> {
    memory: &'a dyn Memory,
    symbols: &'a Symbols,
    types: &'a KernelTypes,
    layout: HookLayout,
    ops_types: OpsTypes,
}

impl<'a> HookReader<'a> {
    /// The types that reading hook lists takes.
    pub const TYPES: &'static [&'static str] = HookLayout::TYPES;

    /// # Errors
    /// [`ReadError::NoMember`] on a kernel without netfilter, or without a module's BTF.
    pub fn new(
        memory: &'a dyn Memory,
        types: &'a KernelTypes,
        symbols: &'a Symbols,
    ) -> Result<Self, ReadError> {
        let values = types.enum_values("nf_hook_ops_type").unwrap_or_default();
        let value = |name: &str| {
            values.iter().find(|(known, _)| known == name).and_then(|(_, value)| u64::try_from(*value).ok())
        };
        Ok(Self {
            memory,
            symbols,
            types,
            layout: HookLayout::resolve(types)?,
            ops_types: OpsTypes { nf_tables: value("NF_HOOK_OP_NF_TABLES"), bpf: value("NF_HOOK_OP_BPF") },
        })
    }

    /// The ten lists (five hooks, two families) of the namespace whose `struct net` is at `net`; hooks where nothing
    /// is registered have an empty one. The kernel may replace a list while it is read: what is returned was there
    /// at some moment of the call, each list for itself.
    ///
    /// # Errors
    /// [`ReadError`]; try again when the ruleset is being changed.
    pub fn read(&self, net: u64) -> Result<Vec<HookList>, ReadError> {
        let mut lists = Vec::with_capacity(10);
        for (family, first) in
            [(Family::Ipv4, self.layout.hooks_ipv4), (Family::Ipv6, self.layout.hooks_ipv6)]
        {
            for number in 0..5 {
                let Some(hook) = Hook::from_inet_number(number) else { continue };
                let slot = net.wrapping_add(u64::from(first)).wrapping_add(8 * u64::from(number));
                let functions = match self.pointer("net.nf.hooks", slot)? {
                    Some(entries) => self.entries(net, entries, true)?,
                    None => Vec::new(),
                };
                lists.push(HookList { family, hook, functions });
            }
        }
        Ok(lists)
    }

    /// `struct nf_hook_entries`: the functions, and behind them their `struct nf_hook_ops` pointers.
    fn entries(&self, net: u64, address: u64, may_nest: bool) -> Result<Vec<HookFunction>, ReadError> {
        let layout = &self.layout;
        let head = Block::read(self.memory, "nf_hook_entries", address, layout.entries_count + 2)?;
        let count = head.u16(layout.entries_count)?;
        if count > MAX_FUNCTIONS {
            return Err(head.impossible(layout.entries_count, format!("{count} hooked functions")));
        }
        let ops_at = layout.entries + u32::from(count) * layout.entry_size;
        let list = Block::read(self.memory, "nf_hook_entries", address, ops_at + 8 * u32::from(count))?;
        let mut functions = Vec::with_capacity(count.into());
        for i in 0..u32::from(count) {
            let entry = layout.entries + i * layout.entry_size;
            let function = list.u64(entry + layout.entry_function)?;
            let private = list.u64(entry + layout.entry_priv)?;
            let ops = Block::read(self.memory, "nf_hook_ops", list.u64(ops_at + 8 * i)?, layout.ops_size)?;
            if ops.u64(layout.ops_function)? != function {
                return Err(list.impossible(entry, "a function and its registration differ"));
            }
            // What removal leaves in an entry's place until the list is rebuilt.
            if self.symbols.function(function) != Some("accept_all") {
                functions.push(self.function(net, (function, private), &ops, may_nest)?);
            }
        }
        Ok(functions)
    }

    fn function(
        &self,
        net: u64,
        (address, private): (u64, u64),
        ops: &Block,
        may_nest: bool,
    ) -> Result<HookFunction, ReadError> {
        let ops_type =
            self.layout.ops_type.map(|bits| Ok(bits.extract(ops.u64(bits.unit())?))).transpose()?;
        let symbol = self.symbols.function(address);
        let is_nft = (ops_type.is_some() && ops_type == self.ops_types.nf_tables)
            || symbol.is_some_and(|s| s.starts_with("nft_do_chain"));
        let kind = if ops_type.is_some() && ops_type == self.ops_types.bpf {
            HookKind::Bpf
        } else if let Some(table) = symbol.and_then(table_of_namespace) {
            match self.own_table(net, table, private)? {
                Some(table) => HookKind::XtTable { table },
                None => HookKind::Other,
            }
        } else if private == 0 {
            HookKind::Other
        } else if is_nft || symbol.is_some_and(is_nft_nat) {
            HookKind::NftChain { chain: private }
        } else if symbol.is_some_and(is_xt_table) {
            HookKind::XtTable { table: private }
        } else if may_nest && symbol.is_some_and(is_nat_engine) {
            HookKind::Nat { private, chains: self.nat_chains(net, private)? }
        } else {
            HookKind::Other
        };
        let priority = ops.i32(self.layout.ops_priority)?;
        Ok(HookFunction { priority, address, symbol: symbol.map(str::to_owned), kind })
    }

    /// `struct nf_nat_lookup_hook_priv` (net/netfilter/nf_nat_core.c).
    fn nat_chains(&self, net: u64, private: u64) -> Result<Vec<HookFunction>, ReadError> {
        // In a module of its own (nf_nat), which is there when its function is hooked.
        let entries = match self.types.require("nf_nat_lookup_hook_priv", "entries") {
            // The first member where `struct net` still holds the tables, before modules had BTF; functions that differ
            // from their registration show if it is not.
            Err(_) if self.types.offset_of("net", "ipv4.nat_table").is_some() => 0,
            found => found?,
        };
        let slot = private.wrapping_add(u64::from(entries));
        match self.pointer("nf_nat_lookup_hook_priv", slot)? {
            Some(entries) => self.entries(net, entries, false),
            None => Ok(Vec::new()),
        }
    }

    /// The table of a function that serves one table only: its private pointer (from 5.13), or what `struct net` holds.
    fn own_table(&self, net: u64, table: &str, private: u64) -> Result<Option<u64>, ReadError> {
        match (private, self.types.offset_of("net", table)) {
            (0, Some(offset)) => self.pointer("an xt_table of struct net", net.wrapping_add(offset.into())),
            (0, None) => Ok(None),
            (table, _) => Ok(Some(table)),
        }
    }

    fn pointer(&self, what: &'static str, address: u64) -> Result<Option<u64>, ReadError> {
        self.memory.read_pointer(address).map_err(|source| ReadError::Unreadable { what, address, source })
    }
}

/// net/netfilter/nft_chain_nat.c
fn is_nft_nat(symbol: &str) -> bool {
    symbol == "nft_nat_do_chain"
}

/// net/ipv4/netfilter/ip_tables.c, iptable_mangle.c, and the same for IPv6.
fn is_xt_table(symbol: &str) -> bool {
    matches!(symbol, "ipt_do_table" | "ip6t_do_table" | "iptable_mangle_hook" | "ip6table_mangle_hook")
}

/// Before 5.16 each table has a function of its own (net/ipv4/netfilter/iptable_filter.c and its like); where
/// `struct net` held the table before 5.13.
fn table_of_namespace(symbol: &str) -> Option<&'static str> {
    Some(match symbol {
        "iptable_filter_hook" => "ipv4.iptable_filter",
        "iptable_mangle_hook" => "ipv4.iptable_mangle",
        "iptable_raw_hook" => "ipv4.iptable_raw",
        "iptable_security_hook" => "ipv4.iptable_security",
        "iptable_nat_do_chain" => "ipv4.nat_table",
        "ip6table_filter_hook" => "ipv6.ip6table_filter",
        "ip6table_mangle_hook" => "ipv6.ip6table_mangle",
        "ip6table_raw_hook" => "ipv6.ip6table_raw",
        "ip6table_security_hook" => "ipv6.ip6table_security",
        "ip6table_nat_do_chain" => "ipv6.ip6table_nat",
        _ => return None,
    })
}

/// net/netfilter/nf_nat_proto.c: `nf_nat_ipv4_pre_routing`, `nf_nat_ipv6_out`, ...
fn is_nat_engine(symbol: &str) -> bool {
    symbol.starts_with("nf_nat_ipv4_") || symbol.starts_with("nf_nat_ipv6_")
}

#[cfg(test)]
mod tests;
