//! Records into the ring buffer; what does not fit is counted.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use tracer_common::{
    counters::Counter,
    records::{ConntrackTuples, Head, Kind, REASON_UNKNOWN, SIGHT_GAP, SIGHT_UNREADABLE, Sight},
    tuple::IPV4,
};

use crate::{
    conntrack,
    headers::Headers,
    maps::{EVENTS, Track, count},
    read::{Reader, member},
    wanted,
};

/// `dst_entry` pointer in `skb->_skb_refdst`; bit 0 is `SKB_DST_NOREF`.
const DST_MASK: u64 = !1;

/// Where a packet is seen.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) netns: u32,
    pub(crate) hook: u8,
    pub(crate) pf: u8,
    pub(crate) priority: i32,
    /// `struct net_device` pointers, 0 for none.
    pub(crate) device_in: u64,
    pub(crate) device_out: u64,
    pub(crate) reason: u32,
    pub(crate) location: u64,
    /// Flags of this sight alone.
    pub(crate) flags: u32,
}

impl Place {
    /// A place where only the kind and the namespace are known.
    #[inline(always)]
    pub(crate) fn new(kind: Kind, netns: u32) -> Self {
        Self {
            kind,
            netns,
            hook: 0,
            pf: 0,
            priority: 0,
            device_in: 0,
            device_out: 0,
            reason: REASON_UNKNOWN,
            location: 0,
            flags: 0,
        }
    }
}

/// The common start of a record.
#[inline(always)]
pub(crate) fn head(kind: Kind, journey: u64) -> Head {
    // SAFETY: helpers without arguments.
    let (cpu, time) = unsafe { (bpf_get_smp_processor_id(), bpf_ktime_get_ns()) };
    Head { kind: kind as u32, cpu, time, journey }
}

/// Reserves room, lets `fill` write the record and submits it; false, counted, when the ring buffer is full.
#[inline(always)]
pub(crate) fn record<T: 'static>(fill: impl FnOnce(&mut T)) -> bool {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        count(Counter::RingFull);
        return false;
    };
    // SAFETY: records are integers only, so zeroed memory is a valid one; `fill` sets what it knows.
    unsafe {
        core::ptr::write_bytes(entry.as_mut_ptr(), 0, 1);
        fill(&mut *entry.as_mut_ptr());
    }
    entry.submit(0);
    count(Counter::Emitted);
    true
}

/// Sends what is seen of a followed packet here, and its conntrack tuples where they are news.
#[inline(always)]
pub(crate) fn sight(skb: u64, track: &mut Track, headers: &Headers, place: &Place) {
    conntrack_news(skb, track, place.netns);
    emit_sight(skb, track, headers, place);
}

/// Sends the tuples of the packet's conntrack entry when they are new. A global function: the verifier looks at
/// it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle))]
#[inline(never)]
extern "C" fn conntrack_news(skb: u64, track: *mut Track, netns: u32) -> u32 {
    // SAFETY: null or a live structure, which the verifier checks for each caller.
    let Some(track) = (unsafe { track.as_mut() }) else { return 0 };
    let mut reader = Reader::new();
    let entry = conntrack::of(&mut reader, skb);
    if entry.address == 0 {
        return 0;
    }
    let status = conntrack::status(&mut reader, entry.address);
    if entry.address != track.conntrack || status != track.conntrack_status {
        // What found no room is said again at the next sight.
        if conntrack_tuples(track.journey, entry.address, netns) {
            track.conntrack = entry.address;
            track.conntrack_status = status;
        }
    }
    0
}

/// A global function: the verifier looks at it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle))]
#[inline(never)]
extern "C" fn emit_sight(skb: u64, track: *mut Track, headers: *const Headers, place: *const Place) -> u32 {
    // SAFETY: null or live structures, which the verifier checks for each caller.
    let (Some(track), Some(headers), Some(place)) =
        (unsafe { (track.as_mut(), headers.as_ref(), place.as_ref()) })
    else {
        return 0;
    };
    let mut reader = Reader::new();
    let entry = conntrack::of(&mut reader, skb);
    let status = if entry.address == 0 { 0 } else { conntrack::status(&mut reader, entry.address) };
    let (journey, flags) = (track.journey, track.flags);
    let sent = record::<Sight>(|sight| {
        sight.head = head(place.kind, journey);
        sight.skb = skb;
        sight.buffer = member!(reader, skb, skb_head);
        sight.location = place.location;
        sight.reason = place.reason;
        sight.netns = place.netns;
        sight.priority = place.priority;
        sight.hook = place.hook;
        sight.pf = place.pf;
        sight.mark = member!(reader, skb, skb_mark);
        sight.length = member!(reader, skb, skb_len);
        sight.conntrack = entry.address;
        sight.conntrack_info = entry.info;
        sight.conntrack_status = status;
        if entry.address != 0 {
            sight.conntrack_mark = member!(reader, entry.address, ct_mark);
            sight.conntrack_zone = member!(reader, entry.address, ct_zone);
        }
        device(&mut reader, place.device_in, &mut sight.in_ifindex, &mut sight.in_name);
        device(&mut reader, place.device_out, &mut sight.out_ifindex, &mut sight.out_name);
        copy_headers(headers, sight);
        segments(&mut reader, skb, sight);
        route(&mut reader, skb, headers.tuple.family, sight);
        let socket: u64 = member!(reader, skb, skb_sk);
        if socket != 0 {
            sight.socket_port = member!(reader, socket, sock_num);
        }
        sight.flags = flags | place.flags | if reader.failed() { SIGHT_UNREADABLE } else { 0 };
    });
    if !sent {
        track.flags |= SIGHT_GAP;
    }
    if reader.failed() {
        count(Counter::ReadFailed);
    }
    0
}

/// Sends both tuples of a connection; a connection that matches is remembered, so that its later packets and
/// replies are recognised at first sight.
#[inline(never)]
fn conntrack_tuples(journey: u64, address: u64, netns: u32) -> bool {
    record::<ConntrackTuples>(|record| {
        record.head = head(Kind::Conntrack, journey);
        record.conntrack = address;
        let complete = conntrack::tuple(address, 0, &mut record.original)
            && conntrack::tuple(address, 1, &mut record.reply);
        if complete && (wanted::filter(&record.original) || wanted::filter_inverse(&record.reply)) {
            wanted::remember_flow(&record.original, netns);
            wanted::remember_flow(&record.reply, netns);
        }
    })
}

#[inline(always)]
fn copy_headers(headers: &Headers, sight: &mut Sight) {
    sight.tuple = headers.tuple;
    sight.quoted = headers.quoted;
    sight.ip_id = headers.ip_id;
    sight.fragment = headers.fragment;
    sight.ttl = headers.ttl;
    sight.tcp_flags = headers.tcp_flags;
    sight.icmp_type = headers.icmp_type;
    sight.icmp_code = headers.icmp_code;
}

/// Index and name of a device.
#[inline(always)]
pub(crate) fn device(reader: &mut Reader, address: u64, ifindex: &mut u32, name: &mut [u8; 16]) {
    if address != 0 {
        *ifindex = member!(reader, address, dev_ifindex);
        *name = member!(reader, address, dev_name);
    }
}

/// `skb_shinfo(skb)->gso_segs`; `skb->end` is an offset from `head` on 64-bit kernels.
#[inline(always)]
fn segments(reader: &mut Reader, skb: u64, sight: &mut Sight) {
    let end: u32 = member!(reader, skb, skb_end);
    sight.gso_segments = member!(reader, sight.buffer + end as u64, shinfo_gso_segs);
}

const AF_INET6: u8 = 10;
/// include/net/dst.h
const DST_FAKE_RTABLE: u16 = 0x0010;
/// include/uapi/linux/route.h and ipv6_route.h
const RTF_GATEWAY: u32 = 0x0002;
const RTF_LOCAL: u32 = 0x8000_0000;
/// include/uapi/linux/rtnetlink.h
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

/// The route attached to the packet (`skb_dst`).
#[inline(always)]
fn route(reader: &mut Reader, skb: u64, family: u8, sight: &mut Sight) {
    let reference: u64 = member!(reader, skb, skb_dst);
    let destination = reference & DST_MASK;
    if destination == 0 {
        return;
    }
    // A bridged packet that netfilter sees has a route that is none (`br_netfilter_rtable_init`).
    let flags: u16 = member!(reader, destination, dst_flags);
    if flags & DST_FAKE_RTABLE != 0 {
        return;
    }
    let device_address: u64 = member!(reader, destination, dst_dev);
    let error: i16 = member!(reader, destination, dst_error);
    sight.routed = 1;
    sight.route_error = error as i32;
    device(reader, device_address, &mut sight.route_ifindex, &mut sight.route_name);
    if family == IPV4 {
        let kind: u16 = member!(reader, destination, rtable_type);
        sight.route_type = kind as u8;
        sight.gateway_family = member!(reader, destination, rtable_gw_family);
        if sight.gateway_family == AF_INET6 {
            sight.gateway = member!(reader, destination, rtable_gw6);
        } else {
            sight.gateway[3] = member!(reader, destination, rtable_gw4);
        }
    } else {
        sight.gateway = member!(reader, destination, rt6_gateway);
        let flags: u32 = member!(reader, destination, rt6_flags);
        sight.gateway_family = if flags & RTF_GATEWAY != 0 { AF_INET6 } else { 0 };
        sight.route_type = if flags & RTF_LOCAL != 0 { RTN_LOCAL } else { RTN_UNICAST };
    }
}

/// Address and inode number of the namespace a device belongs to.
#[inline(always)]
pub(crate) fn netns_of_device(reader: &mut Reader, device: u64) -> (u64, u32) {
    let net: u64 = member!(reader, device, dev_net);
    (net, member!(reader, net, net_inum))
}
