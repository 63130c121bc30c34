//! Rule readings: the counters of the tables between two probes, before and after. Those that moved are the
//! rules that matched.

use core::ffi::c_void;

#[cfg(not(feature = "older"))]
use aya_ebpf::helpers::bpf_loop;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_get_smp_processor_id, bpf_probe_read_kernel};
use tracer_common::{
    counters::Counter,
    records::{
        HITS_AT_DROP, HITS_DISTURBED, HITS_INTERLEAVED, HITS_STALE, HITS_TRUNCATED, HITS_UNREADABLE,
        HITS_UNSWITCHED, Hit, Kind, MAX_HITS,
    },
    settings::{Gap, GapKey, MAX_SNAPSHOT, MAX_TABLES, READING_SLOTS, Table},
};

use crate::{
    emit::{self, head},
    maps::{
        self, COUNTER_LIST, GAPS, HITS, PASSES, PER_CPU_OFFSET, Passes, READING, SETTINGS, SNAPSHOT, count,
    },
    read::{Reader, offset},
};

/// `NF_INET_LOCAL_OUT`, from where on hooks are those of packets on their way out.
const LOCAL_OUT: u32 = 3;

/// Where this packet is read. On the way out, the first free place; with both taken, the outer one is an old one
/// that was never closed (its packet was queued, or stolen).
#[inline(always)]
fn slot_for(journey: u64, hook: u32) -> u32 {
    if hook < LOCAL_OUT {
        return 0;
    }
    let is_free = |slot| {
        // SAFETY: a valid per-CPU map value.
        READING
            .get_ptr(slot)
            .is_some_and(|reading| unsafe { (*reading).journey == 0 || (*reading).journey == journey })
    };
    if !is_free(1) && is_free(2) { 2 } else { 1 }
}

/// The task on this CPU and how often it has been switched out; (0, 0) where that cannot be known.
#[inline(always)]
fn task() -> (u64, u64) {
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task() };
    let (Some(voluntary), Some(forced)) = (offset!(task_nvcsw), offset!(task_nivcsw)) else { return (0, 0) };
    let mut reader = Reader::new();
    let switches: u64 = reader.read::<u64>(task + voluntary) + reader.read::<u64>(task + forced);
    if reader.failed() { (0, 0) } else { (task, switches) }
}

/// Where this CPU's readings of a slot begin in [`SNAPSHOT`].
#[inline(always)]
fn snapshot(slot: u32) -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_smp_processor_id() } * READING_SLOTS + slot) * MAX_SNAPSHOT
}

/// State of a run over a table's counters.
struct Run {
    slot: u32,
    /// First entry in [`COUNTER_LIST`] and in [`SNAPSHOT`].
    list: u32,
    snapshot: u32,
    per_cpu: u64,
    unreadable: u32,
}

#[inline(always)]
fn counter(run: &mut Run, index: u32) -> u64 {
    let Some(entry) = COUNTER_LIST.get(run.list + index) else {
        run.unreadable = 1;
        return 0;
    };
    let address = if entry & 1 != 0 { entry & !1 } else { entry + run.per_cpu };
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_kernel(address as *const u64) } {
        Ok(value) => value,
        Err(_) => {
            run.unreadable = 1;
            0
        }
    }
}

/// Runs a callback for each counter, and says for how many: for all of them, with `bpf_loop` (kernel 5.17).
#[cfg(not(feature = "older"))]
macro_rules! each {
    ($count:expr, $callback:ident, $run:ident) => {{
        // SAFETY: the callback gets the pointer of a live Run.
        unsafe { bpf_loop($count, $callback as *mut c_void, (&raw mut $run).cast(), 0) };
        $count
    }};
}

/// Rules that are read of one table where every round of a loop costs the verifier anew.
#[cfg(feature = "older")]
const MOST: u32 = 256;

#[cfg(feature = "older")]
macro_rules! each {
    ($count:expr, $callback:ident, $run:ident) => {{
        let most = if $count < MOST { $count } else { MOST };
        $run.unreadable |= older::$callback($run.slot, $run.list, $run.snapshot, most);
        most
    }};
}

/// The loops, as functions that take numbers only: the verifier of 5.10 looks at such once, whoever calls them.
#[cfg(feature = "older")]
mod older {
    use super::{MOST, Run, per_cpu_offset};

    macro_rules! rounds {
        ($name:ident, $symbol:literal) => {
            #[unsafe(export_name = $symbol)]
            #[inline(never)]
            pub(super) extern "C" fn $name(slot: u32, list: u32, snapshot: u32, count: u32) -> u32 {
                let Some(per_cpu) = per_cpu_offset() else { return 1 };
                let mut run = Run { slot, list, snapshot, per_cpu, unreadable: 0 };
                for index in 0..MOST {
                    if index >= count || super::$name(index, (&raw mut run).cast()) != 0 {
                        break;
                    }
                }
                run.unreadable
            }
        };
    }
    rounds!(first_reading, "first_rounds");
    rounds!(second_reading, "second_rounds");
}

#[cfg_attr(feature = "older", inline(always))]
extern "C" fn first_reading(index: u32, run: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands back the pointer given to it.
    let run = unsafe { &mut *run.cast::<Run>() };
    let value = counter(run, index);
    match SNAPSHOT.get_ptr_mut(run.snapshot + index) {
        // SAFETY: a valid map value, of this CPU.
        Some(slot) => unsafe { *slot = value },
        None => run.unreadable = 1,
    }
    0
}

#[cfg_attr(feature = "older", inline(always))]
extern "C" fn second_reading(index: u32, run: *mut c_void) -> i64 {
    // SAFETY: as above.
    let run = unsafe { &mut *run.cast::<Run>() };
    let value = counter(run, index);
    let before = SNAPSHOT.get(run.snapshot + index).copied().unwrap_or(value);
    if value == before {
        return 0;
    }
    let Some(hits) = HITS.get_ptr_mut(run.slot) else { return 1 };
    // SAFETY: a valid per-CPU map value; READING.busy keeps other programs on this CPU away.
    let hits = unsafe { &mut *hits };
    let at = hits.count as usize;
    if at >= MAX_HITS {
        hits.flags |= HITS_TRUNCATED;
        return 1;
    }
    hits.hits[at] = Hit { rule: index, packets: value.wrapping_sub(before) as u32 };
    hits.count = at as u32 + 1;
    0
}

/// How often packets passed here: with which numbers a reading begins.
#[inline(always)]
fn passes() -> Passes {
    PASSES.get(0).copied().unwrap_or(Passes { all: 0, bare: 0, generation: 0 })
}

/// A followed packet enters a gap. A gap without tables needs no reading. One that was not written together with that of
/// another packet under way may hold tables that the other's does not know: that counts as a pass that nobody read.
#[inline(always)]
fn enter(gap: &Gap) {
    let Some(passes) = PASSES.get_ptr_mut(0) else { return };
    let generation = gap.generation as u64;
    // SAFETY: a valid per-CPU map value. Where an interrupt loses an addition to `bare`, one reading too many is missed.
    unsafe {
        if (*passes).generation != generation {
            (*passes).generation = generation;
            maps::add(&raw mut (*passes).all, 1);
        }
        if gap.count == 0 {
            (*passes).bare += 1;
        }
    }
}

#[inline(always)]
fn per_cpu_offset() -> Option<u64> {
    PER_CPU_OFFSET.get(0).copied().filter(|offset| *offset != 0)
}

#[inline(always)]
fn is_current(table: &Table) -> bool {
    if table.check_address == 0 {
        return true;
    }
    // SAFETY: the helper checks the address.
    let Ok(value) = (unsafe { bpf_probe_read_kernel(table.check_address as *const u64) }) else {
        return false;
    };
    let mask = match table.check_length {
        1 => 0xff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    value & mask == table.check_value
}

/// First reading, when a followed packet stands before the tables of `key`.
#[inline(always)]
pub(crate) fn open(journey: u64, key: &GapKey) {
    #[cfg(not(feature = "older"))]
    open_reading(journey, key);
    #[cfg(feature = "older")]
    crate::older::open(journey, key);
}

/// A global function: the verifier looks at it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle), inline(never))]
#[cfg_attr(feature = "older", inline(always))]
pub(crate) extern "C" fn open_reading(journey: u64, key: *const GapKey) -> u32 {
    if key.is_null() {
        return 0;
    }
    // Before 6.2 the verifier takes a key for a map only from a program's own stack.
    // SAFETY: a live structure, which the verifier checks for each caller.
    let key = &unsafe { key.read_volatile() };
    // SAFETY: written before the program was loaded, read-only since.
    if unsafe { (*(&raw const SETTINGS)).read_rules } == 0 {
        return 0;
    }
    let slot = slot_for(journey, key.hook);
    let (Some(gap), Some(reading)) = (GAPS.get_ptr(key), READING.get_ptr_mut(slot)) else {
        return 0;
    };
    // SAFETY: valid map values.
    let (gap, reading) = unsafe { (&*gap, &mut *reading) };
    let Some(per_cpu) = per_cpu_offset() else { return 0 };
    enter(gap);
    if gap.count == 0 || reading.busy != 0 {
        return 0;
    }
    if reading.journey != 0 {
        count(Counter::SnapshotLost);
    }
    reading.busy = 1;
    reading.journey = journey;
    reading.gap = *key;
    reading.generation = gap.generation;
    let Passes { all, bare, .. } = passes();
    (reading.passes, reading.bare) = (all, bare);
    (reading.task, reading.switches) = if key.hook < LOCAL_OUT { (0, 0) } else { task() };
    let (mut position, mut unreadable) = (0, 0);
    for i in 0..MAX_TABLES {
        if i as u32 >= gap.count {
            break;
        }
        let table = &gap.tables[i];
        let room = table.count.min(MAX_SNAPSHOT - position);
        let mut run =
            Run { slot, list: table.first, snapshot: snapshot(slot) + position, per_cpu, unreadable: 0 };
        position += each!(room, first_reading, run);
        unreadable |= run.unreadable;
    }
    // A difference to what could not be read says nothing.
    if unreadable != 0 {
        reading.journey = 0;
    }
    reading.disturbed = passes().all.wrapping_sub(all);
    reading.busy = 0;
    0
}

/// Second reading: sends the counters that moved since [`open`], one record a table.
#[inline(always)]
pub(crate) fn close(journey: u64, at_drop: u32) {
    close_reading(journey, at_drop, 0);
    close_reading(journey, at_drop, 1);
    close_reading(journey, at_drop, 2);
}

/// A global function, as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn close_reading(journey: u64, at_drop: u32, slot: u32) -> u32 {
    if slot >= READING_SLOTS {
        return 0;
    }
    let Some(reading) = READING.get_ptr_mut(slot) else { return 0 };
    // SAFETY: a valid per-CPU map value.
    let reading = unsafe { &mut *reading };
    if reading.journey != journey || reading.busy != 0 {
        return 0;
    }
    reading.journey = 0;
    let (Some(gap), Some(per_cpu)) = (GAPS.get_ptr(reading.gap), per_cpu_offset()) else { return 0 };
    // SAFETY: a valid map value.
    let gap: &Gap = unsafe { &*gap };
    if gap.generation != reading.generation {
        return 0;
    }
    // The packet itself passed the probe that closes the gap, unless it died.
    let own = if at_drop == 0 { 1 } else { 0 };
    let Passes { all, bare, .. } = passes();
    let since = all.wrapping_sub(reading.passes);
    let passed = since.wrapping_sub(own);
    let mut flags = if passed == 0 { 0 } else { HITS_INTERLEAVED };
    if at_drop != 0 {
        flags |= HITS_AT_DROP;
    }
    let unswitched =
        reading.gap.hook < LOCAL_OUT || reading.task != 0 && (reading.task, reading.switches) == task();
    if reading.disturbed != 0 {
        flags |= HITS_DISTURBED;
    } else if unswitched {
        flags |= HITS_UNSWITCHED;
    }
    let others = passed.wrapping_sub(bare.wrapping_sub(reading.bare)) as u32;
    reading.busy = 1;
    let mut position = 0;
    for i in 0..MAX_TABLES {
        if i as u32 >= gap.count {
            break;
        }
        let table = &gap.tables[i];
        let room = table.count.min(MAX_SNAPSHOT - position);
        let Some(hits) = HITS.get_ptr_mut(slot) else { break };
        // SAFETY: a valid per-CPU map value.
        let hits = unsafe { &mut *hits };
        hits.head = head(Kind::RuleHits, journey);
        hits.flags = flags;
        hits.table = table.id;
        hits.count = 0;
        hits.tables = gap.count;
        hits.opened = reading.passes;
        hits.others = others;
        hits.passed = since as u32;
        let mut run =
            Run { slot, list: table.first, snapshot: snapshot(slot) + position, per_cpu, unreadable: 0 };
        let room = each!(room, second_reading, run);
        position += room;
        if room < table.count {
            hits.flags |= HITS_TRUNCATED;
        }
        if run.unreadable != 0 {
            hits.flags |= HITS_UNREADABLE;
        }
        if !is_current(table) {
            hits.flags |= HITS_STALE;
        }
        // Another packet passed during this reading: it moved counters that were read already, and others.
        if passes().all != all {
            hits.flags = (hits.flags | HITS_INTERLEAVED | HITS_DISTURBED) & !HITS_UNSWITCHED;
        }
        emit::hits(hits);
    }
    reading.busy = 0;
    0
}
