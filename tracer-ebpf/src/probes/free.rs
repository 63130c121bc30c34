//! The end of a packet: dropped or consumed.

use core::mem::MaybeUninit;

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::records::{Kind, REASON_UNKNOWN};

use crate::{
    counters,
    emit::{Place, netns_of_device, sight},
    follow,
    headers::{self, Headers, network_header},
    log,
    maps::SETTINGS,
    probes::device::left,
    read::{Reader, member},
};

/// Whether a tracepoint has an argument here. A constant for the verifier, which refuses to attach a program that may
/// read an argument that is not there.
macro_rules! has {
    ($argument:ident) => {{
        // SAFETY: written before the program was loaded, read-only since.
        unsafe { (*(&raw const SETTINGS)).freed.$argument != 0 }
    }};
}

/// `TRACE_EVENT(kfree_skb, TP_PROTO(struct sk_buff *skb, void *location, enum skb_drop_reason reason, ...))`,
/// include/trace/events/skb.h; the reason is there from 5.17, and not on every kernel.
#[raw_tracepoint(tracepoint = "kfree_skb")]
pub(crate) fn packet_drop(ctx: RawTracePointContext) -> i32 {
    log::say();
    let skb = ctx.arg::<*const u8>(0) as u64;
    if follow::find(skb).is_some() {
        let location = if has!(drop_location) { ctx.arg::<*const u8>(1) as u64 } else { 0 };
        let reason = if has!(drop_reason) { ctx.arg::<u64>(2) as u32 } else { REASON_UNKNOWN };
        freed(Kind::Drop, skb, location, reason);
    }
    0
}

/// `TRACE_EVENT(consume_skb, TP_PROTO(struct sk_buff *skb, void *location))`; the location is there from 6.3.
#[raw_tracepoint(tracepoint = "consume_skb")]
pub(crate) fn packet_consume(ctx: RawTracePointContext) -> i32 {
    log::say();
    let skb = ctx.arg::<*const u8>(0) as u64;
    if follow::find(skb).is_some() {
        let location = if has!(consume_location) { ctx.arg::<*const u8>(1) as u64 } else { 0 };
        if has!(consume_location) && follow::keep_for_copy(skb, location) {
            return 0;
        }
        freed(Kind::Consume, skb, location, 0);
    }
    0
}

#[inline(never)]
fn freed(kind: Kind, skb: u64, location: u64, reason: u32) -> i32 {
    let Some(track) = follow::find(skb) else { return 0 };
    let mut reader = Reader::new();
    let device: u64 = member!(reader, skb, skb_dev);
    // The device's queue and driver free a packet that is still theirs. (Past a socket, `dev` is not even a device.)
    if track.device_out != 0 && track.device_out != device {
        left(skb, track);
        return 0;
    }
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(network_header(&mut reader, skb), headers) || !follow::is_same(skb, track, headers) {
        follow::stop(skb);
        return 0;
    }
    counters::close(track.journey, 1);
    let netns = if device == 0 { 0 } else { netns_of_device(&mut reader, device).1 };
    let place = Place { location, reason, ..Place::new(kind, netns) };
    sight(skb, track, headers, &place);
    follow::stop(skb);
    0
}
