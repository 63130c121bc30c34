//! Events: records with their fields in the types of the model.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU64,
};

use tracer_common::{
    records::{
        Answer, AnswerKind, CONNTRACK_NONE, ConntrackTuples, Kind, REASON_UNKNOWN, Route, Sight, SocketEvent,
    },
    tuple::{self as raw, IPV4, IPV6},
};

use super::{DecodeError, HitsEvent, PartEvent};
use crate::model::{Family, Hook, ProgramType, ProgramVerdict, Protocol, Tuple};

/// What the kernel side saw. Holds nothing on the heap: decoding allocates nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Sight(SightEvent),
    Tuples(TuplesEvent),
    Hits(HitsEvent),
    Route(RouteEvent),
    Answer(AnswerEvent),
    Socket(SocketTaken),
    Part(PartEvent),
}

impl Event {
    /// The journey it belongs to, as the kernel side numbers them.
    #[must_use]
    pub fn journey(&self) -> u64 {
        match self {
            Self::Sight(e) => e.raw.head.journey,
            Self::Tuples(e) => e.journey,
            Self::Hits(e) => e.journey,
            Self::Route(e) => e.journey,
            Self::Answer(e) => e.journey,
            Self::Socket(e) => e.journey,
            Self::Part(e) => e.journey,
        }
    }
}

/// Which probe saw the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SightKind {
    /// A frame at XDP, before the packet is one of the stack's.
    Xdp,
    /// A program of somebody else returned; a frame or a packet.
    Verdict {
        program: u32,
        verdict: ProgramVerdict,
    },
    DeviceIn,
    DeviceOut,
    /// Before the function with this priority.
    Netfilter {
        family: Family,
        hook: Hook,
        priority: i32,
    },
    Drop {
        reason: Option<u32>,
        location: u64,
    },
    Consume {
        location: u64,
    },
    Left,
}

/// What a fragment is of its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// No fragment.
    Whole,
    /// Has the transport header.
    First,
    /// Has no ports.
    Later,
}

/// A packet, as seen at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SightEvent {
    pub kind: SightKind,
    /// `None` where no headers could be read.
    pub tuple: Option<Tuple>,
    pub protocol: Protocol,
    pub family: Family,
    /// The rest, for the getters below and whoever wants the raw fields.
    pub raw: Sight,
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6` (include/uapi/linux/netfilter.h).
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

impl SightEvent {
    pub(super) fn new(kind: Kind, raw: Sight) -> Result<Self, DecodeError> {
        let kind = match kind {
            Kind::Xdp => SightKind::Xdp,
            Kind::XdpVerdict => verdict(ProgramType::Xdp, &raw)?,
            Kind::TcVerdict => verdict(ProgramType::Tc, &raw)?,
            Kind::DeviceIn => SightKind::DeviceIn,
            Kind::DeviceOut => SightKind::DeviceOut,
            Kind::Netfilter => SightKind::Netfilter {
                family: match raw.pf {
                    NFPROTO_IPV4 => Family::Ipv4,
                    NFPROTO_IPV6 => Family::Ipv6,
                    _ => return Err(DecodeError::Value("protocol family")),
                },
                hook: Hook::from_inet_number(raw.hook).ok_or(DecodeError::Value("hook"))?,
                priority: raw.priority,
            },
            Kind::Drop => SightKind::Drop {
                reason: (raw.reason != REASON_UNKNOWN).then_some(raw.reason),
                location: raw.location,
            },
            Kind::Consume => SightKind::Consume { location: raw.location },
            _ => SightKind::Left,
        };
        let mut sight = Self {
            kind,
            tuple: tuple(&raw.tuple),
            protocol: Protocol(raw.tuple.protocol),
            family: if raw.tuple.family == IPV6 { Family::Ipv6 } else { Family::Ipv4 },
            raw,
        };
        if sight.fragment() == Fragment::Later
            && let Some(tuple) = &mut sight.tuple
        {
            (tuple.source_port, tuple.destination_port) = (None, None);
        }
        Ok(sight)
    }

    /// Its place in the datagram it was cut from.
    #[must_use]
    pub fn fragment(&self) -> Fragment {
        // struct iphdr.frag_off (include/net/ip.h: IP_OFFSET, IP_MF), struct frag_hdr (include/net/ipv6.h).
        let (offset, more) = if self.family == Family::Ipv4 { (0x1fff, 0x2000) } else { (0xfff8, 0x0001) };
        if self.raw.fragment & offset != 0 {
            Fragment::Later
        } else if self.raw.fragment & more != 0 {
            Fragment::First
        } else {
            Fragment::Whole
        }
    }

    /// Name of the device it came in by, where the place knows one.
    #[must_use]
    pub fn device_in(&self) -> Option<String> {
        device_name(self.raw.in_ifindex, &self.raw.in_name)
    }

    /// Name of the device it goes out by, where the place knows one.
    #[must_use]
    pub fn device_out(&self) -> Option<String> {
        device_name(self.raw.out_ifindex, &self.raw.out_name)
    }

    /// Device of the route attached to the packet.
    #[must_use]
    pub fn route_device(&self) -> Option<String> {
        if self.raw.routed == 0 { None } else { device_name(self.raw.route_ifindex, &self.raw.route_name) }
    }

    /// Gateway of the route attached to the packet.
    #[must_use]
    pub fn route_gateway(&self) -> Option<IpAddr> {
        gateway(self.raw.gateway_family, &self.raw.gateway)
    }

    /// The packet that an ICMP error quotes.
    #[must_use]
    pub fn quoted(&self) -> Option<Tuple> {
        tuple(&self.raw.quoted)
    }

    /// `enum ip_conntrack_info`; `None` for a packet without conntrack.
    #[must_use]
    pub fn conntrack_info(&self) -> Option<u8> {
        (self.raw.conntrack_info != CONNTRACK_NONE).then_some(self.raw.conntrack_info)
    }
}

fn verdict(program: ProgramType, raw: &Sight) -> Result<SightKind, DecodeError> {
    let number = u32::try_from(raw.location).ok().filter(|number| *number != 0);
    let verdict = ProgramVerdict::new(program, raw.reason.cast_signed());
    Ok(SightKind::Verdict { program: number.ok_or(DecodeError::Value("program"))?, verdict })
}

/// Name of a device, as the kernel keeps it (`IFNAMSIZ`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName([u8; 16]);

impl DeviceName {
    /// `None` for index 0, which is no device.
    #[must_use]
    pub fn new(ifindex: u32, name: [u8; 16]) -> Option<Self> {
        (ifindex != 0).then_some(Self(name))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        f.write_str(&String::from_utf8_lossy(&self.0[..end]))
    }
}

fn device_name(ifindex: u32, name: &[u8; 16]) -> Option<String> {
    DeviceName::new(ifindex, *name).map(|name| name.to_string())
}

/// `AF_INET` and `AF_INET6` as the kernel stores them in a next hop.
fn gateway(family: u8, words: &[u32; 4]) -> Option<IpAddr> {
    match family {
        2 => Some(address(IPV4, words)),
        10 => Some(address(IPV6, words)),
        _ => None,
    }
}

fn address(family: u8, words: &[u32; 4]) -> IpAddr {
    if family == IPV4 {
        return IpAddr::V4(Ipv4Addr::from(words[3].to_ne_bytes()));
    }
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}

/// The model's form of a tuple; `None` for none.
#[must_use]
pub fn tuple(raw: &raw::Tuple) -> Option<Tuple> {
    if raw.family != IPV4 && raw.family != IPV6 {
        return None;
    }
    let has_ports = Protocol(raw.protocol).has_ports();
    Some(Tuple {
        source: address(raw.family, &raw.source),
        source_port: has_ports.then_some(raw.source_port),
        destination: address(raw.family, &raw.destination),
        destination_port: has_ports.then_some(raw.destination_port),
    })
}

/// Both tuples of the packet's conntrack entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuplesEvent {
    pub journey: u64,
    pub time: u64,
    /// Address of the entry.
    pub conntrack: u64,
    pub original: raw::Tuple,
    pub reply: raw::Tuple,
}

impl TuplesEvent {
    pub(super) fn new(raw: &ConntrackTuples) -> Self {
        Self {
            journey: raw.head.journey,
            time: raw.head.time,
            conntrack: raw.conntrack,
            original: raw.original,
            reply: raw.reply,
        }
    }
}

/// One lookup in one routing table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEvent {
    pub journey: u64,
    pub time: u64,
    pub table: u32,
    /// 0 or a negative errno.
    pub error: i32,
    pub mark: u32,
    pub destination: IpAddr,
    pub device: Option<DeviceName>,
    pub gateway: Option<IpAddr>,
    /// `RTN_*`, `None` where the lookup does not say.
    pub route_type: Option<u8>,
}

impl RouteEvent {
    pub(super) fn new(raw: &Route) -> Result<Self, DecodeError> {
        if raw.family != IPV4 && raw.family != IPV6 {
            return Err(DecodeError::Value("address family"));
        }
        Ok(Self {
            journey: raw.head.journey,
            time: raw.head.time,
            table: raw.table,
            error: raw.error,
            mark: raw.mark,
            destination: address(raw.family, &raw.destination),
            device: DeviceName::new(raw.ifindex, raw.name),
            gateway: gateway(raw.gateway_family, &raw.gateway),
            route_type: (raw.route_type != 0).then_some(raw.route_type),
        })
    }
}

/// The kernel answered a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerEvent {
    pub journey: u64,
    /// `None` for a TCP reset, else ICMP type and code (IPv4).
    pub icmp: Option<(u8, u8)>,
}

impl AnswerEvent {
    pub(super) fn new(raw: &Answer) -> Result<Self, DecodeError> {
        let small = |number: u32| u8::try_from(number).map_err(|_| DecodeError::Value("ICMP type or code"));
        let icmp = if raw.kind == AnswerKind::TcpReset as u32 {
            None
        } else if raw.kind == AnswerKind::Icmp as u32 {
            Some((small(raw.icmp_type)?, small(raw.icmp_code)?))
        } else {
            return Err(DecodeError::Value("answer"));
        };
        Ok(Self { journey: raw.head.journey, icmp })
    }
}

/// A socket took a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketTaken {
    pub journey: u64,
    pub time: u64,
    /// Address of the `sock`.
    pub sock: u64,
    /// Its inode, where it has one.
    pub inode: Option<NonZeroU64>,
    /// Local end as source, peer as destination.
    pub tuple: raw::Tuple,
}

impl SocketTaken {
    pub(super) fn new(raw: &SocketEvent) -> Self {
        Self {
            journey: raw.head.journey,
            time: raw.head.time,
            sock: raw.sock,
            inode: NonZeroU64::new(raw.inode),
            tuple: raw.tuple,
        }
    }
}
