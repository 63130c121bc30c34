//! Which rule made a connection's NAT mapping, remembered from its first packet.

use std::collections::HashMap;

use crate::model::{Backend, MatchedRule, NatKind};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) kind: NatKind,
    pub(super) rule: MatchedRule,
    pub(super) backend: Option<Backend>,
}

/// Mappings by connection, and whether they rewrite the original direction's destination (else its source).
#[derive(Default)]
pub(super) struct Mappings(HashMap<(u64, bool), Mapping>);

/// Connections come and go; flow numbers only rise.
const MOST: usize = 200_000;

impl Mappings {
    pub(super) fn learn(
        &mut self,
        flow: u64,
        of_destination: bool,
        kind: NatKind,
        rule: &MatchedRule,
        backend: Option<Backend>,
    ) {
        if self.0.len() >= MOST {
            let keep = flow.saturating_sub(MOST as u64 / 4);
            self.0.retain(|(known, _), _| *known > keep);
        }
        self.0.insert((flow, of_destination), Mapping { kind, rule: rule.clone(), backend });
    }

    pub(super) fn find(&self, flow: u64, of_destination: bool) -> Option<&Mapping> {
        self.0.get(&(flow, of_destination))
    }
}
