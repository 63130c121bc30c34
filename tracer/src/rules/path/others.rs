//! Other packets that passed a table while a packet's counters were read.

use crate::{
    model::Hook,
    rules::index::{BaseChain, ChainRef, Effect, TableIndex},
};

/// Which other packets passed the table from start to end in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    None,
    /// Such as the kernel itself sends.
    Leave,
    Any,
}

impl Others {
    /// The base chains where their walks begin.
    pub(super) fn bases(self, index: &TableIndex) -> Vec<ChainRef> {
        let passes = |base: &BaseChain| match self {
            Self::None => false,
            Self::Leave => matches!(base.hook, Hook::Output | Hook::Postrouting | Hook::Egress),
            Self::Any => true,
        };
        let numbered = index.chains.iter().enumerate();
        numbered.filter(|(_, c)| c.base.as_ref().is_some_and(passes)).map(|(n, _)| ChainRef(n)).collect()
    }
}

/// For each chain, whether a walk from one of `bases` can come to it.
pub(super) fn reachable(index: &TableIndex, bases: &[ChainRef]) -> Vec<bool> {
    let mut seen = vec![false; index.chains.len()];
    let mut work = bases.to_vec();
    while let Some(chain) = work.pop() {
        if std::mem::replace(&mut seen[chain.0], true) {
            continue;
        }
        for rule in &index.chains[chain.0].rules {
            match rule.effect {
                Effect::Jump(to) | Effect::Goto(to) => work.push(to),
                Effect::Unknown { .. } => work.extend((0..index.chains.len()).map(ChainRef)),
                _ => {}
            }
        }
    }
    seen
}
