//! A journey under way.

use std::{num::NonZeroU64, sync::Arc};

use crate::{
    decode::{HitsEvent, PartEvent, RouteEvent, SightEvent, SocketTaken, TuplesEvent},
    model::{Family, Hook, Outcome, OutcomeKind, Tuple},
    plan::Gap,
};

use super::{
    bypass::Crossing,
    draft::{DraftStage, Surroundings, TimedStage},
    fragments::Datagram,
};

/// What a journey waits for, and how long (nanoseconds).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Waiting {
    /// Its next sight. A packet may wait three seconds for its neighbour to answer, or for a verdict from user space.
    #[default]
    Travel,
    /// INPUT let it pass: a drop would follow in the same breath, delivery may show nothing.
    Delivery,
    /// A socket took it, and may still throw it away.
    SocketVerdict,
    /// It was handed to a device's driver.
    Departure,
    /// A SYN was freed unanswered: whether events were lost meanwhile is known a moment later.
    Answer,
    /// A fragment that was freed: in the same breath its datagram is put together.
    Reassembly,
}

impl Waiting {
    /// For a packet whose longest way from one sight to the next took `pace` nanoseconds: what usually takes a moment
    /// takes longer on a processor that is taken away meanwhile (an emulated or very busy machine).
    pub(super) fn nanoseconds(self, pace: u64) -> u64 {
        const MILLISECOND: u64 = 1_000_000;
        let usual = match self {
            Self::Travel => return 5_000 * MILLISECOND,
            Self::Delivery => 30 * MILLISECOND,
            Self::SocketVerdict => 3 * MILLISECOND,
            Self::Departure | Self::Answer | Self::Reassembly => 50 * MILLISECOND,
        };
        usual.max(pace.saturating_mul(10).min(500 * MILLISECOND))
    }
}

/// The gap in which the packet is.
#[derive(Clone, Debug)]
pub(super) struct InGap {
    pub(super) gap: Arc<Gap>,
    pub(super) hook: Hook,
    pub(super) family: Family,
    pub(super) netns: u32,
    pub(super) time: u64,
    pub(super) cpu: u32,
    pub(super) before: Tuple,
    /// An ICMP error about a connection: NAT translates it by that connection's mapping (`nf_nat_inet_fn`).
    pub(super) related: bool,
    pub(super) around: Surroundings,
}

/// A packet came to PREROUTING with this device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub(super) netns: u32,
    pub(super) ifindex: u32,
    pub(super) time: u64,
    /// How many stages came before.
    pub(super) at: usize,
}

impl Input {
    /// Whether both are of the same device.
    pub(super) fn is_at(&self, other: &Self) -> bool {
        (self.netns, self.ifindex) == (other.netns, other.ifindex)
    }
}

/// A journey under way.
#[derive(Debug, Default)]
pub(super) struct Open {
    pub(super) first: Option<Box<SightEvent>>,
    pub(super) tuple: Option<Tuple>,
    pub(super) netns: u32,
    /// When it was seen last, and on which CPU.
    pub(super) time: u64,
    pub(super) cpu: u32,
    /// The longest that it took from one sight to the next, in nanoseconds.
    pub(super) pace: u64,
    pub(super) stages: Vec<TimedStage>,
    pub(super) hook: Option<Hook>,
    /// With which device it came to PREROUTING last.
    pub(super) input: Option<Input>,
    pub(super) gap: Option<InGap>,
    pub(super) hits: Vec<HitsEvent>,
    /// Of the gap in which it is.
    pub(super) parts: Vec<PartEvent>,
    pub(super) routes: Vec<RouteEvent>,
    /// The connections it belonged to, one after the other: each namespace has its own, and a tunnel's is not that
    /// of what it carries.
    pub(super) connections: Vec<TuplesEvent>,
    pub(super) conntrack: u64,
    pub(super) conntrack_info: Option<u8>,
    pub(super) conntrack_mark: u32,
    pub(super) conntrack_zone: u16,
    pub(super) conntrack_status: u32,
    /// Connection tracking had its chance.
    pub(super) after_conntrack: bool,
    /// It came in by a device, and has not been seen since.
    pub(super) crossing: Option<Crossing>,
    /// What it was at the last device that it was handed to; `None` for a fragment.
    pub(super) left_as: Option<Tuple>,
    pub(super) answer: Option<&'static str>,
    /// TCP sent something the other way while this packet was in hand.
    pub(super) echoed: bool,
    /// TCP's answer to it would have been seen.
    pub(super) echo_would_show: bool,
    pub(super) socket: Option<SocketTaken>,
    /// Local port of the socket attached to the packet while INPUT judged it.
    pub(super) socket_port: Option<u16>,
    /// Inode of the first socket that took it and has one.
    pub(super) socket_inode: Option<NonZeroU64>,
    /// Every `sock` that took it.
    pub(super) sockets: Vec<u64>,
    /// Devices that copies of it were handed to.
    pub(super) copies: Vec<String>,
    /// Of which datagram it is a fragment.
    pub(super) datagram: Option<Datagram>,
    /// A fragment whose way is told in the journey of its datagram.
    pub(super) absorbed: bool,
    /// Who freed it while [`Waiting::Reassembly`].
    pub(super) freed_by: Option<String>,
    /// Address of its `sk_buff` when it was seen last.
    pub(super) skb: Option<u64>,
    /// Sights of it were lost.
    pub(super) has_gap: bool,
    pub(super) matched: bool,
    pub(super) notes: Vec<String>,
    pub(super) outcome: Option<Outcome>,
    pub(super) waiting: Waiting,
    pub(super) deadline: u64,
}

impl Open {
    /// A journey of which no sight has arrived yet.
    pub(super) fn waiting_since(time: u64) -> Self {
        let mut open = Self::default();
        open.wait(Waiting::Travel, time);
        open
    }

    pub(super) fn wait(&mut self, waiting: Waiting, now: u64) {
        self.waiting = waiting;
        self.deadline = now.saturating_add(waiting.nanoseconds(self.pace));
    }

    /// What is known of a connection, the last if it has not been seen before.
    pub(super) fn connection(&mut self, tuples: TuplesEvent) {
        match self.connections.last_mut() {
            Some(last) if last.conntrack == tuples.conntrack => *last = tuples,
            _ => self.connections.push(tuples),
        }
    }

    pub(super) fn push(&mut self, stage: DraftStage) {
        self.stages.push(TimedStage { stage, time: self.time, netns: self.netns });
    }

    pub(super) fn end(&mut self, result: OutcomeKind, stage: Option<usize>) -> &mut Outcome {
        self.outcome.insert(Outcome { stage, ..Outcome::new(result) })
    }

    pub(super) fn last_stage(&self) -> Option<usize> {
        self.stages.len().checked_sub(1)
    }
}
