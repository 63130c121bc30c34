//! What the kernel sent about a packet that it refused.

use super::{Correlator, open::Open};
use crate::{
    decode::{SightEvent, SightKind},
    model::{Hook, Protocol},
};

/// TCP RST flag.
const RESET: u8 = 0x04;

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
}

impl Correlator {
    /// A packet that the host sends while it handles another on the same CPU may be the answer to that one: a reset
    /// the other way, or an ICMP error that quotes it. (REJECT's resets and ICMPv6 errors have no tracepoint.)
    pub(super) fn answer_to_another(&mut self, sight: &SightEvent) {
        let SightKind::Netfilter { hook: Hook::Output, .. } = sight.kind else { return };
        let Some(other) =
            self.last_on_cpu.get(&sight.raw.head.cpu).and_then(|other| self.open.get_mut(other))
        else {
            return;
        };
        let Some(tuple) = sight.tuple else { return };
        let about = [other.tuple, other.first.as_ref().and_then(|first| first.tuple)];
        let name = match sight.protocol {
            Protocol::TCP if sight.raw.tcp_flags & RESET != 0 => {
                about.contains(&Some(tuple.inverse())).then_some("tcp-reset")
            }
            Protocol::ICMP if sight.quoted().is_some() && about.contains(&sight.quoted()) => {
                icmp_name(sight.raw.icmp_type, sight.raw.icmp_code)
            }
            Protocol::ICMP6 if sight.quoted().is_some() && about.contains(&sight.quoted()) => {
                icmp6_name(sight.raw.icmp_type, sight.raw.icmp_code)
            }
            _ => None,
        };
        other.answer = other.answer.or(name);
    }
}
