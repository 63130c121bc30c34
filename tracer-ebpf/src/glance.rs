//! A quick look at a packet that a tc program sees: whether it is worth reading in full. Nearly all packets of a busy
//! machine go no further than this.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes_relative};
use network_types::ip::IpProto;
use tracer_common::tuple::{IPV4, IPV6, Tuple};

use crate::{headers::has_ports, wanted};

/// `ETH_P_IP` and `ETH_P_IPV6` in network byte order, as `__sk_buff.protocol` has them.
const IP: u32 = 0x0800u16.to_be() as u32;
const IP6: u32 = 0x86ddu16.to_be() as u32;
/// `BPF_HDR_START_NET` (include/uapi/linux/bpf.h).
const FROM_NETWORK_HEADER: u32 = 1;

const TCP: u8 = IpProto::Tcp as u8;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// Offset of the flags in a TCP header.
const TCP_FLAGS: u32 = 13;

/// Reads from the network header on; `None` where the packet is shorter.
#[inline(always)]
fn load<T: Copy>(packet: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: a live context; the helper writes all of `value`, or fails.
    unsafe {
        let result = bpf_skb_load_bytes_relative(
            packet.cast(),
            offset,
            value.as_mut_ptr().cast::<c_void>(),
            size_of::<T>() as u32,
            FROM_NETWORK_HEADER,
        );
        if result == 0 { Some(value.assume_init()) } else { None }
    }
}

/// Whether a packet may be asked for; false only where [`wanted::at_first_sight`] would say no.
#[inline(always)]
pub(crate) fn may_match(packet: *mut __sk_buff) -> bool {
    // SAFETY: a live context.
    let protocol = unsafe { (*packet).protocol };
    if protocol == IP {
        ipv4(packet)
    } else if protocol == IP6 {
        ipv6(packet)
    } else {
        false
    }
}

#[inline(always)]
fn ipv4(packet: *mut __sk_buff) -> bool {
    // The header without options, and the ports.
    let Some(words) = load::<[u32; 6]>(packet, 0) else { return true };
    let (first, second) = (u32::from_be(words[0]), u32::from_be(words[1]));
    let protocol = (u32::from_be(words[2]) >> 16) as u8;
    if first >> 24 != 0x45 || second & 0x1fff != 0 || !has_ports(protocol) {
        return true;
    }
    let ports = u32::from_be(words[5]);
    let tuple = Tuple {
        source: [0, 0, 0, words[3]],
        destination: [0, 0, 0, words[4]],
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol,
        family: IPV4,
        reserved: 0,
    };
    may_be_wanted(packet, &tuple, 20)
}

#[inline(always)]
fn ipv6(packet: *mut __sk_buff) -> bool {
    let Some(words) = load::<[u32; 11]>(packet, 0) else { return true };
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
    may_be_wanted(packet, &tuple, 40)
}

#[inline(always)]
fn may_be_wanted(packet: *mut __sk_buff, tuple: &Tuple, transport: u32) -> bool {
    if wanted::filter(tuple) || wanted::may_be_known(tuple) {
        return true;
    }
    if tuple.protocol != TCP || !wanted::tentative() {
        return false;
    }
    let flags = load::<u8>(packet, transport + TCP_FLAGS).unwrap_or(TCP_SYN);
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}
