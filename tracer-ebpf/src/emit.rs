//! Records into the ring buffer; what does not fit is counted.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use tracer_common::{
    counters::Counter,
    records::{ConntrackTuples, Head, Kind, REASON_UNKNOWN, Sight},
    tuple::{IPV4, Tuple},
};

use crate::{
    conntrack,
    headers::Headers,
    maps::{EVENTS, Track, count},
    read::{at, member, offset, read},
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

/// Reserves room, lets `fill` write the record and submits it.
#[inline(always)]
pub(crate) fn record<T: 'static>(fill: impl FnOnce(&mut T)) {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        count(Counter::RingFull);
        return;
    };
    // SAFETY: records are integers only, so zeroed memory is a valid one; `fill` sets what it knows.
    unsafe {
        core::ptr::write_bytes(entry.as_mut_ptr(), 0, 1);
        fill(&mut *entry.as_mut_ptr());
    }
    entry.submit(0);
    count(Counter::Emitted);
}

/// Sends what is seen of a followed packet here, and its conntrack tuples where they are news.
#[inline(never)]
pub(crate) fn sight(skb: u64, track: &mut Track, headers: &Headers, place: &Place) {
    let entry = conntrack::of(skb);
    let status = if entry.address == 0 { 0 } else { conntrack::status(entry.address) };
    if entry.address != 0 && (entry.address != track.conntrack || status != track.conntrack_status) {
        track.conntrack = entry.address;
        track.conntrack_status = status;
        conntrack_tuples(track.journey, entry.address, place.netns);
    }
    let (journey, flags) = (track.journey, track.flags);
    record::<Sight>(|sight| {
        sight.head = head(place.kind, journey);
        sight.skb = skb;
        sight.buffer = member!(skb, skb_head).unwrap_or(0);
        sight.location = place.location;
        sight.reason = place.reason;
        sight.netns = place.netns;
        sight.flags = flags | place.flags;
        sight.priority = place.priority;
        sight.hook = place.hook;
        sight.pf = place.pf;
        sight.mark = member!(skb, skb_mark).unwrap_or(0);
        sight.length = member!(skb, skb_len).unwrap_or(0);
        sight.conntrack = entry.address;
        sight.conntrack_info = entry.info;
        sight.conntrack_status = status;
        if entry.address != 0 {
            sight.conntrack_mark = member!(entry.address, ct_mark).unwrap_or(0);
            sight.conntrack_zone = member!(entry.address, ct_zone).unwrap_or(0);
        }
        device(place.device_in, &mut sight.in_ifindex, &mut sight.in_name);
        device(place.device_out, &mut sight.out_ifindex, &mut sight.out_name);
        copy_headers(headers, sight);
        segments(skb, sight);
        route(skb, headers.tuple.family, sight);
    });
}

/// Sends both tuples of a connection; a connection that matches is remembered, so that its later packets and
/// replies are recognised at first sight.
#[inline(never)]
fn conntrack_tuples(journey: u64, address: u64, netns: u32) {
    let mut original = Headers::EMPTY.tuple;
    let mut reply = Headers::EMPTY.tuple;
    if !conntrack::tuple(address, 0, &mut original) || !conntrack::tuple(address, 1, &mut reply) {
        return;
    }
    if wanted::filter(&original) || wanted::filter(&reply.inverse()) {
        wanted::remember_flow(&original, netns);
        wanted::remember_flow(&reply, netns);
    }
    record::<ConntrackTuples>(|record| {
        record.head = head(Kind::Conntrack, journey);
        record.conntrack = address;
        record.original = original;
        record.reply = reply;
    });
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
pub(crate) fn device(address: u64, ifindex: &mut u32, name: &mut [u8; 16]) {
    if address != 0 {
        *ifindex = member!(address, dev_ifindex).unwrap_or(0);
        *name = member!(address, dev_name).unwrap_or([0; 16]);
    }
}

/// `skb_shinfo(skb)->gso_segs`; `skb->end` is an offset from `head` on 64-bit kernels.
#[inline(always)]
fn segments(skb: u64, sight: &mut Sight) {
    let end: u32 = member!(skb, skb_end).unwrap_or(0);
    if sight.buffer != 0 && end != 0 {
        sight.gso_segments = member!(sight.buffer + end as u64, shinfo_gso_segs).unwrap_or(0);
    }
}

/// The route attached to the packet (`skb_dst`).
#[inline(always)]
fn route(skb: u64, family: u8, sight: &mut Sight) {
    let destination = member!(skb, skb_dst).unwrap_or(0u64) & DST_MASK;
    let device_address: u64 = member!(destination, dst_dev).unwrap_or(0);
    if destination == 0 || device_address == 0 {
        return;
    }
    sight.routed = 1;
    sight.route_error = member!(destination, dst_error).unwrap_or(0i16) as i32;
    device(device_address, &mut sight.route_ifindex, &mut sight.route_name);
    if family == IPV4 {
        sight.route_type = member!(destination, rtable_type).unwrap_or(0u16) as u8;
        sight.gateway_family = member!(destination, rtable_gw_family).unwrap_or(0);
        sight.gateway = gateway(destination, sight.gateway_family);
    } else {
        sight.gateway = member!(destination, rt6_gateway).unwrap_or([0; 4]);
        let flags: u32 = member!(destination, rt6_flags).unwrap_or(0);
        sight.gateway_family = if flags & RTF_GATEWAY != 0 { AF_INET6 } else { 0 };
        sight.route_type = if flags & RTF_LOCAL != 0 { RTN_LOCAL } else { RTN_UNICAST };
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// include/uapi/linux/route.h and ipv6_route.h
const RTF_GATEWAY: u32 = 0x0002;
const RTF_LOCAL: u32 = 0x8000_0000;
/// include/uapi/linux/rtnetlink.h
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;

#[inline(always)]
fn gateway(route: u64, family: u8) -> [u32; 4] {
    match family {
        AF_INET => [0, 0, 0, member!(route, rtable_gw4).unwrap_or(0)],
        AF_INET6 => at(route, offset!(rtable_gw6)).unwrap_or([0; 4]),
        _ => [0; 4],
    }
}

/// Inode number of the namespace a device belongs to.
#[inline(always)]
pub(crate) fn netns_of_device(device: u64) -> (u64, u32) {
    let net: u64 = member!(device, dev_net).unwrap_or(0);
    (net, member!(net, net_inum).unwrap_or(0))
}

/// A tuple of nothing.
pub(crate) const NO_TUPLE: Tuple = Headers::EMPTY.tuple;

/// Reads an address that may be 0.
#[inline(always)]
pub(crate) fn word(address: u64) -> u64 {
    if address == 0 { 0 } else { read(address).unwrap_or(0) }
}
