//! Kprobes on the functions that run the tables: one probe serves every namespace, and a map tells it which of the
//! packets that pass are of interest.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{HashMap, ProgramArray},
    programs::{KProbe, links::FdLink},
};
use tracer_common::kprobe::{Arguments, BARE, Place, PlaceKey, Position};

use super::{placement::protocol_family, verifier::refusal};
use crate::{
    error::one_line,
    kernel::{
        KernelTypes, Symbols,
        arguments::{TableCall, table_call},
        hooks::{HookFunction, HookKind, HookList},
    },
    model::{Family, Hook},
    plan::{HookPlan, places},
};

/// Programs on functions that are there on every kernel (net/netfilter/core.c).
const SLOW_PATH: [(&str, &str); 2] = [("hook_end", "nf_hook_slow"), ("hook_begin", "nf_hook_slow")];

/// The program that all others end in.
const JUDGE: &str = "kprobe_judge";

/// A program on a function of the kernel.
type Probe = (&'static str, String);

/// The kernel does not let us place the probes without which there is nothing to show.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// The probes that are in place.
pub struct Kprobes {
    table_call: Option<TableCall>,
    attached: BTreeSet<Probe>,
    /// What was refused, and why: tried once.
    refused: BTreeMap<Probe, String>,
    places: BTreeMap<u32, BTreeMap<PlaceKey, Place>>,
}

impl Kprobes {
    /// Attaches what every trace needs.
    ///
    /// # Errors
    /// When this kernel does not describe its functions, or refuses kprobes.
    pub fn new(ebpf: &mut Ebpf, arguments: Arguments) -> Result<Self> {
        for (known, what) in [
            (arguments.slow_skb, "nf_hook_slow"),
            (arguments.slow_state, "nf_hook_slow"),
            (arguments.function_skb, "nf_hookfn"),
            (arguments.function_state, "nf_hookfn"),
            (arguments.function_private, "nf_hookfn"),
        ] {
            if known == Position::ABSENT {
                return Err(
                    Refused(format!("no kprobes: this kernel's BTF does not say what {what} takes")).into()
                );
            }
        }
        let mut probes = Self {
            table_call: None,
            attached: BTreeSet::new(),
            refused: BTreeMap::new(),
            places: BTreeMap::new(),
        };
        join(ebpf).map_err(|error| Refused(format!("no kprobes: {error:#}")))?;
        for (program, function) in SLOW_PATH {
            attach(ebpf, program, function).map_err(|error| Refused(format!("no kprobes: {error:#}")))?;
            probes.attached.insert((program, function.to_owned()));
        }
        Ok(probes)
    }

    /// What is not seen because a probe was refused, a line each.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.refused.iter().map(|((_, function), why)| format!("packets at {function} are not seen: {why}"))
    }

    /// Has the programs look at the planned places of a namespace, and no longer at those of its former plan.
    ///
    /// # Errors
    /// When a map cannot be changed. A probe that is refused is one of [`Self::problems`].
    pub fn place(
        &mut self,
        ebpf: &mut Ebpf,
        namespace: (u32, u64),
        hooks: &[(&HookList, &HookPlan)],
        (types, symbols): (&KernelTypes, &Symbols),
    ) -> Result<()> {
        let (inode, net) = namespace;
        let mut wanted = BTreeMap::new();
        for (list, plan) in hooks {
            for (function, place) in places(list, plan) {
                let hook = u32::from(list.hook.inet_number().unwrap_or(0));
                let pf = u32::from(protocol_family(list.family));
                wanted.insert(PlaceKey { net, function, hook, pf }, place);
                if function == BARE {
                    bare(list.hook, list.family).into_iter().for_each(|probe| self.ensure(ebpf, probe));
                }
            }
            for function in plan.gaps.iter().flat_map(|gap| &gap.functions) {
                if let Some(probe) = self.probe_of(function, list.family, types, symbols) {
                    self.ensure(ebpf, probe);
                }
            }
        }
        self.write(ebpf, inode, wanted)
    }

    /// Forgets a namespace that is not traced any more.
    ///
    /// # Errors
    /// When the map cannot be changed.
    pub fn remove(&mut self, ebpf: &mut Ebpf, inode: u32) -> Result<()> {
        self.write(ebpf, inode, BTreeMap::new())
    }

    /// The probe that sees packets before a function.
    fn probe_of(
        &mut self,
        function: &HookFunction,
        family: Family,
        types: &KernelTypes,
        symbols: &Symbols,
    ) -> Option<Probe> {
        if let HookKind::XtTable { .. } = function.kind {
            let name = match family {
                Family::Ipv4 => "ipt_do_table",
                Family::Ipv6 => "ip6t_do_table",
            };
            if self.table_call.is_none() {
                self.table_call = table_call(types);
            }
            return match self.table_call {
                Some(TableCall::Hooked) => Some(("hook_function", name.to_owned())),
                Some(TableCall::Apart) => Some(("table_function", name.to_owned())),
                None => {
                    let why = "this kernel's BTF does not say what it takes".to_owned();
                    self.refused.entry(("hook_function", name.to_owned())).or_insert(why);
                    None
                }
            };
        }
        // A function without a name is looked up again, with newer symbols.
        let (name, offset) = symbols.function_at(function.address)?;
        (offset == 0).then(|| ("hook_function", name.to_owned()))
    }

    fn ensure(&mut self, ebpf: &mut Ebpf, probe: Probe) {
        if self.attached.contains(&probe) || self.refused.contains_key(&probe) {
            return;
        }
        match attach(ebpf, probe.0, &probe.1) {
            Ok(()) => {
                self.attached.insert(probe);
            }
            Err(error) => {
                self.refused.insert(probe, one_line(&format!("{error:#}")));
            }
        }
    }

    fn write(&mut self, ebpf: &mut Ebpf, inode: u32, wanted: BTreeMap<PlaceKey, Place>) -> Result<()> {
        let mut map: HashMap<_, PlaceKey, Place> =
            HashMap::try_from(ebpf.map_mut("PLACES").context("kernel object: no map PLACES")?)?;
        let former = self.places.remove(&inode).unwrap_or_default();
        for (key, place) in &wanted {
            if former.get(key) != Some(place) {
                map.insert(key, place, 0).context("telling the kernel side its places")?;
            }
        }
        for key in former.keys().filter(|key| !wanted.contains_key(key)) {
            map.remove(key)?;
        }
        if !wanted.is_empty() {
            self.places.insert(inode, wanted);
        }
        Ok(())
    }
}

/// Where packets pass a hook that nobody is hooked to; nothing at PREROUTING, where the device was seen right before.
fn bare(hook: Hook, family: Family) -> Option<Probe> {
    let (program, v4, v6) = match hook {
        Hook::Output => ("local_out", "__ip_local_out", "__ip6_local_out"),
        Hook::Input => ("local_in", "ip_local_deliver", "ip6_input"),
        Hook::Forward | Hook::Postrouting => ("output", "ip_output", "ip6_output"),
        _ => return None,
    };
    let function = match family {
        Family::Ipv4 => v4,
        Family::Ipv6 => v6,
    };
    Some((program, function.to_owned()))
}

/// Loads the program that the others end in, and tells them where it is.
fn join(ebpf: &mut Ebpf) -> Result<()> {
    let program: &mut KProbe =
        ebpf.program_mut(JUDGE).with_context(|| format!("kernel object: no program {JUDGE}"))?.try_into()?;
    program.load().map_err(|error| refusal("the kprobe program that judges", error))?;
    let program = program.fd()?.try_clone()?;
    let map = ebpf.map_mut("KPROBE_JUDGE").context("kernel object: no map KPROBE_JUDGE")?;
    Ok(ProgramArray::try_from(map)?.set(0, &program, 0)?)
}

/// Attaches a program to a function, loading it if it is not yet.
fn attach(ebpf: &mut Ebpf, program: &str, function: &str) -> Result<()> {
    probe(ebpf, program)?.attach(function, 0).with_context(|| refused(function))?;
    Ok(())
}

/// As [`attach`]; the probe ends when the descriptor is closed.
pub(super) fn attach_owned(ebpf: &mut Ebpf, program: &str, function: &str) -> Result<FdLink> {
    let program = probe(ebpf, program)?;
    let link = program.attach(function, 0).with_context(|| refused(function))?;
    Ok(program.take_link(link)?.try_into()?)
}

fn refused(function: &str) -> String {
    format!("kprobe at {function} was refused")
}

/// A program, loaded.
fn probe<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut KProbe> {
    let program: &mut KProbe =
        ebpf.program_mut(name).with_context(|| format!("kernel object: no program {name}"))?.try_into()?;
    if program.fd().is_err() {
        program.load().map_err(|error| refusal(&format!("the kprobe program {name}"), error))?;
    }
    Ok(program)
}
