//! Hand-built events, and a correlator that takes them.

use std::sync::Arc;

use tracer_common::{
    filter::{Filter, Ports},
    records::{CONNTRACK_NONE, SIGHT_FIRST, SIGHT_TENTATIVE, Sight},
    tuple::{IPV4, Tuple},
};

use crate::{
    correlate::{Correlator, Draft, DraftStage, DraftTable, Names, Output},
    decode::{self, DeviceName, Event, RouteEvent, SightEvent, SightKind, TuplesEvent},
    model::{Family, Hook, Protocol},
    plan::{Gap, Judge, ProbeKey, View},
};

pub(super) const NETNS: u32 = 4_026_532_001;
pub(super) const SKB: u64 = 0xffff_8880_0000_1000;
pub(super) const CONNTRACK: u64 = 0xffff_8880_0000_c000;
pub(super) const MILLISECOND: u64 = 1_000_000;
pub(super) const STEP: u64 = 1_000;

pub(super) const CLIENT: ([u8; 4], u16) = ([10, 1, 0, 2], 40_000);
pub(super) const PUBLISHED: ([u8; 4], u16) = ([10, 1, 0, 1], 80);
pub(super) const INNER: ([u8; 4], u16) = ([10, 2, 0, 2], 8_080);

pub(super) const NETFILTER_DROP: u32 = 7;
pub(super) const NO_ROUTE: u32 = 8;
pub(super) const NO_SOCKET: u32 = 9;
pub(super) const TCP_RESET: u32 = 10;
pub(super) const NOT_SPECIFIED: u32 = 11;
pub(super) const QUEUE_PURGE: u32 = 12;
pub(super) const PKT_TOO_BIG: u32 = 13;
pub(super) const REASONS: [(u32, &str); 7] = [
    (NETFILTER_DROP, "SKB_DROP_REASON_NETFILTER_DROP"),
    (NO_ROUTE, "SKB_DROP_REASON_IP_INNOROUTES"),
    (NO_SOCKET, "SKB_DROP_REASON_NO_SOCKET"),
    (TCP_RESET, "SKB_DROP_REASON_TCP_RESET"),
    (NOT_SPECIFIED, "SKB_DROP_REASON_NOT_SPECIFIED"),
    (QUEUE_PURGE, "SKB_DROP_REASON_QUEUE_PURGE"),
    (PKT_TOO_BIG, "SKB_DROP_REASON_PKT_TOO_BIG"),
];
pub(super) const IN_NETFILTER: u64 = 0x1000;
pub(super) const IN_TCP: u64 = 0x2000;
pub(super) const IN_SYNPROXY: u64 = 0x2400;
pub(super) const IN_PING: u64 = 0x2800;
pub(super) const IN_ICMPV6: u64 = 0x2c00;
pub(super) const IN_SOCKETS_END: u64 = 0x3000;
pub(super) const IN_FORWARD: u64 = 0x3400;
pub(super) const IN_BRIDGE: u64 = 0x3800;
pub(super) const IN_TUNNEL: u64 = 0x3c00;
pub(super) const NEW: u8 = 2;
pub(super) const ESTABLISHED_REPLY: u8 = 3;
pub(super) const RESET: u8 = 0x04;
pub(super) const NOT_IN_THIS_TABLE: i32 = -11;
pub(super) const UNREACHABLE: i32 = -101;

pub(super) fn tcp(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Tuple {
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

pub(super) fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    name[..text.len()].copy_from_slice(text.as_bytes());
    name
}

pub(super) fn seen(kind: SightKind, tuple: Tuple) -> SightEvent {
    let raw =
        Sight { skb: SKB, netns: NETNS, tuple, conntrack_info: CONNTRACK_NONE, ttl: 64, ..Sight::default() };
    SightEvent {
        kind,
        tuple: decode::tuple(&tuple),
        protocol: Protocol(tuple.protocol),
        family: Family::Ipv4,
        raw,
    }
}

pub(super) fn came_in(tuple: Tuple) -> SightEvent {
    let mut sight = first(seen(SightKind::DeviceIn, tuple));
    sight.raw.in_ifindex = 2;
    sight.raw.in_name = name("eth0");
    sight
}

pub(super) fn went_out(tuple: Tuple) -> SightEvent {
    let mut sight = seen(SightKind::DeviceOut, tuple);
    sight.raw.out_ifindex = 3;
    sight.raw.out_name = name("eth1");
    sight
}

pub(super) fn before(hook: Hook, priority: i32, tuple: Tuple) -> SightEvent {
    seen(SightKind::Netfilter { family: Family::Ipv4, hook, priority }, tuple)
}

pub(super) fn dropped(reason: u32, location: u64, tuple: Tuple) -> SightEvent {
    seen(SightKind::Drop { reason: Some(reason), location }, tuple)
}

pub(super) fn consumed(tuple: Tuple) -> SightEvent {
    seen(SightKind::Consume { location: IN_TCP }, tuple)
}

pub(super) fn first(mut sight: SightEvent) -> SightEvent {
    sight.raw.flags |= SIGHT_FIRST;
    sight
}

pub(super) fn tentative(mut sight: SightEvent) -> SightEvent {
    sight.raw.flags |= SIGHT_TENTATIVE;
    sight
}

pub(super) fn tracked(mut sight: SightEvent, conntrack: u64, info: u8) -> SightEvent {
    sight.raw.conntrack = conntrack;
    sight.raw.conntrack_info = info;
    sight
}

pub(super) fn on_cpu(mut sight: SightEvent, cpu: u32) -> SightEvent {
    sight.raw.head.cpu = cpu;
    sight
}

/// One table (and a probe behind it) at each hook but PREROUTING and POSTROUTING, where there is a NAT chain.
pub(super) fn view() -> View {
    let judge = |priority, nat| Judge { reading: None, table: None, nat, priority, texts: Arc::default() };
    let mut view = View::default();
    for hook in [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting] {
        let (priority, nat) = match hook {
            Hook::Prerouting => (-100, true),
            Hook::Postrouting => (100, true),
            _ => (0, false),
        };
        let key = |priority| ProbeKey { netns: NETNS, family: Family::Ipv4, hook, priority };
        let judges = vec![judge(priority, nat)];
        view.insert(
            key(priority - 1),
            Gap { judges, last: false, after_conntrack: true, holds_conntrack: false },
        );
        view.insert(
            key(priority + 1),
            Gap { judges: Vec::new(), last: true, after_conntrack: true, holds_conntrack: false },
        );
    }
    view
}

pub(super) struct Trace {
    pub(super) correlator: Correlator,
    pub(super) output: Output,
    pub(super) time: u64,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self::with(Filter::default())
    }

    pub(super) fn of_port(port: u16) -> Self {
        let mut ports = Ports { count: 1, ..Ports::default() };
        ports.ranges[0] = [port, port];
        Self::with(Filter { port: ports, protocol: Filter::ANY_PROTOCOL, active: 1, ..Filter::default() })
    }

    pub(super) fn with(filter: Filter) -> Self {
        let function = |address| match address {
            IN_NETFILTER => Some("nf_hook_slow".to_owned()),
            IN_TCP => Some("tcp_v4_rcv".to_owned()),
            IN_SYNPROXY => Some("synproxy_tg4".to_owned()),
            IN_PING => Some("ping_rcv".to_owned()),
            IN_ICMPV6 => Some("icmpv6_rcv".to_owned()),
            IN_FORWARD => Some("ip_forward".to_owned()),
            IN_BRIDGE => Some("br_handle_frame_finish".to_owned()),
            IN_TUNNEL => Some("wg_xmit".to_owned()),
            IN_SOCKETS_END => Some("sk_stream_kill_queues".to_owned()),
            _ => None,
        };
        let names = Names::new(REASONS.map(|(number, name)| (number, name.to_owned())), function);
        let mut correlator = Correlator::new(filter, names);
        correlator.view = view();
        Self { correlator, output: Output::default(), time: 0 }
    }

    pub(super) fn see(&mut self, journey: u64, mut sight: SightEvent) {
        self.time += STEP;
        sight.raw.head.journey = journey;
        sight.raw.head.time = self.time;
        self.event(Event::Sight(sight));
    }

    pub(super) fn event(&mut self, event: Event) {
        self.correlator.event(event, &mut self.output);
    }

    pub(super) fn lookup(&mut self, journey: u64, table: u32, error: i32) {
        self.lookup_of(journey, INNER.0, table, error);
    }

    pub(super) fn lookup_of(&mut self, journey: u64, destination: [u8; 4], table: u32, error: i32) {
        self.event(Event::Route(RouteEvent {
            journey,
            time: self.time,
            table,
            error,
            mark: 0,
            destination: destination.into(),
            device: (error == 0).then(|| DeviceName::new(3, name("eth1"))).flatten(),
            gateway: None,
            route_type: (error == 0).then_some(1),
        }));
    }

    pub(super) fn connection(&mut self, journey: u64, conntrack: u64, original: Tuple, reply: Tuple) {
        self.event(Event::Tuples(TuplesEvent { journey, time: self.time, conntrack, original, reply }));
    }

    /// Time passes since the last sight.
    pub(super) fn wait(&mut self, nanoseconds: u64) {
        self.correlator.tick(self.time + nanoseconds, &mut self.output);
    }

    pub(super) fn reach_input_end(&mut self, journey: u64) {
        let tuple = tcp(CLIENT, PUBLISHED);
        self.see(journey, came_in(tuple));
        self.see(journey, before(Hook::Input, -1, tuple));
        self.see(journey, before(Hook::Input, 1, tuple));
    }

    pub(super) fn only(&self) -> &Draft {
        let [draft] = self.output.closed.as_slice() else {
            panic!("one journey expected: {:#?}", self.output.closed)
        };
        draft
    }
}

pub(super) fn tables(draft: &Draft) -> Vec<&DraftTable> {
    let mut tables = Vec::new();
    for timed in &draft.stages {
        if let DraftStage::Table(table) = &timed.stage {
            tables.push(table);
        }
    }
    tables
}

pub(super) fn kinds(draft: &Draft) -> Vec<&'static str> {
    let kind = |stage: &DraftStage| match stage {
        DraftStage::Device(_) => "device",
        DraftStage::Route(_) => "route",
        DraftStage::Table(_) => "table",
        DraftStage::Program(_) => "program",
    };
    draft.stages.iter().map(|timed| kind(&timed.stage)).collect()
}
