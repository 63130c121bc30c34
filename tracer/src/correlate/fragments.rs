//! Fragments: each is a packet of its own until the kernel puts its datagram together (`nf_ct_frag6_gather`, `ip_defrag`).
//! From there on the `sk_buff` of the fragment that came last stands for the datagram, and the others hang on it.

use std::collections::HashMap;

use super::{
    Correlator, Names,
    open::{Open, Waiting},
};
use crate::{
    decode::{Fragment, SightEvent, SightKind},
    model::{DeviceDirection, Family},
    rules::path::Fate,
};

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Datagram {
    netns: u32,
    source: [u32; 4],
    destination: [u32; 4],
    protocol: u8,
    id: u16,
}

impl Datagram {
    /// `None` for a packet that is whole.
    fn of(sight: &SightEvent) -> Option<Self> {
        (sight.fragment() != Fragment::Whole).then_some(Self {
            netns: sight.raw.netns,
            source: sight.raw.tuple.source,
            destination: sight.raw.tuple.destination,
            protocol: sight.raw.tuple.protocol,
            id: sight.raw.ip_id,
        })
    }
}

/// The fragments under way, by datagram.
pub(super) type Datagrams = HashMap<Datagram, Vec<u64>>;

impl Correlator {
    /// Takes note of a journey that begins as a fragment.
    pub(super) fn note_fragment(&mut self, journey: u64, sight: &SightEvent) {
        if let Some(datagram) = Datagram::of(sight) {
            self.datagrams.entry(datagram).or_default().push(journey);
            self.open.entry(journey).or_default().datagram = Some(datagram);
        }
    }

    /// What was a fragment is whole now: the journeys of the other fragments become part of this one.
    pub(super) fn put_together(&mut self, journey: u64, sight: &SightEvent) {
        let in_hook = matches!(sight.kind, SightKind::Netfilter { .. });
        let Some(mut whole) = self.open.remove(&journey) else { return };
        if let Some(datagram) = whole.datagram.filter(|_| in_hook && sight.fragment() == Fragment::Whole) {
            whole.datagram = None;
            let parts = self.datagrams.remove(&datagram).unwrap_or_default();
            let mut count = 1;
            let mut payload = whole.payload();
            for part in parts.into_iter().filter(|part| *part != journey) {
                let Some(mut other) = self.open.remove(&part) else { continue };
                count += 1;
                payload += other.payload();
                whole.matched |= other.matched;
                let freed = other.waiting == Waiting::Reassembly;
                if other.is_first_fragment() {
                    whole.begin_as(&mut other);
                }
                if !freed {
                    other.absorbed = true;
                    other.datagram = None;
                    self.open.insert(part, other);
                }
            }
            let all = payload + header_length(sight.family) == sight.raw.length;
            let from = if all { format!("{count} fragments") } else { "its fragments".to_owned() };
            whole.notes.push(format!("put together from {from}: {} bytes", sight.raw.length));
        }
        self.open.insert(journey, whole);
    }

    /// The journey ends or is given up.
    pub(super) fn forget_fragment(&mut self, journey: u64, open: &Open) {
        if let Some(datagram) = open.datagram
            && let Some(parts) = self.datagrams.get_mut(&datagram)
        {
            parts.retain(|part| *part != journey);
            if parts.is_empty() {
                self.datagrams.remove(&datagram);
            }
        }
    }
}

/// Bytes of an IP header without options.
fn header_length(family: Family) -> u32 {
    match family {
        Family::Ipv4 => 20,
        Family::Ipv6 => 40,
    }
}

/// Bytes of IPv6's fragment header.
const FRAGMENT_HEADER: u32 = 8;

impl Open {
    /// Bytes behind the IP headers, of headers without options.
    fn payload(&self) -> u32 {
        self.first.as_ref().map_or(0, |first| {
            let extension = if first.family == Family::Ipv6 { FRAGMENT_HEADER } else { 0 };
            first.raw.length.saturating_sub(header_length(first.family) + extension)
        })
    }

    fn is_first_fragment(&self) -> bool {
        self.first.as_ref().is_some_and(|first| first.fragment() == Fragment::First)
    }

    /// The way until here is the first fragment's, the only one whose ports the rules could see.
    fn begin_as(&mut self, first_fragment: &mut Self) {
        first_fragment.judged(Fate::Passed, None);
        self.gap = None;
        self.hits.clear();
        self.first = first_fragment.first.take();
        self.stages = std::mem::take(&mut first_fragment.stages);
        self.notes.splice(0..0, std::mem::take(&mut first_fragment.notes));
    }

    /// Whether a fragment that was freed, not dropped, is about to be put together with the others: it neither
    /// arrived nor left.
    pub(super) fn may_be_part(&self, sight: &SightEvent) -> bool {
        self.datagram.is_some() && sight.fragment() != Fragment::Whole && self.is_under_way()
    }

    /// Its content lives on in another fragment's `sk_buff` (`inet_frag_reasm_prepare`, net/ipv4/inet_fragment.c).
    pub(super) fn wait_for_others(&mut self, sight: &SightEvent, location: u64, names: &Names) {
        self.freed_by = names.function(location);
        self.wait(Waiting::Reassembly, sight.raw.head.time);
    }

    /// A datagram that is handed to a device in fragments, though it was whole before (`ip_do_fragment`).
    pub(super) fn note_fragmentation(&mut self, sight: &SightEvent, direction: DeviceDirection) {
        let now = sight.fragment() == Fragment::First;
        if direction == DeviceDirection::Out && now && self.datagram.is_none() {
            self.notes.push("sent on in fragments".to_owned());
        }
    }
}
