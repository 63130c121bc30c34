//! What the headers of a packet say.

use core::mem::MaybeUninit;

use network_types::ip::IpProto;
use tracer_common::tuple::{IPV4, IPV6, Tuple};

use crate::{
    emit::zero,
    read::{Reader, member},
};

const TCP: u8 = IpProto::Tcp as u8;
const UDP: u8 = IpProto::Udp as u8;
const ICMP: u8 = IpProto::Icmp as u8;
const ICMP6: u8 = IpProto::Ipv6Icmp as u8;
const SCTP: u8 = IpProto::Sctp as u8;
const DCCP: u8 = IpProto::Dccp as u8;
const UDPLITE: u8 = IpProto::UdpLite as u8;

const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
const ROUTING: u8 = IpProto::Ipv6Route as u8;
const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
const DESTINATION_OPTIONS: u8 = IpProto::Ipv6Opts as u8;

/// Mask of the fragment offset in IPv4's `frags` field; a packet with one has no ports.
const OFFSET_V4: u16 = 0x1fff;
/// The same in IPv6's fragment header.
const OFFSET_V6: u16 = 0xfff8;
/// More fragments follow.
const MORE_V4: u16 = 0x2000;
const MORE_V6: u16 = 0x0001;

/// The header fields that pathtrace uses.
#[derive(Clone, Copy, Default)]
pub(crate) struct Headers {
    pub(crate) tuple: Tuple,
    /// The packet that an ICMP error quotes; family 0 for none.
    pub(crate) quoted: Tuple,
    /// Fields that no router and no NAT changes: tells a packet from another in a reused `sk_buff`.
    pub(crate) identity: u64,
    /// Address of the network header, 0 where there is none.
    pub(crate) address: u64,
    /// IPv4 identification; for IPv6 the low half of the fragment header's, 0 without one.
    pub(crate) ip_id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) icmp_type: u8,
    pub(crate) icmp_code: u8,
}

/// Zeroes a structure of integers where it lies. As a constant it would be filled byte by byte by a function; as a
/// value it would lie on the stack twice.
///
/// # Safety
/// `T` takes zero in each of its fields.
#[inline(always)]
pub(crate) unsafe fn zeroed<T>(place: &mut MaybeUninit<T>) -> &mut T {
    // SAFETY: the caller's.
    unsafe {
        zero(place.as_mut_ptr());
        place.assume_init_mut()
    }
}

impl Headers {
    /// Room for headers, all 0.
    #[inline(always)]
    pub(crate) fn empty(place: &mut MaybeUninit<Self>) -> &mut Self {
        // SAFETY: integers only.
        unsafe { zeroed(place) }
    }
}

/// What a fragment says of its place in the datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// Not a fragment.
    Whole,
    /// Has the transport header.
    First,
    /// Has no ports.
    Later,
}

impl Headers {
    #[inline(always)]
    pub(crate) fn fragment_kind(&self) -> Fragment {
        let (offset, more) =
            if self.tuple.family == IPV4 { (OFFSET_V4, MORE_V4) } else { (OFFSET_V6, MORE_V6) };
        if self.fragment & offset != 0 {
            Fragment::Later
        } else if self.fragment & more != 0 {
            Fragment::First
        } else {
            Fragment::Whole
        }
    }

    /// What all fragments of a datagram have in common, told apart from every packet's tuple.
    #[inline(always)]
    pub(crate) fn datagram(&self) -> Tuple {
        Tuple { source_port: self.ip_id, destination_port: 0, reserved: DATAGRAM, ..self.tuple }
    }
}

/// [`Tuple::reserved`] of [`Headers::datagram`].
const DATAGRAM: u16 = 1;

/// Address of the network header of a packet inside the stack (`skb_network_header`).
#[inline(always)]
pub(crate) fn network_header(reader: &mut Reader, skb: u64) -> u64 {
    let head: u64 = member!(reader, skb, skb_head);
    let offset: u16 = member!(reader, skb, skb_network_header);
    head + offset as u64
}

/// Reads the headers of the packet at `address` into empty ones; false where there is no IP packet.
#[inline(always)]
pub(crate) fn parse(address: u64, into: &mut Headers) -> bool {
    #[cfg(not(feature = "older"))]
    return parse_headers(address, into) != 0;
    #[cfg(feature = "older")]
    crate::older::parse(address, into)
}

/// A global function: the verifier looks at it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle), inline(never))]
#[cfg_attr(feature = "older", inline(always))]
pub(crate) extern "C" fn parse_headers(address: u64, into: *mut Headers) -> u32 {
    // SAFETY: null or a live structure, which the verifier checks for each caller.
    let Some(into) = (unsafe { into.as_mut() }) else { return 0 };
    let mut reader = Reader::new();
    let first: u8 = reader.read(address);
    let transport = match first >> 4 {
        4 => ipv4(&mut reader, address, into),
        6 => ipv6(&mut reader, address, into),
        _ => 0,
    };
    if transport != 0 {
        transport_header(&mut reader, transport, into);
    }
    if into.tuple.family == 0 {
        return 0;
    }
    into.address = address;
    1
}

/// The 32-bit words of an IPv4 header without options, as they lie in memory.
pub(crate) type Ipv4Words = [u32; 5];

/// Reads the fixed header; length of the whole in bytes, 0 for a later fragment, which has no transport header.
#[inline(always)]
pub(crate) fn ipv4_fields(words: &Ipv4Words, into: &mut Headers) -> u64 {
    let (first, second, third) = (u32::from_be(words[0]), u32::from_be(words[1]), u32::from_be(words[2]));
    into.tuple.family = IPV4;
    into.tuple.protocol = (third >> 16) as u8;
    into.tuple.source[3] = words[3];
    into.tuple.destination[3] = words[4];
    into.ip_id = (second >> 16) as u16;
    into.fragment = second as u16;
    into.ttl = (third >> 24) as u8;
    into.identity = (into.ip_id as u64) << 48 | (into.tuple.protocol as u64) << PROTOCOL_SHIFT;
    if into.fragment & OFFSET_V4 != 0 { 0 } else { (first >> 22 & 0x3c) as u64 }
}

/// Address of the transport header, 0 for a later fragment.
#[inline(always)]
fn ipv4(reader: &mut Reader, address: u64, into: &mut Headers) -> u64 {
    let words: Ipv4Words = reader.read(address);
    let length = ipv4_fields(&words, into);
    if length == 0 { 0 } else { address + length }
}

/// As [`ipv4`]; steps over up to four extension headers.
#[inline(always)]
fn ipv6(reader: &mut Reader, address: u64, into: &mut Headers) -> u64 {
    let words: [u32; 10] = reader.read(address);
    let second = u32::from_be(words[1]);
    into.tuple.family = IPV6;
    into.tuple.source = [words[2], words[3], words[4], words[5]];
    into.tuple.destination = [words[6], words[7], words[8], words[9]];
    into.ttl = second as u8;
    let mut next = (second >> 8) as u8;
    let mut at = address + 40;
    let mut steps = 0;
    while steps < 4 && matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT) {
        let word: u32 = reader.read(at);
        let word = u32::from_be(word);
        if next == FRAGMENT {
            into.fragment = word as u16;
            let identification: u32 = reader.read(at + 4);
            into.ip_id = u32::from_be(identification) as u16;
            at += 8;
        } else {
            at += ((word >> 16 & 0xff) as u64 + 1) * 8;
        }
        next = (word >> 24) as u8;
        steps += 1;
    }
    into.tuple.protocol = next;
    into.identity = (next as u64) << PROTOCOL_SHIFT;
    if into.fragment & OFFSET_V6 != 0 { 0 } else { at }
}

#[inline(always)]
fn transport_header(reader: &mut Reader, address: u64, into: &mut Headers) {
    let words: [u32; 4] = reader.read(address);
    transport_fields(&words, into);
    let is_icmp = into.tuple.protocol == ICMP || into.tuple.protocol == ICMP6;
    if is_icmp && is_icmp_error(into.tuple.protocol, into.icmp_type) {
        quoted(reader, address + 8, &mut into.quoted);
    }
}

/// Reads the first 16 bytes behind the network header.
#[inline(always)]
pub(crate) fn transport_fields(words: &[u32; 4], into: &mut Headers) {
    let (first, second) = (u32::from_be(words[0]), u32::from_be(words[1]));
    if has_ports(into.tuple.protocol) {
        into.tuple.source_port = (first >> 16) as u16;
        into.tuple.destination_port = first as u16;
        if into.tuple.protocol == TCP {
            into.tcp_flags = (u32::from_be(words[3]) >> 16) as u8;
            let acknowledged = u32::from_be(words[2]) as u64;
            into.identity ^= second as u64 ^ acknowledged << 8 ^ (into.tcp_flags as u64) << 56;
        } else {
            into.identity ^= (second >> 16) as u64;
        }
    } else if into.tuple.protocol == ICMP || into.tuple.protocol == ICMP6 {
        into.icmp_type = (first >> 24) as u8;
        into.icmp_code = (first >> 16) as u8;
        into.identity ^= (second & 0xffff) as u64;
    }
}

/// Where the transport protocol stands in [`Headers::identity`]; nothing else touches these eight bits.
pub(crate) const PROTOCOL_SHIFT: u32 = 40;

/// What of [`Headers::identity`] stays where conntrack or a helper rewrites a segment: IPv4's identification, and the TCP flags
/// but for those of ECN (which the target of that name takes off).
pub(crate) const NEVER_ADJUSTED: u64 = 0x3fff << 48;

/// Whether the transport header starts with two port numbers.
#[inline(always)]
pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP | DCCP | UDPLITE)
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem; for ICMPv6 destination
/// unreachable, packet too big, time exceeded, parameter problem.
#[inline(always)]
fn is_icmp_error(protocol: u8, kind: u8) -> bool {
    if protocol == ICMP { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { (1..=4).contains(&kind) }
}

/// The packet inside an ICMP error: addresses, protocol and ports.
#[inline(always)]
fn quoted(reader: &mut Reader, address: u64, into: &mut Tuple) {
    let first: u8 = reader.read(address);
    let transport = if first >> 4 == 4 {
        let words: Ipv4Words = reader.read(address);
        into.family = IPV4;
        into.protocol = (u32::from_be(words[2]) >> 16) as u8;
        into.source[3] = words[3];
        into.destination[3] = words[4];
        address + (u32::from_be(words[0]) >> 22 & 0x3c) as u64
    } else if first >> 4 == 6 {
        let words: [u32; 10] = reader.read(address);
        into.family = IPV6;
        into.protocol = (u32::from_be(words[1]) >> 8) as u8;
        into.source = [words[2], words[3], words[4], words[5]];
        into.destination = [words[6], words[7], words[8], words[9]];
        address + 40
    } else {
        return;
    };
    if has_ports(into.protocol) {
        let ports: u32 = reader.read(transport);
        let ports = u32::from_be(ports);
        into.source_port = (ports >> 16) as u16;
        into.destination_port = ports as u16;
    }
}
