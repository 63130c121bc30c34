//! Joins what diagnosis needs: the flow so far, the surroundings and rulesets of the namespaces that a journey
//! passed. A journey whose cause may show only later (a reply that never comes) is held until then.

mod around;
mod devices;
mod queue;
mod receiver;
mod rulesets;

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use self::{
    around::Around,
    queue::{Queue, Waiting},
    receiver::Sought,
    rulesets::Rulesets,
};
pub(super) use self::{receiver::Receiver, rulesets::view};
use super::scope::Scoped;
use crate::{
    attach::Kernel,
    diagnose::{Case, Delivery, Flow, diagnose},
    enrich::NetnsPath,
    model::{Journey, StageKind, Verdict},
    netns::Namespace,
};

/// Namespaces that are looked at before a journey asks for it.
const LOOK_AHEAD: usize = 8;
/// How long the end waits for a look at the surroundings.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// Journeys held at most until their cause may show.
const MOST_HELD: usize = 1_024;
/// Flows remembered; the oldest half is forgotten beyond.
const MOST_FLOWS: usize = 100_000;
/// Deliveries remembered; the oldest half is forgotten beyond.
const MOST_DELIVERIES: usize = 512;

/// A journey that waits for its cause to show.
struct Held {
    journey: Journey,
    again_at: Timestamp,
    replies: u64,
}

/// Diagnosis, and what it remembers.
pub(super) struct Findings {
    around: Around,
    queue: Queue,
    flows: HashMap<u64, Flow>,
    deliveries: Vec<Delivery>,
    rulesets: Rulesets,
    held: Vec<Held>,
    /// Every packet from before this moment is noted.
    settled: Timestamp,
    /// When events were lost last.
    lost_at: Option<Timestamp>,
    /// Namespaces that have gone and are not forgotten yet.
    gone: Vec<u32>,
}

impl Findings {
    pub(super) fn new() -> Self {
        Self {
            around: Around::new(),
            queue: Queue::default(),
            flows: HashMap::new(),
            deliveries: Vec::new(),
            rulesets: Rulesets::default(),
            held: Vec::new(),
            settled: Timestamp::MIN,
            lost_at: None,
            gone: Vec::new(),
        }
    }

    /// Has the surroundings of these namespaces read before the first journey asks for them.
    pub(super) fn look_ahead<'n>(&mut self, namespaces: impl Iterator<Item = &'n Namespace>) {
        let now = Instant::now();
        for namespace in namespaces.take(LOOK_AHEAD) {
            self.around.is_fresh(namespace.inode, &NetnsPath::new(&namespace.path), now);
        }
    }

    /// A namespace has gone: what is known of it serves the journeys that still wait, and no other.
    pub(super) fn gone(&mut self, netns: u32) {
        self.gone.push(netns);
    }

    fn forget_gone(&mut self) {
        if self.is_waiting() {
            return;
        }
        for netns in self.gone.drain(..) {
            self.around.forget(netns);
            self.rulesets.forget(netns);
        }
    }

    /// Events were lost up to this moment.
    pub(super) fn lost(&mut self, at: Timestamp) {
        self.lost_at = Some(at);
    }

    /// Takes a journey in; `receiver` where it was delivered. [`Findings::ready`] gives it back.
    pub(super) fn add(&mut self, journey: Journey, receiver: Option<Receiver>) {
        self.queue.add(journey, receiver, &self.around);
    }

    /// Journeys that can be shown: those of which all is known, unless their cause may show later, and those whose
    /// time to wait is over. The journey of every packet from before `given` has been given to [`Findings::add`]: a reply may
    /// have come long before its journey is here.
    pub(super) fn ready(&mut self, scoped: &Scoped, kernel: &Kernel, given: Timestamp) -> Vec<Journey> {
        self.around.listen();
        let mut ready = Vec::new();
        self.settle(given);
        while let Some(waiting) = self.queue.next(scoped, &mut self.around) {
            self.handle(scoped, kernel, waiting, true, &mut ready);
        }
        self.settle(given);
        ready.extend(self.overdue(scoped, kernel));
        self.forget_gone();
        ready
    }

    fn settle(&mut self, given: Timestamp) {
        self.settled = self.queue.oldest().map_or(given, |queued| queued.min(given));
    }

    /// Finds who received it, takes note of it, and gives it back, after those that its arrival decides.
    fn handle(
        &mut self,
        scoped: &Scoped,
        kernel: &Kernel,
        mut waiting: Waiting,
        may_wait: bool,
        ready: &mut Vec<Journey>,
    ) {
        let sought = self.find_socket(&mut waiting);
        if sought.newer_may_help && may_wait && waiting.look_again() {
            self.queue.put_back(waiting);
            return;
        }
        let mut journey = waiting.journey;
        journey.notes.extend(sought.note);
        self.note(&journey);
        if Flow::is_answer(&journey) {
            ready.extend(self.answered(scoped, kernel, journey.flow));
        }
        ready.extend(self.look(scoped, kernel, journey));
    }

    /// Finds who received a delivered packet.
    fn find_socket(&self, waiting: &mut Waiting) -> Sought {
        let Some(receiver) = waiting.receiver else { return Sought::default() };
        let Some(around) = self.around.newest(receiver.netns) else { return Sought::default() };
        receiver::find(&receiver, &mut waiting.journey, &around)
    }

    fn flow(&self, number: u64) -> Option<Flow> {
        let flow = self.flows.get(&number)?;
        let answers_may_be_lost = self.lost_at.is_some_and(|lost| lost >= flow.first_seen);
        Some(Flow { answers_may_be_lost, ..*flow })
    }

    fn note(&mut self, journey: &Journey) {
        if self.deliveries.len() >= MOST_DELIVERIES {
            self.deliveries.drain(..MOST_DELIVERIES / 2);
        }
        self.deliveries.extend(Delivery::of(journey));
        let Some(number) = journey.flow else { return };
        if self.flows.len() >= MOST_FLOWS {
            let keep = number.saturating_sub(MOST_FLOWS as u64 / 2);
            self.flows.retain(|known, _| *known > keep);
        }
        let new = Flow { first_seen: journey.time, replies: 0, answers_may_be_lost: false };
        let flow = self.flows.entry(number).or_insert(new);
        flow.replies += u64::from(Flow::is_answer(journey));
    }

    /// Journeys that waited for this flow's reply.
    fn answered(&mut self, scoped: &Scoped, kernel: &Kernel, flow: Option<u64>) -> Vec<Journey> {
        let is_answered = |held: &mut Held| held.journey.flow == flow && held.replies == 0;
        let answered: Vec<Held> = self.held.extract_if(.., is_answered).collect();
        answered.into_iter().filter_map(|held| self.look(scoped, kernel, held.journey)).collect()
    }

    /// Journeys whose time to wait is over.
    fn overdue(&mut self, scoped: &Scoped, kernel: &Kernel) -> Vec<Journey> {
        let settled = self.settled;
        let late: Vec<Held> = self.held.extract_if(.., |held| held.again_at <= settled).collect();
        let late = late.into_iter().filter_map(|held| self.look(scoped, kernel, held.journey));
        let mut ready: Vec<Journey> = late.collect();
        // More than there is room for: the oldest are shown with what is known by now.
        let excess = self.held.len().saturating_sub(MOST_HELD);
        ready.extend(self.held.drain(..excess).map(|held| held.journey));
        ready
    }

    /// Whether a journey is here that [`Findings::ready`] has not given back.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty() || !self.queue.is_empty()
    }

    /// Everything that still waits, with what is known by now: the trace ends.
    pub(super) fn finish(&mut self, scoped: &Scoped, kernel: &Kernel, given: Timestamp) -> Vec<Journey> {
        let deadline = Instant::now() + LAST_LOOK;
        let mut ready = self.ready(scoped, kernel, given);
        while !self.queue.is_empty() && Instant::now() < deadline {
            self.around.wait(deadline);
            ready.extend(self.ready(scoped, kernel, given));
        }
        while let Some(waiting) = self.queue.next_at_once() {
            self.handle(scoped, kernel, waiting, false, &mut ready);
        }
        ready.extend(self.ready(scoped, kernel, given));
        ready.extend(std::mem::take(&mut self.held).into_iter().map(|held| held.journey));
        ready
    }

    /// Diagnoses; `None` when the journey is held.
    fn look(&mut self, scoped: &Scoped, kernel: &Kernel, mut journey: Journey) -> Option<Journey> {
        let passed: BTreeSet<u32> = journey.stages.iter().map(|stage| stage.netns).collect();
        let surroundings: Vec<_> = passed.iter().filter_map(|netns| self.around.newest(*netns)).collect();
        devices::tell(&mut journey, &surroundings);
        let mut rulesets: Vec<_> =
            passed.iter().filter_map(|netns| self.rulesets.ruleset(kernel, *netns)).collect();
        if let Some(netns) = refused_at_device(&journey) {
            rulesets.retain(|view| view.netns != netns);
            rulesets.extend(self.rulesets.listing(scoped, netns));
        }
        let flow = journey.flow.and_then(|number| self.flow(number));
        let recent = &self.deliveries;
        let now = self.settled;
        let case =
            Case { journey: &journey, flow, now, recent, surroundings: &surroundings, rulesets: &rulesets };
        let diagnosis = diagnose(&case);
        journey.findings = diagnosis.findings;
        match diagnosis.again_at {
            Some(again_at) if again_at > now => {
                let replies = flow.map_or(0, |flow| flow.replies);
                self.held.push(Held { journey, again_at, replies });
                None
            }
            _ => Some(journey),
        }
    }
}

/// The namespace in which netfilter refused the packet at a device, where no hook of IP is, or behind the last of them.
fn refused_at_device(journey: &Journey) -> Option<u32> {
    let by_netfilter = journey.outcome.reason.as_deref() == Some("NETFILTER_DROP");
    let last = journey.stages.last().filter(|_| by_netfilter)?;
    let outside = match &last.kind {
        StageKind::Device(_) | StageKind::Program(_) => true,
        StageKind::Netfilter(table) => table.verdict == Some(Verdict::Accept),
        StageKind::Route(route) => route.error.is_none(),
    };
    outside.then_some(last.netns)
}
