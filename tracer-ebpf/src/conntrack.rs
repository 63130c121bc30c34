//! Conntrack entries (`struct nf_conn`, include/net/netfilter/nf_conntrack.h).

use tracer_common::{
    records::CONNTRACK_NONE,
    tuple::{IPV4, IPV6, Tuple},
};

use crate::{
    headers::has_ports,
    maps::SETTINGS,
    read::{Reader, member, offset},
};

/// `skb->_nfct`: the entry's address, and `enum ip_conntrack_info` in the low three bits.
const INFO_MASK: u64 = 7;
/// `IP_CT_NEW`.
pub(crate) const INFO_NEW: u8 = 2;
/// `IP_CT_IS_REPLY`.
const INFO_REPLY: u32 = 3;
/// `IPS_CONFIRMED`: the entry is in the table, its first packet has passed.
pub(crate) const CONFIRMED: u32 = 1 << 3;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A packet's conntrack entry.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    /// 0 for none (untracked packets have an info and no entry).
    pub(crate) address: u64,
    pub(crate) info: u8,
}

/// Splits `skb->_nfct`.
#[inline(always)]
pub(crate) fn split(nfct: u64) -> Entry {
    if nfct == 0 {
        return Entry { address: 0, info: CONNTRACK_NONE };
    }
    Entry { address: nfct & !INFO_MASK, info: (nfct & INFO_MASK) as u8 }
}

/// Whether a packet with this info goes the other way than its connection's first.
#[inline(always)]
pub(crate) fn is_reply(info: u32) -> bool {
    info >= INFO_REPLY && info != CONNTRACK_NONE as u32
}

/// The entry of a packet.
#[inline(always)]
pub(crate) fn of(reader: &mut Reader, skb: u64) -> Entry {
    split(member!(reader, skb, skb_nfct))
}

/// `IPS_*` bits.
#[inline(always)]
pub(crate) fn status(reader: &mut Reader, entry: u64) -> u32 {
    let status: u64 = member!(reader, entry, ct_status);
    status as u32
}

/// The tuple of one direction, 0 original, 1 reply.
#[inline(never)]
pub(crate) fn tuple(entry: u64, direction: u64, into: &mut Tuple) -> bool {
    // SAFETY: written before the program was loaded, read-only since.
    let size = unsafe { (*(&raw const SETTINGS)).sizes.tuplehash } as u64;
    let (Some(hashes), Some(inner)) = (offset!(ct_tuplehash), offset!(tuplehash_tuple)) else { return false };
    if entry == 0 || size == 0 {
        return false;
    }
    let base = entry + hashes + inner + direction * size;
    let mut reader = Reader::new();
    into.source = member!(reader, base, tuple_src);
    into.destination = member!(reader, base, tuple_dst);
    let family: u16 = member!(reader, base, tuple_l3num);
    let source_port: u16 = member!(reader, base, tuple_src_port);
    let destination_port: u16 = member!(reader, base, tuple_dst_port);
    into.protocol = member!(reader, base, tuple_protonum);
    into.reserved = 0;
    // Of an IPv4 address, `union nf_inet_addr` uses the first word only.
    if family == AF_INET {
        into.family = IPV4;
        into.source = [0, 0, 0, into.source[0]];
        into.destination = [0, 0, 0, into.destination[0]];
    } else {
        into.family = if family == AF_INET6 { IPV6 } else { 0 };
    }
    if has_ports(into.protocol) {
        into.source_port = u16::from_be(source_port);
        into.destination_port = u16::from_be(destination_port);
    } else {
        into.source_port = 0;
        into.destination_port = 0;
    }
    into.family != 0 && !reader.failed()
}
