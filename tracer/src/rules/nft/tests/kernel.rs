//! Kernel memory with nft tables, put together by hand.

use super::super::{
    NftLayout, NftReader,
    expression::{ExpressionLayout, Expressions},
    generation::{Generation, GenerationLayout, Generations},
};
use crate::{
    kernel::{ReadError, Symbols, btf::BitField, memory::image::Image},
    rules::index::TableIndex,
};

pub(super) const NET: u64 = 0x1000;
pub(super) const TABLE: u64 = 0x2000;
pub(super) const CHAINS: u64 = TABLE + 24;
pub(super) const BASE: u64 = 0x3000;
/// The `nft_chain` inside the base chain.
pub(super) const INPUT: u64 = BASE + 32;
pub(super) const USER: u64 = 0x4000;
pub(super) const RULES: u64 = 0x10_0000;
pub(super) const TEXTS: u64 = 0x20_0000;
pub(super) const OPS: u64 = 0x30_0000;

pub(super) const fn bits(bit: u32, width: u32) -> BitField {
    BitField { bit, width }
}

pub(super) const LAYOUT: NftLayout = NftLayout {
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
pub(super) const EXPRESSION: ExpressionLayout = ExpressionLayout {
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
pub(super) const GENERATION: GenerationLayout = GenerationLayout {
    cursor: 4,
    sequence: Some(0),
    generic: Some(16),
    generic_pointers: Some(0),
    pernet_sequence: Some(8),
};
pub(super) const META_SET: u64 = 0xffff_0000;

/// An expression: its type, private words, `ops->eval` and `ops->data`.
pub(super) struct Expression {
    pub(super) kind: &'static str,
    pub(super) words: Vec<u64>,
    pub(super) eval: u64,
    pub(super) data: u64,
}

pub(super) fn plain(kind: &'static str) -> Expression {
    Expression { kind, words: vec![0], eval: 1, data: 0 }
}

pub(super) fn counter(address: u64) -> Expression {
    Expression { words: vec![address], ..plain("counter") }
}

pub(super) fn verdict(code: i32, chain: u64) -> Expression {
    Expression { words: vec![u64::from(code.cast_unsigned()), chain, 0], ..plain("immediate") }
}

pub(super) const ACCEPT: i32 = 1;

/// Memory with a table of a base chain `INPUT` and a user chain `user`.
pub(super) struct Kernel {
    pub(super) image: Image,
    pub(super) next_text: u64,
    pub(super) next_ops: u64,
    pub(super) next_rules: u64,
}

impl Kernel {
    pub(super) fn new(family: u8, name: &str) -> Self {
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

    pub(super) fn text(&mut self, text: &str) -> u64 {
        let at = self.next_text;
        self.image.put(at, text.as_bytes());
        self.next_text += (text.len() as u64 + 8) & !7;
        at
    }

    pub(super) fn word(&mut self, word: u64) -> u64 {
        let at = self.next_text;
        self.image.put_u64(at, word);
        self.next_text += 8;
        at
    }

    pub(super) fn ops(&mut self, expression: &Expression) -> u64 {
        let name = self.text(expression.kind);
        let kind = self.word(name);
        let at = self.next_ops;
        self.image.put_u64(at, expression.eval).put_u32(at + 8, 8 + 8 * expression.words.len() as u32);
        self.image.put_u64(at + 16, kind).put_u64(at + 24, expression.data);
        self.next_ops += 32;
        at
    }

    /// A chain's rules (handles 1, 2, ...), for the generation `cursor`.
    pub(super) fn rules(&mut self, chain: u64, cursor: u64, rules: &[Vec<Expression>]) {
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

    pub(super) fn generation(&self) -> Result<Generation, ReadError> {
        let symbols = symbols();
        self.reader(&symbols).generation()
    }

    pub(super) fn reader<'a>(&'a self, symbols: &'a Symbols) -> NftReader<'a> {
        NftReader {
            memory: &self.image,
            layout: LAYOUT,
            expressions: Expressions::new(&self.image, symbols, EXPRESSION),
            generations: Generations::with_layout(&self.image, &GENERATION, symbols, NET).unwrap(),
        }
    }

    pub(super) fn read(&self) -> Result<TableIndex, ReadError> {
        let symbols = symbols();
        let reader = self.reader(&symbols);
        Ok(reader.table(TABLE, reader.generation()?)?.expect("in force"))
    }
}

pub(super) fn symbols() -> Symbols {
    Symbols::parse(format!("{META_SET:x} t nft_meta_set_eval\n"))
}
