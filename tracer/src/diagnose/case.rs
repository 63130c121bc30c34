//! What the checks look at, and the questions they all ask.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;

use crate::{
    enrich::{DeviceSettings, Endpoint, Network, Settings, Sockets, Surroundings},
    model::{
        CtState, DecidedBy, Direction, Family, Journey, LocalSocket, NetfilterStage, OutcomeKind, Protocol,
        Tuple, Verdict,
    },
};

use super::{
    Answer,
    leg::{Leg, legs},
    ruleset::{Question, RulesetView},
};

/// How long a reply may take before its absence means something: TCP's own first retransmission timeout (RFC 6298),
/// after which the sender takes the packet for lost.
pub const REPLY_PATIENCE: Duration = Duration::from_secs(1);

/// `ICMP_REDIRECT` (include/uapi/linux/icmp.h).
pub(super) const ICMP_REDIRECT: u8 = 5;

/// What is known of the packet's connection beyond this packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// When the connection's first packet was seen.
    pub first_seen: Timestamp,
    /// Answers seen so far ([`Flow::is_answer`]), in any traced namespace.
    pub replies: u64,
    /// Events were lost since it was first seen: an answer may be among them, and its absence means nothing.
    pub answers_may_be_lost: bool,
}

impl Flow {
    /// Whether a journey shows that the other side answered. An ICMP redirect does not: this host sends it itself,
    /// about a packet that it has just forwarded.
    #[must_use]
    pub fn is_answer(journey: &Journey) -> bool {
        let redirect =
            journey.packet.protocol == Protocol::ICMP && journey.packet.icmp_type == Some(ICMP_REDIRECT);
        journey.direction == Some(Direction::Reply) && !redirect
    }
}

/// A packet that asked for something new and was delivered to a local socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub time: Timestamp,
    pub netns: u32,
    pub protocol: Protocol,
    pub client: IpAddr,
    pub port: u16,
    pub socket: LocalSocket,
}

impl Delivery {
    /// `None` for a journey that is none.
    #[must_use]
    pub fn of(journey: &Journey) -> Option<Self> {
        let delivered = journey.outcome.result == OutcomeKind::Delivered && opens(journey);
        let leg = legs(journey).pop().filter(|_| delivered)?;
        Some(Self {
            time: journey.time,
            netns: leg.netns,
            protocol: journey.packet.protocol,
            client: leg.exit.source,
            port: leg.exit.destination_port?,
            socket: journey.outcome.socket.clone()?,
        })
    }
}

/// A TCP SYN, or a packet of another protocol in the original direction.
fn opens(journey: &Journey) -> bool {
    let flags = journey.packet.tcp_flags.as_deref();
    journey.direction != Some(Direction::Reply)
        && flags.is_none_or(|flags| flags.contains('S') && !flags.contains('A'))
}

/// An enriched journey and everything around it. A namespace that is not in `surroundings` or `rulesets` is
/// unknown, never empty.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub journey: &'a Journey,
    /// `None` where conntrack does not know the packet.
    pub flow: Option<Flow>,
    /// Every packet from before this moment is counted in `flow`: what came later may not be.
    pub now: Timestamp,
    /// What local sockets received shortly before, oldest first.
    pub recent: &'a [Delivery],
    pub surroundings: &'a [Arc<Surroundings>],
    pub rulesets: &'a [Arc<RulesetView>],
}

impl<'a> Case<'a> {
    pub(super) fn legs(&self) -> Vec<Leg<'a>> {
        legs(self.journey)
    }

    /// Where the journey ended.
    pub(super) fn last(&self) -> Option<Leg<'a>> {
        self.legs().pop()
    }

    pub(super) fn surroundings(&self, netns: u32) -> Option<&'a Surroundings> {
        self.surroundings.iter().find(|known| known.netns == netns).map(|known| &**known)
    }

    pub(super) fn network(&self, netns: u32) -> Option<&'a Network> {
        self.surroundings(netns)?.network.known().map(|known| &**known)
    }

    pub(super) fn sockets(&self, netns: u32) -> Option<&'a Sockets> {
        self.surroundings(netns)?.sockets.known().map(|known| &**known)
    }

    pub(super) fn settings(&self, netns: u32) -> Option<&'a Settings> {
        self.surroundings(netns)?.settings.known().map(|known| &**known)
    }

    pub(super) fn device_settings(&self, netns: u32, device: &str) -> Option<&'a DeviceSettings> {
        self.settings(netns)?.devices.get(device)
    }

    pub(super) fn ruleset(&self, netns: u32) -> Option<&'a RulesetView> {
        self.rulesets.iter().find(|known| known.netns == netns).map(|known| &**known)
    }

    pub(super) fn is_bad(&self) -> bool {
        self.journey.outcome.result.is_bad()
    }

    /// It went through: delivered or forwarded.
    pub(super) fn is_fine(&self) -> bool {
        matches!(self.journey.outcome.result, OutcomeKind::Delivered | OutcomeKind::Forwarded)
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.journey.packet.family == Family::Ipv6
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.journey.packet.protocol
    }

    /// Of the direction that made the connection, or of no known connection.
    pub(super) fn is_original(&self) -> bool {
        self.journey.direction != Some(Direction::Reply)
    }

    pub(super) fn state(&self) -> Option<CtState> {
        self.journey.conntrack.as_ref().map(|conntrack| conntrack.state)
    }

    /// It asks for something new.
    pub(super) fn opens(&self) -> bool {
        opens(self.journey)
    }

    /// Reason names differ between kernels in their prefix only.
    pub(super) fn reason_is(&self, names: &[&str]) -> bool {
        self.journey.outcome.reason.as_deref().is_some_and(|reason| names.contains(&reason))
    }

    /// The kernel gave no reason of use: before 5.17, or `NOT_SPECIFIED`. What is concluded then is a guess.
    pub(super) fn reason_is_vague(&self) -> bool {
        self.journey.outcome.reason.as_deref().is_none_or(|reason| reason == "NOT_SPECIFIED")
    }

    pub(super) fn location_has(&self, part: &str) -> bool {
        self.journey.outcome.location.as_deref().is_some_and(|location| location.contains(part))
    }

    /// The table that ended a bad journey, where one did.
    pub(super) fn judge(&self) -> Option<(Leg<'a>, &'a NetfilterStage)> {
        let last = self.last().filter(|_| self.is_bad())?;
        Some((last, last.judge()?))
    }

    /// No process took it: the kernel's own word, or what remains where a kernel before 5.17 gives no reasons.
    pub(super) fn found_no_socket(&self) -> bool {
        self.is_bad() && (self.reason_is(&["NO_SOCKET"]) || self.answered_by_transport())
    }

    /// A kernel that gives no reasons dropped it in TCP or UDP, and answered. (`tcp_v4_rcv`, net/ipv4/tcp_ipv4.c, and its like
    /// answer so where they find no socket; 5.10.)
    fn answered_by_transport(&self) -> bool {
        const PLACES: [&str; 4] = ["tcp_v4_rcv", "tcp_v6_rcv", "udp4_lib_rcv", "udp6_lib_rcv"];
        self.journey.outcome.reason.is_none()
            && self.journey.outcome.result == OutcomeKind::Rejected
            && PLACES.into_iter().any(|place| self.location_has(place))
    }

    /// Whether a reply may still be waited for. `None`: a reply came, it may have come unseen, or nothing is known of the
    /// flow.
    pub(super) fn reply_missing(&self) -> Option<ReplyMissing> {
        let silent = |flow: &Flow| flow.replies == 0 && !flow.answers_may_be_lost;
        let flow = self.flow.filter(|flow| silent(flow) && self.is_original())?;
        // A connection that conntrack has seen answered was answered before the trace began.
        let answered = matches!(self.state(), Some(CtState::Established | CtState::Related));
        let until = flow.first_seen.saturating_add(REPLY_PATIENCE).unwrap_or(self.now);
        match answered {
            true => None,
            false if self.now < until => Some(ReplyMissing::NotYet(until)),
            false => Some(ReplyMissing::Overdue),
        }
    }

    /// `10.2.0.2 (web)`, or the bare address of something without a name.
    pub(super) fn name(&self, address: IpAddr) -> String {
        match self.container_at(address) {
            Some(name) => format!("{address} ({name})"),
            None => address.to_string(),
        }
    }

    /// The same for a destination: `10.2.0.2:80 (web)`.
    pub(super) fn name_with_port(&self, tuple: Tuple) -> String {
        match self.container_at(tuple.destination) {
            Some(name) => format!("{} ({name})", tuple.destination_text()),
            None => tuple.destination_text(),
        }
    }

    /// The containers at both ends, where there are any, as evidence.
    pub(super) fn containers_of(&self, tuple: Tuple) -> Option<String> {
        let ends = [tuple.source, tuple.destination];
        let named: Vec<String> = ends
            .into_iter()
            .filter(|address| self.container_at(*address).is_some())
            .map(|address| self.name(address))
            .collect();
        (!named.is_empty()).then(|| format!("containers: {}", named.join(", ")))
    }

    /// The container that has an address.
    pub(super) fn container_at(&self, address: IpAddr) -> Option<&'a str> {
        self.surroundings
            .iter()
            .find_map(|known| known.containers.known().and_then(|names| names.of_address(address)))
    }

    /// Name of a namespace, where it has one.
    pub(super) fn netns_name(&self, netns: u32) -> Option<&'a str> {
        self.surroundings
            .iter()
            .find_map(|known| known.containers.known().and_then(|names| names.of_netns(netns)))
    }

    /// The packet as the ruleset is asked about it.
    pub(super) fn question(&self, leg: &Leg<'a>, tuple: Tuple, to_local: bool) -> Question<'a> {
        Question {
            protocol: self.protocol(),
            source: Some(tuple.source),
            source_port: tuple.source_port,
            destination: tuple.destination,
            destination_port: tuple.destination_port,
            input: leg.input(),
            output: leg.output(),
            state: self.state(),
            to_local: Some(to_local),
        }
    }
}

/// A reply that did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyMissing {
    NotYet(Timestamp),
    Overdue,
}

impl ReplyMissing {
    /// The finding once the reply is overdue.
    pub(super) fn then(self, finding: impl FnOnce() -> crate::model::Finding) -> Answer {
        match self {
            Self::NotYet(until) => Answer::NotYet(until),
            Self::Overdue => Answer::Found(finding()),
        }
    }
}

/// What a packet's destination is bound to be compared with.
pub(super) fn endpoint(address: IpAddr, port: Option<u16>) -> Option<Endpoint> {
    Some(Endpoint { address, port: port? })
}

/// A rule or a policy is known to have decided.
pub(super) fn decided(stage: &NetfilterStage, by: DecidedBy) -> bool {
    stage.decided_by == Some(by) && matches!(stage.verdict, Some(Verdict::Drop | Verdict::Reject))
}
