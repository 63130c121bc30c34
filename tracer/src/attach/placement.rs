//! The probes of one namespace: planned from what is hooked there, and planned anew when that changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::Result;
use aya::Ebpf;
use tracer_common::settings::Table;

use super::{
    TableProbes,
    gaps::{GapWriter, by_address},
    netfilter::{Place, PlaceError, Programs},
    readings::Readings,
    rules::RuleProbes,
};
use crate::{
    kernel::{
        hooks::{HookFunction, HookKind, HookList, HookReader},
        in_netns, monotonic,
    },
    model::{Backend, Family, TableFamily},
    plan::{HookPlan, View, plan_functions, plan_hook, unbounded},
    rules::{
        index::TableIndex,
        late::{LateTexts, Printed},
        live::{Content, Ruleset, RulesetReader},
        probes::Probes,
        text::{Processes, Tool},
    },
};

/// How often a plan that somebody overtook is made again.
const ATTEMPTS: u32 = 8;
/// How long a tool may take to print a ruleset.
const TOOL_DEADLINE: Duration = Duration::from_secs(10);

/// A traced namespace and the probes in it.
pub struct Namespace {
    inode: u32,
    path: PathBuf,
    net: u64,
    links: BTreeMap<Place, OwnedFd>,
    /// Hooked functions when the probes were placed, ours left out.
    hooks: Vec<HookList>,
    /// Functions that evaluate rules and have no known name.
    unnamed: BTreeSet<u64>,
    /// See [`HookPlan::unbounded`].
    unbounded: Vec<String>,
    contents: Vec<Content>,
    unreadable: Option<String>,
    tables: Vec<Arc<TableIndex>>,
    texts: Arc<LateTexts>,
    /// Name of the table of ours that switches the kernel's own trace on, and its base chains.
    own_table: Option<String>,
    own_chains: Vec<u64>,
}

impl Namespace {
    pub(super) fn new(inode: u32, path: PathBuf, net: u64, own_table: Option<String>) -> Self {
        Self {
            own_table,
            own_chains: Vec::new(),
            inode,
            path,
            net,
            links: BTreeMap::new(),
            hooks: Vec::new(),
            unbounded: Vec::new(),
            unnamed: BTreeSet::new(),
            contents: Vec::new(),
            unreadable: None,
            tables: Vec::new(),
            texts: Arc::default(),
        }
    }

    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Address of its `struct net`.
    pub(super) fn net(&self) -> u64 {
        self.net
    }

    /// Tables in force when the probes were last placed.
    #[must_use]
    pub fn tables(&self) -> &[Arc<TableIndex>] {
        &self.tables
    }

    /// Whose rules are not shown, and why.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// What was hooked when the probes were last placed, ours left out.
    #[must_use]
    pub fn hooks(&self) -> &[HookList] {
        &self.hooks
    }

    /// Tables whose verdict no probe of ours can see, in words.
    #[must_use]
    pub fn unbounded(&self) -> &[String] {
        &self.unbounded
    }

    /// The texts of [`Self::tables`].
    #[must_use]
    pub fn texts(&self) -> &Arc<LateTexts> {
        &self.texts
    }

    /// Addresses without a known name of functions that are hooked, or evaluate rules.
    pub(super) fn nameless(&self) -> impl Iterator<Item = u64> {
        let functions = self.hooks.iter().flat_map(|list| &list.functions);
        let functions =
            functions.filter(|function| function.symbol.is_none()).map(|function| function.address);
        functions.chain(self.unnamed.iter().copied())
    }

    /// Whether hooks and rulesets are still those that the probes were placed for.
    pub(super) fn is_current(&self, reader: &RulesetReader<'_>) -> Result<bool> {
        let since = monotonic();
        let current = self.looks_current(reader)?;
        if current {
            self.texts.still_true(since);
        } else {
            self.texts.overtaken();
        }
        Ok(current)
    }

    fn looks_current(&self, reader: &RulesetReader<'_>) -> Result<bool> {
        if !reader.is_current(self.tables.iter().map(|table| &**table), &self.contents)? {
            return Ok(false);
        }
        let hooks = HookReader::new(reader.memory, reader.types, reader.symbols)?.read(self.net)?;
        Ok(self.foreign(hooks) == self.hooks)
    }

    /// Places probes for what is hooked now.
    pub(super) fn place(
        &mut self,
        reader: &RulesetReader<'_>,
        (probes, mut rule_probes): (&mut TableProbes, Option<&mut RuleProbes>),
        readings: &mut Readings,
        ebpf: &mut Ebpf,
        view: &mut View,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let Ruleset { hooks, mut tables, contents, unreadable } = reader.read(self.net)?;
            self.own_chains = self.take_own(&mut tables);
            self.unnamed = match &mut rule_probes {
                Some(rules) => rules.watch(ebpf, &mut tables, reader.types, reader.symbols),
                None => {
                    tables.iter_mut().for_each(|table| table.probes = Probes::default());
                    BTreeSet::new()
                }
            };
            let tables: Vec<Arc<TableIndex>> = tables.into_iter().map(Arc::new).collect();
            let hooks = self.foreign(hooks);
            let plan = match probes {
                TableProbes::Links(_) => plan_hook,
                TableProbes::Kprobes(_) => plan_functions,
            };
            let plans: Vec<HookPlan> = hooks.iter().map(plan).collect();
            let texts = Arc::new(LateTexts::default());
            let by_address = by_address(&tables);
            let mut tables_of: HashMap<u64, Table> = HashMap::new();
            let generation = readings.generation();
            for (list, plan) in hooks.iter().zip(&plans) {
                let (netns, by_address, texts) = (self.inode, &by_address, &texts);
                let mut writer = GapWriter { netns, generation, list, plan, by_address, texts, view };
                writer.write(readings, ebpf, &mut tables_of)?;
            }
            let placed = match probes {
                TableProbes::Links(programs) => self.links_for(&hooks, &plans, programs)?,
                TableProbes::Kprobes(kprobes) => {
                    let planned: Vec<_> = hooks.iter().zip(&plans).collect();
                    kprobes.place(ebpf, (self.inode, self.net), &planned, (reader.types, reader.symbols))?;
                    true
                }
            };
            if placed {
                self.unbounded = hooks.iter().zip(&plans).flat_map(unbounded).collect();
                self.contents = contents;
                self.unreadable = unreadable;
                self.hooks = hooks;
                self.read_texts(&tables, &texts);
                self.tables = tables;
                self.texts = texts;
                return Ok(());
            }
        }
        anyhow::bail!("the hooks of namespace {} never stood still", self.path.display())
    }

    /// Has the tools print the rules, on a thread of its own.
    fn read_texts(&self, tables: &[Arc<TableIndex>], texts: &Arc<LateTexts>) {
        let (path, texts) = (self.path.clone(), texts.clone());
        let tables: Vec<TableIndex> = tables.iter().map(|table| (**table).clone()).collect();
        // Tables of nft that could not be read are known to its tools all the same.
        let unread = self.hooks.iter().any(has_nft_chain)
            && tables.iter().all(|t| t.backend == Backend::IptablesLegacy);
        let more = if unread { &Tool::OF_NFT[..] } else { &[] };
        let job = move || {
            let runner = Processes { deadline: TOOL_DEADLINE };
            // A namespace that is gone has no rules to print.
            let read = in_netns(&path, || Printed::read(&runner, &tables, more)).unwrap_or_default();
            texts.fill(read);
        };
        if let Err(error) = thread::Builder::new().name("rule-texts".to_owned()).spawn(job) {
            // No thread, no texts; rules are shown by position and handle.
            drop(error);
            self.texts.overtaken();
        }
    }

    /// Takes our own table out, and gives the addresses of its base chains.
    fn take_own(&self, tables: &mut Vec<TableIndex>) -> Vec<u64> {
        let own = tables.extract_if(.., |table| {
            table.family == TableFamily::Inet && self.own_table.as_ref() == Some(&table.name)
        });
        let chains = own.flat_map(|table| table.chains);
        chains.filter_map(|chain| chain.base.map(|base| base.address)).collect()
    }

    /// Hook lists without our own probes. The chains of our own table judge nothing, but they take their places.
    fn foreign(&self, mut hooks: Vec<HookList>) -> Vec<HookList> {
        for list in &mut hooks {
            for function in &mut list.functions {
                if matches!(function.kind, HookKind::NftChain { chain } if self.own_chains.contains(&chain)) {
                    function.kind = HookKind::Other;
                }
            }
            let (pf, hook) = (protocol_family(list.family), list.hook.inet_number().unwrap_or(0));
            list.functions.retain(|function| {
                function.kind != HookKind::Bpf
                    || !self
                        .links
                        .keys()
                        .any(|place| (place.pf, place.hook, place.priority) == (pf, hook, function.priority))
            });
        }
        hooks
    }

    /// Adds and removes links; false when a priority was taken meanwhile.
    fn links_for(&mut self, hooks: &[HookList], plans: &[HookPlan], programs: &mut Programs) -> Result<bool> {
        let wanted: Vec<Place> = hooks
            .iter()
            .zip(plans)
            .flat_map(|(list, plan)| {
                plan.gaps.iter().map(|gap| Place {
                    pf: protocol_family(list.family),
                    hook: list.hook.inet_number().unwrap_or(0),
                    priority: gap.priority,
                    role: gap.role,
                })
            })
            .collect();
        self.links.retain(|place, _| wanted.contains(place));
        let missing: Vec<Place> =
            wanted.into_iter().filter(|place| !self.links.contains_key(place)).collect();
        if missing.is_empty() {
            return Ok(true);
        }
        programs.prepare(&missing);
        let added = in_netns(&self.path, || -> Result<Option<Vec<(Place, OwnedFd)>>> {
            let mut added = Vec::with_capacity(missing.len());
            for place in missing {
                match programs.attach(place) {
                    Ok(link) => added.push((place, link)),
                    Err(PlaceError::Taken) => return Ok(None),
                    Err(PlaceError::Other(error)) => return Err(error),
                }
            }
            Ok(Some(added))
        })??;
        let complete = added.is_some();
        self.links.extend(added.into_iter().flatten());
        Ok(complete)
    }
}

/// Whether a base chain of nft is hooked there; those of our own table are none any more.
fn has_nft_chain(list: &HookList) -> bool {
    let is_chain = |function: &HookFunction| matches!(function.kind, HookKind::NftChain { .. });
    list.functions.iter().any(|function| match &function.kind {
        HookKind::Nat { chains, .. } => chains.iter().any(is_chain),
        _ => is_chain(function),
    })
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
pub(super) fn protocol_family(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}
