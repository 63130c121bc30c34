//! Which packets are asked for: the filter, the connections that matched it, and first packets that may match
//! after translation.

use core::mem::MaybeUninit;

use tracer_common::{
    counters::Counter,
    records::{SIGHT_BY_FLOW, SIGHT_BY_QUOTE, SIGHT_TENTATIVE},
    tuple::Tuple,
};

use crate::{
    conntrack,
    headers::{Fragment, Headers, zeroed},
    maps::{self, FLOW_BUCKET_COUNT, FLOW_BUCKETS, FLOWS, FlowKey, REFUSED, REFUSED_COUNT, SETTINGS, count},
};

const TCP: u8 = 6;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Whether the user's filter takes this tuple.
#[inline(always)]
pub(crate) fn filter(tuple: &Tuple) -> bool {
    #[cfg(not(feature = "older"))]
    return filter_matches(tuple) != 0;
    #[cfg(feature = "older")]
    crate::older::filter(tuple)
}

/// A global function: the verifier looks at it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle), inline(never))]
#[cfg_attr(feature = "older", inline(always))]
pub(crate) extern "C" fn filter_matches(tuple: *const Tuple) -> u32 {
    // SAFETY: null or a live structure, which the verifier checks for each caller.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else { return 0 };
    u32::from(filter_here(tuple))
}

/// [`filter`], in the caller: a tuple in registers stays there.
#[inline(always)]
pub(crate) fn filter_here(tuple: &Tuple) -> bool {
    // SAFETY: written before the program was loaded, read-only since.
    unsafe { (*(&raw const SETTINGS)).filter.matches(tuple) }
}

/// Not a packet that is asked for ([`at_first_sight`]).
pub(crate) const NO: u32 = 1 << 30;

/// Whether and why a packet at first sight is followed: its `SIGHT_*` flags, or [`NO`].
#[inline(never)]
pub(crate) fn at_first_sight(headers: &Headers, netns: u32) -> u32 {
    match headers.fragment_kind() {
        Fragment::Whole => by_headers(headers, netns),
        Fragment::First => {
            let flags = by_headers(headers, netns);
            if flags != NO {
                remember_flow(&headers.datagram(), netns);
            }
            flags
        }
        // It has no ports: what was said of the first fragment holds.
        Fragment::Later if known_flow(&headers.datagram(), netns) => SIGHT_BY_FLOW,
        Fragment::Later => by_headers(headers, netns),
    }
}

#[inline(never)]
fn by_headers(headers: &Headers, netns: u32) -> u32 {
    if filter(&headers.tuple) {
        return 0;
    }
    if headers.quoted.is_some() && (filter(&headers.quoted) || filter_inverse(&headers.quoted)) {
        return SIGHT_BY_QUOTE;
    }
    if known_flow(&headers.tuple, netns) {
        return SIGHT_BY_FLOW;
    }
    let opens = headers.tuple.protocol == TCP && headers.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
    if opens && tentative() { SIGHT_TENTATIVE } else { NO }
}

/// Whether the filter takes a packet that goes the other way. On older kernels no function of its own: frames of its callers fill
/// the 512 bytes that all of them have together.
#[cfg_attr(not(feature = "older"), inline(never))]
#[cfg_attr(feature = "older", inline(always))]
pub(crate) fn filter_inverse(tuple: &Tuple) -> bool {
    filter(&tuple.inverse())
}

/// Whether packets of a conntrack entry's connection match, of either direction, before, between or after its translations.
#[inline(always)]
pub(crate) fn connection(entry: u64) -> bool {
    connection_matches(entry) != 0
}

#[cfg_attr(feature = "older", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn connection_matches(entry: u64) -> u32 {
    let mut room = MaybeUninit::<Tuple>::uninit();
    // SAFETY: integers only.
    let tuple = unsafe { zeroed(&mut room) };
    if !conntrack::tuple(entry, 1, tuple) {
        return 0;
    }
    if either_way(tuple) {
        return 1;
    }
    let (answers, port) = (tuple.source, tuple.source_port);
    if !conntrack::tuple(entry, 0, tuple) {
        return 0;
    }
    if either_way(tuple) {
        return 1;
    }
    // Between PREROUTING and POSTROUTING, the destination is the new one and the source still the old one.
    tuple.destination = answers;
    tuple.destination_port = port;
    u32::from(either_way(tuple))
}

/// Whether the filter takes packets that go the one way or the other.
#[inline(always)]
fn either_way(tuple: &Tuple) -> bool {
    filter(tuple) || filter_inverse(tuple)
}

/// Whether first packets are followed before it is known that they match.
#[inline(always)]
pub(crate) fn tentative() -> bool {
    // SAFETY: as above.
    unsafe { (*(&raw const SETTINGS)).tentative != 0 }
}

#[inline(always)]
fn mixed(tuple: &Tuple) -> u32 {
    let mixed = tuple.source[3].wrapping_mul(0x9e37_79b1)
        ^ tuple.destination[3].wrapping_mul(0x85eb_ca6b)
        ^ ((tuple.source_port as u32) << 16 | tuple.destination_port as u32).wrapping_mul(0xc2b2_ae35);
    mixed ^ mixed >> 16
}

/// The entry of [`FLOW_BUCKETS`] for a tuple.
#[inline(always)]
fn flow_bucket(tuple: &Tuple) -> *mut u8 {
    // SAFETY: an index below the count.
    unsafe { (&raw mut FLOW_BUCKETS).cast::<u8>().add(maps::index::<FLOW_BUCKET_COUNT>(mixed(tuple))) }
}

/// Whether a connection that matched may have this tuple; where not, [`known_flow`] is false in every namespace.
#[inline(always)]
pub(crate) fn may_be_known(tuple: &Tuple) -> bool {
    // SAFETY: a global of this object.
    unsafe { flow_bucket(tuple).read_volatile() != 0 }
}

#[inline(always)]
fn known_flow(tuple: &Tuple, netns: u32) -> bool {
    if !may_be_known(tuple) {
        return false;
    }
    let key = FlowKey { tuple: *tuple, netns, reserved: 0 };
    FLOWS.get_ptr(&key).is_some()
}

/// From now on packets with this tuple are followed.
#[inline(never)]
pub(crate) fn remember_flow(tuple: &Tuple, netns: u32) {
    let key = FlowKey { tuple: *tuple, netns, reserved: 0 };
    if FLOWS.insert(&key, 1u64, 0).is_err() {
        count(Counter::FlowsFull);
        return;
    }
    // SAFETY: a global of this object; setting it twice does no harm.
    unsafe { flow_bucket(tuple).write_volatile(1) };
}

/// A packet that is asked for came to another namespace, where its translations are not known: what answers it there is
/// followed, too.
#[inline(never)]
pub(crate) fn remember_answers(tuple: &Tuple, netns: u32) {
    let answer = tuple.inverse();
    if tuple.source_port != 0 && !known_flow(&answer, netns) {
        remember_flow(&answer, netns);
    }
}

/// The entry of [`REFUSED`] for a connection.
#[inline(always)]
fn refused_slot(conntrack: u64) -> *mut u64 {
    let number = (conntrack >> 6) as u32 ^ (conntrack >> 18) as u32;
    // SAFETY: an index below the count.
    unsafe { (&raw mut REFUSED).cast::<u64>().add(maps::index::<REFUSED_COUNT>(number)) }
}

/// Whether this established connection was seen not to match.
#[inline(always)]
pub(crate) fn is_refused(conntrack: u64) -> bool {
    // SAFETY: a global of this object.
    unsafe { refused_slot(conntrack).read_volatile() == conntrack }
}

/// Remembers that this connection does not match.
#[inline(always)]
pub(crate) fn refuse(conntrack: u64) {
    // SAFETY: a global of this object; written whole.
    unsafe { refused_slot(conntrack).write_volatile(conntrack) };
}
