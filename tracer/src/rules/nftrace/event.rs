//! What the kernel says of a traced packet, from nf_tables (`nft_trace_notify`) and, for iptables-legacy, from the
//! TRACE lines of `trace_packet` (net/ipv4/netfilter/ip_tables.c).

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::netlink::{Received, attributes, number, text};
use crate::model::{Family, Protocol, TableFamily, Tuple, Verdict};

/// `enum nft_trace_attributes`, `enum nft_verdict_attributes` (include/uapi/linux/netfilter/nf_tables.h).
const TRACE_TABLE: u16 = 1;
const TRACE_CHAIN: u16 = 2;
const TRACE_RULE_HANDLE: u16 = 3;
const TRACE_TYPE: u16 = 4;
const TRACE_VERDICT: u16 = 5;
const TRACE_ID: u16 = 6;
const TRACE_NETWORK_HEADER: u16 = 8;
const TRACE_TRANSPORT_HEADER: u16 = 9;
const TRACE_IIF: u16 = 10;
const TRACE_OIF: u16 = 12;
const TRACE_MARK: u16 = 14;
const TRACE_POLICY: u16 = 16;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `enum nft_trace_types`.
const TYPE_POLICY: u32 = 1;
const TYPE_RETURN: u32 = 2;
const TYPE_RULE: u32 = 3;
/// `enum nfulnl_attr_type` (include/uapi/linux/netfilter/nfnetlink_log.h).
const LOG_PACKET_HEADER: u16 = 1;
const LOG_MARK: u16 = 2;
const LOG_IN_DEVICE: u16 = 4;
const LOG_OUT_DEVICE: u16 = 5;
const LOG_PAYLOAD: u16 = 9;
const LOG_PREFIX: u16 = 10;

/// One step of a packet through a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceEvent {
    Nft(NftStep),
    Legacy(LegacyStep),
    /// Our own table switched tracing on for the packet with this [`NftStep::id`]: from here on every step is told.
    Begun {
        id: u32,
    },
    /// The kernel had more to say than the socket could hold.
    Lost,
}

/// A step through an nft chain, iptables-nft's included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftStep {
    /// The same for all steps of a packet; the kernel makes it from the buffer's address, so that it comes back for
    /// later packets.
    pub id: u32,
    pub family: Option<TableFamily>,
    pub table: String,
    pub chain: String,
    pub kind: NftStepKind,
    /// Headers come with the first step in each base chain only.
    pub packet: Option<Headers>,
    pub in_ifindex: Option<u32>,
    pub out_ifindex: Option<u32>,
    pub mark: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftStepKind {
    /// A rule matched to its end.
    Rule { handle: u64, verdict: NftVerdict },
    /// The end of a chain; behind that of a base chain comes its policy.
    Return,
    /// The end of the base chain; the verdict is its policy.
    Policy { verdict: Option<Verdict> },
}

/// `enum nft_verdicts`, and the verdicts of netfilter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftVerdict {
    Final(Verdict),
    Continue,
    Jump(String),
    Goto(String),
    Return,
    /// A number that is none of these.
    Other(i32),
}

/// A rule of iptables-legacy that matched, or a chain's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegacyStep {
    pub family: Option<Family>,
    /// `enum nf_inet_hooks`.
    pub hook: Option<u8>,
    pub table: String,
    pub chain: String,
    pub kind: LegacyStepKind,
    /// Position from 1; one more than the chain has rules for its end.
    ///
    /// The kernel tells chain ends by their form: an unconditional `-j ACCEPT`, `-j DROP` or `-j RETURN` is called
    /// `policy` or `return` as well. The position is what counts.
    pub position: u32,
    /// Made of the packet's first bytes: the same for all steps of a packet in a table, and for packets that are alike.
    pub digest: u64,
    pub packet: Option<Headers>,
    pub in_ifindex: Option<u32>,
    pub out_ifindex: Option<u32>,
    pub mark: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegacyStepKind {
    Rule,
    Return,
    Policy,
}

/// What identifies a packet, from the first bytes of its headers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Headers {
    pub family: Family,
    pub protocol: Protocol,
    pub tuple: Tuple,
    /// IPv4 only.
    pub ip_id: Option<u16>,
    pub tcp_flags: Option<u8>,
}

/// `NFT_MSG_TRACE`; `None` for a message without what every step has.
pub(super) fn nft_step(message: Received<'_>) -> Option<NftStep> {
    let attribute = |wanted| message.attributes().find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let family = message.family();
    let verdict = attribute(TRACE_VERDICT).and_then(verdict);
    let kind = match number(attribute(TRACE_TYPE)?)? {
        // Kernels differ in what they call the end of a chain and a rule that says `return`: only rules have a handle.
        TYPE_RULE | TYPE_RETURN => match attribute(TRACE_RULE_HANDLE) {
            Some(handle) => NftStepKind::Rule { handle: handle_number(handle)?, verdict: verdict? },
            None => NftStepKind::Return,
        },
        TYPE_POLICY => NftStepKind::Policy {
            verdict: attribute(TRACE_POLICY)
                .and_then(number)
                .and_then(|code| final_verdict(code.cast_signed())),
        },
        _ => return None,
    };
    let headers = |network| Headers::parse(network, attribute(TRACE_TRANSPORT_HEADER));
    Some(NftStep {
        id: number(attribute(TRACE_ID)?)?,
        family: family.and_then(table_family),
        table: text(attribute(TRACE_TABLE)?),
        chain: text(attribute(TRACE_CHAIN)?),
        kind,
        packet: attribute(TRACE_NETWORK_HEADER).and_then(headers),
        in_ifindex: attribute(TRACE_IIF).and_then(number),
        out_ifindex: attribute(TRACE_OIF).and_then(number),
        mark: attribute(TRACE_MARK).and_then(number),
    })
}

fn handle_number(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

/// `NFULNL_MSG_PACKET`; `None` for anything but a TRACE line.
pub(super) fn legacy_step(message: Received<'_>) -> Option<LegacyStep> {
    let attribute = |wanted| message.attributes().find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let line = text(attribute(LOG_PREFIX)?);
    let (table, chain, kind, position) = trace_line(&line)?;
    let payload = attribute(LOG_PAYLOAD);
    let packet = payload.and_then(|payload| Headers::parse(payload, None));
    Some(LegacyStep {
        family: packet.as_ref().map(|p| p.family),
        hook: attribute(LOG_PACKET_HEADER).and_then(|header| header.get(2)).copied(),
        table: table.to_owned(),
        chain: chain.to_owned(),
        kind,
        position,
        digest: BuildHasherDefault::<DefaultHasher>::default().hash_one(payload),
        packet,
        in_ifindex: attribute(LOG_IN_DEVICE).and_then(number),
        out_ifindex: attribute(LOG_OUT_DEVICE).and_then(number),
        mark: attribute(LOG_MARK).and_then(number),
    })
}

/// `TRACE: TABLE:CHAIN:KIND:POSITION `; a chain's name may hold colons.
fn trace_line(line: &str) -> Option<(&str, &str, LegacyStepKind, u32)> {
    let (table, rest) = line.trim_end().strip_prefix("TRACE: ")?.split_once(':')?;
    let (rest, position) = rest.rsplit_once(':')?;
    let (chain, kind) = rest.rsplit_once(':')?;
    let kind = match kind {
        "rule" => LegacyStepKind::Rule,
        "return" => LegacyStepKind::Return,
        "policy" => LegacyStepKind::Policy,
        _ => return None,
    };
    Some((table, chain, kind, position.parse().ok()?))
}

fn verdict(nested: &[u8]) -> Option<NftVerdict> {
    let attribute = |wanted| attributes(nested).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let code = number(attribute(VERDICT_CODE)?)?.cast_signed();
    let chain = || attribute(VERDICT_CHAIN).map(text).unwrap_or_default();
    Some(match code {
        // NFT_BREAK ends a rule that did not match, and is traced for none.
        -1 => NftVerdict::Continue,
        -3 => NftVerdict::Jump(chain()),
        -4 => NftVerdict::Goto(chain()),
        -5 => NftVerdict::Return,
        _ => final_verdict(code).map_or(NftVerdict::Other(code), NftVerdict::Final),
    })
}

fn final_verdict(code: i32) -> Option<Verdict> {
    Some(match code & 0xff {
        _ if code < 0 => return None,
        libc::NF_DROP => Verdict::Drop,
        libc::NF_ACCEPT => Verdict::Accept,
        libc::NF_STOLEN => Verdict::Stolen,
        libc::NF_QUEUE => Verdict::Queue,
        libc::NF_REPEAT => Verdict::Repeat,
        _ => return None,
    })
}

fn table_family(number: u8) -> Option<TableFamily> {
    Some(match i32::from(number) {
        libc::NFPROTO_IPV4 => TableFamily::Ip,
        libc::NFPROTO_IPV6 => TableFamily::Ip6,
        libc::NFPROTO_INET => TableFamily::Inet,
        libc::NFPROTO_BRIDGE => TableFamily::Bridge,
        libc::NFPROTO_NETDEV => TableFamily::Netdev,
        libc::NFPROTO_ARP => TableFamily::Arp,
        _ => return None,
    })
}

impl Headers {
    /// From the network header, and the transport header if it is not behind the network header.
    fn parse(network: &[u8], transport: Option<&[u8]>) -> Option<Self> {
        match network.first()? >> 4 {
            4 => {
                let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(field::<4>(network, at)?)));
                let behind = network.get(usize::from(network[0] & 0xf) * 4..);
                let first = u16::from_be_bytes(field(network, 6)?) & 0x1fff == 0;
                let transport = transport.or(behind).filter(|_| first);
                let id = u16::from_be_bytes(field(network, 4)?);
                Some(Self::new(
                    Family::Ipv4,
                    *network.get(9)?,
                    address(12)?,
                    address(16)?,
                    Some(id),
                    transport,
                ))
            }
            6 => {
                let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(field::<16>(network, at)?)));
                let transport = transport.or(network.get(40..));
                Some(Self::new(Family::Ipv6, *network.get(6)?, address(8)?, address(24)?, None, transport))
            }
            _ => None,
        }
    }

    fn new(
        family: Family,
        protocol: u8,
        source: IpAddr,
        destination: IpAddr,
        ip_id: Option<u16>,
        transport: Option<&[u8]>,
    ) -> Self {
        let protocol = Protocol(protocol);
        let port = |at| Some(u16::from_be_bytes(field(transport.filter(|_| protocol.has_ports())?, at)?));
        let tuple = Tuple { source, source_port: port(0), destination, destination_port: port(2) };
        let tcp_flags = transport.filter(|_| protocol == Protocol::TCP).and_then(|t| t.get(13)).copied();
        Self { family, protocol, tuple, ip_id, tcp_flags }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_lines() {
        assert_eq!(trace_line("TRACE: nat:DOCKER:rule:2 "), Some(("nat", "DOCKER", LegacyStepKind::Rule, 2)));
        assert_eq!(trace_line("TRACE: raw:a:b:return:7 "), Some(("raw", "a:b", LegacyStepKind::Return, 7)));
        for other in ["", "TRACE: ", "fw: x:y:rule:1", "TRACE: raw:a:odd:1 ", "TRACE: raw:a:rule:x "] {
            assert_eq!(trace_line(other), None);
        }
    }

    #[test]
    fn headers_of_both_families() {
        let mut v4 = vec![0x45, 0, 0, 60, 0xd7, 0x2e, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let tcp = [0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0xa0, 2, 0, 0, 0, 0, 0, 0];
        let apart = Headers::parse(&v4, Some(&tcp)).unwrap();
        assert_eq!(apart.tuple.source_text(), "10.0.0.1:40000");
        assert_eq!(apart.tuple.destination_text(), "10.0.0.2:80");
        assert_eq!((apart.ip_id, apart.tcp_flags), (Some(0xd72e), Some(2)));
        v4.extend(tcp);
        assert_eq!(Headers::parse(&v4, None), Some(apart));
        let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        v6.extend([0; 15]);
        v6.push(1);
        v6.extend([0; 15]);
        v6.push(2);
        v6.extend([0, 53, 0, 54]);
        let v6 = Headers::parse(&v6, None).unwrap();
        assert_eq!(
            (v6.tuple.source_text(), v6.tuple.destination_text()),
            ("[::1]:53".into(), "[::2]:54".into())
        );
        assert_eq!((v6.ip_id, v6.tcp_flags), (None, None));
    }

    #[test]
    fn later_fragments_and_icmp_have_no_ports() {
        let mut packet = vec![0x45, 0, 0, 60, 0, 1, 0, 5, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 3, 4];
        assert_eq!(Headers::parse(&packet, None).unwrap().tuple.source_port, None);
        packet[7] = 0;
        assert_eq!(Headers::parse(&packet, None).unwrap().tuple.source_port, Some(0x0102));
        packet[9] = 1;
        assert_eq!(Headers::parse(&packet, None).unwrap().tuple.source_port, None);
    }

    #[test]
    fn short_headers_are_none() {
        for bytes in [&[][..], &[0x45], &[0x45; 19], &[0x60; 39], &[0x10; 60]] {
            assert_eq!(Headers::parse(bytes, None), None);
        }
    }
}
