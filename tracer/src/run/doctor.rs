//! What this machine can show, and what is risky: gathers what `doctor` puts together.

use std::{
    io::{self, Write as _},
    path::Path,
    time::Instant,
};

use super::{findings, setup};
use crate::{
    attach::{Kernel, Namespace, TableProbes},
    diagnose::RulesetView,
    doctor::{Capabilities, Capability, HookFunction, Machine, examine},
    enrich::{Loggers, NetnsPath, Reader, Reading, Roots},
    error::{Failure, one_line},
    kernel::{
        btf::BTF_DIRECTORY,
        hooks::{HookFunction as Hooked, HookKind, HookList},
    },
    model::{Family, TableFamily},
    netns,
    plan::{TRACEPOINTS, View},
    render::printable,
};

/// Prints the report on the current namespace; a failure when something stops tracing.
pub(super) fn run(json: bool) -> Result<(), Failure> {
    let namespace = netns::resolve(&crate::config::NetnsSpec::Current, &Roots::default())?;
    let mut capabilities = Capabilities { kernel: setup::kernel_release(), ..Capabilities::default() };
    let types = Path::new(BTF_DIRECTORY).join("vmlinux");
    capabilities.features.push(Capability {
        name: "kernel types (BTF)".to_owned(),
        available: types.exists(),
        why: format!("{} {}", types.display(), if types.exists() { "is there" } else { "is missing" }),
        gives: "where the fields of kernel structures lie".to_owned(),
        needed: true,
        used: false,
    });
    let mut ruleset = RulesetView::new(namespace.inode);
    match probe(&namespace) {
        Ok((kernel, tried)) => {
            capabilities.features.extend(tried);
            if let Some(traced) = kernel.namespaces().next() {
                capabilities.hooks = traced.hooks().iter().flat_map(hooks_of).collect();
                traced.texts().wait();
                if let Some(printed) = traced.texts().unproven() {
                    ruleset = findings::view(namespace.inode, printed);
                }
            }
        }
        Err(failure) => capabilities.features.push(Capability {
            name: "programs in the kernel".to_owned(),
            available: false,
            why: format!("{}; {}", one_line(&failure.what()), failure.todo()),
            gives: "journeys".to_owned(),
            needed: true,
            used: false,
        }),
    }
    let path = NetnsPath::new(&namespace.path);
    let surroundings = Reader::new(Roots::default()).surroundings(namespace.inode, &path, Instant::now());
    let loggers = Reading::now(
        Loggers::read(Path::new("/proc/thread-self")).or_else(|_| Loggers::read(Path::new("/proc"))),
    );
    let machine = Machine {
        capabilities: &capabilities,
        surroundings: &surroundings,
        ruleset: &ruleset,
        loggers: &loggers,
    };
    let report = examine(&machine);
    let mut out = io::stdout().lock();
    let text = if json {
        serde_json::to_string(&report).map_err(anyhow::Error::from)?
    } else {
        report.to_string().lines().map(printable).collect::<Vec<_>>().join("\n")
    };
    writeln!(out, "{text}").map_err(Failure::Output)?;
    if report.stops_tracing() {
        return Err(Failure::NoProbe { tried: "the report says what stops tracing".to_owned() });
    }
    Ok(())
}

/// Loads everything and places every probe for a moment: what works is known and not guessed.
fn probe(namespace: &netns::Namespace) -> Result<(Kernel, Vec<Capability>), Failure> {
    let config = setup::doctor_config();
    let setup::Loaded { mut kernel, absent, .. } = setup::load(&config)?;
    kernel.watch_rules();
    let mut tried = Vec::new();
    let placed = kernel.add_namespace(namespace.inode, namespace.path.clone(), &mut View::default());
    tried.extend(table_probes(&kernel, placed.err().map(|error| one_line(&format!("{error:#}")))));
    tried.extend(rule_probes(&mut kernel));
    kernel.attach_tracepoints()?;
    let (attached, _) = kernel.attached();
    for probe in TRACEPOINTS {
        let available = attached.contains(&probe.tracepoint);
        tried.push(Capability {
            name: format!("tracepoint {}", probe.tracepoint),
            available,
            why: if available { "attached" } else { "this kernel has none of that name" }.to_owned(),
            gives: probe.gives.to_owned(),
            needed: probe.required,
            used: true,
        });
    }
    let tcx = Extra {
        name: "tcx links",
        placed: "placed on lo",
        otherwise: "tracepoints serve instead",
        gives: "devices a packet comes in and leaves by, at no cost to other namespaces",
        used: false,
    };
    tried.push(tcx.tried(kernel.try_tcx(&namespace.path)));
    let verdicts = Extra {
        name: "fexit on programs",
        placed: "placed on two programs of our own",
        otherwise: "others' programs are named where they stand",
        gives: "what XDP and tc programs of others said of a packet",
        used: false,
    };
    tried.push(verdicts.tried(kernel.try_verdicts()));
    tried.extend(absent.into_iter().map(|member| Capability {
        name: member,
        available: false,
        why: "not in this kernel's types".to_owned(),
        gives: "that field of packets".to_owned(),
        needed: false,
        used: false,
    }));
    Ok((kernel, tried))
}

/// What looks at the tables here, and what it stands in for.
fn table_probes(kernel: &Kernel, refused: Option<String>) -> Vec<Capability> {
    let gives = "the packet before and after each table, and the rules that matched".to_owned();
    let links = |available, why: String, needed| Capability {
        name: "netfilter links".to_owned(),
        available,
        why,
        gives: gives.clone(),
        needed,
        used: needed,
    };
    let TableProbes::Kprobes(_) = kernel.mechanism() else {
        let why = refused.clone().unwrap_or_else(|| "placed at every hook".to_owned());
        return vec![links(refused.is_none(), why, true)];
    };
    let none = "this kernel has none (Linux 6.4 with CONFIG_NETFILTER_BPF_LINK=y has): kprobes stand in";
    let mut probes = vec![
        links(false, none.to_owned(), false),
        Capability {
            name: "kprobes".to_owned(),
            available: refused.is_none(),
            why: refused.unwrap_or_else(|| "placed at nf_hook_slow and at every table function".to_owned()),
            gives: gives.clone(),
            needed: true,
            used: true,
        },
    ];
    let unreadable = kernel.namespaces().filter_map(Namespace::unreadable).map(str::to_owned);
    probes.extend(kernel.mechanism().problems().into_iter().chain(unreadable).map(|why| Capability {
        name: "a part of the tables".to_owned(),
        available: false,
        why,
        gives: "its packets or rules".to_owned(),
        needed: false,
        used: true,
    }));
    probes
}

/// What tells of rules without counters; nothing to say while nf_tables is not loaded.
fn rule_probes(kernel: &mut Kernel) -> Option<Capability> {
    let probes = Extra {
        name: "rule probes",
        placed: "kprobes at the functions that evaluate nft rules",
        otherwise: "counters of other rules and the packet's fate tell what they can",
        gives: "which nft rules without counters matched",
        used: true,
    };
    kernel.try_rule_probes().map(|tried| probes.tried(tried))
}

/// What a trace can do without.
struct Extra {
    name: &'static str,
    placed: &'static str,
    /// What there is where it was refused.
    otherwise: &'static str,
    gives: &'static str,
    used: bool,
}

impl Extra {
    /// In one line, whatever the kernel said.
    fn tried(self, result: anyhow::Result<()>) -> Capability {
        let available = result.is_ok();
        let why = result.map_or_else(
            |error| format!("{}; {}", one_line(&format!("{error:#}")), self.otherwise),
            |()| self.placed.to_owned(),
        );
        let (name, gives) = (self.name.to_owned(), self.gives.to_owned());
        Capability { name, available, why, gives, needed: false, used: self.used }
    }
}

fn hooks_of(list: &HookList) -> Vec<HookFunction> {
    let family = match list.family {
        Family::Ipv4 => TableFamily::Ip,
        Family::Ipv6 => TableFamily::Ip6,
    };
    let one = |hooked: &Hooked, under: Option<&str>| HookFunction {
        hook: list.hook,
        family,
        priority: Some(hooked.priority),
        function: hooked.symbol.clone().unwrap_or_else(|| format!("{:#x}", hooked.address)),
        stands_for: under.map(str::to_owned).or_else(|| match hooked.kind {
            HookKind::XtTable { .. } => Some("table of iptables-legacy".to_owned()),
            HookKind::NftChain { .. } => Some("base chain of nftables".to_owned()),
            HookKind::Nat { .. } => Some("NAT engine".to_owned()),
            HookKind::Bpf => Some("BPF program".to_owned()),
            HookKind::Other => None,
        }),
    };
    list.functions
        .iter()
        .flat_map(|hooked| {
            let chains = match &hooked.kind {
                HookKind::Nat { chains, .. } => chains.as_slice(),
                _ => &[],
            };
            std::iter::once(one(hooked, None))
                .chain(chains.iter().map(move |chain| one(chain, Some("run by the NAT engine"))))
        })
        .collect()
}
