use super::{
    Generation, NftLayout, NftReader,
    expression::{ExpressionLayout, Expressions},
    generation::{GenerationLayout, Generations},
};
use crate::{
    kernel::{ReadError, Symbols, btf::BitField, memory::image::Image},
    model::{Backend, Hook, TableFamily, Verdict},
    rules::index::{ChainRef, CounterAddress, Effect, TableIndex},
};

const NET: u64 = 0x1000;
const TABLE: u64 = 0x2000;
const CHAINS: u64 = TABLE + 24;
const BASE: u64 = 0x3000;
/// The `nft_chain` inside the base chain.
const INPUT: u64 = BASE + 32;
const USER: u64 = 0x4000;
const RULES: u64 = 0x10_0000;
const TEXTS: u64 = 0x20_0000;
const OPS: u64 = 0x30_0000;

const fn bits(bit: u32, width: u32) -> BitField {
    BitField { bit, width }
}

const LAYOUT: NftLayout = NftLayout {
    table_size: 40,
    table_name: 0,
    table_family: bits(64, 6),
    table_genmask: bits(78, 2),
    table_chains: 24,
    chain_size: 80,
    chain_list: 16,
    chain_blob_0: 0,
    chain_blob_1: 8,
    chain_table: 32,
    chain_name: 40,
    chain_flags: bits(384, 5),
    chain_genmask: bits(390, 2),
    base_size: 112,
    base_chain: 32,
    base_hook: 0,
    base_priority: 4,
    base_policy: 8,
    base_type: 16,
    type_name: 0,
    blob_size: 0,
    blob_data: 8,
    rule_is_last: bits(0, 1),
    rule_length: bits(1, 12),
    rule_handle: bits(13, 42),
    rule_data: 8,
};
const EXPRESSION: ExpressionLayout = ExpressionLayout {
    data: 8,
    ops: 0,
    ops_size: 32,
    ops_eval: 0,
    ops_length: 8,
    ops_type: 16,
    ops_data: 24,
    type_name: 0,
    counter: 0,
    counter_packets: 8,
    immediate_register: 16,
    verdict_code: 0,
    verdict_chain: 8,
    lookup_set: 0,
    set_data_type: 4,
    object_ops: 0,
    object_type: 8,
    object_number: 0,
    target_name: Some(0),
};
const GENERATION: GenerationLayout = GenerationLayout {
    cursor: 4,
    sequence: Some(0),
    generic: Some(16),
    generic_pointers: Some(0),
    pernet_sequence: Some(8),
};
const META_SET: u64 = 0xffff_0000;

/// An expression: its type, private words, `ops->eval` and `ops->data`.
struct Expression {
    kind: &'static str,
    words: Vec<u64>,
    eval: u64,
    data: u64,
}

fn plain(kind: &'static str) -> Expression {
    Expression { kind, words: vec![0], eval: 1, data: 0 }
}

fn counter(address: u64) -> Expression {
    Expression { words: vec![address], ..plain("counter") }
}

fn verdict(code: i32, chain: u64) -> Expression {
    Expression { words: vec![u64::from(code.cast_unsigned()), chain, 0], ..plain("immediate") }
}

const ACCEPT: i32 = 1;

/// Memory with a table of a base chain `INPUT` and a user chain `user`.
struct Kernel {
    image: Image,
    next_text: u64,
    next_ops: u64,
    next_rules: u64,
}

impl Kernel {
    fn new(family: u8, name: &str) -> Self {
        let mut image = Image::default();
        image.map(NET, 64).put(NET, &[9, 0, 0, 0, 0]);
        image.map(TABLE, 64).map(BASE, 128).map(USER, 80);
        image.map(RULES, 0x1_0000).map(TEXTS, 0x1_0000).map(OPS, 0x1_0000);
        let mut kernel = Self { image, next_text: TEXTS, next_ops: OPS, next_rules: RULES };
        let name = kernel.text(name);
        kernel.image.put_u64(TABLE, name).put(TABLE + 8, &[family]);
        kernel.image.put_u64(CHAINS, INPUT + 16).put_u64(INPUT + 16, USER + 16).put_u64(USER + 16, CHAINS);
        kernel.image.put_u32(BASE, 1).put_u32(BASE + 4, 0).put(BASE + 8, &[0]);
        let type_name = kernel.text("filter");
        let chain_type = kernel.word(type_name);
        kernel.image.put_u64(BASE + 16, chain_type);
        for (chain, name, flags) in [(INPUT, "INPUT", 1), (USER, "user", 0)] {
            let name = kernel.text(name);
            kernel.image.put_u64(chain + 32, TABLE).put_u64(chain + 40, name).put(chain + 48, &[flags]);
        }
        kernel
    }

    fn text(&mut self, text: &str) -> u64 {
        let at = self.next_text;
        self.image.put(at, text.as_bytes());
        self.next_text += (text.len() as u64 + 8) & !7;
        at
    }

    fn word(&mut self, word: u64) -> u64 {
        let at = self.next_text;
        self.image.put_u64(at, word);
        self.next_text += 8;
        at
    }

    fn ops(&mut self, expression: &Expression) -> u64 {
        let name = self.text(expression.kind);
        let kind = self.word(name);
        let at = self.next_ops;
        self.image.put_u64(at, expression.eval).put_u32(at + 8, 8 + 8 * expression.words.len() as u32);
        self.image.put_u64(at + 16, kind).put_u64(at + 24, expression.data);
        self.next_ops += 32;
        at
    }

    /// A chain's rules (handles 1, 2, ...), for the generation `cursor`.
    fn rules(&mut self, chain: u64, cursor: u64, rules: &[Vec<Expression>]) {
        let blob = self.next_rules;
        let mut at = blob + 8;
        for (expressions, handle) in rules.iter().zip(1u64..) {
            let header = at;
            at += 8;
            for expression in expressions {
                let ops = self.ops(expression);
                self.image.put_u64(at, ops);
                for (word, place) in expression.words.iter().zip(1..) {
                    self.image.put_u64(at + 8 * place, *word);
                }
                at += 8 + 8 * expression.words.len() as u64;
            }
            self.image.put_u64(header, (at - header - 8) << 1 | handle << 13);
        }
        self.image.put_u64(at, 1).put_u64(blob, at - blob - 8).put_u64(chain + 8 * cursor, blob);
        self.next_rules = at + 8;
    }

    fn generation(&self) -> Result<Generation, ReadError> {
        let symbols = symbols();
        self.reader(&symbols).generation()
    }

    fn reader<'a>(&'a self, symbols: &'a Symbols) -> NftReader<'a> {
        NftReader {
            memory: &self.image,
            layout: LAYOUT,
            expressions: Expressions::new(&self.image, symbols, EXPRESSION),
            generations: Generations::with_layout(&self.image, &GENERATION, symbols, NET).unwrap(),
        }
    }

    fn read(&self) -> Result<TableIndex, ReadError> {
        let symbols = symbols();
        let reader = self.reader(&symbols);
        Ok(reader.table(TABLE, reader.generation()?)?.expect("in force"))
    }
}

fn symbols() -> Symbols {
    Symbols::parse(format!("{META_SET:x} t nft_meta_set_eval\n"))
}

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
