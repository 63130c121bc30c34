//! Which rule made a connection's NAT mapping, remembered from its first packet.

use std::collections::HashMap;

use crate::model::{Backend, MatchedRule, NatKind, NetfilterStage, TableFamily};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) kind: NatKind,
    pub(super) rule: MatchedRule,
    pub(super) backend: Option<Backend>,
    /// Of the rule's table.
    pub(super) family: TableFamily,
    pub(super) table: String,
}

/// Which mapping: a connection that is translated in several namespaces is one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MappingKey {
    pub(super) flow: u64,
    pub(super) netns: u32,
    /// It rewrites the original direction's destination, else its source.
    pub(super) of_destination: bool,
}

#[derive(Default)]
pub(super) struct Mappings(HashMap<MappingKey, Mapping>);

/// Connections come and go; flow numbers only rise.
const MOST: usize = 200_000;

impl Mappings {
    pub(super) fn learn(
        &mut self,
        key: MappingKey,
        kind: NatKind,
        rule: &MatchedRule,
        stage: &NetfilterStage,
    ) {
        if self.0.len() >= MOST {
            let keep = key.flow.saturating_sub(MOST as u64 / 4);
            self.0.retain(|known, _| known.flow > keep);
        }
        let (backend, family, table) = (stage.backend, stage.family, stage.table.clone());
        self.0.insert(key, Mapping { kind, rule: rule.clone(), backend, family, table });
    }

    pub(super) fn find(&self, key: MappingKey) -> Option<&Mapping> {
        self.0.get(&key)
    }
}
