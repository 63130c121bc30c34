//! Which packets are in hand: by address of their `sk_buff`, from first sight until they are freed.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::BPF_RB_AVAIL_DATA,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_ringbuf_query},
};
use tracer_common::{counters::Counter, records::CONNTRACK_NONE, tuple::Tuple};

use crate::{
    conntrack,
    glance::{IP, IP6},
    headers::{self, Headers, PROTOCOL_SHIFT, network_header},
    maps::{
        self, BUCKET_COUNT, EVENTS, EVENTS_BUSY, EXPANDED, EXPANDS, FOLLOWED, HAND, Hand, JOURNEYS,
        REFUSED_AT, TRACKED, Track, count,
    },
    read::{Reader, member},
};

/// Whether no packet is followed anywhere: then there is nothing to do, but where a journey may begin.
#[inline(always)]
pub(crate) fn nobody() -> bool {
    // SAFETY: a global of this object; each program sees some recent value of it.
    unsafe { (&raw const FOLLOWED.all).read_volatile() == 0 }
}

/// How many followed packets fall into the bucket of this address.
#[inline(always)]
fn bucket(skb: u64) -> *mut u64 {
    // The verifier allows no arithmetic on a pointer it knows; a copy of its low half (a 32-bit move, which
    // `.cargo/config.toml` lets the linker emit) is a plain number.
    let number = (skb as u32).wrapping_mul(0x9e37_79b1) >> (u32::BITS - BUCKET_COUNT.ilog2());
    // SAFETY: an index below the count.
    unsafe { (&raw mut FOLLOWED.buckets).cast::<u64>().add(maps::index::<BUCKET_COUNT>(number)) }
}

/// The followed packet at this address; the common answer, no, costs one or two loads.
#[inline(always)]
pub(crate) fn find(skb: u64) -> Option<&'static mut Track> {
    // SAFETY: a global of this object.
    if nobody() || unsafe { bucket(skb).read_volatile() } == 0 {
        return None;
    }
    // SAFETY: a valid map value; only the program that handles this packet writes it.
    TRACKED.get_ptr_mut(skb).map(|track| unsafe { &mut *track })
}

/// Nanoseconds after a refusal in which a packet first met behind its first probe may be one that was refused there.
const REFUSED_LATELY: u64 = 50_000_000;

/// Whether user space lags so far behind that no further packet should be followed.
#[inline(always)]
pub(crate) fn lags() -> bool {
    // SAFETY: the map's own address.
    let unread =
        unsafe { bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA)) };
    unread >= EVENTS_BUSY
}

/// As [`lags`]; counted.
#[inline(never)]
pub(crate) fn is_busy() -> bool {
    if !lags() {
        return false;
    }
    count(Counter::RingBusy);
    if let Some(at) = REFUSED_AT.get_ptr_mut(0) {
        // SAFETY: a valid per-CPU map value, and a helper without arguments.
        unsafe { *at = bpf_ktime_get_ns() };
    }
    true
}

/// Whether a packet that begins here may have been refused by an earlier probe.
#[inline(always)]
pub(crate) fn refused_lately() -> bool {
    let at = REFUSED_AT.get(0).copied().unwrap_or(0);
    // SAFETY: a helper without arguments.
    at != 0 && unsafe { bpf_ktime_get_ns() }.wrapping_sub(at) < REFUSED_LATELY
}

/// A number that no journey has yet; 0 where there is none to give.
#[inline(always)]
pub(crate) fn new_journey() -> u64 {
    let Some(last) = JOURNEYS.get_ptr_mut(0) else { return 0 };
    // SAFETY: a valid per-CPU map value.
    let number = unsafe {
        *last += 1;
        *last
    };
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u64;
    number << 12 | (cpu & 0xfff)
}

/// Starts to follow a packet. `None`, counted, when user space lags behind or the table is full: then nothing is in hand.
#[inline(never)]
pub(crate) fn start(skb: u64, headers: &Headers, flags: u32) -> Option<&'static mut Track> {
    if is_busy() {
        empty_hand();
        return None;
    }
    let track = Track {
        journey: new_journey(),
        identity: headers.identity,
        conntrack: 0,
        conntrack_status: 0,
        flags,
        priority: 0,
        conntrack_info: CONNTRACK_NONE as u32,
        device_in: 0,
        device_out: 0,
    };
    if TRACKED.insert(skb, track, 0).is_err() {
        count(Counter::TrackedFull);
        empty_hand();
        return None;
    }
    add(skb, 1);
    // SAFETY: as in `find`.
    TRACKED.get_ptr_mut(skb).map(|track| unsafe { &mut *track })
}

/// Whether the `sk_buff` that was followed as `track`, its headers read into `headers`, is still that packet. The stack
/// frees some packets without a word (`__kfree_skb`: an acknowledgement that TCP has taken), and the address may serve any
/// other by now, of netlink for instance. A packet in a tunnel has the headers of another protocol before its own; of two
/// that carry no others, one is not the other's. Conntrack may change the numbers of a TCP segment (`nf_ct_seq_adjust`), but
/// makes none of one direction a segment of the other.
#[inline(never)]
pub(crate) fn is_same(skb: u64, track: &Track, headers: &Headers) -> bool {
    if headers.identity == track.identity {
        return true;
    }
    let protocol: u16 = member!(Reader::new(), skb, skb_protocol);
    let is_ip = protocol == IP || protocol == IP6;
    let (now, then) = (headers.tuple.protocol, (track.identity >> PROTOCOL_SHIFT) as u8);
    if now == then {
        if !is_ip
            || track.conntrack == 0
            || (headers.identity ^ track.identity) & headers::NEVER_ADJUSTED != 0
        {
            return false;
        }
        let entry = conntrack::of(&mut Reader::new(), skb);
        return entry.address == track.conntrack
            && conntrack::is_reply(entry.info as u32) == conntrack::is_reply(track.conntrack_info);
    }
    is_ip && (carries(now) || carries(then))
}

/// Whether a protocol can carry whole packets: IPIP, UDP (VXLAN, ESP in UDP), IPv6 in IP, GRE, ESP, AH, IPComp, L2TP, MPLS in IP
/// (<https://www.iana.org/assignments/protocol-numbers>).
#[inline(always)]
fn carries(protocol: u8) -> bool {
    matches!(protocol, 4 | 17 | 41 | 47 | 50 | 51 | 108 | 115 | 137)
}

/// Stops following.
#[inline(never)]
pub(crate) fn stop(skb: u64) {
    if TRACKED.remove(skb).is_ok() {
        add(skb, -1);
    }
    if let Some(hand) = HAND.get_ptr_mut(0) {
        // SAFETY: a valid per-CPU map value.
        unsafe {
            if (*hand).skb == skb {
                (*hand).skb = 0;
            }
        }
    }
}

#[inline(always)]
fn add(skb: u64, change: i64) {
    // SAFETY: globals of this object.
    unsafe {
        maps::add(bucket(skb), change);
        maps::add(&raw mut FOLLOWED.all, change);
    }
}

/// Remembers the packet as the one in hand on this CPU.
#[inline(always)]
pub(crate) fn take_in_hand(skb: u64, journey: u64, tuple: &Tuple) {
    let buffer: u64 = member!(Reader::new(), skb, skb_head);
    if let Some(hand) = HAND.get_ptr_mut(0) {
        // SAFETY: a valid per-CPU map value.
        unsafe { *hand = Hand { skb, buffer, journey, tuple: *tuple } };
    }
}

/// The followed packet in hand on this CPU, if `skb`, which is not followed, is a copy of it (`skb_clone`: another
/// `sk_buff`, the same buffer).
#[inline(always)]
pub(crate) fn copied_from(skb: u64) -> Option<u64> {
    if nobody() || is_in_hand(skb) {
        return None;
    }
    let hand = in_hand()?;
    let buffer: u64 = member!(Reader::new(), skb, skb_head);
    let may_be = hand.buffer == buffer || hand.buffer == EXPANDED;
    if may_be && is_copy(skb) != 0 { Some(hand.skb) } else { None }
}

/// Goes on following a packet that is being freed where the kernel goes on with a copy that has more room in front
/// (`skb_expand_head`, net/core/skbuff.c, 6.18): the next device sees that copy. `location` is who frees it; false where that
/// is not so.
#[inline(always)]
pub(crate) fn keep_for_copy(skb: u64, location: u64) -> bool {
    let Some([start, end]) = EXPANDS.get(0).copied() else { return false };
    if location < start || location >= end || !is_in_hand(skb) {
        return false;
    }
    if let Some(hand) = HAND.get_ptr_mut(0) {
        // SAFETY: a valid per-CPU map value.
        unsafe { (*hand).buffer = EXPANDED };
    }
    true
}

/// Whether the packet in hand on this CPU goes on as a copy ([`keep_for_copy`]).
#[inline(always)]
pub(crate) fn awaits_copy() -> bool {
    // SAFETY: a valid per-CPU map value.
    HAND.get_ptr(0).is_some_and(|hand| unsafe { (*hand).buffer } == EXPANDED)
}

/// Whether this CPU has this very `sk_buff` in hand.
#[inline(always)]
pub(crate) fn is_in_hand(skb: u64) -> bool {
    // SAFETY: a valid per-CPU map value.
    HAND.get_ptr(0).is_some_and(|hand| unsafe { (*hand).skb } == skb)
}

/// A buffer's address may serve another packet by now: a copy has the same addresses and ports, too. A global
/// function: the verifier looks at it once, whoever calls it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_copy(skb: u64) -> u32 {
    let Some(hand) = in_hand() else { return 0 };
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    let known = headers::parse(network_header(&mut Reader::new(), skb), headers);
    u32::from(known && headers.tuple == hand.tuple)
}

/// From now on `copy` is the packet that was followed as `original`. What was followed at its address was freed without a
/// word.
#[inline(never)]
pub(crate) fn go_on_as(original: u64, copy: u64) {
    let Some(track) = find(original) else { return };
    let track = *track;
    stop(original);
    stop(copy);
    if TRACKED.insert(copy, track, 0).is_err() {
        count(Counter::TrackedFull);
        return;
    }
    add(copy, 1);
}

/// Whether a packet at a hook is followed. One that is not may be what IP got of a followed packet that a packet socket
/// bound to the device took, too (`skb_share_check` in `ip_rcv_core`): a copy, and the packet from there on. A bridge's copies
/// are at the device that they leave by. A global function: the verifier looks at it once, whoever calls it.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_followed(skb: u64) -> u32 {
    if let Some(original) = copied_from(skb) {
        let device: u64 = member!(Reader::new(), skb, skb_dev);
        if device != 0 && find(original).is_some_and(|track| track.device_in == device) {
            go_on_as(original, skb);
        }
    }
    u32::from(find(skb).is_some())
}

/// Another packet is being handled on this CPU: nothing is in hand.
#[inline(always)]
pub(crate) fn empty_hand() {
    // Then what is in hand here is not followed any more, see `in_hand`.
    if nobody() {
        return;
    }
    if let Some(hand) = HAND.get_ptr_mut(0) {
        // SAFETY: a valid per-CPU map value.
        unsafe { (*hand).skb = 0 };
    }
}

/// The packet in hand on this CPU, while it is followed.
#[inline(always)]
pub(crate) fn in_hand() -> Option<&'static Hand> {
    if nobody() {
        return None;
    }
    // SAFETY: a valid per-CPU map value.
    let hand = unsafe { &*HAND.get_ptr(0)? };
    if hand.skb == 0 || find(hand.skb)?.journey != hand.journey { None } else { Some(hand) }
}

/// Stops following a packet that user space has done with, unless its `sk_buff` serves another journey by now.
#[inline(always)]
pub(crate) fn forget(skb: u64, journey: u64) {
    if find(skb).is_some_and(|track| track.journey == journey) {
        stop(skb);
    }
}
