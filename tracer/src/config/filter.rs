//! The packet filter, from the flags to the form that the kernel evaluates.

use std::net::IpAddr;

use ipnet::IpNet;
use tracer_common::{
    filter::{Filter, MAX_PORT_RANGES, Ports, Prefix},
    tuple::{IPV4, IPV6},
};

use super::{BadArgument, values::PortList};
use crate::{cli::FilterArgs, model::Protocol};

/// The filter for these flags, or the flag that no packet can satisfy together with another.
pub(super) fn build(args: &FilterArgs) -> Result<Filter, BadArgument> {
    let family = family(args)?;
    check_ports_exist(args)?;
    let mut filter = Filter {
        host: prefix(args.host),
        source: prefix(args.src),
        destination: prefix(args.dst),
        port: ports("--port", &args.port)?,
        source_port: ports("--sport", &args.sport)?,
        destination_port: ports("--dport", &args.dport)?,
        protocol: args.proto.map_or(Filter::ANY_PROTOCOL, |protocol| u16::from(protocol.0)),
        family: family.unwrap_or(0),
        active: 0,
    };
    let matches_all = Filter { protocol: Filter::ANY_PROTOCOL, ..Filter::default() };
    filter.active = u8::from(filter != matches_all);
    Ok(filter)
}

/// The one family that all flags allow; `None` where they allow both.
fn family(args: &FilterArgs) -> Result<Option<u8>, BadArgument> {
    let of_prefix = |prefix: Option<IpNet>| prefix.map(|prefix| family_of(prefix.addr()));
    let of_protocol = match args.proto {
        Some(Protocol::ICMP) => Some(IPV4),
        Some(Protocol::ICMP6) => Some(IPV6),
        _ => None,
    };
    let claims = [
        ("-4", args.ipv4.then_some(IPV4)),
        ("-6", args.ipv6.then_some(IPV6)),
        ("--host", of_prefix(args.host)),
        ("--src", of_prefix(args.src)),
        ("--dst", of_prefix(args.dst)),
        ("--proto", of_protocol),
    ];
    let mut first: Option<(&str, u8)> = None;
    for (flag, family) in claims {
        let Some(family) = family else { continue };
        match first {
            Some((other, asked)) if asked != family => {
                let problem =
                    format!("asks for IPv{family}, but {other} asks for IPv{asked}: nothing can match");
                return Err(BadArgument { flag, problem });
            }
            _ => first = first.or(Some((flag, family))),
        }
    }
    Ok(first.map(|(_, family)| family))
}

fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

fn check_ports_exist(args: &FilterArgs) -> Result<(), BadArgument> {
    let Some(protocol) = args.proto.filter(|protocol| !protocol.has_ports()) else { return Ok(()) };
    let given = [("--port", &args.port), ("--sport", &args.sport), ("--dport", &args.dport)];
    match given.into_iter().find(|(_, list)| !list.is_empty()) {
        Some((flag, _)) => {
            let problem =
                format!("packets of protocol {protocol} (--proto) have no ports: nothing can match");
            Err(BadArgument { flag, problem })
        }
        None => Ok(()),
    }
}

/// The kernel's form: overlapping and adjacent ranges become one.
fn ports(flag: &'static str, lists: &[PortList]) -> Result<Ports, BadArgument> {
    let mut given: Vec<[u16; 2]> = lists.iter().flat_map(|list| list.0.iter().copied()).collect();
    given.sort_unstable();
    let mut merged: Vec<[u16; 2]> = Vec::new();
    for [low, high] in given {
        match merged.last_mut() {
            Some(last) if u32::from(low) <= u32::from(last[1]) + 1 => last[1] = last[1].max(high),
            _ => merged.push([low, high]),
        }
    }
    let mut ports = Ports::default();
    let Some(room) = ports.ranges.get_mut(..merged.len()) else {
        let problem = format!("{} separate ports or ranges, {MAX_PORT_RANGES} are possible", merged.len());
        return Err(BadArgument { flag, problem });
    };
    room.copy_from_slice(&merged);
    ports.count = merged.len() as u32;
    Ok(ports)
}

fn prefix(prefix: Option<IpNet>) -> Prefix {
    let Some(prefix) = prefix else { return Prefix::default() };
    Prefix {
        address: words(prefix.network()),
        mask: words(prefix.netmask()),
        family: family_of(prefix.addr()),
        reserved: [0; 3],
    }
}

/// An address as [`tracer_common::tuple::Tuple`] keeps it.
fn words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(address) => [0, 0, 0, u32::from_ne_bytes(address.octets())],
        IpAddr::V6(address) => {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(address.octets().as_chunks::<4>().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            words
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tracer_common::tuple::Tuple;

    use super::*;
    use crate::cli::Cli;

    fn filter(flags: &str) -> Result<Filter, BadArgument> {
        let words = std::iter::once("pathtrace").chain(flags.split_whitespace());
        build(&Cli::try_parse_from(words).unwrap().trace.filter)
    }

    fn bad_flag(flags: &str) -> &'static str {
        filter(flags).unwrap_err().flag
    }

    fn packet(source: &str, destination: &str, protocol: Protocol) -> Tuple {
        let (source, destination): (std::net::SocketAddr, std::net::SocketAddr) =
            (source.parse().unwrap(), destination.parse().unwrap());
        Tuple {
            source: words(source.ip()),
            destination: words(destination.ip()),
            source_port: source.port(),
            destination_port: destination.port(),
            protocol: protocol.0,
            family: family_of(source.ip()),
            reserved: 0,
        }
    }

    #[test]
    fn no_flags_match_everything() {
        let filter = filter("").unwrap();
        assert_eq!(filter.active, 0);
        assert!(filter.matches(&packet("[fd00::1]:1", "[fd00::2]:2", Protocol::UDP)));
    }

    #[test]
    fn prefixes_match_whatever_their_host_bits() {
        let filter = filter("--host 10.1.2.3/16").unwrap();
        assert!(filter.matches(&packet("10.1.9.9:1", "192.0.2.1:2", Protocol::TCP)));
        assert!(filter.matches(&packet("192.0.2.1:2", "10.1.9.9:1", Protocol::TCP)));
        assert!(!filter.matches(&packet("10.2.9.9:1", "192.0.2.1:2", Protocol::TCP)));
        assert!(!filter.matches(&packet("[fd00::1]:1", "[fd00::2]:2", Protocol::TCP)));
    }

    #[test]
    fn an_ipv6_prefix_is_compared_in_all_its_words() {
        let filter = filter("--dst fd00:1:2:3:4::/80").unwrap();
        assert!(filter.matches(&packet("[fd00::9]:1", "[fd00:1:2:3:4::9]:2", Protocol::TCP)));
        assert!(!filter.matches(&packet("[fd00::9]:1", "[fd00:1:2:3:5::9]:2", Protocol::TCP)));
        assert!(!filter.matches(&packet("[fd00:1:2:3:4::9]:2", "[fd00::9]:1", Protocol::TCP)));
    }

    #[test]
    fn source_and_destination_are_told_apart() {
        let filter = filter("--src 10.0.0.1 --dst 10.0.0.2 --dport 80 --proto tcp").unwrap();
        assert!(filter.matches(&packet("10.0.0.1:4000", "10.0.0.2:80", Protocol::TCP)));
        assert!(!filter.matches(&packet("10.0.0.2:80", "10.0.0.1:4000", Protocol::TCP)));
        assert!(!filter.matches(&packet("10.0.0.1:4000", "10.0.0.2:80", Protocol::UDP)));
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let ports = filter("--port 80,443,81-90 --port 85-99").unwrap().port;
        assert_eq!(ports.count, 2);
        assert_eq!(ports.ranges[..2], [[80, 99], [443, 443]]);
    }

    #[test]
    fn more_ranges_than_the_kernel_side_holds() {
        let list = |n: u16| (1..=n).map(|i| (i * 2).to_string()).collect::<Vec<_>>().join(",");
        assert!(filter(&format!("--port {}", list(16))).is_ok());
        assert_eq!(bad_flag(&format!("--sport {}", list(17))), "--sport");
    }

    #[test]
    fn families_that_exclude_each_other() {
        assert_eq!(bad_flag("-4 --host fd00::1"), "--host");
        assert_eq!(bad_flag("--src 10.0.0.1 --dst fd00::1"), "--dst");
        assert_eq!(bad_flag("--proto icmp6 --host 10.0.0.1"), "--proto");
        assert_eq!(bad_flag("-6 --proto icmp"), "--proto");
        assert_eq!(filter("--host fd00::1").unwrap().family, IPV6);
        assert_eq!(filter("--proto icmp").unwrap().family, IPV4);
    }

    #[test]
    fn ports_of_a_protocol_without_ports() {
        assert_eq!(bad_flag("--proto icmp --port 80"), "--port");
        assert_eq!(bad_flag("--proto 50 --dport 80"), "--dport");
        assert!(filter("--proto sctp --port 80").is_ok());
    }
}
