//! One rule's expressions: which counter it has, whether the counter proves the match, and what the rule does.

use std::{cell::RefCell, collections::HashMap, ops::Range, rc::Rc};

use crate::{
    kernel::{Block, Memory, ReadError, Symbols, btf::kernel_layout},
    model::Verdict,
    rules::{
        effect,
        index::Effect,
        probes::{NFT_CONTINUE, NFT_GOTO, NFT_JUMP, NFT_RETURN},
    },
};

use super::{
    deciding::Expression,
    facts::{Evaluated, FLOW_OFFLOAD, RuleFacts},
};

/// `NFT_REG_VERDICT`, `NFT_DATA_VERDICT`, `NFT_OBJECT_COUNTER`, `NFT_OBJECT_SYNPROXY`
/// (include/uapi/linux/netfilter/nf_tables.h).
const REG_VERDICT: u8 = 0;
const DATA_VERDICT: u32 = 0xffff_ff00;
const OBJECT_COUNTER: u32 = 1;
const OBJECT_SYNPROXY: u32 = 10;
/// `XT_FUNCTION_MAXNAMELEN`.
const TARGET_NAME: u32 = 29;

kernel_layout! {
    /// Where expressions keep what is read of them.
    ExpressionLayout {
        data: offset("nft_expr", "data"),
        ops: offset("nft_expr", "ops"),
        ops_size: size("nft_expr_ops"),
        ops_eval: offset("nft_expr_ops", "eval"),
        ops_length: offset("nft_expr_ops", "size"),
        ops_type: offset("nft_expr_ops", "type"),
        ops_data: offset("nft_expr_ops", "data"),
        type_name: offset("nft_expr_type", "name"),
        counter: offset("nft_counter_percpu_priv", "counter"),
        counter_packets: offset("nft_counter", "packets"),
        immediate_register: offset("nft_immediate_expr", "dreg"),
        verdict_code: offset("nft_immediate_expr", "data.verdict.code"),
        verdict_chain: offset("nft_immediate_expr", "data.verdict.chain"),
        lookup_set: offset("nft_lookup", "set"),
        set_data_type: offset("nft_set", "dtype"),
        object_ops: offset("nft_object", "ops"),
        object_type: offset("nft_object_ops", "type"),
        object_number: offset("nft_object_type", "type"),
        target_name: maybe("xt_target", "name"),
    }
}

/// Types of expression that can end a rule early (`NFT_BREAK`) and give no verdict of their own.
const MAY_FAIL: &[&str] = &[
    "cmp",
    "connlimit",
    "ct",
    "dynset",
    "exthdr",
    "fib",
    FLOW_OFFLOAD,
    "inner",
    "limit",
    "lookup",
    "match",
    "meta",
    "osf",
    "payload",
    "quota",
    "range",
    "rt",
    "socket",
    "tproxy",
    "tunnel",
    "xfrm",
];
/// Types that always let the rule go on, and those of them that do something a reader wants named.
const GO_ON: &[&str] = &["bitwise", "byteorder", "counter", "hash", "immediate", "last", "numgen"];
const ACTIONS: &[&str] = &["dup", "log", "notrack"];
/// Setters, told from getters of the same type by their function.
const SETTERS: &[&str] = &["nft_meta_set_eval", "nft_ct_set_eval"];

/// An effect whose chain is still an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleEffect {
    Known(Effect),
    /// Address of a `struct nft_chain`; so for `Goto`.
    Jump(u64),
    Goto(u64),
}

/// What one expression does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    Counter(u64),
    /// Ends the rule's evaluation.
    Effect(RuleEffect),
    /// Goes on, and is worth naming.
    Action(String),
    GoesOn,
    MayFail,
    /// May give any verdict, go on, or fail: a verdict map, or an expression that is not known here.
    Mystery(String),
}

/// `struct nft_expr_ops`, as far as it is used.
struct Ops {
    type_name: Rc<str>,
    eval: u64,
    /// Bytes of the expression.
    length: u32,
    /// nft_compat: the `struct xt_target`.
    data: u64,
}

/// Reads expressions. What it remembers of modules holds for one walk only: they may be unloaded later.
pub(super) struct Expressions<'a> {
    memory: &'a dyn Memory,
    symbols: &'a Symbols,
    layout: ExpressionLayout,
    ops: RefCell<HashMap<u64, Rc<Ops>>>,
    type_names: RefCell<HashMap<u64, Rc<str>>>,
}

impl<'a> Expressions<'a> {
    pub(super) fn new(memory: &'a dyn Memory, symbols: &'a Symbols, layout: ExpressionLayout) -> Self {
        Self { memory, symbols, layout, ops: RefCell::default(), type_names: RefCell::default() }
    }

    /// The rule whose expressions lie at `range` of `block`.
    pub(super) fn rule(&self, block: &Block, range: Range<u32>, handle: u64) -> Result<RuleFacts, ReadError> {
        let mut all = Vec::new();
        let mut offset = range.start;
        while offset < range.end {
            let ops = self.ops(block.u64(offset + self.layout.ops)?)?;
            if ops.length < self.layout.data || ops.length == 0 || ops.length > range.end - offset {
                return Err(block.impossible(offset, format!("an expression of {} bytes", ops.length)));
            }
            let part = self.part(block, offset + self.layout.data, &ops)?;
            let address = block.address().wrapping_add(u64::from(offset));
            let expression = Expression { address, function: ops.eval };
            all.push(Evaluated { expression, type_name: ops.type_name.clone(), part });
            offset += ops.length;
        }
        Ok(RuleFacts::of(handle, all))
    }

    fn part(&self, block: &Block, data: u32, ops: &Ops) -> Result<Part, ReadError> {
        let last_word = |verdict| {
            Ok(Part::Effect(RuleEffect::Known(Effect::Final { verdict, target: ops.type_name.to_string() })))
        };
        match &*ops.type_name {
            "counter" => {
                let counter = block.u64(data + self.layout.counter)?;
                Ok(Part::Counter(counter.wrapping_add(u64::from(self.layout.counter_packets))))
            }
            "immediate" if block.u8(data + self.layout.immediate_register)? == REG_VERDICT => {
                self.verdict(block, data).map(Part::Effect)
            }
            "lookup" => self.lookup(block, data),
            "objref" => self.object(block, data),
            "target" => self.target(ops),
            "nat" | "masq" | "redir" => last_word(Verdict::Accept),
            "reject" => last_word(Verdict::Reject),
            "queue" => last_word(Verdict::Queue),
            "fwd" => last_word(Verdict::Stolen),
            name if ACTIONS.contains(&name) => Ok(Part::Action(name.to_owned())),
            name if GO_ON.contains(&name) || self.is_setter(ops) => Ok(Part::GoesOn),
            name if MAY_FAIL.contains(&name) => Ok(Part::MayFail),
            name => Ok(Part::Mystery(name.to_owned())),
        }
    }

    fn is_setter(&self, ops: &Ops) -> bool {
        self.symbols.function(ops.eval).is_some_and(|eval| SETTERS.contains(&eval))
    }

    /// `struct nft_verdict` in a `struct nft_immediate_expr`.
    fn verdict(&self, block: &Block, data: u32) -> Result<RuleEffect, ReadError> {
        let at = data + self.layout.verdict_code;
        let code = block.i32(at)?;
        let chain = || block.u64(data + self.layout.verdict_chain);
        Ok(match code {
            NFT_JUMP => RuleEffect::Jump(chain()?),
            NFT_GOTO => RuleEffect::Goto(chain()?),
            NFT_RETURN => RuleEffect::Known(Effect::Return),
            NFT_CONTINUE => RuleEffect::Known(Effect::Continue { target: None }),
            _ => match effect::of_verdict(code) {
                Some(Effect::Final { verdict, target }) => {
                    RuleEffect::Known(Effect::Final { verdict, target: target.to_ascii_lowercase() })
                }
                _ => return Err(block.impossible(at, format!("verdict {code}"))),
            },
        })
    }

    /// A set decides whether the rule goes on; a verdict map decides anything.
    fn lookup(&self, block: &Block, data: u32) -> Result<Part, ReadError> {
        let set = block.u64(data + self.layout.lookup_set)?;
        let data_type = self.u32("nft_set.dtype", set, self.layout.set_data_type)?;
        Ok(if data_type == DATA_VERDICT { Part::Mystery("vmap".to_owned()) } else { Part::MayFail })
    }

    /// A reference to a named object (counter, limit, quota, ...). A named counter may be shared by rules.
    fn object(&self, block: &Block, data: u32) -> Result<Part, ReadError> {
        let object = block.u64(data)?;
        let ops = self.u64("nft_object.ops", object, self.layout.object_ops)?;
        let kind = self.u64("nft_object_ops.type", ops, self.layout.object_type)?;
        Ok(match self.u32("nft_object_type.type", kind, self.layout.object_number)? {
            OBJECT_COUNTER => Part::GoesOn,
            OBJECT_SYNPROXY => Part::Mystery("synproxy".to_owned()),
            _ => Part::MayFail,
        })
    }

    /// An xtables target through nft_compat.
    fn target(&self, ops: &Ops) -> Result<Part, ReadError> {
        let Some(offset) = self.layout.target_name else { return Ok(Part::Mystery("target".to_owned())) };
        let address = ops.data.wrapping_add(u64::from(offset));
        let name = Block::read(self.memory, "xt_target.name", address, TARGET_NAME)?.text(0, TARGET_NAME)?;
        Ok(match effect::of_target(&name) {
            Effect::Continue { target: Some(name) } => Part::Action(name),
            effect => Part::Effect(RuleEffect::Known(effect)),
        })
    }

    fn ops(&self, address: u64) -> Result<Rc<Ops>, ReadError> {
        if let Some(known) = self.ops.borrow().get(&address) {
            return Ok(known.clone());
        }
        let layout = &self.layout;
        let block = Block::read(self.memory, "nft_expr_ops", address, layout.ops_size)?;
        let ops = Rc::new(Ops {
            type_name: self.type_name(block.u64(layout.ops_type)?)?,
            eval: block.u64(layout.ops_eval)?,
            length: block.u32(layout.ops_length)?,
            data: block.u64(layout.ops_data)?,
        });
        self.ops.borrow_mut().insert(address, ops.clone());
        Ok(ops)
    }

    fn type_name(&self, address: u64) -> Result<Rc<str>, ReadError> {
        if let Some(known) = self.type_names.borrow().get(&address) {
            return Ok(known.clone());
        }
        let text = self.u64("nft_expr_type", address, self.layout.type_name)?;
        let name: Rc<str> = self
            .memory
            .read_text(text)
            .map_err(|source| ReadError::Unreadable { what: "nft_expr_type.name", address: text, source })?
            .into();
        self.type_names.borrow_mut().insert(address, name.clone());
        Ok(name)
    }

    fn u32(&self, what: &'static str, base: u64, offset: u32) -> Result<u32, ReadError> {
        let address = base.wrapping_add(u64::from(offset));
        self.memory.read_u32(address).map_err(|source| ReadError::Unreadable { what, address, source })
    }

    fn u64(&self, what: &'static str, base: u64, offset: u32) -> Result<u64, ReadError> {
        let address = base.wrapping_add(u64::from(offset));
        self.memory.read_u64(address).map_err(|source| ReadError::Unreadable { what, address, source })
    }
}
