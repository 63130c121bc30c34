//! First and last sight of a packet on a device: tcx programs on the devices of traced namespaces, and where the
//! kernel has no tcx (before 6.6), tracepoints that fire for every device of every namespace.
//!
//! Both see a packet before others' tc programs on the way in; the tracepoints see it before XDP-generic, too. On the
//! way out, tcx stands before the queueing discipline and the tracepoint behind it.

use core::mem::MaybeUninit;

use aya_ebpf::{
    macros::{classifier, raw_tracepoint},
    programs::{RawTracePointContext, TcContext},
};
use tracer_common::records::{Kind, SIGHT_COPY, SIGHT_FIRST, SIGHT_TENTATIVE, SIGHT_XDP, Sight};

use crate::{
    emit::{Place, head, netns_of_device, record, sight},
    follow, glance,
    headers::{self, Headers, network_header},
    maps::{SCOPE, SETTINGS, Track},
    probes::{verdict, xdp},
    read::{Reader, member, plain},
    wanted,
};

/// `TCX_NEXT` (include/uapi/linux/bpf.h): the packet goes on as if we were not there.
const NEXT: i32 = -1;

/// First in line at the ingress of a traced namespace's device (`sch_handle_ingress`, net/core/dev.c).
#[classifier]
pub(crate) fn tcx_in(ctx: TcContext) -> i32 {
    let skb = plain(ctx.skb.skb as u64);
    if follow::find(skb).is_some() || glance::may_match_at_ingress(ctx.skb.skb, skb) {
        tcx_receive(skb, network_header(&mut Reader::new(), skb));
    } else {
        follow::empty_hand();
    }
    NEXT
}

#[inline(never)]
fn tcx_receive(skb: u64, header: u64) -> u32 {
    let mut reader = Reader::new();
    let device: u64 = member!(reader, skb, skb_dev);
    let netns = netns_of_device(&mut reader, device).1;
    receive(skb, device, netns, header);
    0
}

/// `TRACE_EVENT(netif_receive_skb, TP_PROTO(struct sk_buff *skb))`, include/trace/events/net.h.
#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub(crate) fn device_in(ctx: RawTracePointContext) -> i32 {
    let skb = ctx.arg::<*const u8>(0) as u64;
    // The network header is set right after this tracepoint: here the packet starts at `data`.
    let header: u64 = member!(Reader::new(), skb, skb_data);
    if follow::find(skb).is_some() || glance::may_match(skb, header) {
        tracepoint_receive(skb, header);
    } else {
        follow::empty_hand();
    }
    0
}

#[inline(never)]
fn tracepoint_receive(skb: u64, header: u64) -> u32 {
    let mut reader = Reader::new();
    let device: u64 = member!(reader, skb, skb_dev);
    if let Some(netns) = in_scope(&mut reader, device) {
        receive(skb, device, netns, header);
    } else {
        receive_outside(skb, header);
    }
    0
}

/// A packet came in from a device that is not traced. No part of the function above: the headers of both in one frame are more
/// than the verifier of 5.10 allows it.
#[inline(never)]
fn receive_outside(skb: u64, header: u64) -> u32 {
    let Some(track) = follow::find(skb) else {
        follow::empty_hand();
        return 0;
    };
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    // Past the device that it left by, it has gone in any case.
    if track.device_out != 0 || headers::parse(header, headers) && follow::is_same(skb, track, headers) {
        left(skb, track);
    } else {
        follow::stop(skb);
    }
    0
}

/// Inode number of the namespace when it is traced.
#[inline(always)]
pub(super) fn in_scope(reader: &mut Reader, device: u64) -> Option<u32> {
    // SAFETY: written before the program was loaded, read-only since.
    if unsafe { (*(&raw const SETTINGS)).all_namespaces } != 0 {
        return Some(netns_of_device(reader, device).1);
    }
    let net: u64 = member!(reader, device, dev_net);
    // SAFETY: a valid map value.
    SCOPE.get_ptr(net).map(|inum| unsafe { *inum })
}

/// A packet came in from a device of a traced namespace.
#[inline(always)]
fn receive(skb: u64, device: u64, netns: u32, header: u64) -> Option<()> {
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(header, headers) {
        return None;
    }
    let mut place = Place { device_in: device, ..Place::new(Kind::DeviceIn, netns) };
    if let Some(journey) = xdp::saw(skb, device, headers) {
        place.flags = SIGHT_XDP;
        place.location = journey;
    }
    if let Some(track) = follow::find(skb) {
        if track.identity == headers.identity {
            if track.device_in == device {
                // The tracepoint has seen it here: both stand while user space moves from one to the other.
                return Some(());
            }
            track.device_in = device;
            track.device_out = 0;
            follow::take_in_hand(skb, track.journey, &headers.tuple);
            if track.flags & SIGHT_TENTATIVE == 0 {
                wanted::remember_answers(&headers.tuple, netns);
            }
            sight(skb, track, headers, &place);
            verdict::of_xdp(skb, track, headers, &mut place);
            return Some(());
        }
        follow::stop(skb);
    }
    let flags = wanted::at_first_sight(headers, netns);
    if flags == wanted::NO {
        follow::empty_hand();
        return None;
    }
    let track = follow::start(skb, headers, flags)?;
    track.device_in = device;
    place.flags |= SIGHT_FIRST;
    follow::take_in_hand(skb, track.journey, &headers.tuple);
    sight(skb, track, headers, &place);
    verdict::of_xdp(skb, track, headers, &mut place);
    Some(())
}

/// The packet turned up in a namespace that is not traced.
#[inline(never)]
pub(crate) fn left(skb: u64, track: &Track) {
    record::<Sight>(|sight| {
        sight.head = head(Kind::Left, track.journey);
        sight.skb = skb;
        sight.flags = track.flags;
    });
    follow::stop(skb);
}

/// At the egress of a traced namespace's device, before its queueing discipline (`sch_handle_egress`,
/// net/core/dev.c).
#[classifier]
pub(crate) fn tcx_out(ctx: TcContext) -> i32 {
    if follow::nobody() {
        return NEXT;
    }
    let skb = plain(ctx.skb.skb as u64);
    let device: u64 = member!(Reader::new(), skb, skb_dev);
    if sent_copy(skb, device) {
        return NEXT;
    }
    if let Some(track) = follow::find(skb) {
        track.device_in = 0;
        track.device_out = device;
        sent(skb, track, device, 0);
        // What comes next on this CPU may be the other end of a veth pair, in a namespace that is not traced.
        follow::empty_hand();
    }
    NEXT
}

/// `TRACE_EVENT(net_dev_start_xmit, TP_PROTO(const struct sk_buff *skb, const struct net_device *dev))`.
#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub(crate) fn device_out(ctx: RawTracePointContext) -> i32 {
    let skb = ctx.arg::<*const u8>(0) as u64;
    let device = ctx.arg::<*const u8>(1) as u64;
    if sent_copy(skb, device) {
        return 0;
    }
    if let Some(track) = follow::find(skb) {
        if in_scope(&mut Reader::new(), device).is_none() {
            gone(skb, track);
            return 0;
        }
        track.device_in = 0;
        if track.device_out != device {
            sent(skb, track, device, 0);
        }
    }
    0
}

/// Whether this is a copy of the packet in hand, which is said of that one, unless that one goes on as this. Whatever was
/// followed at its address was freed without a word.
#[inline(always)]
fn sent_copy(skb: u64, device: u64) -> bool {
    let Some(original) = follow::copied_from(skb) else { return false };
    if follow::awaits_copy() {
        follow::go_on_as(original, skb);
        return false;
    }
    if let Some(track) = follow::find(original) {
        sent(skb, track, device, SIGHT_COPY);
    }
    true
}

/// A packet leaves by a device of a namespace that is not traced, where none came in that was followed: either it is below the
/// device that it left by (macvlan), or another packet has its `sk_buff`.
#[inline(always)]
fn gone(skb: u64, track: &Track) {
    if track.device_out != 0 {
        left(skb, track);
    } else {
        follow::stop(skb);
    }
}

#[inline(never)]
fn sent(skb: u64, track: &mut Track, device: u64, flags: u32) {
    let mut reader = Reader::new();
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    headers::parse(network_header(&mut reader, skb), headers);
    // Not all that leaves has passed a probe since its `sk_buff` served a packet that was freed without a word: ARP for one.
    if flags & SIGHT_COPY == 0 && !follow::is_same(skb, track, headers) {
        follow::stop(skb);
        return;
    }
    let netns = netns_of_device(&mut reader, device).1;
    let place = Place { device_out: device, flags, ..Place::new(Kind::DeviceOut, netns) };
    sight(skb, track, headers, &place);
}
