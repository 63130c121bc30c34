//! What the diagnosis may ask of the live ruleset: pure data, built from the text that `iptables-save` and
//! `nft list ruleset` print.

mod docker;
mod facts;
mod iptables;
mod nftables;
mod walk;

pub use docker::{DockerChains, docker_chains};
pub use facts::{Condition, Maybe, NatTarget, Question, RuleFacts, Selectors, Target};
pub use walk::{Ending, Walk};

use crate::model::{Backend, Hook, TableFamily, Verdict};

/// The rulesets of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesetView {
    /// Inode number of the namespace.
    pub netns: u32,
    pub tables: Vec<TableView>,
    /// What could not be read, and why. While it is not empty, absence of a rule proves nothing.
    pub unread: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableView {
    pub backend: Backend,
    pub family: TableFamily,
    pub name: String,
    pub chains: Vec<ChainView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainView {
    pub name: String,
    pub base: Option<BaseView>,
    pub rules: Vec<RuleView>,
}

/// What makes a chain a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseView {
    pub hook: Hook,
    pub policy: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleView {
    /// From 1 in its chain.
    pub position: u32,
    /// As the user would write it.
    pub text: String,
    pub facts: RuleFacts,
}

/// A rule with the place where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed<'a> {
    pub table: &'a TableView,
    pub chain: &'a ChainView,
    pub rule: &'a RuleView,
}

impl RulesetView {
    #[must_use]
    pub fn new(netns: u32) -> Self {
        Self { netns, ..Self::default() }
    }

    /// Adds what `iptables-save`, `iptables-legacy-save`, ... printed; counters in front of rules are ignored.
    pub fn add_iptables_save(&mut self, backend: Backend, family: TableFamily, text: &str) {
        self.tables.extend(iptables::tables(backend, family, text));
    }

    /// Adds the nftables tables of `nft list ruleset`. Tables that `already` holds (those of iptables-nft, added
    /// from its own tool) are left out.
    pub fn add_nft_list(&mut self, text: &str) {
        for table in nftables::tables(text) {
            if !self.tables.iter().any(|held| {
                held.backend == Backend::IptablesNft
                    && (held.family, &held.name) == (table.family, &table.name)
            }) {
                self.tables.push(table);
            }
        }
    }

    /// Every rule of every table.
    pub fn rules(&self) -> impl Iterator<Item = Placed<'_>> {
        self.tables.iter().flat_map(|table| {
            table
                .chains
                .iter()
                .flat_map(move |chain| chain.rules.iter().map(move |rule| Placed { table, chain, rule }))
        })
    }

    /// Rules that rewrite the destination.
    pub fn destination_nat(&self, ipv6: bool) -> impl Iterator<Item = Placed<'_>> {
        self.rules().filter(move |placed| {
            placed.table.judges(ipv6)
                && matches!(placed.rule.facts.target, Target::Dnat(_) | Target::Redirect(_))
        })
    }

    /// The rules at a hook that could rewrite the destination of a packet, as far as they are understood.
    #[must_use]
    pub fn destination_nat_for(&self, hook: Hook, question: &Question<'_>) -> Vec<Placed<'_>> {
        let ipv6 = question.destination.is_ipv6();
        let mut found = Vec::new();
        for table in self.tables.iter().filter(|table| table.judges(ipv6)) {
            for base in table.chains.iter().filter(|chain| chain.base.is_some_and(|base| base.hook == hook)) {
                found.extend(table.possible(base, question));
            }
        }
        found.retain(|placed| matches!(placed.rule.facts.target, Target::Dnat(_) | Target::Redirect(_)));
        found
    }

    /// Rules that rewrite the source.
    pub fn source_nat(&self, ipv6: bool) -> impl Iterator<Item = Placed<'_>> {
        self.rules().filter(move |placed| {
            placed.table.judges(ipv6)
                && matches!(placed.rule.facts.target, Target::Snat(_) | Target::Masquerade)
        })
    }

    /// The base chains of a hook that judge a family, with their tables; `nat` chains are left out.
    pub fn base_chains(&self, hook: Hook, ipv6: bool) -> impl Iterator<Item = (&TableView, &ChainView)> {
        self.tables.iter().filter(move |table| table.judges(ipv6) && table.name != "nat").flat_map(
            move |table| {
                let at_hook = move |chain: &&ChainView| chain.base.is_some_and(|base| base.hook == hook);
                table.chains.iter().filter(at_hook).map(move |chain| (table, chain))
            },
        )
    }

    /// The first chain of that name, whatever its table's backend.
    #[must_use]
    pub fn chain(&self, table: &str, chain: &str, ipv6: bool) -> Option<&ChainView> {
        self.tables
            .iter()
            .filter(|held| held.name == table && held.judges(ipv6))
            .find_map(|held| held.chain(chain))
    }
}

impl TableView {
    /// Whether packets of a family pass this table at the IP hooks.
    #[must_use]
    pub fn judges(&self, ipv6: bool) -> bool {
        self.family == TableFamily::Inet
            || self.family == if ipv6 { TableFamily::Ip6 } else { TableFamily::Ip }
    }

    #[must_use]
    pub fn chain(&self, name: &str) -> Option<&ChainView> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    /// Whether `chain` is reached from a base chain of this table by jumps.
    #[must_use]
    pub fn is_reached(&self, chain: &str) -> bool {
        let mut reached: Vec<&str> =
            self.chains.iter().filter(|c| c.base.is_some()).map(|c| c.name.as_str()).collect();
        let mut next = 0;
        while let Some(name) = reached.get(next).copied() {
            next += 1;
            for rule in self.chain(name).into_iter().flat_map(|chain| &chain.rules) {
                let leads_to = |chain: &&ChainView| match &rule.facts.target {
                    Target::Jump(to) | Target::Goto(to) => *to == chain.name,
                    // A verdict map names the chains that it jumps to.
                    Target::Unknown => ["jump", "goto"]
                        .iter()
                        .any(|verb| rule.text.contains(&format!("{verb} {}", chain.name))),
                    _ => false,
                };
                for chain in self.chains.iter().filter(leads_to) {
                    if !reached.contains(&chain.name.as_str()) {
                        reached.push(&chain.name);
                    }
                }
            }
        }
        reached.contains(&chain)
    }
}

#[cfg(test)]
mod tests;
