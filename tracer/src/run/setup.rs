//! From facts to a loaded kernel side.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use nix::{time::ClockId, unistd::geteuid};
use tracer_common::{
    filter::Filter,
    kprobe::Arguments,
    layout::{Bit, KernelLayout, Sizes},
    settings::Settings,
};

use crate::{
    attach::{Kernel, Mechanism, kprobe, netfilter, verdicts},
    config::{ColorChoice, Config, Format, NetnsSpec, Output, ProbeMode, RulesMode, Scope, Stop},
    correlate::Names,
    error::Failure,
    kernel::{KernelTypes, Symbols, arguments, btf::BTF_DIRECTORY, hooks::HookReader, tracepoints},
    plan::TRACEPOINTS,
};

const KALLSYMS: &str = "/proc/kallsyms";

/// A loaded kernel side and the kernel's own names.
pub(super) struct Loaded {
    pub(super) kernel: Kernel,
    pub(super) names: Names,
    /// Members of kernel structures that this kernel does not have.
    pub(super) absent: Vec<String>,
}

/// Checks what a trace needs and loads the kernel side.
pub(super) fn load(config: &Config) -> Result<Loaded, Failure> {
    if !geteuid().is_root() {
        return Err(Failure::NotRoot);
    }
    if is_inside_user_namespace() {
        return Err(Failure::OnlyRootInside);
    }
    if !Path::new(BTF_DIRECTORY).join("vmlinux").exists() {
        return Err(Failure::NoBtf);
    }
    let mechanism = mechanism(config.probes)?;
    let symbols = thread::spawn(|| Symbols::read(Path::new(KALLSYMS)));
    let types = KernelTypes::open(Path::new(BTF_DIRECTORY)).map_err(anyhow::Error::from)?;
    find_types(&types);
    let layout = KernelLayout::resolve(|structure, path| types.offset_of(structure, path));
    let absent = layout.absent().map(|(structure, path)| format!("{structure}.{path}")).collect();
    let settings = Settings {
        layout,
        tc_at_ingress: types
            .bit_field("sk_buff", "tc_at_ingress")
            .map_or(Bit::ABSENT, |field| Bit::new(field.bit)),
        sizes: Sizes { tuplehash: types.size_of("nf_conntrack_tuple_hash").unwrap_or(0) },
        arguments: match mechanism {
            Mechanism::Links => Arguments::NOTHING,
            Mechanism::Kprobes => arguments::resolve(&types),
        },
        freed: tracepoints::freed(&types),
        filter: config.filter,
        all_namespaces: u32::from(config.scope == Scope::All),
        read_rules: u32::from(config.rules != RulesMode::Off),
        tentative: u32::from(config.filter.active != 0),
        verbose: u32::from(config.kernel_log),
        xdp: u32::from(config.xdp),
        verdicts: u32::from(verdicts::is_known(&types)),
        cast_type: 0,
    };
    let reasons = types.enum_values("skb_drop_reason").unwrap_or_default();
    let reasons = reasons.into_iter().filter_map(|(name, value)| Some((u32::try_from(value).ok()?, name)));
    let reasons: Vec<_> = reasons.collect();
    let kernel = Kernel::load(
        settings,
        mechanism,
        types,
        || {
            let symbols = symbols.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
            symbols.context("reading /proc/kallsyms")
        },
        config.kernel_log,
    )
    .map_err(|error| no_probe(config.probes, error))?;
    let functions = kernel.symbols();
    let programs = kernel.program_names();
    let names =
        Names::new(reasons, move |address| functions.function_at(address).map(|(name, _)| name.to_owned()))
            .with_programs(move |id| programs.get(id));
    Ok(Loaded { kernel, names, absent })
}

/// Looks for what every trace needs of the kernel's types, all at once: the structures, and what tracepoints hand over.
fn find_types(types: &KernelTypes) {
    let mut names = Vec::new();
    KernelLayout::resolve(|structure, _| {
        names.push(structure.to_owned());
        None
    });
    names.extend(HookReader::TYPES.iter().map(|&name| name.to_owned()));
    names.extend(TRACEPOINTS.iter().map(|probe| tracepoints::described_as(probe.tracepoint)));
    types.find_all(names.iter().map(String::as_str));
}

/// Whether user ids here are mapped (user_namespaces(7)): only the first user namespace has all of them as they are.
fn is_inside_user_namespace() -> bool {
    let all = ["0", "0", "4294967295"];
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.split_whitespace().eq(all))
}

/// What a kernel without netfilter programs lacks.
const NO_LINKS: &str = "no netfilter BPF links (they need Linux 6.4 and CONFIG_NETFILTER_BPF_LINK=y)";

/// The mechanism that was asked for, or the best that this kernel knows.
fn mechanism(asked: ProbeMode) -> Result<Mechanism, Failure> {
    match asked {
        ProbeMode::Kprobe => Ok(Mechanism::Kprobes),
        ProbeMode::Netfilter | ProbeMode::Auto if netfilter::is_known() => Ok(Mechanism::Links),
        ProbeMode::Netfilter => Err(Failure::NoProbe { tried: NO_LINKS.to_owned() }),
        ProbeMode::Auto => Ok(Mechanism::Kprobes),
    }
}

/// Says which mechanisms were tried where none is left.
fn no_probe(asked: ProbeMode, error: anyhow::Error) -> Failure {
    match error.downcast_ref::<kprobe::Refused>() {
        Some(refused) if asked == ProbeMode::Auto => {
            Failure::NoProbe { tried: format!("{NO_LINKS}, and {refused}") }
        }
        Some(refused) => Failure::NoProbe { tried: refused.to_string() },
        None => Failure::Other(error),
    }
}

/// What doctor loads: nothing is filtered, and the current namespace is looked at.
pub(super) fn doctor_config() -> Config {
    Config {
        filter: Filter::default(),
        interfaces: Vec::new(),
        ct_states: Vec::new(),
        scope: Scope::These(vec![NetnsSpec::Current]),
        rules: RulesMode::Auto,
        probes: ProbeMode::Auto,
        xdp: false,
        clsact: false,
        without: Vec::new(),
        says_probes: false,
        kernel_log: false,
        output: Output { format: Format::Json, drops_only: false, color: ColorChoice::Never },
        stop: Stop::default(),
    }
}

/// `uname -r`
pub(super) fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// The wall clock at time 0 of CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`.
pub(super) fn epoch() -> Result<Timestamp, Failure> {
    let monotonic = nix::time::clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading CLOCK_MONOTONIC")?;
    let since = SignedDuration::try_from(Duration::from(monotonic)).context("reading CLOCK_MONOTONIC")?;
    Ok(Timestamp::now().checked_sub(since).context("the wall clock is out of range")?)
}
