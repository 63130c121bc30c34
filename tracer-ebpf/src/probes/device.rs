//! First and last sight of a packet on a device.
//!
//! The tracepoints fire for every device of every namespace, before XDP-generic and tc programs on the way in
//! and after the queueing discipline on the way out, and there is nothing to follow when devices come and go.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::records::{Kind, SIGHT_COPY, SIGHT_FIRST, Sight};

use crate::{
    emit::{Place, head, netns_of_device, record, sight},
    follow,
    headers::{self, Headers, network_header},
    maps::{SCOPE, SETTINGS, Track},
    read::{Reader, member},
    wanted,
};

/// `ETH_P_IP` and `ETH_P_IPV6` in network byte order.
const IP: u16 = 0x0800u16.to_be();
const IP6: u16 = 0x86ddu16.to_be();

/// Inode number of the namespace when it is traced.
#[inline(always)]
fn in_scope(reader: &mut Reader, device: u64) -> Option<u32> {
    // SAFETY: written before the program was loaded, read-only since.
    if unsafe { (*(&raw const SETTINGS)).all_namespaces } != 0 {
        return Some(netns_of_device(reader, device).1);
    }
    let net: u64 = member!(reader, device, dev_net);
    // SAFETY: a valid map value.
    SCOPE.get_ptr(net).map(|inum| unsafe { *inum })
}

/// `TRACE_EVENT(netif_receive_skb, TP_PROTO(struct sk_buff *skb))`, include/trace/events/net.h.
#[raw_tracepoint(tracepoint = "netif_receive_skb")]
pub(crate) fn device_in(ctx: RawTracePointContext) -> i32 {
    receive(ctx.arg::<*const u8>(0) as u64);
    0
}

#[inline(always)]
fn receive(skb: u64) -> Option<()> {
    let mut reader = Reader::new();
    let device: u64 = member!(reader, skb, skb_dev);
    let Some(netns) = in_scope(&mut reader, device) else {
        if let Some(track) = follow::find(skb) {
            left(skb, track.journey, device);
        }
        return None;
    };
    let known = follow::find(skb);
    // The network header is set right after this tracepoint: here the packet starts at `data`.
    let protocol: u16 = member!(reader, skb, skb_protocol);
    if protocol != IP && protocol != IP6 {
        return None;
    }
    let mut headers = Headers::EMPTY;
    let data: u64 = member!(reader, skb, skb_data);
    if !headers::parse(data, &mut headers) {
        return None;
    }
    let mut place = Place { device_in: device, ..Place::new(Kind::DeviceIn, netns) };
    if let Some(track) = known {
        if track.identity == headers.identity {
            follow::take_in_hand(skb, track.journey, &headers.tuple);
            sight(skb, track, &headers, &place);
            return Some(());
        }
        follow::stop(skb);
    }
    let flags = wanted::at_first_sight(&headers, netns);
    if flags == wanted::NO {
        follow::empty_hand();
        return None;
    }
    let track = follow::start(skb, &headers, flags)?;
    place.flags = SIGHT_FIRST;
    follow::take_in_hand(skb, track.journey, &headers.tuple);
    sight(skb, track, &headers, &place);
    Some(())
}

/// The packet turned up in a namespace that is not traced.
#[inline(never)]
fn left(skb: u64, journey: u64, device: u64) {
    let netns = netns_of_device(&mut Reader::new(), device).1;
    record::<Sight>(|sight| {
        sight.head = head(Kind::Left, journey);
        sight.skb = skb;
        sight.netns = netns;
    });
    follow::stop(skb);
}

/// `TRACE_EVENT(net_dev_start_xmit, TP_PROTO(const struct sk_buff *skb, const struct net_device *dev))`.
#[raw_tracepoint(tracepoint = "net_dev_start_xmit")]
pub(crate) fn device_out(ctx: RawTracePointContext) -> i32 {
    let skb = ctx.arg::<*const u8>(0) as u64;
    let device = ctx.arg::<*const u8>(1) as u64;
    if let Some(track) = follow::find(skb) {
        sent(skb, track, device, 0);
    } else if let Some(original) = follow::copied_from(skb)
        && let Some(track) = follow::find(original)
    {
        sent(skb, track, device, SIGHT_COPY);
    }
    0
}

#[inline(never)]
fn sent(skb: u64, track: &mut Track, device: u64, flags: u32) {
    let mut reader = Reader::new();
    let mut headers = Headers::EMPTY;
    headers::parse(network_header(&mut reader, skb), &mut headers);
    let netns = netns_of_device(&mut reader, device).1;
    let place = Place { device_out: device, flags, ..Place::new(Kind::DeviceOut, netns) };
    sight(skb, track, &headers, &place);
}
