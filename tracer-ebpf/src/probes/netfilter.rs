//! A packet between two functions of a netfilter hook.
//!
//! aya knows no netfilter program type, so these are in a section that aya accepts, never loaded by it, and
//! loaded by `tracer::attach::netfilter` with its own constants for each place (`patch`).

use core::mem::MaybeUninit;

use aya_ebpf::{cty::c_void, helpers::generated::bpf_tail_call};
use tracer_common::{
    records::{Kind, SIGHT_BY_FLOW, SIGHT_FIRST, SIGHT_GAP, SIGHT_LATE, SIGHT_TENTATIVE},
    settings::{GapKey, patch, role},
};

use crate::{
    conntrack, counters,
    emit::{Place, sight},
    follow,
    headers::{self, Headers, network_header},
    maps::{self, Hand, JUDGE, PASSES, Track},
    read::{Reader, member, plain, trusted},
    wanted,
};

/// `struct bpf_nf_ctx`, include/net/netfilter/nf_bpf_link.h.
#[repr(C)]
pub(crate) struct Context {
    state: *const c_void,
    skb: *const c_void,
}

/// `NF_ACCEPT`: the packet goes on as if we were not there.
const ACCEPT: i32 = 1;
const TCP: u8 = 6;
const TCP_RST: u8 = 0x04;
/// `NF_INET_LOCAL_OUT`.
const LOCAL_OUT: u8 = 3;

/// A constant that the loader writes into the program.
macro_rules! patched {
    ($magic:expr) => {{
        let value: u64;
        // SAFETY: loads an immediate into a register.
        unsafe { core::arch::asm!("{0} = {1}", out(reg) value, const $magic) };
        value as u32
    }};
}
pub(crate) use patched;

/// Counts a packet, followed or not: readings of rule counters want to know of each. (While no packet is followed there are none.)
#[inline(always)]
pub(super) fn pass() {
    if let Some(passes) = PASSES.get_ptr_mut(0) {
        // SAFETY: a valid per-CPU map value.
        unsafe { maps::add(&raw mut (*passes).all, 1) };
    }
}

/// A probe that only follows: small, since one is loaded for every priority.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub(crate) extern "C" fn netfilter_follow(ctx: *const Context) -> i32 {
    if follow::nobody() {
        return ACCEPT;
    }
    pass();
    // SAFETY: the verifier knows the context.
    let skb = unsafe { (*ctx).skb as u64 };
    if let Some(track) = follow::find(skb) {
        track.priority = patched!(patch::PRIORITY) as i32;
        // SAFETY: the context is this program's own; without the other program the packet simply goes on.
        unsafe { bpf_tail_call(ctx.cast_mut().cast(), (&raw const JUDGE).cast_mut().cast(), 0) };
    }
    ACCEPT
}

/// What [`netfilter_follow`] hands over to: loaded once.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub(crate) extern "C" fn netfilter_judge(ctx: *const Context) -> i32 {
    // SAFETY: the verifier knows the context.
    let (state, skb) = unsafe { ((*ctx).state as u64, (*ctx).skb as u64) };
    if let Some(track) = follow::find(skb) {
        judge(state, skb, track.priority, role::FOLLOW);
    }
    ACCEPT
}

/// A probe that also decides about packets that are not followed yet.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub(crate) extern "C" fn netfilter_gate(ctx: *const Context) -> i32 {
    let nobody = follow::nobody();
    if !nobody {
        pass();
    }
    // SAFETY: the verifier knows the context.
    let (state, skb) = unsafe { ((*ctx).state as u64, (*ctx).skb as u64) };
    let role = patched!(patch::ROLE);
    let copied = if role & role::ENTRY != 0 { follow::copied_from(plain(skb)) } else { None };
    if let Some(original) = copied {
        follow::go_on_as(original, plain(skb));
    } else if nobody || follow::find(skb).is_none() {
        let nfct = trusted!(skb, skb_nfct, u64);
        if role & role::GATE == 0 && (role & role::LATE == 0 || nfct == 0 || !may_match(nfct)) {
            return ACCEPT;
        }
    }
    judge(state, skb, patched!(patch::PRIORITY) as i32, role);
    ACCEPT
}

/// Whether a packet that did not match at first sight may belong to a connection that does: a connection's
/// first packet, or one of an established connection not yet refused.
#[inline(always)]
pub(super) fn may_match(nfct: u64) -> bool {
    let entry = conntrack::split(nfct);
    if entry.address == 0 {
        return false;
    }
    if entry.info == conntrack::INFO_NEW
        && conntrack::status(&mut Reader::new(), entry.address) & conntrack::CONFIRMED == 0
    {
        return wanted::tentative();
    }
    !wanted::is_refused(entry.address)
}

/// What follows for a packet that is followed, or may come to be.
#[inline(never)]
fn judge(state: u64, skb: u64, priority: i32, role: u32) -> i32 {
    let (state, skb) = (plain(state), plain(skb));
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    let mut reader = Reader::new();
    if !headers::parse(network_header(&mut reader, skb), headers) {
        return 0;
    }
    let hook: u8 = member!(reader, state, state_hook);
    let net: u64 = member!(reader, state, state_net);
    let mut place = Place {
        hook,
        pf: member!(reader, state, state_pf),
        priority,
        device_in: member!(reader, state, state_in),
        device_out: member!(reader, state, state_out),
        ..Place::new(Kind::Netfilter, member!(reader, net, net_inum))
    };
    follow_on(skb, &mut place, headers, role)
}

/// A packet stands before the tables that come after this place: it is sent as seen there, and the counters of their rules
/// are read. Its journey begins here if it is not followed yet and matches.
#[inline(always)]
pub(super) fn follow_on(skb: u64, place: &mut Place, headers: &Headers, role: u32) -> i32 {
    let mut known = follow::find(skb);
    if let Some(track) = &known
        && is_stale(skb, track, headers, role & role::GATE != 0 && place.hook == LOCAL_OUT)
    {
        follow::stop(skb);
        known = None;
    }
    let track = match known {
        Some(track) => {
            track.device_in = 0;
            track.device_out = 0;
            counters::close(track.journey, 0);
            track
        }
        None => {
            let Some(mut flags) = begins(skb, role, headers, place.netns) else { return 0 };
            if place.hook != LOCAL_OUT && follow::refused_lately() {
                flags |= SIGHT_GAP;
            }
            let Some(track) = follow::start(skb, headers, flags) else { return 0 };
            place.flags = SIGHT_FIRST;
            track
        }
    };
    follow::take_in_hand(skb, track.journey, &headers.tuple);
    sight(skb, track, headers, place);
    let key =
        GapKey { netns: place.netns, priority: place.priority, hook: place.hook as u32, pf: place.pf as u32 };
    counters::open(track.journey, &key);
    0
}

/// Whether another packet had this `sk_buff` when it was followed. A packet at the start of OUTPUT is new. One that came in
/// passed its device, which looked at it; what IP got instead of it is a copy at any address (`skb_share_check`), and need not be one
/// of a packet that is followed. (A datagram put together of fragments has the `sk_buff` of the last, and other headers.)
#[inline(always)]
fn is_stale(skb: u64, track: &Track, headers: &Headers, is_new: bool) -> bool {
    if is_new {
        return track.identity != headers.identity;
    }
    !follow::is_in_hand(skb) && !follow::is_same(skb, track, headers)
}

/// Whether the packet in hand is one that is asked for, and not only one that may come to be after translation.
#[inline(always)]
fn is_asked_for(hand: &Hand) -> bool {
    let is_tentative = follow::find(hand.skb).is_some_and(|track| track.flags & SIGHT_TENTATIVE != 0);
    !is_tentative || wanted::filter(&hand.tuple)
}

/// Flags of a journey that begins at a netfilter probe, or `None`.
#[inline(always)]
pub(super) fn begins(skb: u64, role: u32, headers: &Headers, netns: u32) -> Option<u32> {
    if role & role::GATE != 0 {
        let flags = wanted::at_first_sight(headers, netns);
        if flags != wanted::NO {
            return Some(flags);
        }
        // A reset that goes back while a packet that is asked for is in hand is its answer, that of a REJECT: conntrack may
        // not know of anything yet.
        let is_reset = headers.tuple.protocol == TCP && headers.tcp_flags & TCP_RST != 0;
        if is_reset
            && let Some(hand) = follow::in_hand()
            && hand.tuple.inverse() == headers.tuple
            && is_asked_for(hand)
        {
            return Some(SIGHT_BY_FLOW);
        }
    }
    if role & role::LATE == 0 {
        return None;
    }
    let mut reader = Reader::new();
    let entry = conntrack::of(&mut reader, skb);
    if entry.address == 0 {
        return None;
    }
    let late = if role & role::GATE != 0 { 0 } else { SIGHT_LATE };
    if conntrack::status(&mut reader, entry.address) & conntrack::CONFIRMED == 0 {
        return if wanted::tentative() { Some(SIGHT_TENTATIVE | late) } else { None };
    }
    if wanted::connection(entry.address) {
        return Some(SIGHT_BY_FLOW | late);
    }
    wanted::refuse(entry.address);
    None
}
