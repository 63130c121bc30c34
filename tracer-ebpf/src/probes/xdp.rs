//! XDP on the devices that the user named (`--xdp`): a look at each packet as the device hands it to the stack. It lets
//! every packet pass.
//!
//! Attached in generic mode, which no driver notices: the program runs inside `__netif_receive_skb_core` (net/core/dev.c),
//! behind the tracepoint `netif_receive_skb` and before tcx. It is not given the `sk_buff`, only its buffer
//! (`bpf_prog_run_generic_xdp`). That buffer, on the same CPU and with nothing in between, says which packet it is.

use core::mem::MaybeUninit;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use tracer_common::records::{CONNTRACK_NONE, Kind, REASON_UNKNOWN, SIGHT_FIRST, Sight};

use crate::{
    emit::{self, copy_headers, head, netns_of_device, record},
    follow,
    headers::{self, Headers},
    maps::{SETTINGS, XDP_SEEN, XdpSeen},
    read::{Reader, member, plain},
    wanted,
};

/// `ARPHRD_ETHER` and `ARPHRD_LOOPBACK` (include/uapi/linux/if_arp.h): frames begin with an Ethernet header.
const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;
/// `ETH_P_8021Q` and `ETH_P_8021AD` in network byte order.
const VLAN: u16 = 0x8100u16.to_be();
const OUTER_VLAN: u16 = 0x88a8u16.to_be();

/// A packet that XDP saw: who and where.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    /// `struct net_device`
    pub(super) device: u64,
    pub(super) netns: u32,
    /// `skb->head` of the packet that this becomes.
    pub(super) buffer: u64,
    /// Bytes from the network header on.
    pub(super) length: u32,
    /// The program of somebody else that judged it, 0 for our own look, and what it returned.
    pub(super) program: u32,
    pub(super) verdict: u32,
}

#[xdp]
pub(crate) fn xdp_in(ctx: XdpContext) -> u32 {
    // What stands behind the context that the verifier knows is a `struct xdp_buff`.
    look(plain(ctx.ctx as u64));
    xdp_action::XDP_PASS
}

#[inline(never)]
fn look(frame: u64) -> u32 {
    let Some(seen) = XDP_SEEN.get_ptr_mut(0) else { return 0 };
    // SAFETY: a valid per-CPU map value.
    let seen = unsafe { &mut *seen };
    seen.buffer = 0;
    let mut reader = Reader::new();
    let device = device_of(&mut reader, frame);
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(network_header(&mut reader, frame, device), headers) {
        return 0;
    }
    let end: u64 = member!(reader, frame, xdp_data_end);
    let frame = Frame {
        device,
        netns: netns_of_device(&mut reader, device).1,
        buffer: member!(reader, frame, xdp_hard_start),
        length: end.wrapping_sub(headers.address) as u32,
        program: 0,
        verdict: REASON_UNKNOWN,
    };
    if let Some((skb, journey)) = known_as(&frame, headers) {
        emit_frame(journey, skb, 0, &frame, headers);
        return 0;
    }
    begin(seen, &frame, headers);
    0
}

/// The `struct net_device` that a frame came in by.
#[inline(always)]
pub(super) fn device_of(reader: &mut Reader, frame: u64) -> u64 {
    let queue: u64 = member!(reader, frame, xdp_rxq);
    member!(reader, queue, rxq_dev)
}

/// Address of a frame's network header.
#[inline(always)]
pub(super) fn network_header(reader: &mut Reader, frame: u64, device: u64) -> u64 {
    let data: u64 = member!(reader, frame, xdp_data);
    let kind: u16 = member!(reader, device, dev_type);
    if kind != ETHERNET && kind != LOOPBACK {
        return data;
    }
    let protocol: u16 = reader.read(data + 12);
    if protocol == VLAN || protocol == OUTER_VLAN { data + 18 } else { data + 14 }
}

/// The followed packet in hand, where the tracepoint has just seen it on this CPU: it comes from this device, has
/// these headers, and the frame is its own buffer.
#[inline(always)]
pub(super) fn known_as(frame: &Frame, headers: &Headers) -> Option<(u64, u64)> {
    let hand = follow::in_hand()?;
    let track = follow::find(hand.skb)?;
    let buffer: u64 = member!(Reader::new(), hand.skb, skb_head);
    let same =
        buffer == frame.buffer && track.device_in == frame.device && track.identity == headers.identity;
    if same { Some((hand.skb, track.journey)) } else { None }
}

/// Remembers the frame for whoever sees its `sk_buff` next, and sends what is asked for.
#[inline(always)]
fn begin(seen: &mut XdpSeen, frame: &Frame, headers: &Headers) {
    // What the stack's probes will refuse to follow is not begun here.
    let flags = if follow::lags() { wanted::NO } else { wanted::at_first_sight(headers, frame.netns) };
    let journey = if flags == wanted::NO { 0 } else { follow::new_journey() };
    seen.device = frame.device;
    seen.identity = headers.identity;
    seen.journey = journey;
    seen.tuple = headers.tuple;
    seen.buffer = frame.buffer;
    if journey != 0 {
        emit_frame(journey, 0, flags | SIGHT_FIRST, frame, headers);
    }
}

#[inline(never)]
pub(super) fn emit_frame(journey: u64, skb: u64, flags: u32, frame: &Frame, headers: &Headers) -> u32 {
    let mut reader = Reader::new();
    record::<Sight>(|sight| {
        sight.head = head(if frame.program == 0 { Kind::Xdp } else { Kind::XdpVerdict }, journey);
        sight.location = frame.program as u64;
        sight.skb = skb;
        sight.buffer = frame.buffer;
        sight.netns = frame.netns;
        sight.flags = flags;
        sight.length = frame.length;
        sight.reason = frame.verdict;
        sight.conntrack_info = CONNTRACK_NONE;
        emit::device(&mut reader, frame.device, &mut sight.in_ifindex, &mut sight.in_name);
        copy_headers(headers, sight);
    });
    0
}

/// The journey that XDP began right before on this CPU for this packet, whose `sk_buff` is seen now (0 where it was not
/// asked for yet); `None` where XDP did not see it, or something else has come in between.
#[inline(always)]
pub(crate) fn saw(skb: u64, device: u64, headers: &Headers) -> Option<u64> {
    // SAFETY: written before the program was loaded, read-only since.
    if unsafe { (*(&raw const SETTINGS)).xdp } == 0 {
        return None;
    }
    // SAFETY: a valid per-CPU map value.
    let seen = unsafe { &mut *XDP_SEEN.get_ptr_mut(0)? };
    let buffer: u64 = member!(Reader::new(), skb, skb_head);
    let same = seen.buffer != 0
        && seen.buffer == buffer
        && seen.device == device
        && seen.identity == headers.identity
        && seen.tuple == headers.tuple;
    seen.buffer = 0;
    if same { Some(seen.journey) } else { None }
}
