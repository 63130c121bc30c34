//! `--rules nftrace`: the kernel's own trace in each traced namespace, announced, and what it tells.

use std::{collections::BTreeMap, fs};

use tracer_common::filter::Filter;

use crate::{
    attach::Kernel,
    config::{Config, RulesMode},
    kernel::{in_netns, monotonic},
    netns::Namespace,
    rules::nftrace::{LegacyLog, Passages, TraceEvent, Witness, table_name},
};

/// Where the kernel names a namespace's tables of iptables-legacy, each family's.
const LEGACY_TABLES: [&str; 2] =
    ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

/// The kernel's own trace, where it was asked for.
pub(super) struct KernelTrace {
    /// `None` where it was not.
    filter: Option<Filter>,
    /// By the namespace's inode number.
    witnesses: BTreeMap<u32, Traced>,
}

struct Traced {
    witness: Witness,
    /// TRACE lines of iptables-legacy cannot be caught, which was said.
    gave_up: bool,
}

impl KernelTrace {
    pub(super) fn new(config: &Config) -> Self {
        let filter = (config.rules == RulesMode::Nftrace).then_some(config.filter);
        Self { filter, witnesses: BTreeMap::new() }
    }

    /// Starts in the namespaces that are there; gives what the user is to be told.
    pub(super) fn start<'n>(
        &mut self,
        namespaces: impl Iterator<Item = &'n Namespace>,
        kernel: &mut Kernel,
    ) -> Vec<String> {
        if self.filter.is_none() {
            return Vec::new();
        }
        kernel.hide_table(table_name());
        namespaces.flat_map(|namespace| self.add(namespace)).collect()
    }

    /// Starts in one namespace; gives what the user is to be told.
    pub(super) fn add(&mut self, namespace: &Namespace) -> Vec<String> {
        let Some(filter) = self.filter else { return Vec::new() };
        let mut said = Vec::new();
        let started = in_netns(&namespace.path, || {
            let (log, gave_up) = legacy_log(&mut said, &namespace.name);
            Witness::start(&filter, log).map(|witness| Traced { witness, gave_up })
        });
        let problem = match started {
            Ok(Ok(traced)) => {
                said.insert(
                    0,
                    format!(
                        "--rules nftrace: the ruleset of namespace {} has the additional table inet {} until the \
                         trace ends",
                        namespace.name,
                        traced.witness.table(),
                    ),
                );
                self.witnesses.insert(namespace.inode, traced);
                return said;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let name = &namespace.name;
        said.push(format!(
            "--rules nftrace does not work in namespace {name}, only counters tell rules: {problem}"
        ));
        said
    }

    pub(super) fn remove(&mut self, inode: u32) {
        self.witnesses.remove(&inode);
    }

    /// Catches the TRACE lines of iptables-legacy where tables of it have appeared; gives what the user is to be told.
    pub(super) fn look<'n>(&mut self, namespaces: impl Iterator<Item = &'n Namespace>) -> Vec<String> {
        let mut said = Vec::new();
        for namespace in namespaces {
            let Some(traced) = self.witnesses.get_mut(&namespace.inode) else { continue };
            if traced.gave_up || traced.witness.catches_legacy() {
                continue;
            }
            let looked = in_netns(&namespace.path, || legacy_log(&mut said, &namespace.name));
            // A namespace that is gone is found by the next look at the scope.
            let Ok((log, gave_up)) = looked else { continue };
            traced.gave_up = gave_up;
            if let Some(log) = log {
                traced.witness.catch_legacy(log);
            }
        }
        said
    }

    /// Takes in what the kernel has told up to now. It tells in the packet's own context, so that this is all about
    /// every packet of which a later record was read.
    pub(super) fn listen(&mut self, passages: &mut Passages) {
        for (inode, traced) in &mut self.witnesses {
            // A socket that fails is one that tells nothing more, as after a loss.
            let events = traced.witness.waiting().unwrap_or_else(|_| vec![TraceEvent::Lost]);
            let now = monotonic();
            events.into_iter().for_each(|event| passages.hear(*inode, event, now));
        }
    }
}

/// The packet loggers of the calling thread's namespace, where tables of iptables-legacy would write to them; and
/// whether that was refused, which is added to `said`.
fn legacy_log(said: &mut Vec<String>, name: &str) -> (Option<LegacyLog>, bool) {
    // A kernel without ip_tables has no such file.
    let present = |path| fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty());
    if !LEGACY_TABLES.into_iter().any(present) {
        return (None, false);
    }
    match LegacyLog::bind() {
        Ok(log) => {
            said.push(format!(
                "--rules nftrace: the packet logger of namespace {name} is nfnetlink_log until the trace ends, so that \
                 TRACE lines of iptables-legacy do not fill the kernel log"
            ));
            (Some(log), false)
        }
        Err(error) => {
            said.push(format!("--rules nftrace: namespace {name}: {error}"));
            (None, true)
        }
    }
}
