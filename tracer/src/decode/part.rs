//! An expression of an nft rule, evaluated.

use tracer_common::records::{PART_REACHED, PART_RETURNED, RulePart};

use super::DecodeError;

/// A packet came to an expression of an nft rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartEvent {
    pub journey: u64,
    /// Address of the `struct nft_expr`.
    pub expression: u64,
    pub when: PartWhen,
}

/// At which end of the evaluation that was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartWhen {
    /// Before it: all that stands before the expression in its rule was true.
    Reached,
    /// Behind it: what came of it, `enum nft_verdicts` or `NF_*`, but never `NFT_BREAK`. For a jump `chain` is the address
    /// of the `struct nft_chain`.
    Returned { verdict: i32, chain: u64 },
}

impl PartEvent {
    pub(super) fn new(raw: &RulePart) -> Result<Self, DecodeError> {
        let when = match raw.when {
            PART_REACHED => PartWhen::Reached,
            PART_RETURNED => PartWhen::Returned { verdict: raw.verdict, chain: raw.chain },
            _ => return Err(DecodeError::Value("end of an evaluation")),
        };
        Ok(Self { journey: raw.head.journey, expression: raw.expression, when })
    }
}
