//! The kernel side's own diagnostics (`-vv`), by aya-log: what it had to leave out or do without, from its counters.
//!
//! A message takes more of the stack than most programs have left where something goes wrong, so nothing is said there.
//! The programs that see every packet's end have room, and look what has been counted on their CPU since they last did.

#[cfg(not(feature = "older"))]
pub(crate) use current::say;

/// Says nothing: the verifier of a kernel before 5.17 has enough to look at.
#[cfg(feature = "older")]
#[inline(always)]
pub(crate) fn say() {}

#[cfg(not(feature = "older"))]
mod current {
    use aya_ebpf::{helpers::bpf_get_smp_processor_id, macros::map, maps::PerCpuArray};
    use aya_log_ebpf::{info, warn};
    use tracer_common::counters::{COUNTERS as COUNTER_COUNT, Counter};

    use crate::maps::{COUNTERS, SETTINGS};

    /// What [`COUNTERS`] were when they were last spoken of.
    #[map]
    static SAID: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

    /// Says what is new, with `-vv`; else the verifier drops all of it.
    #[inline(always)]
    pub(crate) fn say() {
        // SAFETY: written before the program was loaded, read-only since.
        if unsafe { (*(&raw const SETTINGS)).verbose } != 0 {
            say_news();
        }
    }

    #[inline(never)]
    fn say_news() -> u32 {
        // SAFETY: no arguments.
        let cpu = unsafe { bpf_get_smp_processor_id() };
        let full = new(Counter::RingFull);
        if full != 0 {
            warn!((), "CPU {}: {} records found no room in the ring buffer", cpu, full);
        }
        let left_out = new(Counter::RingBusy);
        if left_out != 0 {
            warn!((), "CPU {}: {} packets were left out since user space lagged behind", cpu, left_out);
        }
        let unread = new(Counter::ReadFailed);
        if unread != 0 {
            info!((), "CPU {}: {} packets could not be read in full", cpu, unread);
        }
        let unfollowed = new(Counter::TrackedFull);
        if unfollowed != 0 {
            warn!((), "CPU {}: {} packets found no room in the table of followed packets", cpu, unfollowed);
        }
        let forgotten = new(Counter::FlowsFull);
        if forgotten != 0 {
            warn!((), "CPU {}: {} connections found no room in the table of connections", cpu, forgotten);
        }
        let overwritten = new(Counter::SnapshotLost);
        if overwritten != 0 {
            info!(
                (),
                "CPU {}: {} readings of rule counters were overwritten by another packet's", cpu, overwritten
            );
        }
        0
    }

    /// By how much a counter of this CPU has grown since the last call.
    #[inline(always)]
    fn new(counter: Counter) -> u64 {
        let (Some(count), Some(said)) = (COUNTERS.get_ptr(counter as u32), SAID.get_ptr_mut(counter as u32))
        else {
            return 0;
        };
        // SAFETY: valid per-CPU map values.
        unsafe {
            let news = *count - *said;
            *said = *count;
            news
        }
    }
}
