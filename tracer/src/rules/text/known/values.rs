//! The values that a field of a packet is compared with, read from a rule's text once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::KnownPacket;
use crate::{
    decode::DeviceName,
    model::{CtState, Direction, Family, Protocol},
};

/// What of a packet is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Field {
    Source,
    Destination,
    SourcePort,
    DestinationPort,
    Protocol,
    Family,
    Input,
    Output,
    State,
    /// `ct direction`.
    Direction,
    /// `ct status`.
    Status,
}

/// What a field, or several joined by dots, is compared with.
#[derive(Clone, Debug)]
pub(super) enum Values {
    One(Field, Alternatives),
    /// A value of each field in one of the rows.
    Joined {
        fields: Vec<Field>,
        rows: Vec<Vec<Alternatives>>,
        /// Every row was read.
        all: bool,
    },
}

/// One value of a field, or several of which one is enough.
#[derive(Clone, Debug)]
pub(super) struct Alternatives {
    known: Vec<Value>,
    addresses: Ranges<IpAddr>,
    ports: Ranges<u16>,
    /// Every value was understood.
    all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Protocol(Protocol),
    Family(Family),
    Device(Box<str>),
    /// Every device whose name begins so.
    Devices(Box<str>),
    State(CtState),
    Direction(Direction),
    /// A bit of `enum ip_conntrack_status`.
    Status(u32),
}

/// Text of values, in bytes, up to which it is read: some 60,000 addresses.
const MOST: usize = 1 << 20;

/// `IPS_SRC_NAT` and `IPS_DST_NAT` (include/uapi/linux/netfilter/nf_conntrack_common.h, 6.12).
const SNAT: u32 = 1 << 4;
const DNAT: u32 = 1 << 5;

impl Values {
    /// `a`, `a,b`, `{ a, b-c }`, `{ a . b, c . d }` or the elements of a named set.
    pub(super) fn read(fields: &[Field], text: &str) -> Self {
        // A comment may hold anything.
        let is_readable = text.len() <= MOST && !text.contains(" comment ");
        let items = text.trim_start_matches('{').trim_end_matches('}').split(',').map(str::trim);
        let items = items.filter(|item| is_readable && !item.is_empty());
        match fields {
            [field] => {
                let mut values = Alternatives::read(*field, items);
                values.all &= is_readable;
                Self::One(*field, values)
            }
            fields => {
                let row = |item: &str| {
                    let parts: Vec<_> = item.split(" . ").collect();
                    let values =
                        fields.iter().zip(&parts).map(|(field, part)| Alternatives::read(*field, [*part]));
                    (parts.len() == fields.len()).then(|| values.collect())
                };
                let rows: Option<_> = items.map(row).collect();
                let all = is_readable && rows.is_some();
                Self::Joined { fields: fields.to_vec(), rows: rows.unwrap_or_default(), all }
            }
        }
    }

    /// Whether a packet like this has nothing to compare: kernels differ in what they make of it, a name without letters
    /// (`nft_meta_store_ifname`, net/netfilter/nft_meta.c, 6.12) or, older ones, a match that fails.
    pub(super) fn is_absent(&self, packet: &KnownPacket) -> bool {
        let fields = match self {
            Self::One(field, _) => std::slice::from_ref(field),
            Self::Joined { fields, .. } => fields,
        };
        let is_device = |field: &&Field| matches!(field, Field::Input | Field::Output);
        fields.iter().filter(is_device).any(|field| packet.device(*field).is_none())
    }

    /// Whether the packet has one of the values. `None` where that is not known.
    pub(super) fn hold(&self, packet: &KnownPacket) -> Option<bool> {
        let (fields, rows, all) = match self {
            Self::One(field, values) => return values.hold(*field, packet),
            Self::Joined { fields, rows, all } => (fields, rows, all),
        };
        let mut known = *all;
        for row in rows {
            let mut holds = Some(true);
            for (field, values) in fields.iter().zip(row) {
                match values.hold(*field, packet) {
                    Some(true) => {}
                    Some(false) => {
                        holds = Some(false);
                        break;
                    }
                    None => holds = None,
                }
            }
            match holds {
                Some(true) => return Some(true),
                Some(false) => {}
                None => known = false,
            }
        }
        known.then_some(false)
    }
}

impl Alternatives {
    fn read<'a>(field: Field, items: impl IntoIterator<Item = &'a str>) -> Self {
        let mut values =
            Self { known: Vec::new(), addresses: Ranges::default(), ports: Ranges::default(), all: true };
        for item in items {
            values.all &= values.add(field, item).is_some();
        }
        values.addresses.sort();
        values.ports.sort();
        values
    }

    /// `None` for what is not understood.
    fn add(&mut self, field: Field, item: &str) -> Option<()> {
        match field {
            Field::Source | Field::Destination => self.addresses.0.push(addresses(item)?),
            Field::SourcePort | Field::DestinationPort => self.ports.0.push(ports(item)?),
            Field::Protocol => self.known.push(Value::Protocol(Protocol::from_name(item)?)),
            Field::Family => self.known.push(Value::Family(match item {
                "ipv4" => Family::Ipv4,
                "ipv6" => Family::Ipv6,
                _ => return None,
            })),
            Field::Input | Field::Output => self.known.push(device(item)?),
            Field::State => self.known.push(Value::State(CtState::from_name(item)?)),
            Field::Direction => self.known.push(Value::Direction(match item {
                "original" => Direction::Original,
                "reply" => Direction::Reply,
                _ => return None,
            })),
            // The other bits may change while the packet is under way.
            Field::Status => self.known.push(Value::Status(match item {
                "snat" => SNAT,
                "dnat" => DNAT,
                _ => return None,
            })),
        }
        Some(())
    }

    fn hold(&self, field: Field, packet: &KnownPacket) -> Option<bool> {
        let tuple = &packet.tuple;
        let any = match field {
            Field::Source => self.addresses.contain(tuple.source),
            Field::Destination => self.addresses.contain(tuple.destination),
            Field::SourcePort => self.ports.contain(tuple.source_port?),
            Field::DestinationPort => self.ports.contain(tuple.destination_port?),
            Field::Protocol => self.known.contains(&Value::Protocol(packet.protocol)),
            Field::Family => self.known.contains(&Value::Family(packet.family)),
            // Without a device nothing has its name.
            Field::Input | Field::Output => match packet.device(field) {
                Some(device) => self.name(device),
                None => return Some(false),
            },
            Field::State => self.known.contains(&Value::State(packet.state?)),
            Field::Direction => self.known.contains(&Value::Direction(packet.direction?)),
            Field::Status => {
                let status = packet.status?;
                self.known.iter().any(|bit| matches!(bit, Value::Status(bit) if status & bit != 0))
            }
        };
        (any || self.all).then_some(any)
    }

    fn name(&self, device: DeviceName) -> bool {
        let name = device.to_string();
        self.known.iter().any(|value| match value {
            Value::Device(whole) => **whole == *name,
            Value::Devices(start) => name.starts_with(&**start),
            _ => false,
        })
    }
}

/// From one value to another, both of them inside; sorted by their beginnings once all are there.
#[derive(Clone, Debug)]
struct Ranges<T>(Vec<(T, T)>);

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Ord + Copy> Ranges<T> {
    /// Ranges that overlap become one, so that only the last that begins before a value can hold it.
    fn sort(&mut self) {
        self.0.sort_unstable();
        self.0.dedup_by(|later, earlier| {
            let overlap = later.0 <= earlier.1;
            if overlap {
                earlier.1 = earlier.1.max(later.1);
            }
            overlap
        });
        self.0.shrink_to_fit();
    }

    fn contain(&self, value: T) -> bool {
        let behind = self.0.partition_point(|(first, _)| *first <= value);
        behind.checked_sub(1).is_some_and(|at| value <= self.0[at].1)
    }
}

/// An address, a prefix or a range.
fn addresses(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Some((base, length)) = text.split_once('/') {
        let length: u32 = length.parse().ok()?;
        return match base.parse().ok()? {
            IpAddr::V4(base) if length <= 32 => {
                let rest = u32::MAX.checked_shr(length).unwrap_or(0);
                let (first, last) = (base.to_bits() & !rest, base.to_bits() | rest);
                Some((Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(last).into()))
            }
            IpAddr::V6(base) if length <= 128 => {
                let rest = u128::MAX.checked_shr(length).unwrap_or(0);
                let (first, last) = (base.to_bits() & !rest, base.to_bits() | rest);
                Some((Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(last).into()))
            }
            _ => None,
        };
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range: (IpAddr, IpAddr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (range.0.is_ipv4() == range.1.is_ipv4() && range.0 <= range.1).then_some(range)
}

/// A port or a range.
fn ports(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = (first.parse().ok()?, last.parse().ok()?);
    (range.0 <= range.1).then_some(range)
}

/// A device's name in quotes, or the beginning of one.
fn device(text: &str) -> Option<Value> {
    let name = text.strip_prefix('"')?.strip_suffix('"')?;
    if name.contains('\\') {
        return None;
    }
    Some(
        name.strip_suffix('*')
            .map_or_else(|| Value::Device(name.into()), |start| Value::Devices(start.into())),
    )
}
