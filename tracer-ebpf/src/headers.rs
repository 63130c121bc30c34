//! What the headers of a packet say.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use tracer_common::tuple::{IPV4, IPV6, Tuple};

use crate::read::{Reader, member};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const DCCP: u8 = 33;
const UDPLITE: u8 = 136;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

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
    /// IPv4 identification; for IPv6 the low half of the fragment header's, 0 without one.
    pub(crate) ip_id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) tcp_flags: u8,
    pub(crate) icmp_type: u8,
    pub(crate) icmp_code: u8,
}

/// The tuple of no packet: family 0.
const NO_TUPLE: Tuple = Tuple {
    source: [0; 4],
    destination: [0; 4],
    source_port: 0,
    destination_port: 0,
    protocol: 0,
    family: 0,
    reserved: 0,
};

impl Headers {
    pub(crate) const EMPTY: Self = Self {
        tuple: NO_TUPLE,
        quoted: NO_TUPLE,
        identity: 0,
        ip_id: 0,
        fragment: 0,
        ttl: 0,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
    };
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

/// Reads the headers of the packet at `address`; false where there is no IP packet.
#[inline(always)]
pub(crate) fn parse(address: u64, into: &mut Headers) -> bool {
    parse_headers(address, into) != 0
}

/// A global function: the verifier looks at it once, whoever calls it.
#[cfg_attr(not(feature = "older"), unsafe(no_mangle))]
#[inline(never)]
extern "C" fn parse_headers(address: u64, into: *mut Headers) -> u32 {
    // SAFETY: null or a live structure, which the verifier checks for each caller.
    let Some(into) = (unsafe { into.as_mut() }) else { return 0 };
    *into = Headers::EMPTY;
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
    u32::from(into.tuple.family != 0)
}

/// Address of the transport header, 0 for a later fragment.
#[inline(always)]
fn ipv4(reader: &mut Reader, address: u64, into: &mut Headers) -> u64 {
    let header: Ipv4Hdr = reader.read(address);
    into.tuple.family = IPV4;
    into.tuple.protocol = header.proto;
    into.tuple.source[3] = u32::from_ne_bytes(header.src_addr);
    into.tuple.destination[3] = u32::from_ne_bytes(header.dst_addr);
    into.ip_id = u16::from_be_bytes(header.id);
    into.fragment = u16::from_be_bytes(header.frags);
    into.ttl = header.ttl;
    into.identity = (into.ip_id as u64) << 48 | (header.proto as u64) << 40;
    if into.fragment & OFFSET_V4 != 0 {
        return 0;
    }
    address + ((header.vihl & 0xf) as u64) * 4
}

/// As [`ipv4`]; steps over up to four extension headers.
#[inline(always)]
fn ipv6(reader: &mut Reader, address: u64, into: &mut Headers) -> u64 {
    let header: Ipv6Hdr = reader.read(address);
    into.tuple.family = IPV6;
    into.tuple.source = words(header.src_addr);
    into.tuple.destination = words(header.dst_addr);
    into.ttl = header.hop_limit;
    let mut next = header.next_hdr;
    let mut at = address + 40;
    let mut steps = 0;
    while steps < 4 && matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT) {
        let extension: [u8; 8] = reader.read(at);
        if next == FRAGMENT {
            into.fragment = u16::from_be_bytes([extension[2], extension[3]]);
            into.ip_id = u16::from_be_bytes([extension[6], extension[7]]);
            at += 8;
        } else {
            at += (extension[1] as u64 + 1) * 8;
        }
        next = extension[0];
        steps += 1;
    }
    into.tuple.protocol = next;
    into.identity = (next as u64) << 40;
    if into.fragment & OFFSET_V6 != 0 { 0 } else { at }
}

#[inline(always)]
fn words(bytes: [u8; 16]) -> [u32; 4] {
    // SAFETY: same size, any bit pattern is valid.
    unsafe { core::mem::transmute(bytes) }
}

#[inline(always)]
fn transport_header(reader: &mut Reader, address: u64, into: &mut Headers) {
    let bytes: [u8; 16] = reader.read(address);
    let word = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    if has_ports(into.tuple.protocol) {
        into.tuple.source_port = u16::from_be_bytes([bytes[0], bytes[1]]);
        into.tuple.destination_port = u16::from_be_bytes([bytes[2], bytes[3]]);
        if into.tuple.protocol == TCP {
            into.tcp_flags = bytes[13];
            let acknowledged = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
            into.identity ^= word as u64 ^ (acknowledged as u64) << 8 ^ (bytes[13] as u64) << 56;
        } else {
            into.identity ^= (word >> 16) as u64;
        }
    } else if into.tuple.protocol == ICMP || into.tuple.protocol == ICMP6 {
        into.icmp_type = bytes[0];
        into.icmp_code = bytes[1];
        into.identity ^= (word & 0xffff) as u64;
        if is_icmp_error(into.tuple.protocol, bytes[0]) {
            quoted(reader, address + 8, &mut into.quoted);
        }
    }
}

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
        let header: Ipv4Hdr = reader.read(address);
        into.family = IPV4;
        into.protocol = header.proto;
        into.source[3] = u32::from_ne_bytes(header.src_addr);
        into.destination[3] = u32::from_ne_bytes(header.dst_addr);
        address + ((header.vihl & 0xf) as u64) * 4
    } else if first >> 4 == 6 {
        let header: Ipv6Hdr = reader.read(address);
        into.family = IPV6;
        into.protocol = header.next_hdr;
        into.source = words(header.src_addr);
        into.destination = words(header.dst_addr);
        address + 40
    } else {
        return;
    };
    if has_ports(into.protocol) {
        let ports: [u8; 4] = reader.read(transport);
        into.source_port = u16::from_be_bytes([ports[0], ports[1]]);
        into.destination_port = u16::from_be_bytes([ports[2], ports[3]]);
    }
}
