//! Calls on kernels before 5.12. Of a global function the verifier looks at the body once, whoever calls it, but there
//! such a function takes numbers only. (What is not global is looked at again for each way that leads to it: millions of
//! instructions.) So what is larger than a few numbers is passed in room of this CPU.

use core::mem::transmute;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use tracer_common::{settings::GapKey, tuple::Tuple};

use crate::{
    counters,
    emit::{self, Place, copy},
    headers::{self, Headers},
    maps::Track,
    wanted,
};

/// How deep programs interrupt each other on a CPU: task, softirq, interrupt, NMI.
const LEVELS: u32 = 4;

/// What is passed. Integers only.
#[repr(C)]
struct Room {
    headers: Headers,
    track: Track,
    place: Place,
}

#[map]
static ROOMS: PerCpuArray<Room> = PerCpuArray::with_max_entries(LEVELS, 0);

/// Rooms in use on this CPU. An interrupt gives back what it took, so that no addition gets lost.
#[map]
static LEVEL: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Gives a call a room that no program which it interrupts uses; `None` where there is none left.
#[inline(always)]
fn in_room<R>(call: impl FnOnce(u32, &mut Room) -> R) -> Option<R> {
    let level = LEVEL.get_ptr_mut(0)?;
    // SAFETY: a valid per-CPU map value.
    let mine = unsafe { *level };
    let room = ROOMS.get_ptr_mut(mine)?;
    // SAFETY: valid per-CPU map values; programs that interrupt this one take the next room.
    unsafe {
        *level = mine + 1;
        let result = call(mine, &mut *room);
        *level = mine;
        Some(result)
    }
}

/// [`headers::parse`]
#[inline(always)]
pub(crate) fn parse(address: u64, into: &mut Headers) -> bool {
    in_room(|level, room| {
        let parsed = parse_in_room(address, level) != 0;
        copy(&room.headers, into);
        parsed
    })
    .unwrap_or(false)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_in_room(address: u64, level: u32) -> u32 {
    let Some(room) = ROOMS.get_ptr_mut(level) else { return 0 };
    // SAFETY: a valid per-CPU map value of integers.
    let into = unsafe {
        emit::zero(&raw mut (*room).headers);
        &mut (*room).headers
    };
    headers::parse_headers(address, into)
}

/// [`emit::sight`]
#[inline(always)]
pub(crate) fn sight(skb: u64, track: &mut Track, headers: &Headers, place: &Place) {
    in_room(|level, room| {
        copy(headers, &mut room.headers);
        copy(track, &mut room.track);
        copy(place, &mut room.place);
        sight_in_room(skb, level);
        track.flags = room.track.flags;
        track.conntrack = room.track.conntrack;
        track.conntrack_status = room.track.conntrack_status;
    });
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sight_in_room(skb: u64, level: u32) -> u32 {
    let Some(room) = ROOMS.get_ptr_mut(level) else { return 0 };
    // SAFETY: a valid per-CPU map value.
    let Room { headers, track, place } = unsafe { &mut *room };
    emit::emit_sight(skb, track, headers, place)
}

/// [`wanted::filter`]
#[inline(always)]
pub(crate) fn filter(tuple: &Tuple) -> bool {
    // SAFETY: the same bytes, all of them integers.
    let [a, b, c, d, e] = unsafe { transmute::<Tuple, [u64; 5]>(*tuple) };
    filter_words(a, b, c, d, e) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn filter_words(a: u64, b: u64, c: u64, d: u64, e: u64) -> u32 {
    // SAFETY: the same bytes, all of them integers.
    let tuple = unsafe { transmute::<[u64; 5], Tuple>([a, b, c, d, e]) };
    wanted::filter_matches(&raw const tuple)
}

/// [`counters::open`]
#[inline(always)]
pub(crate) fn open(journey: u64, key: &GapKey) {
    let GapKey { netns, priority, hook, pf } = *key;
    open_by_numbers(journey, netns, priority as u32, hook, pf);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_by_numbers(journey: u64, netns: u32, priority: u32, hook: u32, pf: u32) -> u32 {
    let key = GapKey { netns, priority: priority as i32, hook, pf };
    counters::open_reading(journey, &raw const key)
}
