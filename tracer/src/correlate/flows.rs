//! Numbers for connections.

use std::collections::HashMap;

use tracer_common::tuple::Tuple;

/// A connection: its conntrack entry's address alone is reused, its tuple alone too.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    conntrack: u64,
    source: [u32; 4],
    destination: [u32; 4],
    ports: (u16, u16),
    protocol: u8,
    zone: u16,
}

/// Connections seen so far. The oldest half is forgotten when there are many.
#[derive(Default)]
pub(super) struct Flows {
    numbers: HashMap<Key, u64>,
    last: u64,
}

const MOST: usize = 200_000;

impl Flows {
    /// The connection's number, from 1.
    pub(super) fn number(&mut self, conntrack: u64, original: &Tuple, zone: u16) -> u64 {
        let key = Key {
            conntrack,
            source: original.source,
            destination: original.destination,
            ports: (original.source_port, original.destination_port),
            protocol: original.protocol,
            zone,
        };
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        if self.numbers.len() >= MOST {
            let oldest_kept = self.last.saturating_sub(MOST as u64 / 2);
            self.numbers.retain(|_, number| *number > oldest_kept);
        }
        self.last += 1;
        self.numbers.insert(key, self.last);
        self.last
    }
}
