//! What an nft rule makes of a packet, as far as its text and what is known of the packet decide it: addresses, ports,
//! protocol, devices and connection state. Anything else stays open; nothing is guessed.

mod values;

use std::{collections::HashMap, sync::Arc};

use self::values::{Field, Values};
use crate::{
    decode::DeviceName,
    model::{CtState, Direction, Family, Protocol, Tuple},
};

/// A packet as it stands before a table.
#[derive(Clone, Copy, Debug)]
pub struct KnownPacket {
    pub family: Family,
    pub protocol: Protocol,
    pub tuple: Tuple,
    /// The hook's own; `None` where it has none.
    pub input: Option<DeviceName>,
    pub output: Option<DeviceName>,
    pub state: Option<CtState>,
    pub direction: Option<Direction>,
    /// `enum ip_conntrack_status`, a mask.
    pub status: Option<u32>,
}

impl KnownPacket {
    fn device(&self, field: Field) -> Option<DeviceName> {
        if field == Field::Input { self.input } else { self.output }
    }
}

/// What the text says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The rule cannot match.
    Fails,
    Matches,
    /// Its verdict map has this verdict for the packet; it comes to the map for certain, or it may not.
    Chooses {
        verdict: &'a str,
        certain: bool,
    },
    Open,
}

/// A rule as far as its text is understood.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    tests: Vec<Test>,
    end: End,
}

#[derive(Clone, Debug)]
enum Test {
    /// A match or a statement that is only for these packets.
    Only(Option<Family>, Option<Protocol>),
    Compare {
        negated: bool,
        /// What stands behind a set that is not understood can still be read.
        is_set: bool,
        values: Arc<Values>,
    },
}

#[derive(Clone, Debug)]
enum End {
    /// Nothing behind the tests can fail.
    Matches,
    /// What is behind the tests is not understood.
    Open,
    Map {
        /// In the order of the text.
        verdicts: Vec<(Values, Box<str>)>,
        otherwise: Option<Box<str>>,
    },
}

/// Named sets that rules have asked for, each read once.
#[derive(Debug, Default)]
pub(super) struct Sets(HashMap<(Vec<Field>, String), Arc<Values>>);

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

impl Matcher {
    /// Reads a rule's text. `elements` gives the elements of a named map or set.
    pub(super) fn read<'a>(
        text: &'a str,
        elements: impl Fn(&str) -> Option<&'a str>,
        sets: &mut Sets,
    ) -> Self {
        let mut tests = Vec::new();
        let end = read(&words(text), &elements, sets, &mut tests);
        Self { tests, end: end.unwrap_or(End::Open) }
    }

    /// What the rule does to a packet.
    pub(super) fn answer(&self, packet: &KnownPacket) -> Answer<'_> {
        let mut certain = true;
        for test in &self.tests {
            match test {
                Test::Only(family, protocol) => {
                    if family.is_some_and(|family| family != packet.family)
                        || protocol.is_some_and(|protocol| protocol != packet.protocol)
                    {
                        return Answer::Fails;
                    }
                }
                Test::Compare { negated: true, values, .. } if values.is_absent(packet) => {
                    return Answer::Open;
                }
                Test::Compare { negated, is_set, values } => match values.hold(packet) {
                    Some(holds) if holds == *negated => return Answer::Fails,
                    Some(_) => {}
                    None if *is_set => certain = false,
                    None => return Answer::Open,
                },
            }
        }
        match &self.end {
            End::Matches if certain => Answer::Matches,
            End::Matches | End::Open => Answer::Open,
            End::Map { verdicts, otherwise } => {
                let mut asked = verdicts.iter().map(|(key, verdict)| (key.hold(packet), verdict));
                let verdict = match asked.find(|(holds, _)| *holds != Some(false)) {
                    Some((Some(_), verdict)) => Some(verdict),
                    Some((None, _)) => return Answer::Open,
                    None if otherwise.is_some() && verdicts.iter().any(|(key, _)| key.is_absent(packet)) => {
                        return Answer::Open;
                    }
                    None => otherwise.as_ref(),
                };
                verdict.map_or(Answer::Fails, |verdict| Answer::Chooses { verdict, certain })
            }
        }
    }
}

/// Reads tests up to the rule's end. `None` for an end that is not understood.
fn read<'a>(
    words: &[&str],
    elements: &impl Fn(&str) -> Option<&'a str>,
    sets: &mut Sets,
    tests: &mut Vec<Test>,
) -> Option<End> {
    let mut rest = words;
    loop {
        rest = match rest {
            [] => return Some(End::Matches),
            ["counter", "name", _, rest @ ..] | ["counter" | "log", rest @ ..] => rest,
            ["comment" | "prefix" | "level" | "group" | "snaplen", _, rest @ ..] => rest,
            // A NAT statement with a map in it may not find its address there.
            ["dnat" | "snat" | "redirect" | "masquerade", rest @ ..] if rest.contains(&"map") => return None,
            // Whether it takes the connection matters to what stands behind it alone.
            ["flow", "add" | "offload", _] => return Some(End::Matches),
            [word, of @ ..] if VERDICTS.contains(word) => {
                tests.extend(only(of));
                return Some(End::Matches);
            }
            words => {
                let (fields, behind) = fields(words, tests)?;
                let (negated, value, rest) = match behind {
                    ["vmap", map, ..] if !fields.contains(&Field::Status) => {
                        let inside = map.strip_prefix('{').or_else(|| elements(map.strip_prefix('@')?));
                        return verdicts(&fields, inside?);
                    }
                    ["!=", value, rest @ ..] => (true, *value, rest),
                    [value, rest @ ..] => (false, *value, rest),
                    [] => return None,
                };
                let is_set = value.starts_with(['@', '{']);
                // A state is a bit, and several of them are one mask; so is a status.
                let bits = fields.contains(&Field::Status);
                let mask = bits || fields == [Field::State] && value.contains(',') && !is_set;
                if negated && mask || bits && (is_set || fields.len() > 1) {
                    return None;
                }
                let values = match value.strip_prefix('@').and_then(|name| Some((name, elements(name)?))) {
                    Some((name, elements)) => {
                        let known = sets.0.entry((fields, name.to_owned()));
                        let read = |key: &(Vec<Field>, String)| Arc::new(Values::read(&key.0, elements));
                        Arc::clone(known.or_insert_with_key(read))
                    }
                    None => Arc::new(Values::read(&fields, value)),
                };
                tests.push(Test::Compare { negated, is_set, values });
                rest
            }
        };
    }
}

/// What a statement with these words is for: nft asks for it and does not print that.
fn only(words: &[&str]) -> Option<Test> {
    Some(match words {
        ["ip", ..] | ["with", "icmp", ..] => Test::Only(Some(Family::Ipv4), None),
        ["ip6", ..] | ["with", "icmpv6", ..] => Test::Only(Some(Family::Ipv6), None),
        ["with", "tcp", ..] => Test::Only(None, Some(Protocol::TCP)),
        _ => return None,
    })
}

/// What a match that begins so is for.
fn only_of_match(first: &str) -> Option<Test> {
    Some(match first {
        "ip" => Test::Only(Some(Family::Ipv4), None),
        "ip6" => Test::Only(Some(Family::Ipv6), None),
        "tcp" | "udp" | "sctp" | "icmp" | "icmpv6" => Test::Only(None, Protocol::from_name(first)),
        _ => return None,
    })
}

/// The fields that are compared, joined by dots, and the words behind them. `None` for a field that is not known.
fn fields<'w, 't>(mut words: &'w [&'t str], tests: &mut Vec<Test>) -> Option<(Vec<Field>, &'w [&'t str])> {
    let mut fields = Vec::new();
    loop {
        let first = words.first()?;
        tests.extend(only_of_match(first));
        let (field, both) = field(first, words.get(1)?)?;
        fields.push(field);
        words = words.get(if both { 2 } else { 1 }..)?;
        match words {
            [".", rest @ ..] => words = rest,
            _ => return Some((fields, words)),
        }
    }
}

/// The field that these words name, and whether it took both of them.
fn field(first: &str, second: &str) -> Option<(Field, bool)> {
    Some(match (first, second) {
        ("iifname" | "iif", _) => (Field::Input, false),
        ("oifname" | "oif", _) => (Field::Output, false),
        ("meta", "iifname" | "iif") => (Field::Input, true),
        ("meta", "oifname" | "oif") => (Field::Output, true),
        ("ip" | "ip6", "saddr") => (Field::Source, true),
        ("ip" | "ip6", "daddr") => (Field::Destination, true),
        ("tcp" | "udp" | "sctp" | "th", "sport") => (Field::SourcePort, true),
        ("tcp" | "udp" | "sctp" | "th", "dport") => (Field::DestinationPort, true),
        ("meta", "l4proto") | ("ip", "protocol") => (Field::Protocol, true),
        ("meta", "nfproto") => (Field::Family, true),
        ("ct", "state") => (Field::State, true),
        ("ct", "direction") => (Field::Direction, true),
        ("ct", "status") => (Field::Status, true),
        _ => return None,
    })
}

/// What a verdict map holds.
fn verdicts(fields: &[Field], inside: &str) -> Option<End> {
    // A comment may hold anything; a timeout may have run out.
    if [" comment ", " expires ", " counter "].iter().any(|word| inside.contains(word)) {
        return None;
    }
    let (mut verdicts, mut otherwise) = (Vec::new(), None);
    for element in inside.trim_end_matches('}').split(',').filter(|element| !element.trim().is_empty()) {
        let (key, verdict) = element.rsplit_once(" : ")?;
        match key.trim() {
            "*" => otherwise = Some(verdict.trim().into()),
            key => verdicts.push((Values::read(fields, key), verdict.trim().into())),
        }
    }
    Some(End::Map { verdicts, otherwise })
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
