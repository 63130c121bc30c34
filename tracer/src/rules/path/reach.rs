//! Which chains a walk can come to.

use crate::{
    model::Hook,
    rules::index::{BaseChain, ChainRef, Effect, TableIndex},
};

/// Chains that one of `effects` enters.
pub(super) fn entered(effects: &[Effect]) -> impl Iterator<Item = ChainRef> {
    effects.iter().filter_map(|effect| match effect {
        Effect::Jump(to) | Effect::Goto(to) => Some(*to),
        _ => None,
    })
}

/// Base chains that a packet sent by the kernel itself passes.
pub(super) fn leaving(index: &TableIndex) -> Vec<ChainRef> {
    let leaves = |b: &BaseChain| matches!(b.hook, Hook::Output | Hook::Postrouting | Hook::Egress);
    let numbered = index.chains.iter().enumerate();
    numbered.filter(|(_, c)| c.base.as_ref().is_some_and(leaves)).map(|(n, _)| ChainRef(n)).collect()
}

/// All base chains.
pub(super) fn bases(index: &TableIndex) -> Vec<ChainRef> {
    let numbered = index.chains.iter().enumerate();
    numbered.filter(|(_, chain)| chain.base.is_some()).map(|(number, _)| ChainRef(number)).collect()
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
            match &rule.effect {
                Effect::Jump(to) | Effect::Goto(to) => work.push(*to),
                Effect::OneOf { effects, .. } => work.extend(entered(effects)),
                Effect::Unknown { .. } => work.extend((0..index.chains.len()).map(ChainRef)),
                _ => {}
            }
        }
    }
    seen
}
