//! Journeys that have ended and wait for those that began before them: how an end shows differs, and a packet that was
//! freed at once would be told before the one that it answers.

use std::collections::BTreeMap;

use crate::correlate::Draft;

/// Journeys that wait at most; beyond, the earliest goes on.
const MOST: usize = 8_192;

/// By the times at which their packets came, and among equal ones in the order of their ends.
#[derive(Default)]
pub(super) struct Order {
    held: BTreeMap<(u64, u64), Draft>,
    added: u64,
}

impl Order {
    pub(super) fn add(&mut self, drafts: Vec<Draft>) {
        for draft in drafts {
            self.added += 1;
            self.held.insert((draft.time, self.added), draft);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// When the packet came that was first of them; nanoseconds of CLOCK_MONOTONIC.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.held.first_key_value().map(|((time, _), _)| *time)
    }

    /// Those whose packets came before one that is about to end; all of them where there is none.
    pub(super) fn before(&mut self, ending: Option<u64>) -> Vec<Draft> {
        let later = ending.map_or_else(BTreeMap::new, |time| self.held.split_off(&(time, 0)));
        let mut ready: Vec<Draft> = std::mem::replace(&mut self.held, later).into_values().collect();
        while self.held.len() > MOST {
            ready.extend(self.held.pop_first().map(|(_, draft)| draft));
        }
        ready
    }
}
