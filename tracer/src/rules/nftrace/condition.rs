//! The packet filter as alternatives of simple conditions, as nft rules have them.

use tracer_common::{
    filter::{Filter, Ports, Prefix},
    tuple::{IPV4, IPV6},
};

/// More rules than this would cost more than tracing too much.
const MAX_ALTERNATIVES: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// [`IPV4`] or [`IPV6`].
    Family(u8),
    Protocol(u8),
    /// Bytes from the start of the network header.
    Address {
        offset: u32,
        address: Vec<u8>,
        mask: Vec<u8>,
    },
    /// Bytes from the start of the transport header; both ends included.
    Port {
        offset: u32,
        range: [u16; 2],
    },
}

/// Which end of a packet.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Lists of conditions; a packet is traced if it meets all of any list. Replies are met too. What the filter asks
/// for is always met, and more than that where nft would need too many rules.
pub(super) fn alternatives(filter: &Filter) -> Vec<Vec<Condition>> {
    let all = every(filter);
    if all.len() <= MAX_ALTERNATIVES {
        return all;
    }
    let any = Ports::default();
    every(&Filter { port: any, source_port: any, destination_port: any, ..*filter })
}

fn every(filter: &Filter) -> Vec<Vec<Condition>> {
    use End::{Destination, Source};
    let mut lists = vec![Vec::new()];
    if filter.protocol != Filter::ANY_PROTOCOL && filter.active != 0 {
        lists[0].extend(u8::try_from(filter.protocol).ok().map(Condition::Protocol));
    }
    if filter.family != 0 {
        lists[0].push(Condition::Family(filter.family));
    }
    let both = [Source, Destination];
    lists = product(&lists, &both.map(|end| prefix(&filter.host, end)).concat());
    lists = product(&lists, &both.map(|end| ports(&filter.port, end)).concat());
    let directed = |source: End, destination: End| {
        let lists = product(&lists, &prefix(&filter.source, source));
        let lists = product(&lists, &prefix(&filter.destination, destination));
        let lists = product(&lists, &ports(&filter.source_port, source));
        product(&lists, &ports(&filter.destination_port, destination))
    };
    let mut lists = directed(Source, Destination);
    for reply in directed(Destination, Source) {
        if !lists.contains(&reply) {
            lists.push(reply);
        }
    }
    lists
}

/// Each list with each of the choices; no choices: no condition.
fn product(lists: &[Vec<Condition>], choices: &[Vec<Condition>]) -> Vec<Vec<Condition>> {
    if choices.is_empty() {
        return lists.to_vec();
    }
    lists.iter().flat_map(|list| choices.iter().map(move |choice| [&list[..], choice].concat())).collect()
}

fn prefix(prefix: &Prefix, end: End) -> Vec<Vec<Condition>> {
    let (offset, from) = match (prefix.family, end) {
        (IPV4, End::Source) => (12, 12),
        (IPV4, End::Destination) => (16, 12),
        (IPV6, End::Source) => (8, 0),
        (IPV6, End::Destination) => (24, 0),
        _ => return Vec::new(),
    };
    let bytes = |words: &[u32; 4]| words.iter().flat_map(|word| word.to_ne_bytes()).skip(from).collect();
    let address = Condition::Address { offset, address: bytes(&prefix.address), mask: bytes(&prefix.mask) };
    vec![vec![Condition::Family(prefix.family), address]]
}

fn ports(ports: &Ports, end: End) -> Vec<Vec<Condition>> {
    let offset = match end {
        End::Source => 0,
        End::Destination => 2,
    };
    let ranges = ports.ranges.iter().take(ports.count as usize);
    ranges.map(|range| vec![Condition::Port { offset, range: *range }]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter() -> Filter {
        Filter { protocol: Filter::ANY_PROTOCOL, active: 1, ..Filter::default() }
    }

    fn some_ports(ranges: &[[u16; 2]]) -> Ports {
        let mut ports = Ports { count: ranges.len() as u32, ..Ports::default() };
        ports.ranges[..ranges.len()].copy_from_slice(ranges);
        ports
    }

    #[test]
    fn an_empty_filter_traces_everything() {
        assert_eq!(alternatives(&Filter::default()), [Vec::new()]);
        assert_eq!(alternatives(&filter()), [Vec::new()]);
    }

    #[test]
    fn a_port_is_either_end() {
        let f = Filter { protocol: 6, port: some_ports(&[[80, 80]]), ..filter() };
        let port = |offset| vec![Condition::Protocol(6), Condition::Port { offset, range: [80, 80] }];
        assert_eq!(alternatives(&f), [port(0), port(2)]);
    }

    #[test]
    fn a_source_is_the_destination_of_replies() {
        let address = [0, 0, 0, u32::from_ne_bytes([10, 1, 0, 0])];
        let mask = [0, 0, 0, u32::from_ne_bytes([255, 255, 0, 0])];
        let f = Filter { source: Prefix { address, mask, family: IPV4, reserved: [0; 3] }, ..filter() };
        let condition = |offset| {
            let address =
                Condition::Address { offset, address: vec![10, 1, 0, 0], mask: vec![255, 255, 0, 0] };
            vec![Condition::Family(IPV4), address]
        };
        assert_eq!(alternatives(&f), [condition(12), condition(16)]);
    }

    #[test]
    fn too_many_rules_become_fewer_conditions() {
        let many: Vec<[u16; 2]> = (0..16).map(|n| [n * 10, n * 10 + 1]).collect();
        let f = Filter {
            protocol: 17,
            source_port: some_ports(&many),
            destination_port: some_ports(&many),
            ..filter()
        };
        assert_eq!(alternatives(&f), [vec![Condition::Protocol(17)]]);
    }
}
