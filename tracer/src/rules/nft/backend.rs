//! Whether a table is iptables-nft's or a user's own nftables table.

use super::facts::RuleFacts;
use crate::{
    model::{Backend, TableFamily},
    rules::index::BaseChain,
};

/// The base chains that iptables-nft makes: table, chain, type, priority (`security` not at the kernel's own 50).
const BUILTIN: &[(&str, &str, &str, i32)] = &[
    ("raw", "PREROUTING", "filter", -300),
    ("raw", "OUTPUT", "filter", -300),
    ("mangle", "PREROUTING", "filter", -150),
    ("mangle", "INPUT", "filter", -150),
    ("mangle", "FORWARD", "filter", -150),
    ("mangle", "OUTPUT", "route", -150),
    ("mangle", "POSTROUTING", "filter", -150),
    ("nat", "PREROUTING", "nat", -100),
    ("nat", "INPUT", "nat", 100),
    ("nat", "OUTPUT", "nat", -100),
    ("nat", "POSTROUTING", "nat", 100),
    ("filter", "INPUT", "filter", 0),
    ("filter", "FORWARD", "filter", 0),
    ("filter", "OUTPUT", "filter", 0),
    ("security", "INPUT", "filter", 150),
    ("security", "FORWARD", "filter", 150),
    ("security", "OUTPUT", "filter", 150),
];

/// Expressions that iptables-nft writes and reads back; it calls a table with any other "incompatible".
const EXPRESSIONS: &[&str] = &[
    "bitwise",
    "cmp",
    "counter",
    "immediate",
    "limit",
    "log",
    "lookup",
    "match",
    "meta",
    "payload",
    "range",
    "target",
];

/// What has been seen of a table.
///
/// The kernel does not say who made a table. It is called iptables-nft's when iptables-nft would take it for its
/// own (`nft_is_table_compatible` in iptables): family ip or ip6, a table name of iptables, every base chain
/// with iptables' name, hook, type and priority, and every rule of iptables' expressions; and when in addition
/// every rule has a counter, as iptables-nft always gives it one. A table that a user of nft built to be exactly
/// so is shown as iptables-nft's, and `iptables-nft -S` shows it too.
pub(super) struct Shape<'a> {
    table: &'a str,
    fits: bool,
}

impl<'a> Shape<'a> {
    pub(super) fn new(family: TableFamily, table: &'a str) -> Self {
        Self { table, fits: matches!(family, TableFamily::Ip | TableFamily::Ip6) }
    }

    pub(super) fn base_chain(&mut self, name: &str, base: &BaseChain, chain_type: &str) {
        self.fits &= base.hook.iptables_name() == name
            && BUILTIN.contains(&(self.table, base.hook.iptables_name(), chain_type, base.priority));
    }

    pub(super) fn rule(&mut self, rule: &RuleFacts) {
        self.fits &=
            rule.counter.is_some() && rule.expressions.iter().all(|name| EXPRESSIONS.contains(&&**name));
    }

    pub(super) fn backend(&self) -> Backend {
        if self.fits { Backend::IptablesNft } else { Backend::Nftables }
    }
}
