//! Loads the kernel side and puts its probes in place. Everything here is gone when its descriptors are closed,
//! also after SIGKILL.

mod clsact;
mod devices;
mod gaps;
pub mod kprobe;
mod links;
mod log;
mod missed;
pub mod netfilter;
pub mod object;
mod placement;
mod readings;
mod rules;
mod syscall;
mod text;
mod tracepoints;
pub mod verdicts;
mod verifier;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues, RingBuf},
    programs::{RawTracePoint, RawTracePointRunOptions, TestRun},
};
use tracer_common::{counters::Counter, settings::Settings};

use self::{
    devices::Devices,
    kprobe::Kprobes,
    log::Diagnostics,
    netfilter::Programs,
    object::Cast,
    readings::Readings,
    verdicts::{ProgramNames, Shelf, Verdicts},
    xdp::Observer,
};
pub use self::{devices::News, placement::Namespace, rules::RuleProbes, verdicts::VerdictNews};
use crate::{
    correlate::Forget,
    kernel::{KernelTypes, Peek, Symbols, current_net, in_netns, percpu::CpuOffsets, symbols::KALLSYMS},
    plan::View,
};

/// How packets are looked at between tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Links,
    Kprobes,
}

/// What looks at packets between tables.
pub enum TableProbes {
    /// Netfilter BPF links: a probe at each place of each namespace.
    Links(Programs),
    /// Kprobes: one on each function that runs tables.
    Kprobes(Kprobes),
}

impl TableProbes {
    /// As `start` names them.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Links(_) => "netfilter",
            Self::Kprobes(_) => "kprobe",
        }
    }

    /// What is not seen because a part of them was refused, a line each.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Links(_) => Vec::new(),
            Self::Kprobes(kprobes) => kprobes.problems().collect(),
        }
    }
}

/// The loaded kernel side, and what is known of this kernel.
pub struct Kernel {
    ebpf: Ebpf,
    probes: TableProbes,
    /// `None` where rules are to be told by something else.
    rule_probes: Option<RuleProbes>,
    peek: Peek,
    types: KernelTypes,
    symbols: Arc<Symbols>,
    /// Hooked functions that have no name even in the newest symbols.
    nameless: BTreeSet<u64>,
    possible_cpus: u32,
    readings: Readings,
    namespaces: BTreeMap<u32, Namespace>,
    /// `None` while only tracepoints see to devices.
    devices: Option<Devices>,
    /// `None` without `-vv`, and on kernels before 5.17.
    diagnostics: Option<Diagnostics>,
    /// `None` without `--xdp`.
    observer: Option<Observer>,
    /// `None` once the thread has it.
    shelf: Option<Shelf>,
    verdicts: Option<Verdicts>,
    program_names: ProgramNames,
    attached: Vec<&'static str>,
    missing: Vec<String>,
    /// Name of the table of ours that switches the kernel's own trace on; it is not shown.
    own_table: Option<String>,
}

impl Kernel {
    /// Creates maps and programs; nothing is attached yet. `symbols` is asked for last, since reading them takes as
    /// long as all the rest.
    ///
    /// # Errors
    /// What the kernel refused, or the error of `symbols`.
    pub fn load(
        mut settings: Settings,
        mechanism: Mechanism,
        types: KernelTypes,
        symbols: impl FnOnce() -> Result<Symbols>,
        verbose: bool,
    ) -> Result<Self> {
        let cast = Cast::find(&types);
        settings.cast_type = cast.map_or(0, |cast| cast.kind);
        let edition = object::Edition::of(&types);
        let object = object::for_kernel(edition, cast);
        let mut ebpf = object::create(&object, &settings)?;
        let shelf = Shelf::new(ebpf.maps(), edition, cast, verbose)?;
        let peek = Peek::load(&mut ebpf, &types)?;
        let offsets = CpuOffsets::measure(&peek, &types, Path::new(crate::kernel::percpu::CPU_DIRECTORY))?;
        write_offsets(&mut ebpf, &offsets)?;
        let probes = match mechanism {
            Mechanism::Links => TableProbes::Links(Programs::new(&object, ebpf.maps())?),
            Mechanism::Kprobes => TableProbes::Kprobes(Kprobes::new(&mut ebpf, settings.arguments)?),
        };
        let readings = Readings::new(&mut ebpf)?;
        let says = verbose && edition == object::Edition::Current;
        let diagnostics = says.then(|| Diagnostics::take(&mut ebpf)).transpose()?;
        let symbols = symbols()?;
        write_expands(&mut ebpf, &symbols)?;
        Ok(Self {
            probes,
            rule_probes: None,
            peek,
            types,
            symbols: symbols.into(),
            nameless: BTreeSet::new(),
            possible_cpus: offsets.possible(),
            readings,
            ebpf,
            namespaces: BTreeMap::new(),
            devices: None,
            diagnostics,
            observer: None,
            shelf: Some(shelf),
            verdicts: None,
            program_names: ProgramNames::default(),
            attached: Vec::new(),
            missing: Vec::new(),
            own_table: None,
        })
    }

    /// What looks at the tables.
    #[must_use]
    pub fn mechanism(&self) -> &TableProbes {
        &self.probes
    }

    /// The kernel's symbols.
    #[must_use]
    pub fn symbols(&self) -> Arc<Symbols> {
        self.symbols.clone()
    }

    /// The ring buffer of records, to be read by whoever asks first.
    ///
    /// # Errors
    /// When it was asked for before.
    pub fn records(&mut self) -> Result<RingBuf<MapData>> {
        let map = self.ebpf.take_map("EVENTS").context("the ring buffer was taken before")?;
        Ok(RingBuf::try_from(map)?)
    }

    /// Names of what is attached, and what will not be shown because something is missing.
    #[must_use]
    pub fn attached(&self) -> (&[&'static str], &[String]) {
        (&self.attached, &self.missing)
    }

    /// Leaves tables of family inet with this name out, in namespaces added from now on: they are ours.
    pub fn hide_table(&mut self, name: String) {
        self.own_table = Some(name);
    }

    /// Starts to trace a namespace: places its probes.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or no probe placed.
    pub fn add_namespace(&mut self, inode: u32, path: PathBuf, view: &mut View) -> Result<()> {
        let peek = &self.peek;
        let net = in_netns(&path, || current_net(peek))??;
        let mut scope: HashMap<_, u64, u32> =
            HashMap::try_from(self.ebpf.map_mut("SCOPE").context("kernel object: no map SCOPE")?)?;
        scope.insert(net, inode, 0)?;
        self.namespaces.insert(inode, Namespace::new(inode, path, net, self.own_table.clone()));
        self.verdicts_follow();
        self.sync_one(inode, true, view).map(|_| ())
    }

    /// Stops tracing a namespace that has gone.
    ///
    /// # Errors
    /// When a map cannot be changed.
    pub fn remove_namespace(&mut self, inode: u32) -> Result<()> {
        if let Some(devices) = &self.devices {
            devices.remove(inode);
        }
        if let Some(observer) = &mut self.observer {
            observer.remove(inode);
        }
        if let Some(namespace) = self.namespaces.remove(&inode) {
            self.verdicts_follow();
            let mut scope: HashMap<_, u64, u32> =
                HashMap::try_from(self.ebpf.map_mut("SCOPE").context("kernel object: no map SCOPE")?)?;
            scope.remove(&namespace.net())?;
            if let TableProbes::Kprobes(kprobes) = &mut self.probes {
                kprobes.remove(&mut self.ebpf, inode)?;
            }
        }
        Ok(())
    }

    /// Traced namespaces by inode.
    pub fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.values()
    }

    /// Brings probes and rule index up to date where hooks or rulesets have changed.
    ///
    /// # Errors
    /// The first namespace that could not be brought up to date, the others are.
    pub fn sync(&mut self, view: &mut View) -> Result<bool> {
        let inodes: Vec<u32> = self.namespaces.keys().copied().collect();
        self.sync_these(inodes, view)
    }

    /// As [`Self::sync`], for some namespaces.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub fn sync_these(&mut self, inodes: impl IntoIterator<Item = u32>, view: &mut View) -> Result<bool> {
        let mut changed = false;
        let mut failed = None;
        for inode in inodes {
            match self.sync_one(inode, false, view) {
                Ok(one) => changed |= one,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(changed), Err)
    }

    fn sync_one(&mut self, inode: u32, force: bool, view: &mut View) -> Result<bool> {
        let Some(namespace) = self.namespaces.get_mut(&inode) else { return Ok(false) };
        let reader = crate::rules::live::RulesetReader {
            memory: &self.peek,
            types: &self.types,
            symbols: &self.symbols,
            possible_cpus: self.possible_cpus,
        };
        if !force && namespace.is_current(&reader)? {
            return Ok(false);
        }
        let probes = (&mut self.probes, self.rule_probes.as_mut());
        namespace.place(&reader, probes, &mut self.readings, &mut self.ebpf, view)?;
        // What was hooked by a module loaded since the symbols were read has no name, and so is not told apart.
        let nameless: BTreeSet<u64> = namespace.nameless().collect();
        if !nameless.is_subset(&self.nameless) {
            self.nameless.extend(nameless);
            self.symbols = Symbols::read(Path::new(KALLSYMS)).context("reading /proc/kallsyms")?.into();
            return self.sync_one(inode, true, view);
        }
        Ok(true)
    }

    /// Tells the kernel side which packets need not be followed any longer.
    ///
    /// # Errors
    /// When the program cannot run.
    pub fn forget(&mut self, packets: &[Forget]) -> Result<()> {
        if packets.is_empty() {
            return Ok(());
        }
        let program: &mut RawTracePoint =
            self.ebpf.program_mut("forget").context("kernel object: no program forget")?.try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        for some in packets.chunks(6) {
            let mut args = [0; 12];
            for (pair, packet) in args.chunks_exact_mut(2).zip(some) {
                pair.copy_from_slice(&[packet.skb, packet.journey]);
            }
            program.test_run(RawTracePointRunOptions { args, cpu: None })?;
        }
        Ok(())
    }

    /// The counters of the kernel side, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        Counter::ALL.iter().map(|counter| Ok((*counter, self.counter(*counter)?))).collect()
    }

    /// One of [`Self::counters`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let map: PerCpuArray<_, u64> =
            PerCpuArray::try_from(self.ebpf.map("COUNTERS").context("kernel object: no map COUNTERS")?)?;
        Ok(map.get(&(counter as u32), 0)?.iter().sum())
    }
}

/// Where a packet goes on as a copy; nothing where the kernel has no such function, or hides where.
fn write_expands(ebpf: &mut Ebpf, symbols: &Symbols) -> Result<()> {
    let Some(range) = symbols.range_of("skb_expand_head") else { return Ok(()) };
    let mut map: Array<_, [u64; 2]> =
        Array::try_from(ebpf.map_mut("EXPANDS").context("kernel object: no map EXPANDS")?)?;
    Ok(map.set(0, range, 0)?)
}

fn write_offsets(ebpf: &mut Ebpf, offsets: &CpuOffsets) -> Result<()> {
    let mut map: PerCpuArray<_, u64> = PerCpuArray::try_from(
        ebpf.map_mut("PER_CPU_OFFSET").context("kernel object: no map PER_CPU_OFFSET")?,
    )?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
    let values = (0..cpus).map(|cpu| u32::try_from(cpu).ok().and_then(|cpu| offsets.get(cpu)).unwrap_or(0));
    map.set(0, PerCpuValues::try_from(values.collect::<Vec<_>>())?, 0)?;
    Ok(())
}
