//! The ruleset in force in one namespace, both backends, read so that it is one ruleset and not two halves.

use std::{collections::BTreeMap, ops::Range};

use super::{
    index::{Check, TableIndex},
    legacy::LegacyReader,
    nft::{Generation, NftReader},
};
use crate::{
    kernel::{
        Block, KernelTypes, Memory, ReadError, Symbols,
        hooks::{HookFunction, HookKind, HookList, HookReader},
    },
    model::{Family, Hook, TableFamily},
};

/// How often a reading that a change may have overtaken is repeated.
const ATTEMPTS: u32 = 16;

/// Every table with a base chain at an IP hook, and the hooks themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub hooks: Vec<HookList>,
    /// Tables of iptables-legacy first, then nft tables, each once.
    pub tables: Vec<TableIndex>,
    /// What the entries of the iptables-legacy tables said.
    pub contents: Vec<Content>,
    /// Whose rules cannot be read, since this kernel does not describe them, and why.
    pub unreadable: Option<String>,
}

/// A table of iptables-legacy to the last byte. Its [`Check`] is the address of the entries, and memory is given out
/// again: after two replacements the same address may hold other rules. So what was seen with a check that held
/// is certain only once [`RulesetReader::is_current`] confirms the content too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub(super) check: Check,
    /// Address and bytes of the entries.
    pub(super) start: u64,
    pub(super) length: u32,
    /// Counters that lie in the entries themselves (one possible CPU), as offsets.
    pub(super) counters: Vec<Range<u32>>,
    /// Of the entries without `counters`.
    pub(super) hash: u64,
}

/// What reading a ruleset takes.
#[derive(Clone, Copy)]
pub struct RulesetReader<'a> {
    pub memory: &'a dyn Memory,
    pub types: &'a KernelTypes,
    pub symbols: &'a Symbols,
    /// [`crate::kernel::percpu::CpuOffsets::possible`].
    pub possible_cpus: u32,
}

impl RulesetReader<'_> {
    /// The ruleset of the namespace whose `struct net` is at `net`.
    ///
    /// # Errors
    /// [`ReadError::Moving`] when the ruleset never stood still, else what could not be read.
    pub fn read(&self, net: u64) -> Result<Ruleset, ReadError> {
        let mut last = ReadError::Moving { attempts: ATTEMPTS };
        for _ in 0..ATTEMPTS {
            match self.attempt(net) {
                Ok(Some(ruleset)) => return Ok(ruleset),
                Ok(None) => {}
                Err(error @ (ReadError::NoMember { .. } | ReadError::NoType { .. })) => return Err(error),
                // What is being replaced can look like anything.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// `None` when something changed meanwhile.
    fn attempt(&self, net: u64) -> Result<Option<Ruleset>, ReadError> {
        let hook_reader = HookReader::new(self.memory, self.types, self.symbols)?;
        let hooks = hook_reader.read(net)?;
        let places = Places::of(&hooks);
        let mut unreadable = None;
        let (mut tables, contents) = match self.legacy_tables(&places) {
            Ok(found) => found,
            Err(error) => {
                unreadable = Some(undescribed("iptables-legacy", error)?);
                Default::default()
            }
        };
        let nft = if places.nft.is_empty() {
            None
        } else {
            match NftReader::new(self.memory, self.types, self.symbols, net) {
                Ok(reader) => {
                    let generation = reader.generation()?;
                    tables.extend(nft_tables(&reader, generation, &places)?);
                    Some((reader, generation))
                }
                Err(error) => {
                    unreadable = Some(undescribed("nftables", error)?);
                    None
                }
            }
        };
        let stands = hook_reader.read(net)? == hooks
            && self.is_current(&tables, &contents)?
            && nft.map_or(Ok(true), |(reader, generation)| Ok(reader.generation()? == generation))?;
        Ok(stands.then_some(Ruleset { hooks, tables, contents, unreadable }))
    }

    /// Whether these tables are still in force as they were read. New tables are seen in the hooks, not here.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] when the namespace or a table is gone.
    pub fn is_current<'t>(
        &self,
        tables: impl IntoIterator<Item = &'t TableIndex>,
        contents: &[Content],
    ) -> Result<bool, ReadError> {
        for check in tables.into_iter().filter_map(|table| table.check) {
            if !self.holds(check)? {
                return Ok(false);
            }
        }
        for content in contents {
            let now = Block::read(self.memory, "the entries of an xt_table", content.start, content.length)?;
            // The entries were read while the table pointed at them only if it still does.
            if now.hash_without(&content.counters) != content.hash || !self.holds(content.check)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn legacy_tables(&self, places: &Places) -> Result<(Vec<TableIndex>, Vec<Content>), ReadError> {
        let (mut tables, mut contents) = (Vec::new(), Vec::new());
        for (family, table_family) in [(Family::Ipv4, TableFamily::Ip), (Family::Ipv6, TableFamily::Ip6)] {
            let mut found = places.legacy.iter().filter(|((of, _), _)| *of == family).peekable();
            if found.peek().is_some() {
                let reader =
                    LegacyReader::new(self.memory, self.types, table_family, self.possible_cpus > 1)?;
                for ((_, address), priorities) in found {
                    let (table, content) = reader.table(*address, priorities)?;
                    tables.push(table);
                    contents.push(content);
                }
            }
        }
        Ok((tables, contents))
    }

    /// Whether the ruleset is still the one that `check` was made with.
    ///
    /// # Errors
    /// [`ReadError::Unreadable`] when the namespace or table is gone.
    pub fn holds(&self, check: Check) -> Result<bool, ReadError> {
        let mut value = [0; 8];
        let bytes = value.get_mut(..check.length as usize).unwrap_or_default();
        self.memory.read(check.address, bytes).map_err(|source| ReadError::Unreadable {
            what: "the ruleset's generation",
            address: check.address,
            source,
        })?;
        Ok(u64::from_le_bytes(value) == check.value)
    }
}

/// What is said of rules that this kernel does not describe; any other error stays one.
fn undescribed(backend: &str, error: ReadError) -> Result<String, ReadError> {
    match error {
        ReadError::NoMember { .. } | ReadError::NoType { .. } => {
            Ok(format!("rules of {backend} are not shown: {error}"))
        }
        other => Err(other),
    }
}

fn nft_tables(
    reader: &NftReader<'_>,
    generation: Generation,
    places: &Places,
) -> Result<Vec<TableIndex>, ReadError> {
    let mut seen = Vec::new();
    let mut tables = Vec::new();
    for chain in &places.nft {
        let table = reader.table_of(*chain)?;
        if !seen.contains(&table) {
            seen.push(table);
            tables.extend(reader.table(table, generation)?);
        }
    }
    Ok(tables)
}

/// Where tables and base chains are hooked.
#[derive(Default)]
struct Places {
    /// By family and address of the `xt_table`: its hooks and their priorities.
    legacy: BTreeMap<(Family, u64), BTreeMap<Hook, i32>>,
    /// Base chains, in the order of the hooks.
    nft: Vec<u64>,
}

impl Places {
    fn of(hooks: &[HookList]) -> Self {
        let mut places = Self::default();
        for list in hooks {
            list.functions.iter().for_each(|function| places.add(list, function));
        }
        places
    }

    fn add(&mut self, list: &HookList, function: &HookFunction) {
        match &function.kind {
            HookKind::XtTable { table } => {
                self.legacy.entry((list.family, *table)).or_default().insert(list.hook, function.priority);
            }
            HookKind::NftChain { chain } => self.nft.push(*chain),
            HookKind::Nat { chains, .. } => chains.iter().for_each(|function| self.add(list, function)),
            HookKind::Bpf | HookKind::Other => {}
        }
    }
}
