//! Journeys that wait for a look at what surrounds them, in the order in which they ended.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{around::Around, receiver::Receiver};
use crate::{enrich::NetnsPath, model::Journey, run::scope::Scoped};

/// How old surroundings may be for a journey that ended well, and for one that did not.
const KEEP_FINE: Duration = Duration::from_secs(1);
const KEEP_BAD: Duration = Duration::from_millis(50);
/// A socket that is not in the last list may be newer than it.
const KEEP_MISSED: Duration = Duration::from_millis(10);
/// The longest part of the time that is spent reading, one in this many, for journeys that ended well.
const SHARE_FINE: u32 = 8;
/// Journeys that wait at most; beyond, the oldest goes on with what is known.
const MOST: usize = 1_024;

pub(super) struct Waiting {
    pub(super) journey: Journey,
    pub(super) receiver: Option<Receiver>,
    ended: Instant,
    /// Nothing that was read before is good enough.
    since: Instant,
}

impl Waiting {
    pub(super) fn passed(&self) -> BTreeSet<u32> {
        let stages = self.journey.stages.iter().map(|stage| stage.netns);
        stages.chain(self.receiver.map(|receiver| receiver.netns)).collect()
    }

    /// Asks for a newer list of sockets; false when this one was new enough.
    pub(super) fn look_again(&mut self) -> bool {
        let since = before(self.ended, KEEP_MISSED);
        let newer = since > self.since;
        self.since = self.since.max(since);
        newer
    }
}

/// First in, first out.
#[derive(Default)]
pub(super) struct Queue(VecDeque<Waiting>);

impl Queue {
    pub(super) fn add(&mut self, journey: Journey, receiver: Option<Receiver>, around: &Around) {
        let ended = Instant::now();
        let mut waiting = Waiting { journey, receiver, ended, since: ended };
        waiting.since = before(ended, age(&waiting, around));
        self.0.push_back(waiting);
    }

    /// Puts one back that has to wait longer.
    pub(super) fn put_back(&mut self, waiting: Waiting) {
        self.0.push_front(waiting);
    }

    /// When the packet came that was first of them.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.0.iter().map(|waiting| waiting.journey.time).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next journey of which all is read that it needs. A namespace that has gone cannot be read.
    pub(super) fn next(&mut self, scoped: &Scoped, around: &mut Around) -> Option<Waiting> {
        let front = self.0.front()?;
        let mut ready = true;
        for netns in front.passed() {
            if let Some(namespace) = scoped.get(netns) {
                ready &= around.is_fresh(netns, &NetnsPath::new(&namespace.path), front.since);
            }
        }
        if ready || self.0.len() > MOST { self.0.pop_front() } else { None }
    }

    /// The next journey, whatever is known.
    pub(super) fn next_at_once(&mut self) -> Option<Waiting> {
        self.0.pop_front()
    }
}

/// How old the surroundings of a journey may be. What costs much is read less often: a busy machine has other work.
fn age(waiting: &Waiting, around: &Around) -> Duration {
    let cost = around.cost(&waiting.passed());
    let journey = &waiting.journey;
    if journey.outcome.result.is_bad() {
        return KEEP_BAD.max(cost);
    }
    // What opens a connection says something about the sockets of this moment.
    let opens = journey.packet.tcp_flags.as_deref() == Some("S");
    KEEP_FINE.min((cost * SHARE_FINE).max(if opens { KEEP_BAD } else { KEEP_FINE }))
}

fn before(time: Instant, age: Duration) -> Instant {
    time.checked_sub(age).unwrap_or(time)
}
