//! The list of rule counters that the kernel side reads: room is given out in a ring, so that the addresses of a
//! ruleset that was just replaced are not overwritten while a packet is between two readings.

use anyhow::{Context, Result, bail};
use aya::{Ebpf, maps::Array};
use tracer_common::settings::{MAX_COUNTERS, MAX_SNAPSHOT, Table};

use crate::rules::index::{CounterAddress, TableIndex};

/// Gives out readings.
pub(super) struct Readings {
    next: u32,
    last_id: u32,
    generation: u32,
}

impl Readings {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self> {
        // So that a missing map is found at start and not at the first rule.
        let _: Array<_, u64> = list(ebpf)?;
        Ok(Self { next: 0, last_id: 0, generation: 0 })
    }

    /// A number for gaps that are written now.
    pub(super) fn generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    /// Writes a table's counter addresses, and says where.
    pub(super) fn add(&mut self, ebpf: &mut Ebpf, index: &TableIndex) -> Result<Table> {
        let count = u32::try_from(index.counters.len())?;
        if count > MAX_SNAPSHOT {
            bail!(
                "table {} has {count} rules; rules of tables with more than {MAX_SNAPSHOT} are not named",
                index.name
            );
        }
        if self.next + count > MAX_COUNTERS {
            self.next = 0;
        }
        let first = self.next;
        let mut map = list(ebpf)?;
        for (at, counter) in (first..).zip(&index.counters) {
            let entry = match counter {
                CounterAddress::PerCpu(address) => *address,
                CounterAddress::Plain(address) => address | 1,
            };
            map.set(at, entry, 0)?;
        }
        self.next += count;
        self.last_id += 1;
        let (check_address, check_value, check_length) =
            index.check.map_or((0, 0, 0), |check| (check.address, check.value, check.length));
        Ok(Table { check_address, check_value, check_length, id: self.last_id, first, count })
    }
}

fn list(ebpf: &mut Ebpf) -> Result<Array<&mut aya::maps::MapData, u64>> {
    Ok(Array::try_from(ebpf.map_mut("COUNTER_LIST").context("kernel object: no map COUNTER_LIST")?)?)
}
