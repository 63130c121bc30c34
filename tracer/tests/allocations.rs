//! Decoding is done for every event, of packets that will not be shown, too: it allocates nothing. Correlation
//! allocates for the journey (its stages, its words), not for the event.

#[path = "../benches/records/mod.rs"]
mod records;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use tracer::{correlate::Output, decode::decode};

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn the_count_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn decoding_an_event_allocates_nothing() {
    for record in records::packet(1) {
        let kind = record[0];
        let count = allocations(|| {
            std::hint::black_box(decode(&record).expect("a record"));
        });
        assert_eq!(count, 0, "a record of kind {kind}");
    }
}

#[test]
fn a_packet_that_is_not_shown_costs_few_allocations() {
    let mut correlator = records::correlator();
    let mut output = Output::default();
    let mut journey = |number| {
        let records = records::packet(number);
        allocations(|| {
            for record in &records {
                correlator.event(decode(record).expect("a record"), &mut output);
            }
        })
    };
    // The first makes room in the tables, which then stays.
    journey(1);
    let (events, count) = (records::packet(2).len() as u64, journey(2));
    assert!(count < events * 2, "{count} allocations for the {events} events of a whole journey");
    assert_eq!(output.closed.len(), 2);
}
