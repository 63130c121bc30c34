//! What a rule asks of a packet and what it does, as far as it was understood.

use std::net::IpAddr;

use crate::{
    enrich::Prefix,
    model::{CtState, Protocol},
};

/// Whether a rule matches: three-valued, because not every match is understood and not every fact is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maybe {
    Yes,
    No,
    Unknown,
}

impl Maybe {
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Unknown,
        }
    }

    fn from_bool(value: bool) -> Self {
        if value { Self::Yes } else { Self::No }
    }
}

/// "one of these", or none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition<T> {
    pub negated: bool,
    pub any_of: Vec<T>,
}

impl<T> Condition<T> {
    #[must_use]
    pub fn is(value: T) -> Self {
        Self { negated: false, any_of: vec![value] }
    }

    fn holds<V>(condition: Option<&Self>, value: Option<V>, test: impl Fn(&T, &V) -> bool) -> Maybe {
        let Some(condition) = condition else { return Maybe::Yes };
        let Some(value) = value else { return Maybe::Unknown };
        let found = condition.any_of.iter().any(|wanted| test(wanted, &value));
        Maybe::from_bool(found != condition.negated)
    }
}

/// Inclusive range of ports.
pub(super) type Ports = (u16, u16);

/// What a rule asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    pub protocol: Option<Condition<Protocol>>,
    pub source: Option<Condition<Prefix>>,
    pub destination: Option<Condition<Prefix>>,
    pub source_port: Option<Condition<Ports>>,
    pub destination_port: Option<Condition<Ports>>,
    /// Device names; a trailing `+` (iptables) or `*` (nft) stands for any rest.
    pub input: Option<Condition<String>>,
    pub output: Option<Condition<String>>,
    pub state: Option<Condition<CtState>>,
    /// `addrtype --dst-type LOCAL`, `fib daddr type local`.
    pub to_local: Option<bool>,
    /// Matches that were not understood.
    pub others: bool,
}

impl Selectors {
    /// The rule asks for nothing: it takes every packet.
    #[must_use]
    pub fn is_catch_all(&self) -> bool {
        *self == Self::default()
    }
}

/// New address and port of a NAT rule; `None` is kept, or not known (ranges, maps).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatTarget {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

/// What a matching rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// Counts, marks, logs: the walk goes on.
    #[default]
    Continue,
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
    Dnat(NatTarget),
    Redirect(NatTarget),
    Snat(NatTarget),
    Masquerade,
    /// A target that was not understood: may do anything.
    Unknown,
}

/// A rule, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFacts {
    pub selectors: Selectors,
    pub target: Target,
}

/// The packet that a ruleset is asked about; `None` is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    pub protocol: Protocol,
    pub source: Option<IpAddr>,
    pub source_port: Option<u16>,
    pub destination: IpAddr,
    pub destination_port: Option<u16>,
    pub input: Option<&'a str>,
    pub output: Option<&'a str>,
    pub state: Option<CtState>,
    pub to_local: Option<bool>,
}

impl RuleFacts {
    #[must_use]
    pub fn matches(&self, question: &Question<'_>) -> Maybe {
        let wanted = &self.selectors;
        let port = |range: &Ports, port: &u16| (range.0..=range.1).contains(port);
        let prefix = |prefix: &Prefix, address: &IpAddr| prefix.contains(*address);
        let device = |pattern: &String, name: &&str| device_matches(pattern, name);
        [
            Condition::holds(wanted.protocol.as_ref(), Some(question.protocol), |a, b| a == b),
            Condition::holds(wanted.source.as_ref(), question.source, prefix),
            Condition::holds(wanted.destination.as_ref(), Some(question.destination), prefix),
            Condition::holds(wanted.source_port.as_ref(), question.source_port, port),
            Condition::holds(wanted.destination_port.as_ref(), question.destination_port, port),
            Condition::holds(wanted.input.as_ref(), question.input, device),
            Condition::holds(wanted.output.as_ref(), question.output, device),
            Condition::holds(wanted.state.as_ref(), question.state, |a, b| a == b),
            match (wanted.to_local, question.to_local) {
                (None, _) => Maybe::Yes,
                (Some(_), None) => Maybe::Unknown,
                (Some(wanted), Some(is)) => Maybe::from_bool(wanted == is),
            },
            if wanted.others { Maybe::Unknown } else { Maybe::Yes },
        ]
        .into_iter()
        .fold(Maybe::Yes, Maybe::and)
    }
}

fn device_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix(['+', '*']) {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

/// `A.B.C.D`, `A.B.C.D/24`, `A.B.C.D/255.255.255.0`.
pub(super) fn prefix(text: &str) -> Option<Prefix> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse().ok().map(Prefix::host);
    };
    let length = match length.parse::<IpAddr>() {
        Ok(IpAddr::V4(mask)) if mask.to_bits().leading_ones() == mask.to_bits().count_ones() => {
            mask.to_bits().leading_ones().try_into().ok()?
        }
        _ => length.parse().ok()?,
    };
    Prefix::new(address.parse().ok()?, length)
}

/// `80`, `80:90` or `80-90`.
pub(super) fn ports(text: &str) -> Option<Ports> {
    match text.split_once([':', '-']) {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => text.parse().ok().map(|port| (port, port)),
    }
}

/// `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`, `:PORT`; what is a range or a name is not known.
pub(super) fn nat_target(text: &str) -> NatTarget {
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        return NatTarget { address: Some(address), port: None };
    }
    match text.rsplit_once(':') {
        Some((address, port)) => {
            NatTarget { address: address.trim_matches(['[', ']']).parse().ok(), port: port.parse().ok() }
        }
        None => NatTarget::default(),
    }
}
