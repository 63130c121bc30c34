//! Ends: what the last event of a packet means.

use std::ops::RangeInclusive;

use super::{
    Names,
    answer::{FIN, RESET, SYN},
    is_routing,
    open::{Open, Waiting},
};
use crate::{
    decode::SightEvent,
    model::{DeviceDirection, Hook, OutcomeKind, UNANSWERED},
    rules::path::Fate,
};

use super::DraftStage;

/// Drop reasons with which TCP frees a segment that did its work: a reset that closed its connection, a segment for a
/// connection in TIME_WAIT (`tcp_v4_rcv`, `tcp_rcv_state_process`).
const TAKEN_BY_TCP: [&str; 2] = ["TCP_RESET", "TCP_FLAGS"];
/// Reasons that are no drop (`skb_drop_reason` in include/net/dropreason-core.h).
const NOT_DROPPED: [&str; 2] = ["SKB_CONSUMED", "SKB_NOT_DROPPED_YET"];
/// Where an echo reply ends that no ping socket waits for (net/ipv4/icmp.c, ping.c, net/ipv6/icmp.c). Raw sockets, such
/// as root's ping has, were given copies before.
const ENDS_OF_ICMP: [&str; 3] = ["ping_rcv", "icmp_rcv", "icmpv6_rcv"];
/// Where the kernel handles messages of ICMPv6; before 6.2 it frees them there as if all had failed ("assume failure and
/// preserve the status quo", net/ipv6/icmp.c). Errors about the message itself have reasons of their own.
const ICMPV6: &str = "icmpv6_rcv";
/// The types of messages that are handled there: errors, echo, multicast listeners, neighbours.
const ICMPV6_HANDLED: [RangeInclusive<u8>; 2] = [1..=4, 128..=137];
/// What the kernel says where it has not been taught a reason.
const NO_REASON: &str = "NOT_SPECIFIED";
/// How drops of netfilter are told, and where kernels without reasons have them (net/netfilter/core.c).
const BY_NETFILTER: &str = "NETFILTER_DROP";
const HOOKS: &str = "nf_hook_slow";
/// What is left in a socket's queue when it is closed (`skb_queue_purge_reason`, from 6.6): received, never read.
const LEFT_UNREAD: &str = "QUEUE_PURGE";
/// Where such a queue is emptied, for kernels that give no reason there (net/core/stream.c, net/ipv4/af_inet.c).
const EMPTIES_QUEUES: [&str; 2] = ["sk_stream_kill_queues", "inet_sock_destruct"];
/// In the names of all functions that free what a SYNPROXY handles itself (`synproxy_tg4`, `nft_synproxy_eval_v6`,
/// `ipv4_synproxy_hook` and their like, 6.18).
const SYNPROXY: &str = "synproxy";

impl Open {
    pub(super) fn dropped(&mut self, sight: &SightEvent, reason: Option<u32>, location: u64, names: &Names) {
        let reason = reason.map(|number| names.reason(number));
        if reason.as_deref().is_some_and(|reason| NOT_DROPPED.contains(&reason)) {
            return self.consumed(sight, location, names);
        }
        let location = names.function(location);
        let reached_socket =
            self.last_hook() == Some(Hook::Input) && (self.gap.is_none() || self.socket.is_some());
        if reached_socket && is_left_unread(reason.as_deref(), location.as_deref()) {
            // A FIN has nothing to read in it.
            if sight.raw.tcp_flags & FIN == 0 {
                self.notes.push("the socket was closed before it was read".to_owned());
            }
            self.received(reason);
            return;
        }
        if reached_socket && self.answer.is_none() && is_taken(reason.as_deref(), location.as_deref()) {
            self.received(reason);
            return;
        }
        if reached_socket && self.answer.is_none() && is_untold(reason.as_deref(), location.as_deref(), sight)
        {
            self.notes.push("TCP freed it, and this kernel does not say why: taken as received".to_owned());
            self.received(None);
            return;
        }
        if reached_socket && is_icmpv6_done(sight, reason.as_deref(), location.as_deref()) {
            self.received(reason);
            return;
        }
        let location_is_icmps = location.as_deref().is_some_and(|function| ENDS_OF_ICMP.contains(&function));
        if location_is_icmps && reason.as_deref() == Some("NO_SOCKET") {
            self.judged(Fate::Passed, None);
            self.notes.push("an echo reply; raw sockets take copies of those, which are not seen".to_owned());
            self.received(reason);
            return;
        }
        let died_in_gap = self.gap.is_some();
        self.judged(Fate::Dropped, None);
        let by_netfilter = is_netfilters(reason.as_deref(), location.as_deref());
        if !died_in_gap && !by_netfilter && self.stands_before_routing(location.as_deref()) {
            self.dropped_at_routing(sight, reason.as_deref(), location.as_deref());
        }
        let stage = self.last_stage();
        let answer = self.answer;
        let result = if answer.is_some() { OutcomeKind::Rejected } else { OutcomeKind::Dropped };
        let outcome = self.end(result, stage);
        outcome.reason = reason;
        outcome.location = location;
        outcome.answer = answer.map(str::to_owned);
    }

    /// The reason of a packet that arrived may say how that ended; a kernel without a word for it says nothing.
    fn received(&mut self, reason: Option<String>) {
        self.end(OutcomeKind::Delivered, None).reason = reason.filter(|reason| reason != NO_REASON);
    }

    /// Whether routing was next, or had begun, when `location` freed it: kernels without netfilter links are not asked at a
    /// PREROUTING that nobody is hooked to. A bridge passes PREROUTING, too, and behind a device lookups are a tunnel's own.
    fn stands_before_routing(&self, location: Option<&str>) -> bool {
        let next = match self.last_hook() {
            None => !self.routes.is_empty(),
            hook => hook == Some(Hook::Prerouting),
        };
        next && self.last_device_out().is_none() && location.is_none_or(is_routing)
    }

    pub(super) fn consumed(&mut self, _sight: &SightEvent, location: u64, names: &Names) {
        self.leave_open_gap();
        if self.gap.is_some() {
            // Freed, not dropped, inside a hook: a fragment that was put together, a packet that somebody took.
            self.judged(Fate::Unknown, None);
            self.let_go(names.function(location), Some("taken out of the hook by the kernel, not dropped"));
        } else if self.arrived() {
            self.end(OutcomeKind::Delivered, None);
        } else if self.last_device_out().is_some() {
            self.left();
        } else if let Some(fate) = self.last_fate() {
            self.ended_by_program(fate);
        } else {
            self.let_go(names.function(location), None);
        }
    }

    /// Freed without being dropped on the way. Who got it is known of a SYNPROXY only; of others there may be a note.
    fn let_go(&mut self, location: Option<String>, note: Option<&str>) {
        if location.as_deref().is_some_and(|function| function.contains(SYNPROXY)) {
            self.notes.push("SYNPROXY took it, and answers in the place of the server".to_owned());
            self.end(OutcomeKind::Delivered, None);
            return;
        }
        self.notes.extend(note.map(str::to_owned));
        let stage = self.last_stage();
        self.end(OutcomeKind::Incomplete, stage).location = location;
    }

    /// A packet that is freed without being dropped, or taken by a socket, was let pass.
    pub(super) fn leave_open_gap(&mut self) {
        if self.gap.as_ref().is_some_and(|inside| inside.gap.is_open()) {
            self.judged(Fate::Passed, None);
        }
    }

    /// It turned up in a namespace that is not traced, or its driver is done with it.
    pub(super) fn left(&mut self) {
        let device = self.last_device_out();
        self.end(OutcomeKind::Forwarded, None).device = device;
    }

    /// Nothing more was seen of it for as long as [`Waiting`] allows; `unseen`: events were lost meanwhile, and silence
    /// says nothing.
    pub(super) fn timed_out(&mut self, unseen: bool) {
        if self.waiting != Waiting::Travel && !unseen {
            self.leave_open_gap();
        }
        match self.waiting {
            Waiting::Delivery | Waiting::SocketVerdict | Waiting::Departure if unseen => {
                self.notes.push("events were lost: how it ended was not seen".to_owned());
                let stage = self.last_stage();
                self.end(OutcomeKind::Incomplete, stage);
            }
            Waiting::Delivery | Waiting::SocketVerdict => {
                self.end(OutcomeKind::Delivered, None);
            }
            Waiting::Departure => match self.last_fate() {
                Some(fate) => self.ended_by_program(fate),
                None => self.left(),
            },
            Waiting::Answer if unseen || !self.is_unanswered_syn() => {
                self.end(OutcomeKind::Delivered, None);
            }
            Waiting::Answer => {
                self.notes.push(UNANSWERED.to_owned());
                let stage = self.last_stage();
                let location = self.freed_by.take();
                self.end(OutcomeKind::Dropped, stage).location = location;
            }
            Waiting::Reassembly => {
                self.judged(Fate::Unknown, None);
                let location = self.freed_by.take();
                self.let_go(location, None);
            }
            Waiting::Travel => {
                if let Some(device) = self.only_at_xdp().filter(|_| !unseen) {
                    self.notes.push(format!("seen at XDP on {device} and not afterwards"));
                }
                self.judged(Fate::Unknown, None);
                let stage = self.last_stage();
                match self.answer {
                    Some(answer) => {
                        self.notes.push("its end was not seen, but what was sent about it".to_owned());
                        self.end(OutcomeKind::Rejected, stage).answer = Some(answer.to_owned());
                    }
                    None => drop(self.end(OutcomeKind::Incomplete, stage)),
                }
            }
        }
    }

    /// Whether it neither arrived nor left.
    pub(super) fn is_under_way(&self) -> bool {
        !self.arrived() && self.last_device_out().is_none()
    }

    fn arrived(&self) -> bool {
        self.last_hook() == Some(Hook::Input)
            || matches!(self.waiting, Waiting::Delivery | Waiting::SocketVerdict | Waiting::Answer)
    }

    pub(super) fn last_device_out(&self) -> Option<String> {
        match self.last_but_passing()? {
            DraftStage::Device(device) if device.direction == DeviceDirection::Out => {
                Some(device.device.clone())
            }
            _ => None,
        }
    }
}

/// Whether a function at a hook dropped it; where no probe of ours stands behind, one of the kernel's own (conntrack).
fn is_netfilters(reason: Option<&str>, location: Option<&str>) -> bool {
    reason == Some(BY_NETFILTER) || location == Some(HOOKS)
}

/// Whether it was freed together with the queue of a socket.
fn is_left_unread(reason: Option<&str>, location: Option<&str>) -> bool {
    match reason {
        Some(LEFT_UNREAD) => true,
        Some(NO_REASON) | None => location.is_some_and(|function| EMPTIES_QUEUES.contains(&function)),
        Some(_) => false,
    }
}

/// Whether ICMPv6 freed a message that it had handled, though it calls that a drop.
fn is_icmpv6_done(sight: &SightEvent, reason: Option<&str>, location: Option<&str>) -> bool {
    location == Some(ICMPV6)
        && matches!(reason, Some(NO_REASON) | None)
        && ICMPV6_HANDLED.iter().any(|types| types.contains(&sight.raw.icmp_type))
}

/// Whether TCP freed a segment that it had taken, though it calls that a drop.
fn is_taken(reason: Option<&str>, location: Option<&str>) -> bool {
    let by_tcp = location.is_some_and(|function| function.starts_with("tcp_"));
    match reason {
        Some(reason) if TAKEN_BY_TCP.contains(&reason) => by_tcp,
        Some(NO_REASON) => by_tcp,
        _ => false,
    }
}

/// Whether TCP freed a segment that neither asks for a connection nor breaks one off, on a kernel that gives no reasons
/// (before 5.17): what a connection in TIME_WAIT handled is freed there (`tcp_v4_rcv`, `tcp_v6_rcv`), beside damaged segments.
fn is_untold(reason: Option<&str>, location: Option<&str>, sight: &SightEvent) -> bool {
    reason.is_none()
        && matches!(location, Some("tcp_v4_rcv" | "tcp_v6_rcv"))
        && sight.raw.tcp_flags & (SYN | RESET) == 0
}
