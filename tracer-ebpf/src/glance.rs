//! A quick look at a packet on a device: whether it is worth reading in full. Nearly all packets of a busy machine go
//! no further than this.

use network_types::ip::IpProto;
use tracer_common::tuple::{IPV4, IPV6, Tuple};

use crate::{
    headers::{Ipv4Words, has_ports},
    read::{Reader, member},
    wanted,
};

/// `ETH_P_IP` and `ETH_P_IPV6` in network byte order.
pub(crate) const IP: u16 = 0x0800u16.to_be();
pub(crate) const IP6: u16 = 0x86ddu16.to_be();

const TCP: u8 = IpProto::Tcp as u8;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// Offset of the flags in a TCP header.
const TCP_FLAGS: u64 = 13;

/// Whether a packet may be asked for; false where it is not IP, and where [`wanted::at_first_sight`] would say no.
/// `header` is the address of its network header.
#[inline(always)]
pub(crate) fn may_match(skb: u64, header: u64) -> bool {
    glance(skb, header) != 0
}

/// A global function: the verifier looks at it once, whoever calls it, and what it has on the stack is gone when it
/// returns.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn glance(skb: u64, header: u64) -> u32 {
    let mut reader = Reader::new();
    let protocol: u16 = member!(reader, skb, skb_protocol);
    u32::from(if protocol == IP {
        ipv4(&mut reader, header)
    } else if protocol == IP6 {
        ipv6(&mut reader, header)
    } else {
        false
    })
}

/// The same of a frame that is no `sk_buff` yet, by the version in its network header.
#[inline(always)]
pub(crate) fn frame_may_match(header: u64) -> bool {
    glance_frame(header) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn glance_frame(header: u64) -> u32 {
    let mut reader = Reader::new();
    let first: u8 = reader.read(header);
    u32::from(match first >> 4 {
        4 => ipv4(&mut reader, header),
        6 => ipv6(&mut reader, header),
        _ => false,
    })
}

#[inline(always)]
fn ipv4(reader: &mut Reader, header: u64) -> bool {
    let words: Ipv4Words = reader.read(header);
    let (first, second) = (u32::from_be(words[0]), u32::from_be(words[1]));
    let protocol = (u32::from_be(words[2]) >> 16) as u8;
    // Options, later fragments and ICMP errors are left to those who read in full.
    if first >> 24 != 0x45 || second & 0x1fff != 0 || !has_ports(protocol) {
        return true;
    }
    let ports: u32 = reader.read(header + 20);
    let tuple = Tuple {
        source: [0, 0, 0, words[3]],
        destination: [0, 0, 0, words[4]],
        source_port: (u32::from_be(ports) >> 16) as u16,
        destination_port: u32::from_be(ports) as u16,
        protocol,
        family: IPV4,
        reserved: 0,
    };
    may_be_wanted(reader, &tuple, header + 20)
}

#[inline(always)]
fn ipv6(reader: &mut Reader, header: u64) -> bool {
    let words: [u32; 11] = reader.read(header);
    let protocol = (u32::from_be(words[1]) >> 8) as u8;
    if !has_ports(protocol) {
        return true;
    }
    let ports = u32::from_be(words[10]);
    let tuple = Tuple {
        source: [words[2], words[3], words[4], words[5]],
        destination: [words[6], words[7], words[8], words[9]],
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol,
        family: IPV6,
        reserved: 0,
    };
    may_be_wanted(reader, &tuple, header + 40)
}

#[inline(always)]
fn may_be_wanted(reader: &mut Reader, tuple: &Tuple, transport: u64) -> bool {
    if wanted::filter(tuple) || wanted::may_be_known(tuple) {
        return true;
    }
    if tuple.protocol != TCP || !wanted::tentative() {
        return false;
    }
    let flags: u8 = reader.read(transport + TCP_FLAGS);
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}
