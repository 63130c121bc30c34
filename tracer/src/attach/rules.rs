//! Kprobes on the functions that evaluate expressions of nft rules: what shows that a rule without a counter matches.
//! They stand beside whatever looks at the tables, and one serves every namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::Array,
    programs::{KProbe, ProgramError},
};
use tracer_common::kprobe::Evaluation;

use super::{Kernel, kprobe, missed};
use crate::{
    error::one_line,
    kernel::{KernelTypes, Symbols, arguments},
    rules::{index::TableIndex, probes::Watch},
};

/// The programs for each way of looking, in the order in which they are attached: nothing begins whose end is not seen.
const REACHED: &[&str] = &["rule_reached"];
const RETURNED: &[&str] = &["rule_returned", "rule_begin"];
/// A function that is there wherever nf_tables is (net/netfilter/nft_immediate.c), for trying out.
const TRIED_OUT: &str = "nft_immediate_eval";

/// A function, by address: a module that is loaded again has others.
type Watched = (Watch, u64);

/// The rule probes that are in place.
#[derive(Default)]
pub struct RuleProbes {
    /// The kernel side knows what it is given.
    told: bool,
    attached: BTreeSet<Watched>,
    /// The probes, which end with these.
    links: Vec<OwnedFd>,
    /// What was refused, and why: tried once.
    refused: BTreeMap<Watched, String>,
}

impl RuleProbes {
    /// Looks at what rules of these tables need, and keeps of the tables' probes those that are looked at. Gives the
    /// addresses of functions that have no name (yet).
    pub(super) fn watch(
        &mut self,
        ebpf: &mut Ebpf,
        tables: &mut [TableIndex],
        types: &KernelTypes,
        symbols: &Symbols,
    ) -> BTreeSet<u64> {
        let wanted: BTreeSet<Watched> = tables.iter().flat_map(|table| table.probes.functions()).collect();
        let mut nameless = BTreeSet::new();
        for watched in wanted {
            if self.attached.contains(&watched) || self.refused.contains_key(&watched) {
                continue;
            }
            match self.attach(ebpf, watched, types, symbols) {
                Ok(true) => drop(self.attached.insert(watched)),
                Ok(false) => drop(nameless.insert(watched.1)),
                Err(error) => drop(self.refused.insert(watched, one_line(&format!("{error:#}")))),
            }
        }
        for table in tables {
            table.probes.keep(|watch, function| self.attached.contains(&(watch, function)));
        }
        nameless
    }

    /// What is not seen because probes were refused.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let why = self.refused.values().next()?;
        Some(format!("nft rules without counters are named only where all else leaves one way: {why}"))
    }

    /// False where the function has no name.
    fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        (watch, address): Watched,
        types: &KernelTypes,
        symbols: &Symbols,
    ) -> Result<bool> {
        let Some((name, 0)) = symbols.function_at(address) else { return Ok(false) };
        // The kernel takes a name, and the first function that has it (before 6.6).
        anyhow::ensure!(symbols.address_of(name) == Some(address), "several functions are called {name}");
        self.tell(ebpf, types)?;
        let programs = match watch {
            Watch::Reached => REACHED,
            Watch::Returned => RETURNED,
        };
        let mut links = Vec::new();
        for program in programs {
            let link = kprobe::attach_owned(ebpf, program, name)?;
            links.push(missed::link(link.info()?.id())?);
        }
        self.links.append(&mut links);
        Ok(true)
    }

    fn tell(&mut self, ebpf: &mut Ebpf, types: &KernelTypes) -> Result<()> {
        if !self.told {
            let known = arguments::evaluation(types);
            let known = known.map_err(|what| anyhow::anyhow!("this kernel's BTF does not say {what}"))?;
            let map = ebpf.map_mut("EVALUATION").context("kernel object: no map EVALUATION")?;
            Array::<_, Evaluation>::try_from(map)?.set(0, known, 0)?;
            self.told = true;
        }
        Ok(())
    }

    /// Whether this kernel allows rule probes; tried out where none is attached. `None` while nf_tables is not loaded.
    pub(super) fn try_out(
        &mut self,
        ebpf: &mut Ebpf,
        types: &KernelTypes,
        symbols: &Symbols,
    ) -> Option<Result<()>> {
        if !self.attached.is_empty() {
            return Some(Ok(()));
        }
        let address = symbols.address_of(TRIED_OUT)?;
        Some(self.attach(ebpf, (Watch::Reached, address), types, symbols).map(drop))
    }

    /// How often the kernel left a probe out, as far as it tells: while another was under way on the same CPU.
    ///
    /// # Errors
    /// When a program's figures cannot be read.
    pub(super) fn skipped(&self, ebpf: &Ebpf) -> Result<u64> {
        if self.attached.is_empty() {
            return Ok(0);
        }
        let mut sum = self.links.iter().map(missed::by_probe).sum::<Result<u64>>()?;
        for program in REACHED.iter().chain(RETURNED) {
            let program: &KProbe =
                ebpf.program(program).context("kernel object: no program for rules")?.try_into()?;
            match program.fd() {
                Ok(fd) => sum += missed::by_program(fd)?,
                Err(ProgramError::NotLoaded) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(sum)
    }
}

impl Kernel {
    /// Has rules that no counter tells of looked at as they match, in namespaces added from now on.
    pub fn watch_rules(&mut self) {
        self.rule_probes = Some(RuleProbes::default());
    }

    /// What looks at them; `None` without [`Self::watch_rules`].
    #[must_use]
    pub fn rule_probes(&self) -> Option<&RuleProbes> {
        self.rule_probes.as_ref()
    }

    /// Whether rules can be looked at here; tried out if need be. `None` while there is nothing to look at (nf_tables is
    /// not loaded).
    pub fn try_rule_probes(&mut self) -> Option<Result<()>> {
        let probes = self.rule_probes.get_or_insert_default();
        probes.try_out(&mut self.ebpf, &self.types, &self.symbols)
    }

    /// How often rule probes were left out.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn skipped_rule_probes(&self) -> Result<u64> {
        self.rule_probes.as_ref().map_or(Ok(0), |probes| probes.skipped(&self.ebpf))
    }
}
