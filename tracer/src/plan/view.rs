//! What stands in each gap between two probes, for the stages that read events.

use std::{collections::HashMap, sync::Arc};

use crate::{
    model::{Family, Hook},
    rules::{
        index::{ChainRef, TableIndex},
        late::LateTexts,
    },
};

/// A base chain, or the NAT engine without one, that judges packets in a gap.
#[derive(Clone, Debug)]
pub struct Judge {
    /// Number of its counter reading; `None` where counters are not read.
    pub reading: Option<u32>,
    /// The table and its base chain here; `None` for a bare NAT engine, or where the table could not be read.
    pub table: Option<(Arc<TableIndex>, ChainRef)>,
    /// It hangs off the NAT engine (or is it): only a connection's first packet is judged, later ones follow the
    /// mapping.
    pub nat: bool,
    pub priority: i32,
    pub texts: Arc<LateTexts>,
}

/// A probe and what lies behind it.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Empty behind a hook's last probe, where one can stand behind the last table.
    pub judges: Vec<Judge>,
    /// Behind it the hook ends.
    pub last: bool,
    /// Connection tracking has seen the packet before this probe.
    pub after_conntrack: bool,
    /// Connection tracking stands before the next probe: what dies here may have died there.
    pub holds_conntrack: bool,
}

impl Gap {
    /// No probe stands behind its tables: that they let the packet pass shows only in what comes next.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.last && !self.judges.is_empty()
    }
}

/// Where a probe stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProbeKey {
    pub netns: u32,
    pub family: Family,
    pub hook: Hook,
    pub priority: i32,
}

/// The gaps of every traced namespace. Gaps of a former plan stay until the same place is planned anew, since
/// events about them may still be on their way.
#[derive(Clone, Debug, Default)]
pub struct View {
    gaps: HashMap<ProbeKey, Arc<Gap>>,
}

impl View {
    pub fn insert(&mut self, key: ProbeKey, gap: Gap) {
        self.gaps.insert(key, Arc::new(gap));
    }

    #[must_use]
    pub fn gap(&self, key: ProbeKey) -> Option<&Arc<Gap>> {
        self.gaps.get(&key)
    }

    /// Whether a rule of FORWARD's tables hands connections to a flow table.
    #[must_use]
    pub fn offloads(&self, netns: u32, family: Family) -> bool {
        let here = |key: &ProbeKey| (key.netns, key.family, key.hook) == (netns, family, Hook::Forward);
        let judges = self.gaps.iter().filter(|(key, _)| here(key)).flat_map(|(_, gap)| &gap.judges);
        judges.filter_map(|judge| judge.table.as_ref()).any(|(index, _)| index.offloads)
    }

    /// Whether a probe sees the packets that pass this hook.
    #[must_use]
    pub fn watches(&self, netns: u32, family: Family, hook: Hook) -> bool {
        self.gaps.keys().any(|key| (key.netns, key.family, key.hook) == (netns, family, hook))
    }
}
