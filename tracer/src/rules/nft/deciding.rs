//! Which of a rule's expressions shows, when it is evaluated, that the rule matches.

use super::expression::{Part, RuleEffect};
use crate::rules::{index::Effect, probes::Watch};

/// An expression in kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    /// Of the `struct nft_expr`.
    pub(super) address: u64,
    /// `nft_expr_ops.eval`; 0 for what `nft_do_chain` evaluates itself (`nft_cmp_fast_ops`).
    pub(super) function: u64,
}

/// The search for it, expression by expression.
#[derive(Default)]
pub(super) struct Deciding {
    state: State,
    /// A verdict was given: nothing behind it is evaluated.
    decided: bool,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// What was seen last may fail.
    #[default]
    None,
    /// Behind what may fail. `common`: of a type that most rules with a verdict have, and so looked at anyway.
    Reached { expression: Expression, common: bool },
    /// It may give any verdict, and nothing behind it can fail.
    Returned(Expression),
    /// No single expression tells.
    Never,
}

impl Deciding {
    /// Takes the rule's next expression, of this type.
    pub(super) fn see(&mut self, expression: Expression, type_name: &str, part: &Part) {
        if self.decided {
            return;
        }
        let common = type_name == "immediate";
        self.state = match (self.state, part) {
            (State::Never, _) => State::Never,
            (State::Returned(_), Part::MayFail | Part::Mystery(_) | Part::Effect(_)) => State::Never,
            (known @ State::Returned(_), _) | (known, Part::Counter(_)) => known,
            (_, Part::MayFail) => State::None,
            (_, Part::Mystery(_) | Part::Effect(RuleEffect::Known(Effect::Unknown { .. }))) => {
                if expression.function == 0 { State::Never } else { State::Returned(expression) }
            }
            (known @ State::Reached { common: true, .. }, _) => known,
            (known, _) if expression.function == 0 => known,
            _ => State::Reached { expression, common },
        };
        self.decided = matches!(part, Part::Effect(_));
    }

    pub(super) fn found(&self) -> Option<(Expression, Watch)> {
        match self.state {
            State::Reached { expression, .. } => Some((expression, Watch::Reached)),
            State::Returned(expression) => Some((expression, Watch::Returned)),
            State::None | State::Never => None,
        }
    }
}
