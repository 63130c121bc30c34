//! What an nft rule makes of a packet, as far as its text and what is known of the packet decide it: addresses, ports,
//! protocol, devices and connection state. Anything else stays open; nothing is guessed.

use std::net::IpAddr;

use crate::{
    decode::DeviceName,
    model::{Family, Protocol, Tuple},
};

/// A packet as it stands before a table.
#[derive(Clone, Copy, Debug)]
pub struct KnownPacket {
    pub family: Family,
    pub protocol: Protocol,
    pub tuple: Tuple,
    pub input: Option<DeviceName>,
    pub output: Option<DeviceName>,
    /// `ct state`, in nft's word for it.
    pub state: Option<&'static str>,
}

/// What the text says of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The rule cannot match.
    Fails,
    Matches,
    /// Its verdict map has this verdict for the packet; it comes to the map for certain, or it may not.
    Chooses {
        verdict: String,
        certain: bool,
    },
    Open,
}

/// Words that begin what a rule does: nothing behind them can fail.
const VERDICTS: [&str; 12] = [
    "accept",
    "drop",
    "return",
    "continue",
    "reject",
    "jump",
    "goto",
    "masquerade",
    "redirect",
    "dnat",
    "snat",
    "notrack",
];

/// Elements of a set, in bytes, up to which they are looked through for one packet.
const MOST: usize = 16_384;

/// What a rule with this text does to a packet. `elements` gives the elements of a named map or set.
pub(super) fn answer<'a>(
    text: &'a str,
    packet: &KnownPacket,
    elements: impl Fn(&str) -> Option<&'a str>,
) -> Answer {
    let words = words(text);
    let mut rest = words.as_slice();
    let mut certain = true;
    loop {
        rest = match rest {
            [] => break,
            ["counter", "name", _, rest @ ..] | ["counter" | "log", rest @ ..] => rest,
            ["comment" | "prefix", _, rest @ ..] => rest,
            // A NAT statement with a map in it may not find its address there.
            ["dnat" | "snat" | "redirect" | "masquerade", rest @ ..] if rest.contains(&"map") => {
                return Answer::Open;
            }
            [word, of @ ..] if VERDICTS.contains(word) => {
                if !is_for(of, packet) {
                    return Answer::Fails;
                }
                break;
            }
            [first, ..] if Field::contradicts(first, packet) => return Answer::Fails,
            [first, second, rest @ ..] => {
                let (field, rest) = match Field::of(first, second) {
                    Some(Field::Named(field)) => (field, rest),
                    Some(Field::Single(field)) => (field, &words[words.len() - rest.len() - 1..]),
                    None => return Answer::Open,
                };
                let (negated, value, rest) = match rest {
                    ["vmap", map, ..] => {
                        let inside = map.strip_prefix('{').or_else(|| elements(map.strip_prefix('@')?));
                        return inside.map_or(Answer::Open, |inside| chosen(field, inside, packet, certain));
                    }
                    ["!=", value, rest @ ..] => (true, *value, rest),
                    [value, rest @ ..] => (false, *value, rest),
                    [] => return Answer::Open,
                };
                // A state is a bit, and several of them are one mask.
                let mask = negated && field == What::State && value.contains(',') && !is_value(value);
                let named = value.strip_prefix('@').and_then(&elements);
                match holds(field, named.unwrap_or(value), packet).filter(|_| !mask) {
                    Some(holds) if holds == negated => return Answer::Fails,
                    Some(_) => {}
                    None if is_value(value) => certain = false,
                    None => return Answer::Open,
                }
                rest
            }
            [_] => return Answer::Open,
        };
    }
    if certain { Answer::Matches } else { Answer::Open }
}

/// Whether a statement with these words is one for the packet's protocol: nft asks for it and does not print that.
fn is_for(words: &[&str], packet: &KnownPacket) -> bool {
    match words {
        ["ip", ..] | ["with", "icmp", ..] => packet.family == Family::Ipv4,
        ["ip6", ..] | ["with", "icmpv6", ..] => packet.family == Family::Ipv6,
        ["with", "tcp", ..] => packet.protocol == Protocol::TCP,
        _ => true,
    }
}

/// A value that is one word, understood or not.
fn is_value(word: &str) -> bool {
    word.starts_with(['@', '{'])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Source,
    Destination,
    SourcePort,
    DestinationPort,
    Protocol,
    Family,
    Input,
    Output,
    State,
}

enum Field {
    /// Two words.
    Named(What),
    /// One word.
    Single(What),
}

impl Field {
    fn of(first: &str, second: &str) -> Option<Self> {
        Some(match (first, second) {
            ("iifname" | "iif", _) => Self::Single(What::Input),
            ("oifname" | "oif", _) => Self::Single(What::Output),
            ("meta", "iifname" | "iif") => Self::Named(What::Input),
            ("meta", "oifname" | "oif") => Self::Named(What::Output),
            ("ip" | "ip6", "saddr") => Self::Named(What::Source),
            ("ip" | "ip6", "daddr") => Self::Named(What::Destination),
            ("tcp" | "udp" | "sctp" | "th", "sport") => Self::Named(What::SourcePort),
            ("tcp" | "udp" | "sctp" | "th", "dport") => Self::Named(What::DestinationPort),
            ("meta", "l4proto") | ("ip", "protocol") => Self::Named(What::Protocol),
            ("meta", "nfproto") => Self::Named(What::Family),
            ("ct", "state") => Self::Named(What::State),
            _ => return None,
        })
    }

    /// Whether a match that begins so is one of another protocol than the packet's.
    fn contradicts(first: &str, packet: &KnownPacket) -> bool {
        match first {
            "ip" => packet.family != Family::Ipv4,
            "ip6" => packet.family != Family::Ipv6,
            "tcp" | "udp" | "sctp" | "icmp" | "icmpv6" => protocol(first) != Some(packet.protocol),
            _ => false,
        }
    }
}

/// The verdict that a map has for the packet.
fn chosen(field: What, inside: &str, packet: &KnownPacket, certain: bool) -> Answer {
    // A comment may hold anything; a timeout may have run out.
    if inside.len() > MOST
        || inside.contains(" comment ")
        || inside.contains(" expires ")
        || inside.contains(" counter ")
    {
        return Answer::Open;
    }
    let mut otherwise = None;
    for element in inside.trim_end_matches('}').split(',').filter(|element| !element.trim().is_empty()) {
        let Some((key, verdict)) = element.rsplit_once(" : ") else { return Answer::Open };
        let verdict = verdict.trim().to_owned();
        match (key.trim(), one(field, key.trim(), packet)) {
            ("*", _) => otherwise = Some(verdict),
            (_, Some(true)) => return Answer::Chooses { verdict, certain },
            (_, Some(false)) => {}
            (_, None) => return Answer::Open,
        }
    }
    otherwise.map_or(Answer::Fails, |verdict| Answer::Chooses { verdict, certain })
}

/// Whether the packet's field has this value, or one of these.
fn holds(field: What, value: &str, packet: &KnownPacket) -> Option<bool> {
    // A comment may hold anything.
    if value.len() > MOST || value.contains(" comment ") {
        return None;
    }
    let items = value.trim_start_matches('{').trim_end_matches('}').split(',');
    let mut all_known = true;
    for item in items.map(str::trim).filter(|item| !item.is_empty()) {
        match one(field, item, packet) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => all_known = false,
        }
    }
    all_known.then_some(false)
}

fn one(field: What, value: &str, packet: &KnownPacket) -> Option<bool> {
    let tuple = &packet.tuple;
    match field {
        What::Source => address(value, tuple.source),
        What::Destination => address(value, tuple.destination),
        What::SourcePort => port(value, tuple.source_port?),
        What::DestinationPort => port(value, tuple.destination_port?),
        What::Protocol => Some(protocol(value)? == packet.protocol),
        What::Family => match value {
            "ipv4" => Some(packet.family == Family::Ipv4),
            "ipv6" => Some(packet.family == Family::Ipv6),
            _ => None,
        },
        What::Input => name(value, packet.input?),
        What::Output => name(value, packet.output?),
        What::State => {
            let known = ["new", "established", "related", "invalid", "untracked"].contains(&value);
            if known { Some(packet.state? == value) } else { None }
        }
    }
}

/// An address, a prefix or a range.
fn address(value: &str, of: IpAddr) -> Option<bool> {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let (of, bits) = number(of);
    let read = |text: &str| {
        let (address, width) = number(text.trim().parse().ok()?);
        (width == bits).then_some(address)
    };
    if let Some((base, length)) = value.split_once('/') {
        let free = bits.checked_sub(length.parse().ok()?)?;
        let cut = |address: u128| address.checked_shr(free).unwrap_or(0);
        return Some(cut(read(base)?) == cut(of));
    }
    match value.split_once('-') {
        Some((low, high)) => Some((read(low)?..=read(high)?).contains(&of)),
        None => Some(read(value)? == of),
    }
}

/// A port or a range.
fn port(value: &str, of: u16) -> Option<bool> {
    match value.split_once('-') {
        Some((low, high)) => Some((low.parse::<u16>().ok()?..=high.parse().ok()?).contains(&of)),
        None => Some(value.parse::<u16>().ok()? == of),
    }
}

fn protocol(name: &str) -> Option<Protocol> {
    Some(match name {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "icmp" => Protocol::ICMP,
        "icmpv6" | "ipv6-icmp" => Protocol::ICMP6,
        "sctp" => Protocol::SCTP,
        "gre" => Protocol::GRE,
        "esp" => Protocol::ESP,
        number => Protocol(number.parse().ok()?),
    })
}

/// A device's name in quotes, or the beginning of one.
fn name(value: &str, of: DeviceName) -> Option<bool> {
    let value = value.strip_prefix('"')?.strip_suffix('"')?;
    let of = of.to_string();
    if value.contains('\\') {
        return None;
    }
    Some(value.strip_suffix('*').map_or(of == value, |start| of.starts_with(start)))
}

/// Splits into words; a quoted text, with its marks, and a `{ set }`, with what stands in it, are one word each.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while let Some(first) = rest.bytes().next() {
        let end = match first {
            b'"' => rest[1..].find('"').map(|at| at + 2),
            b'{' => rest.find('}').map(|at| at + 1),
            _ => rest.find(' '),
        };
        let (word, behind) = rest.split_at(end.unwrap_or(rest.len()));
        words.push(word);
        rest = behind.trim_start();
    }
    words
}

#[cfg(test)]
mod tests;
