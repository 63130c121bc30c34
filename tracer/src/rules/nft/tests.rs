mod kernel;

use self::kernel::*;
use super::generation::{GenerationLayout, Generations};
use crate::{
    kernel::{ReadError, Symbols, memory::image::Image},
    model::{Backend, Hook, TableFamily, Verdict},
    rules::{
        index::{ChainRef, CounterAddress, Effect},
        path::Step,
        probes::Watch,
    },
};

/// The effect of a rule, and whether its counter proves the match.
fn rule(expressions: Vec<Expression>) -> (Effect, Option<bool>) {
    let mut kernel = Kernel::new(2, "mine");
    kernel.rules(INPUT, 0, &[expressions]);
    let rule = kernel.read().unwrap().chains[0].rules[0].clone();
    (rule.effect, rule.counter.map(|counter| counter.proves_match))
}

#[test]
fn a_table_with_its_chains_rules_and_jumps() {
    let mut kernel = Kernel::new(1, "wall");
    kernel.rules(INPUT, 0, &[vec![plain("cmp"), counter(0x500), verdict(-3, USER)], vec![verdict(-4, USER)]]);
    kernel.rules(USER, 0, &[vec![], vec![counter(0x600), verdict(-5, 0)]]);
    let table = kernel.read().unwrap();
    assert_eq!(
        (table.family, table.name.as_str(), table.backend),
        (TableFamily::Inet, "wall", Backend::Nftables)
    );
    let base = table.chains[0].base.as_ref().unwrap();
    assert_eq!((base.hook, base.priority, base.policy, base.address), (Hook::Input, 0, Verdict::Drop, INPUT));
    assert!(table.chains[1].base.is_none());
    let effects: Vec<_> = table
        .chains
        .iter()
        .flat_map(|chain| &chain.rules)
        .map(|rule| (rule.position, rule.handle, &rule.effect))
        .collect();
    assert_eq!(
        effects,
        [
            (1, Some(1), &Effect::Jump(ChainRef(1))),
            (2, Some(2), &Effect::Goto(ChainRef(1))),
            (1, Some(1), &Effect::Continue { target: None }),
            (2, Some(2), &Effect::Return),
        ]
    );
    assert_eq!(table.counters, [CounterAddress::PerCpu(0x508), CounterAddress::PerCpu(0x608)]);
}

#[test]
fn the_generation_in_force_is_read_and_no_other() {
    let mut kernel = Kernel::new(2, "mine");
    kernel.rules(INPUT, 0, &[vec![]]);
    kernel.rules(INPUT, 1, &[vec![], vec![]]);
    assert_eq!(kernel.read().unwrap().chains[0].rules.len(), 1);
    let before = kernel.generation().unwrap();
    kernel.image.put(NET + 4, &[1]);
    assert_eq!(kernel.read().unwrap().chains[0].rules.len(), 2);
    assert_ne!(kernel.generation().unwrap(), before, "the cursor alone makes another generation");
}

#[test]
fn older_kernels_keep_the_number_of_the_commit_elsewhere() {
    const ARRAY: u64 = 0x5000;
    const PERNET: u64 = 0x6000;
    const ID: u64 = 0x7000;
    let mut image = Image::default();
    image.map(NET, 64).put_u64(NET + 16, ARRAY).put(NET + 4, &[1]);
    image.map(ARRAY, 64).put_u64(ARRAY + 3 * 8, PERNET).map(ID, 4).put_u32(ID, 3);
    image.map(PERNET, 64).put_u32(PERNET + 8, 42);
    let layout = GenerationLayout { sequence: None, ..GENERATION };
    let current = |image: &Image, symbols: &str| {
        let symbols = Symbols::parse(symbols.to_owned());
        Generations::with_layout(image, &layout, &symbols, NET).unwrap().current().unwrap()
    };
    let known = current(&image, "7000 b nf_tables_net_id\n");
    assert_eq!((known.check.address, known.check.length, known.check.value), (PERNET + 8, 4, 42));
    image.put_u32(PERNET + 8, 43);
    assert_ne!(current(&image, "7000 b nf_tables_net_id\n"), known);
    let blind = current(&image, "");
    assert_eq!((blind.check.address, blind.check.length, blind.check.value), (NET + 4, 1, 1));
}

#[test]
fn chains_and_tables_of_a_coming_generation_are_left_out() {
    let mut kernel = Kernel::new(2, "mine");
    // Not active in generation 0.
    kernel.image.put(USER + 48, &[1 << 6]);
    let names: Vec<_> = kernel.read().unwrap().chains.into_iter().map(|chain| chain.name).collect();
    assert_eq!(names, ["INPUT"]);
    kernel.image.put(TABLE + 9, &[1 << 6]);
    let symbols = symbols();
    let reader = kernel.reader(&symbols);
    assert_eq!(reader.table(TABLE, reader.generation().unwrap()).unwrap(), None);
}

#[test]
fn what_may_fail_behind_a_counter_takes_its_proof_away() {
    let accept = || verdict(ACCEPT, 0);
    assert_eq!(rule(vec![plain("cmp"), counter(8), accept()]).1, Some(true));
    assert_eq!(rule(vec![counter(8), plain("cmp"), accept()]).1, Some(false));
    assert_eq!(rule(vec![counter(8), plain("limit"), accept()]).1, Some(false));
    assert_eq!(rule(vec![counter(8), plain("log"), plain("bitwise"), accept()]).1, Some(true));
    assert_eq!(rule(vec![counter(8), plain("brand_new"), accept()]).1, Some(false));
    assert_eq!(rule(vec![plain("cmp"), accept()]).1, None);
    assert_eq!(
        rule(vec![counter(8), plain("cmp"), counter(16)]).1,
        Some(true),
        "the last counter proves most"
    );
}

/// A connection that is not established is not handed over, and a full set takes no element: nothing in the rule asks for that.
#[test]
fn a_last_statement_that_only_acts_takes_no_proof_away() {
    let flow = || plain("flow_offload");
    let proof = |expressions| rule(expressions).1;
    assert_eq!(proof(vec![plain("cmp"), counter(8), flow()]), Some(true));
    assert_eq!(proof(vec![counter(8), plain("payload"), plain("bitwise"), plain("dynset")]), Some(true));
    assert_eq!(
        proof(vec![counter(8), flow(), verdict(ACCEPT, 0)]),
        Some(false),
        "a verdict stands behind it"
    );
    assert_eq!(proof(vec![counter(8), flow(), plain("log")]), Some(false));
    assert_eq!(proof(vec![counter(8), flow(), counter(16)]), Some(true), "the last counter");
    assert_eq!(proof(vec![counter(8), plain("payload"), plain("cmp"), plain("dynset")]), Some(false));
    assert_eq!(proof(vec![counter(8), plain("log"), plain("payload"), plain("dynset")]), Some(false));
    for asks in ["limit", "quota", "connlimit", "payload"] {
        assert_eq!(proof(vec![counter(8), plain(asks)]), Some(false), "{asks}");
    }
}

#[test]
fn a_rule_that_only_offloads_always_matches_though_the_kernel_s_trace_may_leave_it_out() {
    let table = |expressions| {
        let mut kernel = Kernel::new(1, "mine");
        kernel.rules(INPUT, 0, &[expressions]);
        let table = kernel.read().unwrap();
        let rule = &table.chains[0].rules[0];
        (rule.unconditional, rule.tail_may_fail, table.offloads)
    };
    assert_eq!(table(vec![plain("flow_offload")]), (true, true, true));
    assert_eq!(table(vec![plain("cmp"), plain("flow_offload")]), (false, true, true));
    assert_eq!(table(vec![plain("flow_offload"), verdict(ACCEPT, 0)]), (false, false, true));
    assert_eq!(table(vec![verdict(ACCEPT, 0)]), (true, false, false));
    let reached = Some((1, Watch::Reached, true));
    assert_eq!(probe(vec![plain("cmp"), plain("flow_offload")]), reached);
}

/// What tells of a rule of these expressions: the number of one, when it is looked at, and whether it must be.
fn probe(expressions: Vec<Expression>) -> Option<(usize, Watch, bool)> {
    // Behind the size of the block and the header of the rule; each has a pointer before its words.
    let (mut address, mut addresses) = (RULES + 16, Vec::new());
    for one in &expressions {
        addresses.push(address);
        address += 8 + 8 * one.words.len() as u64;
    }
    let mut kernel = Kernel::new(2, "mine");
    kernel.rules(INPUT, 0, &[expressions, vec![plain("cmp"), verdict(ACCEPT, 0)]]);
    let found = kernel.read().unwrap().probes.of(Step { chain: ChainRef(0), rule: 0 })?;
    let number = addresses.iter().position(|address| *address == found.expression).unwrap();
    Some((number, found.watch, found.needed))
}

#[test]
fn a_rule_is_told_by_what_nothing_that_fails_stands_behind() {
    let accept = || verdict(ACCEPT, 0);
    let value = || Expression { words: vec![0, 0, 1], ..plain("immediate") };
    let inlined = |kind| Expression { eval: 0, ..plain(kind) };
    let setter = || Expression { eval: META_SET, ..plain("meta") };
    let reached = |number, needed| Some((number, Watch::Reached, needed));
    assert_eq!(probe(vec![plain("cmp"), accept()]), reached(1, true));
    assert_eq!(probe(vec![accept()]), reached(0, false), "it always matches");
    assert_eq!(probe(vec![plain("cmp"), counter(8), accept()]), reached(2, false), "counted");
    assert_eq!(
        probe(vec![counter(8), plain("cmp"), accept()]),
        reached(2, true),
        "counted before a condition"
    );
    assert_eq!(
        probe(vec![plain("cmp"), value(), plain("nat")]),
        reached(1, true),
        "a function of most rules"
    );
    assert_eq!(probe(vec![value(), plain("cmp"), plain("masq")]), reached(2, true));
    assert_eq!(probe(vec![plain("cmp"), inlined("bitwise"), setter()]), reached(2, true));
    assert_eq!(probe(vec![plain("cmp"), plain("log"), accept()]), reached(2, true));
    assert_eq!(probe(vec![plain("cmp"), inlined("bitwise")]), None, "no function to look at");
    assert_eq!(probe(vec![plain("cmp")]), None);
}

#[test]
fn a_table_whose_counters_tell_all_needs_no_probes() {
    let mut kernel = Kernel::new(2, "mine");
    kernel.rules(INPUT, 0, &[vec![plain("cmp"), counter(8), verdict(ACCEPT, 0)], vec![verdict(ACCEPT, 0)]]);
    let probes = kernel.read().unwrap().probes;
    assert!(!probes.tell_more() && probes.functions().next().is_none());
}

#[test]
fn what_may_give_any_verdict_is_told_by_what_it_returns() {
    let returned = |number| Some((number, Watch::Returned, true));
    assert_eq!(probe(vec![plain("cmp"), plain("brand_new")]), returned(1));
    assert_eq!(probe(vec![plain("cmp"), plain("brand_new"), counter(8)]), returned(1));
    assert_eq!(probe(vec![plain("brand_new"), plain("cmp")]), None, "what it lets pass may fail later");
    assert_eq!(probe(vec![plain("brand_new"), verdict(ACCEPT, 0)]), None, "either may have decided");
}

#[test]
fn getters_may_fail_and_setters_do_not() {
    let setter = Expression { eval: META_SET, ..plain("meta") };
    assert_eq!(rule(vec![counter(8), setter]).1, Some(true));
    assert_eq!(rule(vec![counter(8), plain("meta")]).1, Some(false));
}

#[test]
fn statements_have_the_effect_of_their_verdict() {
    let last = |verdict, target: &str| Effect::Final { verdict, target: target.to_owned() };
    assert_eq!(rule(vec![verdict(ACCEPT, 0)]).0, last(Verdict::Accept, "accept"));
    assert_eq!(rule(vec![verdict(0, 0)]).0, last(Verdict::Drop, "drop"));
    assert_eq!(rule(vec![plain("reject")]).0, last(Verdict::Reject, "reject"));
    assert_eq!(rule(vec![plain("masq")]).0, last(Verdict::Accept, "masq"));
    assert_eq!(rule(vec![plain("queue")]).0, last(Verdict::Queue, "queue"));
    assert_eq!(rule(vec![plain("log")]).0, Effect::Continue { target: Some("log".to_owned()) });
    assert_eq!(rule(vec![plain("brand_new")]).0, Effect::Unknown { target: "brand_new".to_owned() });
    // An immediate for another register is no verdict.
    let number = Expression { words: vec![0, 0, 8], ..plain("immediate") };
    assert_eq!(rule(vec![number]).0, Effect::Continue { target: None });
}

#[test]
fn a_verdict_map_is_unknown_and_a_set_is_a_condition() {
    let lookup = |data_type: u32| {
        let mut kernel = Kernel::new(2, "mine");
        let set = kernel.word(u64::from(data_type) << 32);
        kernel.rules(INPUT, 0, &[vec![counter(8), Expression { words: vec![set], ..plain("lookup") }]]);
        let rule = kernel.read().unwrap().chains[0].rules[0].clone();
        (rule.effect, rule.counter.unwrap().proves_match)
    };
    assert_eq!(lookup(0xffff_ff00), (Effect::Unknown { target: "vmap".to_owned() }, false));
    assert_eq!(lookup(0), (Effect::Continue { target: None }, false));
}

#[test]
fn what_iptables_nft_would_take_for_its_own_is_called_its() {
    let backend = |family, table: &str, rules: &[Vec<Expression>], priority: u32| {
        let mut kernel = Kernel::new(family, table);
        kernel.image.put_u32(BASE + 4, priority);
        kernel.rules(INPUT, 0, rules);
        let table = kernel.read().unwrap();
        (table.backend, table.chains[0].rules.first().map(|rule| rule.effect.clone()))
    };
    let own = || vec![vec![plain("meta"), plain("cmp"), counter(8), verdict(ACCEPT, 0)]];
    let (found, effect) = backend(2, "filter", &own(), 0);
    assert_eq!(found, Backend::IptablesNft);
    assert_eq!(effect, Some(Effect::Final { verdict: Verdict::Accept, target: "ACCEPT".to_owned() }));
    assert_eq!(backend(10, "filter", &own(), 0).0, Backend::IptablesNft);
    assert_eq!(backend(1, "filter", &own(), 0).0, Backend::Nftables, "inet is never iptables'");
    assert_eq!(backend(2, "mine", &own(), 0).0, Backend::Nftables);
    assert_eq!(backend(2, "filter", &own(), 1).0, Backend::Nftables, "another priority");
    assert_eq!(backend(2, "filter", &[vec![verdict(ACCEPT, 0)]], 0).0, Backend::Nftables, "no counter");
    assert_eq!(
        backend(2, "filter", &[vec![counter(8), plain("nat")]], 0).0,
        Backend::Nftables,
        "nft's own NAT"
    );
}

#[test]
fn torn_structures_are_errors() {
    #[track_caller]
    fn refused(change: impl FnOnce(&mut Kernel)) {
        let mut kernel = Kernel::new(2, "mine");
        kernel.rules(INPUT, 0, &[vec![counter(8), verdict(-3, USER)]]);
        change(&mut kernel);
        assert!(matches!(kernel.read(), Err(ReadError::Impossible { .. } | ReadError::Unreadable { .. })));
    }
    refused(|kernel| {
        kernel.image.put_u64(INPUT, 0xdead_0000);
    });
    refused(|kernel| {
        kernel.image.put_u64(RULES, u64::MAX);
    });
    refused(|kernel| {
        kernel.image.put_u64(RULES + 8, 0xfff << 1);
    });
    refused(|kernel| {
        kernel.image.put_u64(RULES + 8, 0);
    });
    refused(|kernel| {
        kernel.image.put_u32(OPS + 8, 0);
    });
    refused(|kernel| {
        kernel.image.put_u64(RULES + 48, 0x7777);
    });
    refused(|kernel| {
        kernel.image.put_u32(RULES + 40, 77);
    });
    refused(|kernel| {
        kernel.image.put(TABLE + 8, &[63]);
    });
    refused(|kernel| {
        kernel.image.put(BASE + 8, &[9]);
    });
}

#[test]
fn a_list_that_runs_in_a_circle_ends() {
    let mut kernel = Kernel::new(2, "mine");
    kernel.image.put_u64(USER + 16, INPUT + 16);
    let error = kernel.read().unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");
}
