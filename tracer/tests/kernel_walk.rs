//! Reads this kernel's own structures, in namespaces of the tests' making. Needs root.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{collections::BTreeSet, fs, path::Path, thread};

use lab::Lab;
use tracer::{
    kernel::{
        KernelTypes,
        btf::BTF_DIRECTORY,
        hooks::{HookFunction, HookKind, HookList, HookReader},
        net,
        symbols::{KALLSYMS, Symbols},
    },
    model::{Family, Hook},
};
use tracer_common::peek::PEEK_BYTES;

fn hooks(lab: &Lab) -> Vec<HookList> {
    let read = |symbols: &Symbols| {
        HookReader::new(lab.memory(), lab.types(), symbols).unwrap().read(lab.net()).unwrap()
    };
    let lists = read(lab.symbols());
    // A module that came since the symbols were read is known only by new ones.
    if lists.iter().flat_map(|list| &list.functions).any(|function| function.symbol.is_none()) {
        return read(&Symbols::read(Path::new(KALLSYMS)).unwrap());
    }
    lists
}

fn functions(lists: &[HookList], family: Family, hook: Hook) -> &[HookFunction] {
    &lists.iter().find(|list| list.family == family && list.hook == hook).unwrap().functions
}

fn symbols(functions: &[HookFunction]) -> Vec<&str> {
    functions.iter().map(|f| f.symbol.as_deref().unwrap()).collect()
}

/// What is hooked for a table: before 5.16 a function of its own. To be asked when the table is there, and with it the
/// module that has it.
fn table_function(own: &str) -> &str {
    let symbols = Symbols::read(Path::new(KALLSYMS)).unwrap();
    if symbols.address_of(own).is_some() { own } else { "ipt_do_table" }
}

#[test]
fn types_of_this_kernel_are_found() {
    let types = KernelTypes::open(Path::new(BTF_DIRECTORY)).unwrap();
    // Fixed by the protocol or by the language, whatever the kernel.
    assert_eq!(types.size_of("iphdr"), Some(20));
    assert_eq!(types.offset_of("iphdr", "daddr"), Some(16));
    assert_eq!(
        types.offset_of("nf_conntrack_tuple_hash", "tuple.src.u3.ip6"),
        types.offset_of("nf_conntrack_tuple_hash", "tuple.src.u3")
    );
    let states = types.enum_values("ip_conntrack_info").unwrap();
    assert!(states.contains(&("IP_CT_NEW".to_owned(), 2)), "{states:?}");
    // 5.10 does not describe modules, and nf_tables is one.
    if types.size_of("nft_rule").is_some() {
        let verdicts = types.enum_values("nft_verdicts").unwrap();
        assert!(verdicts.contains(&("NFT_RETURN".to_owned(), -5)), "{verdicts:?}");
    }
}

#[test]
fn memory_of_the_kernel_is_read_across_pieces_and_refused_where_there_is_none() {
    let lab = Lab::new();
    let start = lab.symbols().address_of("_stext").expect("root sees symbols");
    let mut whole = vec![0; PEEK_BYTES + 100];
    lab.memory().read(start, &mut whole).unwrap();
    assert!(whole.iter().any(|byte| *byte != 0));
    let mut tail = [0; 100];
    lab.memory().read(start + PEEK_BYTES as u64, &mut tail).unwrap();
    assert_eq!(whole[PEEK_BYTES..], tail);
    assert!(lab.memory().read(0, &mut tail).is_err(), "page 0 is not mapped");
    assert!(lab.memory().read(u64::MAX - 5, &mut tail).is_err());
}

#[test]
fn every_online_cpu_has_an_offset_and_no_two_the_same() {
    let lab = Lab::new();
    let offsets: BTreeSet<_> = lab.cpus().iter().map(|(_, offset)| offset).collect();
    assert_eq!(offsets.len(), thread::available_parallelism().unwrap().get());
    if let Some(address) = lab.symbols().address_of("__per_cpu_offset") {
        let listed = lab.memory().read_u64(address).unwrap();
        assert_eq!(lab.cpus().get(0), Some(listed));
    }
}

#[test]
fn only_the_thread_of_the_job_enters_a_namespace() {
    let (one, two) = (Lab::new(), Lab::new());
    let name = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let before = name();
    assert_ne!(one.inside(name), before);
    assert_ne!(one.net(), two.net());
    assert_eq!(one.net(), one.net());
    assert_eq!(name(), before);
    let error = net::in_netns(Path::new("/nonexistent/netns"), || ()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/netns"), "{error}");
}

#[test]
fn a_fresh_namespace_has_only_security_modules_hooked() {
    const SECURITY_MODULES: [&str; 3] = ["apparmor_", "selinux_", "smack_"];
    let lab = Lab::new();
    let lists = hooks(&lab);
    assert_eq!(lists.len(), 10);
    for function in lists.iter().flat_map(|list| &list.functions) {
        let name = function.symbol.as_deref().unwrap();
        assert!(SECURITY_MODULES.iter().any(|module| name.starts_with(module)), "{function:?}");
    }
}

#[test]
fn legacy_and_nft_tables_stand_in_the_order_of_their_priorities() {
    let lab = Lab::new();
    lab.run("iptables-legacy -w -t filter -A FORWARD -j ACCEPT");
    lab.run("iptables-legacy -w -t mangle -A FORWARD -j ACCEPT");
    lab.nft("table inet mine { chain ahead { type filter hook forward priority -10; }\n}");
    lab.nft("table ip behind { chain last { type filter hook forward priority 10; }\n}");
    let lists = hooks(&lab);
    let forward = functions(&lists, Family::Ipv4, Hook::Forward);
    let priorities: Vec<_> = forward.iter().map(|f| f.priority).collect();
    assert_eq!(priorities, [-150, -10, 0, 10]);
    let filter = table_function("iptable_filter_hook");
    assert_eq!(symbols(forward), ["iptable_mangle_hook", "nft_do_chain_inet", filter, "nft_do_chain_ipv4"]);
    assert!(matches!(forward[0].kind, HookKind::XtTable { .. }));
    assert!(matches!(forward[1].kind, HookKind::NftChain { .. }));
    let v6 = functions(&lists, Family::Ipv6, Hook::Forward);
    assert_eq!(symbols(v6), ["nft_do_chain_inet"], "an inet chain is hooked for both families");
    assert_eq!(v6[0].kind, forward[1].kind);
}

#[test]
fn what_hangs_off_the_nat_engine_is_listed_inside_it() {
    let lab = Lab::new();
    lab.run("iptables-legacy -w -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.9.9.9");
    lab.nft("table ip mine { chain early { type nat hook prerouting priority -110; }\n}");
    let lists = hooks(&lab);
    let prerouting = functions(&lists, Family::Ipv4, Hook::Prerouting);
    let engine = prerouting.iter().find(|f| matches!(f.kind, HookKind::Nat { .. })).unwrap();
    assert_eq!(engine.priority, -100, "the engine's own priority is that of dstnat");
    let HookKind::Nat { chains, .. } = &engine.kind else { unreachable!() };
    assert_eq!(symbols(chains), ["nft_nat_do_chain", table_function("iptable_nat_do_chain")]);
    assert!(matches!(chains[0].kind, HookKind::NftChain { .. }));
    assert!(matches!(chains[1].kind, HookKind::XtTable { .. }));
    assert_eq!(chains[0].priority, -110);
    let names = symbols(prerouting);
    assert!(names.contains(&"ipv4_conntrack_in"), "{names:?}");
}

#[test]
fn a_flushed_chain_leaves_the_list() {
    let lab = Lab::new();
    lab.nft("table ip t { chain c { type filter hook input priority 0; }\n}");
    assert_eq!(functions(&hooks(&lab), Family::Ipv4, Hook::Input).len(), 1);
    lab.nft("delete table ip t");
    assert!(functions(&hooks(&lab), Family::Ipv4, Hook::Input).is_empty());
}
