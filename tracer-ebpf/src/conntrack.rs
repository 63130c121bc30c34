//! Conntrack entries (`struct nf_conn`, include/net/netfilter/nf_conntrack.h).

use tracer_common::{
    records::CONNTRACK_NONE,
    tuple::{IPV4, IPV6, Tuple},
};

use crate::{
    maps::SETTINGS,
    read::{at, member, offset},
};

/// `skb->_nfct`: the entry's address, and `enum ip_conntrack_info` in the low three bits.
const INFO_MASK: u64 = 7;
/// `IP_CT_NEW`.
pub(crate) const INFO_NEW: u8 = 2;
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

/// The entry of a packet.
#[inline(always)]
pub(crate) fn of(skb: u64) -> Entry {
    split(member!(skb, skb_nfct).unwrap_or(0))
}

/// `IPS_*` bits.
#[inline(always)]
pub(crate) fn status(entry: u64) -> u32 {
    member!(entry, ct_status).unwrap_or(0u64) as u32
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
    let (Some(source), Some(destination)) = (address(base, offset!(tuple_src)), address(base, offset!(tuple_dst)))
    else {
        return false;
    };
    let family: u16 = member!(base, tuple_l3num).unwrap_or(0);
    into.protocol = member!(base, tuple_protonum).unwrap_or(0);
    into.reserved = 0;
    match family {
        AF_INET => {
            into.family = IPV4;
            into.source = [0, 0, 0, source[0]];
            into.destination = [0, 0, 0, destination[0]];
        }
        AF_INET6 => {
            into.family = IPV6;
            into.source = source;
            into.destination = destination;
        }
        _ => return false,
    }
    let ported = matches!(into.protocol, 6 | 17 | 33 | 132 | 136);
    into.source_port = if ported { u16::from_be(member!(base, tuple_src_port).unwrap_or(0)) } else { 0 };
    into.destination_port = if ported { u16::from_be(member!(base, tuple_dst_port).unwrap_or(0)) } else { 0 };
    true
}

#[inline(always)]
fn address(base: u64, offset: Option<u64>) -> Option<[u32; 4]> {
    at(base, offset)
}
