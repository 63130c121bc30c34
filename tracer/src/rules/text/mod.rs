//! Each rule in its owner's own words, read with the owner's own tools and without changing anything.

mod known;
mod nft;
mod save;
mod tool;
mod vmap;

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

pub use self::known::KnownPacket;
pub use self::tool::{Failure, Processes, Runner, Tool};
use self::{
    known::{Answer, Matcher, Sets},
    nft::RuleKey,
};
use super::{
    index::{Chain, Effect, Rule, TableIndex},
    path::Step,
};
use crate::model::{Backend, Family, Hook, TableFamily, Verdict};

/// A tool that gave no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub tool: Tool,
    pub failure: Failure,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tool, failure) = (self.tool, &self.failure);
        let whose = match tool {
            Tool::Nft => "nftables",
            Tool::IptablesLegacySave | Tool::IptablesNftSave => "iptables",
            Tool::Ip6tablesLegacySave | Tool::Ip6tablesNftSave => "ip6tables",
        };
        write!(f, "no text of {whose} rules: {} {failure}", tool.program())?;
        match failure {
            Failure::NotInstalled => write!(f, " (package {})", tool.package()),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ChainKey {
    backend: Backend,
    family: TableFamily,
    table: String,
    chain: String,
}

impl ChainKey {
    fn new(table: &TableIndex, chain: &Chain) -> Self {
        Self {
            backend: table.backend,
            family: table.family,
            table: table.name.clone(),
            chain: chain.name.clone(),
        }
    }
}

/// By their rules' handles.
type Matchers = HashMap<u64, Matcher>;

/// A base chain of nft as the tools name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedChain {
    pub backend: Backend,
    pub family: TableFamily,
    pub table: String,
    pub chain: String,
}

/// Rule texts of one network namespace, as printed; they can hold anything, control characters included.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// Chains whose printed rules are those of the index, position for position.
    iptables: HashMap<ChainKey, Vec<String>>,
    nft: nft::Listing,
    /// Tables that iptables-nft takes for its own.
    owned: HashSet<(TableFamily, String)>,
    /// Tables with verdict maps, once more, with what the maps hold ([`Effect::OneOf`]).
    refined: HashMap<(TableFamily, String), TableIndex>,
    /// What is understood of each table's rules.
    matchers: HashMap<(TableFamily, String), Matchers>,
    missing: Vec<Missing>,
}

impl Texts {
    /// Asks the tools for the texts of `tables`, and only the tools that can know them.
    ///
    /// Texts are those of the moment of reading. To be sure that they belong to `tables`, see that the ruleset did
    /// not change from the building of the index until this returns (its check value, the nft generation number);
    /// what can be told from the texts themselves is checked here.
    pub fn read(runner: &dyn Runner, tables: &[TableIndex]) -> Self {
        Self::read_with(runner, tables, &[])
    }

    /// As [`Self::read`], and asks `more` tools, for tables that the kernel holds and `tables` has not.
    pub fn read_with(runner: &dyn Runner, tables: &[TableIndex], more: &[Tool]) -> Self {
        let mut texts = Self::default();
        let mut saved = HashMap::new();
        for tool in needed(tables, more) {
            match runner.run(tool) {
                Ok(output) if tool == Tool::Nft => texts.nft = nft::parse(&output),
                Ok(output) => drop(saved.insert(tool, save::parse(&output))),
                Err(failure) => texts.missing.push(Missing { tool, failure }),
            }
        }
        texts.owned = saved.iter().flat_map(|(tool, chains)| owned(*tool, chains)).collect();
        for table in tables {
            let tool = Tool::iptables_save(table.backend, table.family);
            if let Some(chains) = tool.and_then(|tool| saved.get_mut(&tool)) {
                texts.adopt(table, chains);
            }
            texts.refine(table);
            texts.understand(table);
        }
        texts
    }

    /// Keeps the printed chains that are the table's own.
    fn adopt(&mut self, table: &TableIndex, printed: &mut save::Chains) {
        for chain in &table.chains {
            let Some(rules) = printed.remove(&(table.name.clone(), chain.name.clone())) else { continue };
            let same_length = rules.len() == chain.rules.len();
            if same_length && chain.rules.iter().zip(&rules).all(|(rule, text)| fits(table, rule, text)) {
                self.iptables.insert(ChainKey::new(table, chain), rules);
            }
        }
    }

    /// The text of a rule: the `-A CHAIN ...` line of an iptables rule, the statements of an nft rule. `None` where
    /// no tool could be asked, or what it printed is not this ruleset.
    #[must_use]
    pub fn of(&self, table: &TableIndex, step: Step) -> Option<&str> {
        let chain = table.chains.get(step.chain.0)?;
        let rule = chain.rules.get(step.rule)?;
        let key =
            rule.handle.map(|handle| RuleKey { family: table.family, table: table.name.clone(), handle });
        let native = key.and_then(|key| self.nft.rules.get(&key)).map(String::as_str);
        let printed = self.iptables.get(&ChainKey::new(table, chain)).and_then(|rules| rules.get(step.rule));
        match (printed, native) {
            (Some(printed), Some(native)) if !faithful(rule, printed, native) => Some(native),
            (Some(printed), _) => Some(printed),
            (None, native) => native,
        }
    }

    /// The base chain of nft at a place, for packets of a family; `None` where there is none, more than one, or `nft` was
    /// not asked.
    #[must_use]
    pub fn base_chain(&self, family: Family, hook: Hook, priority: i32) -> Option<NamedChain> {
        let mut here = self.bases(family).filter(|base| (base.hook, base.priority) == (hook, priority));
        let (Some(base), None) = (here.next(), here.next()) else { return None };
        Some(self.named(base))
    }

    /// A chain of the one table of nft that translates packets of a family; `None` where there is none, more than one, or
    /// `nft` was not asked.
    #[must_use]
    pub fn nat_chain(&self, family: Family) -> Option<NamedChain> {
        let mut translating = self.bases(family).filter(|base| base.nat);
        let first = translating.next()?;
        let alone = translating.all(|base| (base.family, &base.table) == (first.family, &first.table));
        alone.then(|| self.named(first))
    }

    fn bases(&self, family: Family) -> impl Iterator<Item = &nft::Base> {
        let own = if family == Family::Ipv4 { TableFamily::Ip } else { TableFamily::Ip6 };
        self.nft.bases.iter().filter(move |base| [own, TableFamily::Inet].contains(&base.family))
    }

    fn named(&self, base: &nft::Base) -> NamedChain {
        let owned = self.owned.contains(&(base.family, base.table.clone()));
        NamedChain {
            backend: if owned { Backend::IptablesNft } else { Backend::Nftables },
            family: base.family,
            table: base.table.clone(),
            chain: base.chain.clone(),
        }
    }

    /// Keeps a copy of the table in which verdict maps are known by what they hold.
    fn refine(&mut self, table: &TableIndex) {
        let mut refined = table.clone();
        let mut any = false;
        for rule in refined.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            let (Effect::Unknown { target }, Some(handle)) = (&rule.effect, rule.handle) else { continue };
            let key = RuleKey { family: table.family, table: table.name.clone(), handle };
            let Some(text) = self.nft.rules.get(&key) else { continue };
            let elements = |name: &str| self.nft.map(table.family, &table.name, name);
            if let Some(effects) = vmap::effects(table, text, elements) {
                rule.effect = Effect::OneOf { target: target.clone(), effects };
                any = true;
            }
        }
        if any {
            self.refined.insert((table.family, table.name.clone()), refined);
        }
    }

    /// The table as the texts tell it: the same chains and rules, and more about what some of them do.
    #[must_use]
    pub fn refined<'a>(&'a self, table: &'a TableIndex) -> &'a TableIndex {
        let known = self.refined.get(&(table.family, table.name.clone()));
        known.filter(|known| known.backend == table.backend).unwrap_or(table)
    }

    /// Keeps what the rules' texts say of packets, for tables of nftables alone, and not for those that write what is
    /// compared.
    fn understand(&mut self, table: &TableIndex) {
        if table.backend != Backend::Nftables {
            return;
        }
        let mut sets = Sets::default();
        let mut matchers = Matchers::new();
        for handle in table.chains.iter().flat_map(|chain| &chain.rules).filter_map(|rule| rule.handle) {
            let key = RuleKey { family: table.family, table: table.name.clone(), handle };
            let Some(text) = self.nft.rules.get(&key) else { continue };
            if WRITES.iter().any(|word| text.contains(word)) {
                return;
            }
            let elements = |name: &str| self.nft.map(table.family, &table.name, name);
            matchers.insert(handle, Matcher::read(text, elements, &mut sets));
        }
        self.matchers.insert((table.family, table.name.clone()), matchers);
    }

    /// The table as one packet meets it: of rules whose text and the packet's own fields say that they cannot match, must
    /// match, or what their verdict map has for it, that is known. `None` where nothing is.
    #[must_use]
    pub fn narrowed(&self, table: &TableIndex, packet: &KnownPacket) -> Option<TableIndex> {
        if table.backend != Backend::Nftables {
            return None;
        }
        let matchers = self.matchers.get(&(table.family, table.name.clone()))?;
        let mut narrowed = table.clone();
        for rule in narrowed.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            let Some(matcher) = rule.handle.and_then(|handle| matchers.get(&handle)) else { continue };
            match matcher.answer(packet) {
                Answer::Fails => {
                    rule.effect = Effect::OneOf { target: String::new(), effects: Vec::new() };
                    rule.unconditional = false;
                }
                Answer::Matches => rule.unconditional = true,
                Answer::Chooses { verdict, certain } => {
                    if let Some(effect) = vmap::effect(table, verdict) {
                        rule.effect = effect;
                        rule.unconditional = certain;
                    }
                }
                Answer::Open => {}
            }
        }
        Some(narrowed)
    }

    /// Which texts could not be had, and why.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }
}

/// Statements that change what rules behind them compare.
const WRITES: [&str; 4] = ["addr set ", "port set ", "protocol set ", "notrack"];

/// The tools that know the text of these tables. Rules that others put beside those of iptables-nft are known to
/// `nft` only, so it is asked for both.
fn needed(tables: &[TableIndex], more: &[Tool]) -> Vec<Tool> {
    let mut tools: HashSet<Tool> =
        tables.iter().filter_map(|t| Tool::iptables_save(t.backend, t.family)).collect();
    tools.extend(more);
    if tables.iter().any(|t| t.backend != Backend::IptablesLegacy) {
        tools.insert(Tool::Nft);
    }
    Tool::ALL.into_iter().filter(|tool| tools.contains(tool)).collect()
}

/// The tables of nft that an iptables-save program prints.
fn owned(tool: Tool, chains: &save::Chains) -> Vec<(TableFamily, String)> {
    match tool.iptables() {
        Some((Backend::IptablesNft, family)) => {
            chains.keys().map(|(table, _)| (family, table.clone())).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether an iptables-save line can be this rule's: where it leads must agree.
fn fits(table: &TableIndex, rule: &Rule, text: &str) -> bool {
    let ends = |word: &str| text.ends_with(word) || text.contains(&format!("{word} "));
    match &rule.effect {
        Effect::Jump(to) => ends(&format!(" -j {}", table.chains[to.0].name)),
        Effect::Goto(to) => ends(&format!(" -g {}", table.chains[to.0].name)),
        Effect::Return => ends(" -j RETURN"),
        Effect::Final { verdict: Verdict::Drop, target } if target == "DROP" => ends(" -j DROP"),
        Effect::Final { verdict: Verdict::Accept, target } if target == "ACCEPT" => ends(" -j ACCEPT"),
        Effect::Final { .. } | Effect::Continue { .. } | Effect::OneOf { .. } | Effect::Unknown { .. } => {
            true
        }
    }
}

/// Matches of iptables that `nft` prints as a set, a map or a meter (the `xlate` functions of iptables 1.8.9, extensions/).
const AS_SETS: [&str; 4] = [" -m multiport ", " -m hashlimit ", " -m time ", " -m dccp "];

/// iptables-nft-save prints rules that were not made by iptables without the parts that it does not know: `ip saddr
/// { 1.1.1.1, 2.2.2.2 } drop` comes out as `-j DROP`. Rules of its own always have a counter, and `nft` prints a set in them
/// only for a few matches.
fn faithful(rule: &Rule, printed: &str, native: &str) -> bool {
    let unquoted: String = native.split('"').step_by(2).collect();
    let foreign = unquoted.contains('{') || unquoted.contains('@') || unquoted.contains("map ");
    rule.counter.is_some() && (!foreign || AS_SETS.iter().any(|name| printed.contains(name)))
}

#[cfg(test)]
mod tests;
