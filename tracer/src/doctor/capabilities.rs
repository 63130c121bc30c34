//! What the kernel offers to look with.

use crate::model::{Hook, TableFamily};

use super::{Level, Report, Section};

/// A kernel feature or a probe, tried on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// `netfilter links`, `tcx`, `kfree_skb reasons`, ...
    pub name: String,
    pub available: bool,
    /// How it was found out, or why it is missing.
    pub why: String,
    /// What it shows, which is what will be missing without it.
    pub gives: String,
    /// Without it nothing can be traced.
    pub needed: bool,
    /// It is one of the probes that a trace would attach now.
    pub used: bool,
}

/// A function hooked into netfilter, as the kernel's own list has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookFunction {
    pub hook: Hook,
    pub family: TableFamily,
    pub priority: Option<i32>,
    /// The kernel's symbol, or its address where that is unknown.
    pub function: String,
    /// Table and chain, or program, that it stands for.
    pub stands_for: Option<String>,
}

/// Filled by the plan of probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `uname -sr`
    pub kernel: String,
    pub features: Vec<Capability>,
    /// In the kernel's order; empty where it could not be read.
    pub hooks: Vec<HookFunction>,
}

pub(super) fn examine(capabilities: &Capabilities, report: &mut Report) {
    report.add(Section::Kernel, Level::Info, "kernel", &capabilities.kernel, &[], None);
    let (probes, features): (Vec<_>, Vec<_>) = capabilities.features.iter().partition(|feature| feature.used);
    for feature in features {
        add(Section::Kernel, "feature", feature, report);
    }
    for probe in probes {
        add(Section::Probes, "probe", probe, report);
    }
    let missing: Vec<String> = capabilities
        .features
        .iter()
        .filter(|feature| !feature.available)
        .map(|feature| feature.gives.clone())
        .collect();
    if !missing.is_empty() {
        report.add(Section::Probes, Level::Info, "not-shown", "what will not be shown:", &missing, None);
    }
    for function in &capabilities.hooks {
        let priority = function.priority.map_or("?".to_owned(), |priority| priority.to_string());
        let stands_for = function.stands_for.as_ref().map(|what| format!(": {what}")).unwrap_or_default();
        let summary = format!(
            "{:<11} {:<4} {priority:>11}  {}{stands_for}",
            function.hook.iptables_name(),
            function.family.name(),
            function.function
        );
        report.add(Section::Hooks, Level::Info, "hook", &summary, &[], None);
    }
}

fn add(section: Section, code: &'static str, capability: &Capability, report: &mut Report) {
    let level = match (capability.available, capability.needed) {
        (true, _) => Level::Ok,
        (false, false) => Level::Warning,
        (false, true) => Level::Blocking,
    };
    let state = if capability.available { "" } else { " is missing" };
    let summary = format!("{}{state}: {}", capability.name, capability.gives);
    report.add(section, level, code, &summary, std::slice::from_ref(&capability.why), None);
}
