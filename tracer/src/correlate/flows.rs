//! Numbers for connections.

use std::collections::HashMap;

use tracer_common::tuple::Tuple;

use crate::decode::TuplesEvent;

/// A connection in one namespace: its conntrack entry's address alone is reused, its tuple alone too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    conntrack: u64,
    original: Tuple,
}

/// Connections seen so far. The oldest half is forgotten when there are many.
#[derive(Default)]
pub(super) struct Flows {
    numbers: HashMap<Key, u64>,
    last: u64,
}

const MOST: usize = 200_000;

impl Flows {
    /// The number, from 1, of the flow to which a packet's last connection belongs; `None` without one. What
    /// several namespaces on the packet's way know as a connection each is one flow where one goes on as the next.
    pub(super) fn number(&mut self, connections: &[TuplesEvent]) -> Option<u64> {
        let last = connections.len().checked_sub(1)?;
        let begins = (0..last).rev().find(|at| !goes_on(&connections[*at], &connections[at + 1]));
        let parts = &connections[begins.map_or(0, |at| at + 1)..];
        let keys = || parts.iter().map(|part| Key { conntrack: part.conntrack, original: part.original });
        let known = keys().filter_map(|key| self.numbers.get(&key).copied()).min();
        let number = known.unwrap_or_else(|| self.next());
        for key in keys() {
            self.numbers.insert(key, number);
        }
        Some(number)
    }

    fn next(&mut self) -> u64 {
        if self.numbers.len() >= MOST {
            let oldest_kept = self.last.saturating_sub(MOST as u64 / 2);
            self.numbers.retain(|_, number| *number > oldest_kept);
        }
        self.last += 1;
        self.last
    }
}

/// Whether what leaves one connection, translated, is what the other begins with, in either direction. What a tunnel
/// carries is a connection of its own.
fn goes_on(one: &TuplesEvent, other: &TuplesEvent) -> bool {
    one.reply.inverse() == other.original || other.reply.inverse() == one.original
}
