//! A quick look at a packet on a device: whether it is worth reading in full. Nearly all packets of a busy machine go
//! no further than this.

use aya_ebpf::bindings::__sk_buff;
use network_types::ip::IpProto;
use tracer_common::tuple::{IPV4, IPV6, Tuple};

use crate::{
    headers::{Ipv4Words, has_ports},
    read::{Reader, member, offset},
    wanted,
};

/// `ETH_P_IP` and `ETH_P_IPV6` in network byte order.
pub(crate) const IP: u16 = 0x0800u16.to_be();
pub(crate) const IP6: u16 = 0x86ddu16.to_be();

const TCP: u8 = IpProto::Tcp as u8;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// Offset of the flags in a TCP header.
const TCP_FLAGS: usize = 13;

/// Headers of a packet, from the network header on.
trait Bytes {
    /// What lies `at` bytes behind the start; `None` where that is not at hand, but may be there.
    fn read<T: Copy>(&mut self, at: usize) -> Option<T>;
}

/// Headers by their address in the kernel.
struct Memory {
    reader: Reader,
    start: u64,
}

impl Bytes for Memory {
    #[inline(always)]
    fn read<T: Copy>(&mut self, at: usize) -> Option<T> {
        Some(self.reader.read(self.start + at as u64))
    }
}

/// Headers in a packet that the verifier lets a program look into.
struct Packet {
    start: usize,
    end: usize,
}

impl Bytes for Packet {
    #[inline(always)]
    fn read<T: Copy>(&mut self, at: usize) -> Option<T> {
        let address = self.start + at;
        if address + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: inside the packet, which the verifier checks. Where a machine needs alignment, drivers align IP headers for
        // the kernel's own loads (`NET_IP_ALIGN`), and the verifier allows no others.
        Some(unsafe { (address as *const T).read() })
    }
}

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
    u32::from(by_protocol(protocol, Memory { reader, start: header }))
}

/// As [`may_match`], of a packet that comes in at a device (`tcx_run`, net/core/dev.c, puts its `data` before the link
/// layer's header). Its own bytes cost a load each, those of any memory ten instructions.
#[inline(always)]
pub(crate) fn may_match_at_ingress(packet: *const __sk_buff, skb: u64) -> bool {
    let Some(offset) = offset!(skb_mac_len) else { return true };
    let link_layer: u16 = Reader::new().read(skb + offset);
    // SAFETY: the verifier knows the context.
    let (protocol, data, end) = unsafe { ((*packet).protocol as u16, (*packet).data, (*packet).data_end) };
    let start = data as usize + usize::from(link_layer & MAX_LINK_LAYER);
    by_protocol(protocol, Packet { start, end: end as usize })
}

/// For the verifier: a link layer's header is at most 127 bytes long (`LL_MAX_HEADER`, include/linux/netdevice.h).
const MAX_LINK_LAYER: u16 = 0xff;

#[inline(always)]
fn by_protocol(protocol: u16, bytes: impl Bytes) -> bool {
    // What is not at hand is left to those who read in full.
    if protocol == IP {
        ipv4(bytes).unwrap_or(true)
    } else if protocol == IP6 {
        ipv6(bytes).unwrap_or(true)
    } else {
        false
    }
}

/// The same of a frame that is no `sk_buff` yet, by the version in its network header.
#[inline(always)]
pub(crate) fn frame_may_match(header: u64) -> bool {
    glance_frame(header) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn glance_frame(header: u64) -> u32 {
    let mut bytes = Memory { reader: Reader::new(), start: header };
    let may = match bytes.read::<u8>(0).map(|first| first >> 4) {
        Some(4) => ipv4(bytes),
        Some(6) => ipv6(bytes),
        _ => Some(false),
    };
    u32::from(may.unwrap_or(true))
}

#[inline(always)]
fn ipv4(mut bytes: impl Bytes) -> Option<bool> {
    let words: Ipv4Words = bytes.read(0)?;
    let ports: u32 = bytes.read(20)?;
    let (first, second) = (u32::from_be(words[0]), u32::from_be(words[1]));
    let protocol = (u32::from_be(words[2]) >> 16) as u8;
    // Options, later fragments and ICMP errors are left to those who read in full.
    if first >> 24 != 0x45 || second & 0x1fff != 0 || !has_ports(protocol) {
        return None;
    }
    let tuple = Tuple {
        source: [0, 0, 0, words[3]],
        destination: [0, 0, 0, words[4]],
        source_port: (u32::from_be(ports) >> 16) as u16,
        destination_port: u32::from_be(ports) as u16,
        protocol,
        family: IPV4,
        reserved: 0,
    };
    may_be_wanted(&mut bytes, &tuple, 20)
}

#[inline(always)]
fn ipv6(mut bytes: impl Bytes) -> Option<bool> {
    let words: [u32; 11] = bytes.read(0)?;
    let protocol = (u32::from_be(words[1]) >> 8) as u8;
    if !has_ports(protocol) {
        return None;
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
    may_be_wanted(&mut bytes, &tuple, 40)
}

/// `transport` is where the transport header starts.
#[inline(always)]
fn may_be_wanted(bytes: &mut impl Bytes, tuple: &Tuple, transport: usize) -> Option<bool> {
    if wanted::filter_here(tuple) || wanted::may_be_known(tuple) {
        return Some(true);
    }
    if tuple.protocol != TCP || !wanted::tentative() {
        return Some(false);
    }
    let flags: u8 = bytes.read(transport + TCP_FLAGS)?;
    Some(flags & (TCP_SYN | TCP_ACK) == TCP_SYN)
}
