//! What a packet is: addresses, protocol, and the header fields that identify it.

use std::{fmt, net::IpAddr};

use serde::{Serialize, Serializer};

/// Address family of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// IP protocol number (IANA), 0..=255; shown by name where the field has a common one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const GRE: Self = Self(47);
    pub const ESP: Self = Self(50);
    pub const ICMP6: Self = Self(58);
    pub const SCTP: Self = Self(132);

    /// The protocol's name as the command line takes it; `None` for one shown by number.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::ICMP => "icmp",
            Self::TCP => "tcp",
            Self::UDP => "udp",
            Self::GRE => "gre",
            Self::ESP => "esp",
            Self::ICMP6 => "icmp6",
            Self::SCTP => "sctp",
            _ => return None,
        })
    }

    /// By name, as iptables, nft and the command line spell it, in any case, or by IANA number.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "icmpv6" | "ipv6-icmp" => Self::ICMP6,
            "udplite" => Self(136),
            "dccp" => Self(33),
            "ah" => Self(51),
            name => match name.parse() {
                Ok(number) => Self(number),
                Err(_) => (0..=u8::MAX).map(Self).find(|protocol| protocol.name() == Some(name))?,
            },
        })
    }

    /// Whether a packet of this protocol has port numbers.
    #[must_use]
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP | Self(33) | Self(136))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Source and destination of a packet as seen at one place; ports are `None` for protocols without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Tuple {
    pub source: IpAddr,
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub destination_port: Option<u16>,
}

impl Tuple {
    /// The tuple of a packet that goes the other way.
    #[must_use]
    pub fn inverse(self) -> Self {
        Self {
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }

    /// `address:port` of the source, IPv6 in brackets; the bare address where there is no port.
    #[must_use]
    pub fn source_text(self) -> String {
        endpoint(self.source, self.source_port)
    }

    /// `address:port` of the destination, as [`Self::source_text`].
    #[must_use]
    pub fn destination_text(self) -> String {
        endpoint(self.destination, self.destination_port)
    }
}

fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (IpAddr::V4(a), Some(p)) => format!("{a}:{p}"),
        (IpAddr::V6(a), Some(p)) => format!("[{a}]:{p}"),
        (a, None) => a.to_string(),
    }
}

/// A packet as it was at first sight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Packet {
    pub family: Family,
    pub protocol: Protocol,
    #[serde(flatten)]
    pub tuple: Tuple,
    /// Bytes from the start of the IP header (`sk_buff.len` at the network layer); above the MTU for GSO/GRO.
    pub length: u32,
    /// Set flags in the order `SAFRPUEC` (SYN, ACK, FIN, RST, PSH, URG, ECE, CWR); TCP only.
    pub tcp_flags: Option<String>,
    /// IPv4 identification; `None` for IPv6.
    pub ip_id: Option<u16>,
    /// ICMP or ICMPv6 type and code.
    pub icmp_type: Option<u8>,
    pub icmp_code: Option<u8>,
    /// TTL or hop limit at first sight.
    pub ttl: u8,
    /// Fragment offset in bytes and whether more follow; `None` for a packet that is whole.
    pub fragment: Option<String>,
    /// Segments that this buffer stands for (GSO/GRO), when more than one.
    pub segments: Option<u16>,
    /// The packet that an ICMP error quotes.
    pub quoted: Option<Tuple>,
}
