//! One table as the kernel holds it: chains, rules, jumps, and which counter belongs to which rule. Built from
//! kernel memory (`rules::legacy`, `rules::nft`), read by the path solver. Pure data.

use super::probes::Probes;
use crate::model::{Backend, Hook, TableFamily, Verdict};

/// Position of a chain in [`TableIndex::chains`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainRef(pub usize);

/// A table of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableIndex {
    pub backend: Backend,
    pub family: TableFamily,
    pub name: String,
    pub chains: Vec<Chain>,
    /// Per-CPU addresses of every rule's packet counter (8 bytes, native endian); `Hit::rule` is an index in
    /// here. On a machine with one possible CPU, iptables-legacy counters are plain addresses.
    pub counters: Vec<CounterAddress>,
    /// Kernel memory that changes when the ruleset does; none where this kernel offers nothing of the kind.
    pub check: Option<Check>,
    /// What shows a match of rules without counters; empty for iptables-legacy.
    pub probes: Probes,
    /// A rule hands connections to a flow table, which takes their packets past all hooks.
    pub offloads: bool,
}

/// Where a packet counter lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterAddress {
    /// Add the CPU's per-CPU offset.
    PerCpu(u64),
    /// As it is.
    Plain(u64),
}

/// A kernel address and what stood there when the index was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub address: u64,
    /// 1, 4 or 8 bytes.
    pub length: u32,
    pub value: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// What makes it a base chain.
    pub base: Option<BaseChain>,
    pub rules: Vec<Rule>,
    /// iptables-legacy: the counter of the policy (base chain) or of the implicit RETURN at the end of a user
    /// chain, which moves exactly when a packet gets there.
    pub end_counter: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    pub hook: Hook,
    pub priority: i32,
    pub policy: Verdict,
    /// Kernel address that the hook function is given (`nft_chain`, `xt_table`), to join it with the hook list.
    pub address: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// From 1, as `iptables -L --line-numbers` counts.
    pub position: u32,
    /// nft only.
    pub handle: Option<u64>,
    pub counter: Option<RuleCounter>,
    /// Nothing in the rule can fail, but for its tail: every packet that comes to it matches.
    pub unconditional: bool,
    /// Its last statement may fail (a flow table, a set that is full): of no consequence but that the kernel's own trace then
    /// leaves the rule out.
    pub tail_may_fail: bool,
    pub effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleCounter {
    /// Index in [`TableIndex::counters`].
    pub index: usize,
    /// False when expressions that can still fail stand behind the counter, the rule's tail apart: it moved, and yet the
    /// rule may not have matched to its end.
    pub proves_match: bool,
}

/// What a matching rule does to the walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Goes on with the next rule: no verdict, or a target such as LOG, MARK, NFLOG, CT, TEE, TRACE.
    Continue {
        target: Option<String>,
    },
    /// Ends the table's walk.
    Final {
        verdict: Verdict,
        target: String,
    },
    Jump(ChainRef),
    Goto(ChainRef),
    Return,
    /// A verdict map of which it is known what it holds: one of these. Only in an index that was refined from the
    /// texts (`rules::text`), since the kernel's structures of a set are not walked.
    OneOf {
        target: String,
        effects: Vec<Effect>,
    },
    /// A target or expression (verdict map, unknown module) that may do any of this.
    Unknown {
        target: String,
    },
}
