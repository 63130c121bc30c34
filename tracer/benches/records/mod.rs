//! The records of one packet, byte for byte as the kernel side puts them into the ring buffer: the first packet of a
//! connection through a Docker host that translates, filters and masquerades it.

use std::slice;

use tracer::{
    correlate::{Correlator, Names},
    model::{Family, Hook},
    plan::{Gap, Judge, ProbeKey, View},
};
use tracer_common::{
    filter::Filter,
    records::{ConntrackTuples, Head, Hit, Kind, MAX_HITS, Route, RuleHits, SIGHT_FIRST, Sight},
    tuple::{IPV4, Tuple},
};

const NETNS: u32 = 4_026_532_001;
const NFPROTO_IPV4: u8 = 2;
/// `IP_CT_NEW`
const NEW: u8 = 2;
const CONNTRACK: u64 = 0xffff_8880_0000_c000;
/// Hook numbers and priorities of the probes; an odd place stands behind a table.
const PLACES: [(Hook, i32); 6] = [
    (Hook::Prerouting, -101),
    (Hook::Prerouting, -99),
    (Hook::Forward, -1),
    (Hook::Forward, 1),
    (Hook::Postrouting, 99),
    (Hook::Postrouting, 101),
];

fn bytes<T>(record: &T) -> Vec<u8> {
    // SAFETY: a record is integers without padding between them, and lives as long as the slice.
    unsafe { slice::from_raw_parts((&raw const *record).cast(), size_of::<T>()) }.to_vec()
}

fn tuple(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Tuple {
    let words = |address| [0, 0, 0, u32::from_ne_bytes(address)];
    Tuple {
        source: words(source.0),
        destination: words(destination.0),
        source_port: source.1,
        destination_port: destination.1,
        protocol: 6,
        family: IPV4,
        reserved: 0,
    }
}

/// Writes the records of one journey; times go up by a microsecond a record.
struct Writer {
    journey: u64,
    time: u64,
    records: Vec<Vec<u8>>,
}

impl Writer {
    fn head(&mut self, kind: Kind) -> Head {
        self.time += 1_000;
        Head { kind: kind as u32, cpu: 0, time: self.time, journey: self.journey }
    }

    fn sight(&mut self, kind: Kind, tuple: Tuple, flags: u32, place: Option<(Hook, i32)>) {
        let mut name = [0; 16];
        name[..4].copy_from_slice(b"eth0");
        let sight = Sight {
            head: self.head(kind),
            skb: 0xffff_8880_0000_1000 + self.journey * 256,
            conntrack: CONNTRACK,
            netns: NETNS,
            flags,
            priority: place.map_or(0, |(_, priority)| priority),
            hook: place.and_then(|(hook, _)| hook.inet_number()).unwrap_or(0),
            pf: NFPROTO_IPV4,
            in_ifindex: 2,
            out_ifindex: 3,
            in_name: name,
            out_name: name,
            tuple,
            length: 60,
            ttl: 63,
            tcp_flags: 0x02,
            conntrack_info: NEW,
            ..Sight::default()
        };
        self.records.push(bytes(&sight));
    }

    fn hits(&mut self, table: u32) {
        let mut hits = [Hit::default(); MAX_HITS];
        hits[0] = Hit { rule: 1, packets: 1 };
        let head = self.head(Kind::RuleHits);
        let opened = self.records.len() as u64;
        let (flags, count, tables, others, passed) = (0, 1, 1, 0, 1);
        self.records.push(bytes(&RuleHits {
            head,
            flags,
            table,
            count,
            tables,
            opened,
            others,
            passed,
            hits,
        }));
    }
}

/// The records of the packet with this number, in order.
pub(crate) fn packet(journey: u64) -> Vec<Vec<u8>> {
    let port = u16::try_from(journey % 50_000).unwrap_or(0) + 1_024;
    let outside = tuple(([10, 1, 0, 2], port), ([10, 1, 0, 1], 80));
    let inside = tuple(([10, 1, 0, 2], port), ([10, 2, 0, 2], 8_080));
    let mut to = Writer { journey, time: journey * 100_000, records: Vec::new() };
    to.sight(Kind::DeviceIn, outside, SIGHT_FIRST, None);
    let head = to.head(Kind::Conntrack);
    let connection =
        ConntrackTuples { head, conntrack: CONNTRACK, original: outside, reply: inside.inverse() };
    to.records.push(bytes(&connection));
    for (number, place) in PLACES.into_iter().enumerate() {
        let behind = number % 2 == 1;
        if behind {
            to.hits(u32::try_from(number / 2).unwrap_or(0));
        }
        to.sight(Kind::Netfilter, if number == 0 { outside } else { inside }, 0, Some(place));
        if number == 1 {
            let head = to.head(Kind::Route);
            let route = Route {
                head,
                destination: inside.destination,
                table: 254,
                ifindex: 3,
                family: IPV4,
                ..Route::default()
            };
            to.records.push(bytes(&route));
        }
    }
    to.sight(Kind::DeviceOut, inside, 0, None);
    to.sight(Kind::Consume, inside, 0, None);
    to.records
}

/// A correlator that knows the places of [`packet`]'s probes.
pub(crate) fn correlator() -> Correlator {
    let mut correlator = Correlator::new(Filter::default(), Names::default());
    let mut view = View::default();
    for (number, (hook, priority)) in PLACES.into_iter().enumerate() {
        let last = number % 2 == 1;
        let judge = Judge {
            reading: u32::try_from(number / 2).ok(),
            table: None,
            nat: hook != Hook::Forward,
            priority: priority + 1,
            texts: std::sync::Arc::default(),
        };
        let judges = if last { Vec::new() } else { vec![judge] };
        let key = ProbeKey { netns: NETNS, family: Family::Ipv4, hook, priority };
        view.insert(key, Gap { judges, last, after_conntrack: true, holds_conntrack: false });
    }
    correlator.view = view;
    correlator
}
