//! What the kernel sent about a packet that it refused.

use std::collections::HashMap;

use tracer_common::filter::Filter;

use super::{
    Correlator,
    open::{Open, Waiting},
};
use crate::{
    decode::{SightEvent, SightKind},
    model::{Hook, Protocol, Tuple},
    plan::View,
};

/// TCP flags.
pub(super) const RESET: u8 = 0x04;
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Names as iptables `--reject-with` spells them; `None` for ICMP messages that refuse nothing (redirects).
fn icmp_name(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (3, 0) => "icmp-net-unreachable",
        (3, 1) => "icmp-host-unreachable",
        (3, 2) => "icmp-proto-unreachable",
        (3, 3) => "icmp-port-unreachable",
        (3, 4) => "icmp-fragmentation-needed",
        (3, 9) => "icmp-net-prohibited",
        (3, 10) => "icmp-host-prohibited",
        (3, 13) => "icmp-admin-prohibited",
        (3, _) => "icmp-destination-unreachable",
        (11, _) => "icmp-time-exceeded",
        (12, _) => "icmp-parameter-problem",
        _ => return None,
    })
}

/// The same for ICMPv6.
fn icmp6_name(kind: u8, code: u8) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, 0) => "icmp6-no-route",
        (1, 1) => "icmp6-adm-prohibited",
        (1, 3) => "icmp6-addr-unreachable",
        (1, 4) => "icmp6-port-unreachable",
        (1, 5) => "icmp6-policy-fail",
        (1, 6) => "icmp6-reject-route",
        (1, _) => "icmp6-destination-unreachable",
        (2, _) => "icmp6-packet-too-big",
        (3, _) => "icmp6-time-exceeded",
        (4, _) => "icmp6-parameter-problem",
        _ => return None,
    })
}

impl Open {
    /// `icmp_send` or, with `None`, `tcp_send_reset` was called about this packet.
    pub(super) fn answered(&mut self, icmp: Option<(u8, u8)>) {
        let name = match icmp {
            None => Some("tcp-reset"),
            Some((kind, code)) => icmp_name(kind, code),
        };
        self.answer = self.answer.or(name);
    }

    /// `error` was sent from the CPU on which this packet is dropped now. Where it quotes the packet and came after the
    /// packet was seen last, it is the answer, though the packet itself was last seen on another CPU: the timer that
    /// gives up on a neighbour runs anywhere (`neigh_invalidate`, net/core/neighbour.c, 6.18).
    pub(super) fn answered_by(&mut self, error: Option<&SentError>) {
        if let Some(error) = error
            && error.time >= self.time
            && self.quotable().contains(&Some(error.about))
        {
            self.told_by(error);
        }
    }

    /// Whether it was seen to end or not: `error` was sent about it.
    pub(super) fn told_by(&mut self, error: &SentError) {
        self.answer = self.answer.or(Some(error.name));
    }

    /// How an answer may quote it: as it is now, and as it came.
    fn quotable(&self) -> [Option<Tuple>; 2] {
        [self.tuple, self.first.as_ref().and_then(|first| first.tuple)]
    }
}

impl Correlator {
    /// A packet that the host sends while it handles another on the same CPU may be the answer to that one: a reset
    /// the other way, or an ICMP error that quotes it. (REJECT's resets and ICMPv6 errors have no tracepoint.)
    pub(super) fn answer_to_another(&mut self, sight: &SightEvent) {
        let SightKind::Netfilter { hook: Hook::Output, .. } = sight.kind else { return };
        let cpu = sight.raw.head.cpu;
        let sent = SentError::of(sight);
        let other = self.last_on_cpu.get(&cpu).and_then(|other| self.open.get_mut(other));
        if let Some(other) = other {
            let about = other.quotable();
            let is_echo = sight.protocol == Protocol::TCP
                && sight.tuple.is_some_and(|tuple| other.tuple == Some(tuple.inverse()));
            other.echoed |= is_echo;
            let is_reset = sight.protocol == Protocol::TCP && sight.raw.tcp_flags & RESET != 0;
            if is_reset && sight.tuple.is_some_and(|tuple| about.contains(&Some(tuple.inverse()))) {
                other.answer = other.answer.or(Some("tcp-reset"));
                return;
            }
            if let Some(error) = sent.as_ref().filter(|error| about.contains(&Some(error.about))) {
                other.answer = other.answer.or(Some(error.name));
                return;
            }
        }
        if let Some(error) = sent {
            self.errors.add(cpu, error);
        }
    }
}

impl Open {
    /// Whether TCP's answer to this packet, sent while it is in hand, is seen: the filter takes both directions, and a
    /// probe stands in OUTPUT.
    pub(super) fn look_whether_echo_shows(&mut self, sight: &SightEvent, filter: &Filter, view: &View) {
        // TCP takes the device off a packet, so its end does not say in which namespace it was.
        self.echo_would_show = filter.matches(&sight.raw.tuple.inverse())
            && view.watches(self.netns, sight.family, Hook::Output);
    }

    /// It is freed now, as consumed: whether it is a SYN that got no answer.
    pub(super) fn ends_unanswered(&mut self) -> bool {
        self.leave_open_gap();
        self.is_unanswered_syn()
    }

    /// A SYN that a socket took in silence. Whatever TCP does with one that it keeps, it answers before it frees it; a
    /// listener whose queue is full does not, and frees it all the same as a packet that was consumed (`tcp_conn_request`
    /// and `tcp_rcv_state_process`, net/ipv4/tcp_input.c, 6.18).
    pub(super) fn is_unanswered_syn(&self) -> bool {
        let opens = |first: &SightEvent| {
            first.protocol == Protocol::TCP && first.raw.tcp_flags & (SYN | ACK | RESET | FIN) == SYN
        };
        self.first.as_ref().is_some_and(|first| opens(first))
            && self.last_hook() == Some(Hook::Input)
            && self.gap.is_none()
            && self.echo_would_show
            && !self.echoed
            && !self.has_gap
    }
}

/// ICMP errors that this host sent, of which it is not known yet which packet they are about.
#[derive(Default)]
pub(super) struct SentErrors {
    /// The last from each CPU.
    by_cpu: HashMap<u32, SentError>,
    /// By the packet that they quote.
    by_quote: HashMap<Tuple, SentError>,
}

impl SentErrors {
    /// More than the kernel sends while a packet is waited for (`icmp_msgs_per_sec`, 1,000).
    const MOST: usize = 8192;

    fn add(&mut self, cpu: u32, error: SentError) {
        if self.by_quote.len() >= Self::MOST {
            let since = error.time.saturating_sub(Waiting::Travel.nanoseconds(0));
            self.by_quote.retain(|_, error| error.time >= since);
        }
        if self.by_quote.len() < Self::MOST {
            self.by_quote.insert(error.about, error);
        }
        self.by_cpu.insert(cpu, error);
    }

    /// The last that was sent from a CPU.
    pub(super) fn of_cpu(&self, cpu: u32) -> Option<&SentError> {
        self.by_cpu.get(&cpu)
    }

    /// One that quotes this packet and was sent since it was seen last. It is about one packet: another that looks the
    /// same does not get it, too.
    pub(super) fn take_about(&mut self, open: &Open) -> Option<SentError> {
        let mut quotes = open.quotable().into_iter().flatten();
        let quote =
            quotes.find(|quote| self.by_quote.get(quote).is_some_and(|error| error.time >= open.time))?;
        self.by_quote.remove(&quote)
    }
}

/// An ICMP error that this host sent.
#[derive(Clone, Copy)]
pub(super) struct SentError {
    /// The packet it quotes.
    about: Tuple,
    name: &'static str,
    /// On the events' clock.
    time: u64,
}

impl SentError {
    fn of(sight: &SightEvent) -> Option<Self> {
        let (kind, code) = (sight.raw.icmp_type, sight.raw.icmp_code);
        let name = match sight.protocol {
            Protocol::ICMP => icmp_name(kind, code),
            Protocol::ICMP6 => icmp6_name(kind, code),
            _ => None,
        }?;
        Some(Self { about: sight.quoted()?, name, time: sight.raw.head.time })
    }
}
