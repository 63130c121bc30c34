//! The reading of a table's rule counters.

use std::{fmt, ops::Deref};

use tracer_common::records::{Head, Hit, MAX_HITS, RuleHits};

use super::DecodeError;

/// The rule counters of one table that moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HitsEvent {
    pub journey: u64,
    /// Number of the reading, as user space gave it.
    pub table: u32,
    /// `HITS_*`.
    pub flags: u32,
    pub cpu: u32,
    /// Number of the reading on its CPU, how many tables it is of, how many readings of others lie in it, and how many
    /// passes ([`RuleHits::opened`], [`RuleHits::tables`], [`RuleHits::others`], [`RuleHits::passed`]).
    pub opened: u64,
    pub tables: u32,
    pub others: u32,
    pub passed: u32,
    pub hits: Hits,
}

/// Counters that moved, up to [`MAX_HITS`], in the order of their rules.
#[derive(Clone, Copy)]
pub struct Hits {
    count: usize,
    all: [Hit; MAX_HITS],
}

impl Hits {
    /// `None` for a count that a record cannot hold.
    fn new(count: u32, all: &[Hit; MAX_HITS]) -> Option<Self> {
        let count = count as usize;
        (count <= MAX_HITS).then_some(Self { count, all: *all })
    }

    /// Takes off what moved in `part`; `None` where that is more than moved here.
    #[must_use]
    pub fn without(&self, part: &Self) -> Option<Self> {
        let mut rest = *self;
        for taken in &**part {
            let hit = rest.all[..rest.count].iter_mut().find(|hit| hit.rule == taken.rule)?;
            hit.packets = hit.packets.checked_sub(taken.packets)?;
        }
        Some(rest.moved())
    }

    /// Without counters that did not move.
    fn moved(mut self) -> Self {
        let mut kept = 0;
        for at in 0..self.count {
            if self.all[at].packets != 0 {
                self.all[kept] = self.all[at];
                kept += 1;
            }
        }
        self.count = kept;
        self
    }
}

impl Deref for Hits {
    type Target = [Hit];

    fn deref(&self) -> &[Hit] {
        &self.all[..self.count]
    }
}

impl fmt::Debug for Hits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Hits {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Hits {}

impl HitsEvent {
    pub(super) fn new(raw: &RuleHits) -> Result<Self, DecodeError> {
        let hits = Hits::new(raw.count, &raw.hits).ok_or(DecodeError::Value("count of rule hits"))?;
        let RuleHits { head, flags, table, tables, opened, others, passed, .. } = *raw;
        let Head { journey, cpu, .. } = head;
        Ok(Self { journey, table, flags, cpu, opened, tables, others, passed, hits })
    }
}
