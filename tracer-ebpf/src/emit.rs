//! Records into the ring buffer; what does not fit is counted.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_ringbuf_output},
};
use tracer_common::{
    counters::Counter,
    records::{
        ConntrackTuples, Head, Hit, Kind, MAX_HITS, REASON_UNKNOWN, RULE_HITS_HEAD, RuleHits, SIGHT_GAP,
        SIGHT_UNREADABLE, Sight,
    },
    tuple::IPV4,
};

use crate::{
    conntrack,
    headers::Headers,
    maps::{EVENTS, Track, count},
    read::{Reader, member},
    wanted,
};

/// Records of a CPU after which user space is woken; all CPUs together fill the ring with many times as many.
const WAKE_EVERY: u64 = 512;

/// `dst_entry` pointer in `skb->_skb_refdst`; bit 0 is `SKB_DST_NOREF`.
const DST_MASK: u64 = !1;

/// Where a packet is seen.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) netns: u32,
    pub(crate) hook: u8,
    pub(crate) pf: u8,
    pub(crate) reserved: u16,
    pub(crate) priority: i32,
    /// `struct net_device` pointers, 0 for none.
    pub(crate) device_in: u64,
    pub(crate) device_out: u64,
    pub(crate) location: u64,
    pub(crate) reason: u32,
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
            reserved: 0,
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
        zero(entry.as_mut_ptr());
        fill(&mut *entry.as_mut_ptr());
    }
    entry.submit(wakeup());
    true
}

/// Zeroes a structure of integers word by word. What LLVM makes of `write_bytes` is a call of a function that writes byte by byte.
#[inline(always)]
pub(crate) unsafe fn zero<T>(record: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) }
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: inside the record. Volatile, or the loop would become that call.
        unsafe { record.cast::<u64>().add(at).write_volatile(0) };
        at += 1;
    }
}

/// Copies a structure of integers word by word, as [`zero`].
#[inline(always)]
pub(crate) fn copy<T>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) }
    let (from, to) = (core::ptr::from_ref(from).cast::<u64>(), core::ptr::from_mut(to).cast::<u64>());
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // SAFETY: inside both.
        unsafe { to.add(at).write_volatile(*from.add(at)) };
        at += 1;
    }
}

/// Counts a record; flags of its submission. Waking user space costs more than the record, and user space looks
/// every few milliseconds anyway: it is woken only where many records may have come since.
#[inline(always)]
fn wakeup() -> u64 {
    let due = count(Counter::Emitted).is_multiple_of(WAKE_EVERY);
    (if due { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }) as u64
}

/// Sends the counters of a table that moved: as many bytes as it counts.
#[inline(always)]
pub(crate) fn hits(hits: &RuleHits) {
    let length = RULE_HITS_HEAD + (hits.count as usize).min(MAX_HITS) * size_of::<Hit>();
    // SAFETY: `length` bytes of a live record, and the map's own address.
    let sent = unsafe {
        bpf_ringbuf_output(
            (&raw const EVENTS).cast_mut().cast(),
            core::ptr::from_ref(hits).cast_mut().cast(),
            length as u64,
            wakeup(),
        )
    };
    if sent != 0 {
        count(Counter::RingFull);
    }
}

/// Sends what is seen of a followed packet here, and its conntrack tuples where they are news.
#[inline(always)]
pub(crate) fn sight(skb: u64, track: &mut Track, headers: &Headers, place: &Place) {
    #[cfg(not(feature = "older"))]
    emit_sight(skb, track, headers, place);
    #[cfg(feature = "older")]
    crate::older::sight(skb, track, headers, place);
}

/// A global function: the verifier looks at it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle), inline(never))]
#[cfg_attr(feature = "older", inline(always))]
pub(crate) extern "C" fn emit_sight(
    skb: u64,
    track: *mut Track,
    headers: *const Headers,
    place: *const Place,
) -> u32 {
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
    if entry.address != 0 {
        track.conntrack_info = entry.info as u32;
    }
    if entry.address != 0
        && (entry.address != track.conntrack || status != track.conntrack_status)
        // What finds no room is said again at the next sight.
        && conntrack_tuples(journey, entry.address, place.netns)
    {
        track.conntrack = entry.address;
        track.conntrack_status = status;
    }
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
        let length: u32 = member!(reader, skb, skb_len);
        let data: u64 = member!(reader, skb, skb_data);
        // `len` counts from `data`, which may stand at the link layer's header, or behind the network's.
        let before = if headers.address == 0 { 0 } else { headers.address.wrapping_sub(data) };
        sight.length = length.wrapping_sub(before as u32);
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
#[inline(always)]
fn conntrack_tuples(journey: u64, address: u64, netns: u32) -> bool {
    send_tuples(journey, address, netns) != 0
}

#[cfg_attr(feature = "older", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn send_tuples(journey: u64, address: u64, netns: u32) -> u32 {
    let sent = record::<ConntrackTuples>(|record| {
        record.head = head(Kind::Conntrack, journey);
        record.conntrack = address;
        let complete = conntrack::tuple(address, 0, &mut record.original)
            && conntrack::tuple(address, 1, &mut record.reply);
        if complete && (wanted::filter(&record.original) || wanted::filter_inverse(&record.reply)) {
            wanted::remember_flow(&record.original, netns);
            wanted::remember_flow(&record.reply, netns);
        }
    });
    u32::from(sent)
}

#[inline(always)]
pub(crate) fn copy_headers(headers: &Headers, sight: &mut Sight) {
    copy(&headers.tuple, &mut sight.tuple);
    if headers.quoted.is_some() {
        copy(&headers.quoted, &mut sight.quoted);
    }
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
        let words: [u64; 2] = member!(reader, address, dev_name);
        // SAFETY: 16 bytes each; records keep names where words may lie.
        unsafe { name.as_mut_ptr().cast::<[u64; 2]>().write(words) };
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
