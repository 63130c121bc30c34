//! From facts to a loaded kernel side.

use std::{path::Path, thread, time::Duration};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use nix::{time::ClockId, unistd::geteuid};
use tracer_common::{
    filter::Filter,
    layout::{KernelLayout, Sizes},
    settings::Settings,
};

use crate::{
    attach::Kernel,
    config::{ColorChoice, Config, Format, NetnsSpec, Output, ProbeMode, RulesMode, Scope, Stop},
    correlate::Names,
    error::Failure,
    kernel::{KernelTypes, Symbols, btf::BTF_DIRECTORY},
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
    if config.probes == ProbeMode::Kprobe {
        return Err(Failure::NoProbe { tried: "kprobe: this version places no kprobes".to_owned() });
    }
    for (asked, flag) in [(config.xdp, "--xdp"), (config.rules == RulesMode::Nftrace, "--rules nftrace")] {
        if asked {
            return Err(Failure::Other(anyhow::anyhow!("{flag} is not in this version: leave it out")));
        }
    }
    if !Path::new(BTF_DIRECTORY).join("vmlinux").exists() {
        return Err(Failure::NoBtf);
    }
    let symbols = thread::spawn(|| Symbols::read(Path::new(KALLSYMS)));
    let types = KernelTypes::open(Path::new(BTF_DIRECTORY)).map_err(anyhow::Error::from)?;
    let layout = KernelLayout::resolve(|structure, path| types.offset_of(structure, path));
    let absent = layout.absent().map(|(structure, path)| format!("{structure}.{path}")).collect();
    let settings = Settings {
        layout,
        sizes: Sizes { tuplehash: types.size_of("nf_conntrack_tuple_hash").unwrap_or(0) },
        filter: config.filter,
        all_namespaces: u32::from(config.scope == Scope::All),
        read_rules: u32::from(config.rules != RulesMode::Off),
        tentative: u32::from(config.filter.active != 0),
        verbose: u32::from(config.kernel_log),
        cast_type: 0,
    };
    let reasons = types.enum_values("skb_drop_reason").unwrap_or_default();
    let reasons = reasons.into_iter().filter_map(|(name, value)| Some((u32::try_from(value).ok()?, name)));
    let reasons: Vec<_> = reasons.collect();
    let kernel = Kernel::load(
        settings,
        types,
        || {
            let symbols = symbols.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked));
            symbols.context("reading /proc/kallsyms")
        },
        config.kernel_log,
    )?;
    let functions = kernel.symbols();
    let names =
        Names::new(reasons, move |address| functions.function_at(address).map(|(name, _)| name.to_owned()));
    Ok(Loaded { kernel, names, absent })
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

/// CLOCK_MONOTONIC in nanoseconds.
pub(super) fn monotonic() -> u64 {
    nix::time::clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
