//! What ended, on its way to the output.

use jiff::Timestamp;

use super::{
    super::{ended::Ended, findings::Receiver, shown},
    Trace,
};
use crate::{
    attach::Namespace,
    correlate::Output,
    error::Failure,
    kernel::monotonic,
    model::{Journey, Line, OutcomeKind},
    summary::Shown,
};

/// Nanoseconds after which the end of a packet is not waited for any more to say what has not come: parts of a datagram may
/// be under way for half a minute.
const VERY_LONG: u64 = 2_000_000_000;

impl Trace<'_> {
    /// Attributes, enriches and prints what ended and need not wait.
    pub(super) fn show(&mut self, output: Output) -> Result<(), Failure> {
        self.kernel.forget(&output.forget)?;
        self.order.add(output.closed);
        let closed =
            if self.order.is_empty() { Vec::new() } else { self.order.before(self.correlator.ending()) };
        if !closed.is_empty() {
            let texts = self.kernel.namespaces().map(Namespace::texts);
            let pending: Vec<_> = texts.filter(|texts| texts.is_pending()).cloned().collect();
            self.ended.add(closed, monotonic(), &pending);
        }
        self.prove_texts()?;
        let ready = self.ended.ready(monotonic());
        self.attribute(ready);
        self.say_stateless()?;
        self.print_ready()
    }

    /// Shows also what waited for a look at the rulesets.
    pub(super) fn show_all(&mut self) -> Result<(), Failure> {
        if !self.ended.is_empty() {
            let must_go_on = self.is_ending || self.ended.is_full();
            if must_go_on {
                self.ended.pending().for_each(|texts| texts.wait());
            }
            self.prove_texts()?;
            let _ = self.kernel.sync_these(self.ended.netns(), &mut self.correlator.view);
            let ended = if must_go_on { self.ended.all() } else { self.ended.ready_after_look(monotonic()) };
            self.attribute(ended);
        }
        self.say_stateless()?;
        self.print_ready()
    }

    /// Rule texts are trusted once the ruleset was seen unchanged after they had been read. Records are handled while the
    /// tools work, and journeys wait, as long as there is room for them.
    fn prove_texts(&mut self) -> Result<(), Failure> {
        let printed = self.ended.pending().any(|texts| texts.unproven().is_some());
        if printed { self.sync() } else { Ok(()) }
    }

    fn attribute(&mut self, ended: Vec<Ended>) {
        if !ended.is_empty() {
            self.look_for_skipped();
        }
        for Ended { draft, read, .. } in ended {
            let receiver = Receiver {
                netns: draft.netns,
                tuple: draft.last_tuple,
                port: draft.socket_port,
                inode: draft.socket_inode,
            };
            let journey = self.attributor.journey(draft, read);
            self.stateless |= journey.conntrack.is_none();
            if shown::is_wanted(self.config, &journey) {
                let delivered = journey.outcome.result == OutcomeKind::Delivered;
                self.findings.add(journey, delivered.then_some(receiver));
            }
        }
    }

    /// The journeys of packets from before this moment are all given to the findings, but for those that have been under way
    /// for very long.
    pub(super) fn settled(&self) -> Timestamp {
        let under_way =
            self.correlator.oldest().map(|time| time.max(self.read_until.saturating_sub(VERY_LONG)));
        let waiting = [under_way, self.order.oldest(), self.ended.oldest()].into_iter().flatten().min();
        self.attributor.wall_clock(waiting.unwrap_or(u64::MAX).min(self.read_until))
    }

    fn print_ready(&mut self) -> Result<(), Failure> {
        for journey in self.findings.ready(&self.scoped, &self.kernel, self.settled()) {
            self.print(journey)?;
        }
        Ok(())
    }

    pub(super) fn print(&mut self, journey: Journey) -> Result<(), Failure> {
        let shown = if self.done {
            Shown::AfterCount
        } else if self.config.output.drops_only && !journey.outcome.result.is_bad() {
            Shown::NotBad
        } else {
            Shown::Yes
        };
        self.tally.add(&journey, shown);
        if shown == Shown::Yes {
            self.line(&Line::Journey(Box::new(journey)))?;
            self.shown += 1;
            self.done = self.config.stop.count.is_some_and(|count| self.shown >= count.get());
        }
        Ok(())
    }

    pub(super) fn line(&mut self, line: &Line) -> Result<(), Failure> {
        self.render.line(line).map_err(Failure::Output)
    }
}
