//! Any bytes, and every kind of record.

use std::{mem::offset_of, slice};

use tracer_common::{
    records::{
        Answer, AnswerKind, ConntrackTuples, Head, Hit, Kind, MAX_HITS, PART_RETURNED, REASON_UNKNOWN,
        RULE_HITS_HEAD, Route, RuleHits, RulePart, Sight, SocketEvent,
    },
    tuple::{IPV4, IPV6, Tuple},
};

use super::{DecodeError, Event, PartEvent, PartWhen, Record, SightKind, decode};
use crate::model::{Family, Hook};

const SIZES: [usize; 7] = [
    size_of::<Sight>(),
    size_of::<ConntrackTuples>(),
    size_of::<RuleHits>(),
    size_of::<Route>(),
    size_of::<Answer>(),
    size_of::<SocketEvent>(),
    size_of::<RulePart>(),
];
const SIGHTS: [Kind; 7] =
    [Kind::Xdp, Kind::DeviceIn, Kind::DeviceOut, Kind::Netfilter, Kind::Drop, Kind::Consume, Kind::Left];

fn bytes<T: Record>(record: &T) -> &[u8] {
    // SAFETY: a Record has no padding that is read, and lives as long as the slice.
    unsafe { slice::from_raw_parts((&raw const *record).cast(), size_of::<T>()) }
}

/// The record as the ring buffer hands it over: at any address.
fn decoded<T: Record>(record: &T) -> Result<Event, DecodeError> {
    let shifted = [&[0], bytes(record)].concat();
    decode(&shifted[1..])
}

fn head(kind: Kind) -> Head {
    Head { kind: kind as u32, cpu: 1, time: 1_234, journey: 77 }
}

fn some_tuple(family: u8) -> Tuple {
    Tuple {
        source: [0, 0, 0, u32::from_ne_bytes([10, 1, 0, 2])],
        destination: [0, 0, 0, u32::from_ne_bytes([10, 1, 0, 1])],
        source_port: 40_000,
        destination_port: 80,
        protocol: 6,
        family,
        reserved: 0,
    }
}

/// Numbers that repeat with the seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

#[test]
fn any_bytes_are_an_event_or_an_error() {
    let mut numbers = Numbers(1);
    let mut events = 0;
    for _ in 0..20_000 {
        let length =
            if numbers.below(4) == 0 { numbers.below(600) } else { SIZES[numbers.below(SIZES.len())] };
        let mut record: Vec<u8> = (0..length).map(|_| numbers.next() as u8).collect();
        if let Some(kind) = record.first_chunk_mut::<4>() {
            *kind = (numbers.below(17) as u32).to_ne_bytes();
        }
        if let Ok(event) = decode(&record) {
            let journey = record[offset_of!(Head, journey)..].first_chunk::<8>().expect("a head");
            assert_eq!(event.journey(), u64::from_ne_bytes(*journey));
            events += 1;
        }
    }
    assert!(events > 100, "the generator reached only {events} events");
}

#[test]
fn other_lengths_and_kinds_are_refused() {
    let record = SocketEvent { head: head(Kind::Socket), ..SocketEvent::default() };
    let whole = bytes(&record);
    let kind = Kind::Socket as u32;
    for length in 4..whole.len() {
        assert_eq!(decode(&whole[..length]), Err(DecodeError::Length { kind, length }));
    }
    let longer = [whole, &[0]].concat();
    assert_eq!(decode(&longer), Err(DecodeError::Length { kind, length: longer.len() }));
    assert_eq!(decode(&[]), Err(DecodeError::Length { kind: 0, length: 0 }));
    for unknown in [0_u32, 16, u32::MAX] {
        assert_eq!(decode(&unknown.to_ne_bytes()), Err(DecodeError::Kind(unknown)));
    }
}

#[test]
fn an_evaluation_is_one_before_or_one_behind() {
    let record = RulePart { head: head(Kind::RulePart), expression: 0x1000, ..RulePart::default() };
    let part = |when| Ok(Event::Part(PartEvent { journey: 77, expression: 0x1000, when }));
    assert_eq!(decoded(&record), part(PartWhen::Reached));
    let record = RulePart { when: PART_RETURNED, verdict: -3, chain: 0x2000, ..record };
    assert_eq!(decoded(&record), part(PartWhen::Returned { verdict: -3, chain: 0x2000 }));
    let neither = RulePart { when: 2, ..record };
    assert_eq!(decoded(&neither), Err(DecodeError::Value("end of an evaluation")));
}

#[test]
fn every_kind_of_sight_comes_through_whole() {
    for kind in SIGHTS {
        let record = Sight {
            head: head(kind),
            skb: 0xdead_beef,
            location: 0xffff_ffff_8100_0000,
            priority: -101,
            reason: 6,
            in_ifindex: 2,
            in_name: *b"eth0\0\0\0\0\0\0\0\0\0\0\0\0",
            tuple: some_tuple(IPV4),
            hook: 2,
            pf: 2,
            ..Sight::default()
        };
        let Ok(Event::Sight(sight)) = decoded(&record) else { panic!("{kind:?}") };
        assert_eq!(sight.raw, record);
        assert_eq!(sight.device_in().as_deref(), Some("eth0"));
        assert_eq!((sight.device_out(), sight.quoted()), (None, None));
        let tuple = sight.tuple.expect("a tuple");
        assert_eq!(
            (tuple.source_text(), tuple.destination_text()),
            ("10.1.0.2:40000".into(), "10.1.0.1:80".into())
        );
        let location = record.location;
        assert_eq!(
            sight.kind,
            match kind {
                Kind::Xdp => SightKind::Xdp,
                Kind::DeviceIn => SightKind::DeviceIn,
                Kind::DeviceOut => SightKind::DeviceOut,
                Kind::Netfilter =>
                    SightKind::Netfilter { family: Family::Ipv4, hook: Hook::Forward, priority: -101 },
                Kind::Drop => SightKind::Drop { reason: Some(6), location },
                Kind::Consume => SightKind::Consume { location },
                _ => SightKind::Left,
            }
        );
    }
}

#[test]
fn verdicts_of_programs_come_through() {
    for (kind, returned, name) in [
        (Kind::XdpVerdict, 1, "XDP_DROP"),
        (Kind::XdpVerdict, 77, "77"),
        (Kind::TcVerdict, 2, "TC_ACT_SHOT"),
        (Kind::TcVerdict, -1, "TC_ACT_UNSPEC"),
    ] {
        let record = Sight {
            head: head(kind),
            location: 12,
            reason: i32::cast_unsigned(returned),
            tuple: some_tuple(IPV4),
            ..Sight::default()
        };
        let Ok(Event::Sight(sight)) = decoded(&record) else { panic!("{kind:?}") };
        let SightKind::Verdict { program, verdict } = sight.kind else { panic!("{:?}", sight.kind) };
        assert_eq!((program, &*verdict.name()), (12, name));
        for location in [0, 1 << 32] {
            assert_eq!(decoded(&Sight { location, ..record }), Err(DecodeError::Value("program")));
        }
    }
}

#[test]
fn what_the_kernel_does_not_know_is_none() {
    let record = Sight { head: head(Kind::Drop), reason: REASON_UNKNOWN, ..Sight::default() };
    let Ok(Event::Sight(sight)) = decoded(&record) else { panic!("a drop") };
    assert_eq!(sight.kind, SightKind::Drop { reason: None, location: 0 });
    assert_eq!((sight.tuple, sight.route_device(), sight.route_gateway()), (None, None, None));
}

#[test]
fn a_hook_that_does_not_exist_is_refused() {
    for (hook, pf, field) in [(5, 2, "hook"), (0, 7, "protocol family")] {
        let record = Sight { head: head(Kind::Netfilter), hook, pf, ..Sight::default() };
        assert_eq!(decoded(&record), Err(DecodeError::Value(field)));
    }
}

#[test]
fn tuples_and_sockets_come_through() {
    let (original, reply) = (some_tuple(IPV4), some_tuple(IPV4).inverse());
    let record = ConntrackTuples { head: head(Kind::Conntrack), conntrack: 5, original, reply };
    let Ok(Event::Tuples(event)) = decoded(&record) else { panic!("tuples") };
    assert_eq!((event.journey, event.time, event.conntrack), (77, 1_234, 5));
    assert_eq!((event.original, event.reply), (original, reply));

    let record = SocketEvent { head: head(Kind::Socket), sock: 9, inode: 0, tuple: reply };
    let Ok(Event::Socket(event)) = decoded(&record) else { panic!("a socket") };
    assert_eq!((event.journey, event.time, event.inode, event.tuple), (77, 1_234, None, reply));
}

#[test]
fn rule_hits_come_through_up_to_their_count() {
    let mut record = RuleHits {
        head: head(Kind::RuleHits),
        flags: 3,
        table: 4,
        count: 2,
        tables: 1,
        opened: 12,
        others: 5,
        passed: 7,
        hits: [Hit::default(); MAX_HITS],
    };
    record.hits[1] = Hit { rule: 8, packets: 1 };
    let Ok(Event::Hits(event)) = decoded(&record) else { panic!("hits") };
    assert_eq!((event.journey, event.flags, event.table), (77, 3, 4));
    assert_eq!((event.opened, event.tables, event.others), (12, 1, 5));
    assert_eq!(*event.hits, [Hit::default(), Hit { rule: 8, packets: 1 }]);

    // The kernel side sends no more than it counted.
    assert!(decode(&bytes(&record)[..RULE_HITS_HEAD + 2 * size_of::<Hit>()]).is_ok());
    let short = &bytes(&record)[..RULE_HITS_HEAD + size_of::<Hit>()];
    assert_eq!(decode(short), Err(DecodeError::Length { kind: Kind::RuleHits as u32, length: short.len() }));

    record.count = MAX_HITS as u32 + 1;
    assert_eq!(decoded(&record), Err(DecodeError::Value("count of rule hits")));
}

#[test]
fn routes_of_both_families_come_through() {
    let record = Route {
        head: head(Kind::Route),
        destination: some_tuple(IPV4).destination,
        gateway: some_tuple(IPV4).source,
        table: 254,
        error: -101,
        family: IPV4,
        gateway_family: 2,
        ..Route::default()
    };
    let Ok(Event::Route(event)) = decoded(&record) else { panic!("a route") };
    assert_eq!((event.table, event.error, event.route_type, event.device), (254, -101, None, None));
    assert_eq!(
        (event.destination.to_string(), event.gateway.map(|g| g.to_string())),
        ("10.1.0.1".into(), Some("10.1.0.2".into()))
    );

    let destination = [u32::from_ne_bytes([0xfd, 0, 0, 2]), 0, 0, u32::from_ne_bytes([0, 0, 0, 1])];
    let record = Route { family: IPV6, destination, gateway_family: 0, ..record };
    let Ok(Event::Route(event)) = decoded(&record) else { panic!("a route") };
    assert_eq!((event.destination.to_string(), event.gateway), ("fd00:2::1".into(), None));

    assert_eq!(decoded(&Route { family: 0, ..record }), Err(DecodeError::Value("address family")));
}

#[test]
fn answers_come_through() {
    let record = Answer { head: head(Kind::Answer), kind: AnswerKind::TcpReset as u32, ..Answer::default() };
    let Ok(Event::Answer(event)) = decoded(&record) else { panic!("a reset") };
    assert_eq!(event.icmp, None);
    let record = Answer { kind: AnswerKind::Icmp as u32, icmp_type: 3, icmp_code: 13, ..record };
    let Ok(Event::Answer(event)) = decoded(&record) else { panic!("an ICMP error") };
    assert_eq!(event.icmp, Some((3, 13)));
    assert_eq!(decoded(&Answer { kind: 9, ..record }), Err(DecodeError::Value("answer")));
    assert_eq!(decoded(&Answer { icmp_type: 256, ..record }), Err(DecodeError::Value("ICMP type or code")));
}
