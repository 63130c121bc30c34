//! Events to journeys: one packet, one journey, from first sight until it is freed, leaves, or stalls. Pure: the
//! clock is the events' own, and `tick` says how late it is.

mod answer;
mod bypass;
mod close;
mod copies;
mod draft;
mod flows;
mod fragments;
mod names;
mod nested;
mod netfilter;
mod open;
mod program;
mod route;
mod xdp;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use draft::{Draft, DraftStage, DraftTable, Looks, Surroundings, TimedStage};
pub use names::Names;
pub use route::is_routing;

use self::{
    answer::SentErrors,
    copies::Copies,
    flows::Flows,
    fragments::Datagrams,
    nested::Nested,
    open::{Open, Waiting},
};
use crate::{
    decode::{Event, SightEvent, SightKind, TuplesEvent},
    model::{DeviceDirection, DeviceStage, Hook},
    plan::View,
};
use tracer_common::{
    filter::Filter,
    records::{SIGHT_COPY, SIGHT_FIRST, SIGHT_GAP, SIGHT_LATE, SIGHT_TENTATIVE, SIGHT_XDP},
};

/// A followed packet that the kernel side need not follow any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forget {
    pub skb: u64,
    pub journey: u64,
}

/// What came of handling events.
#[derive(Debug, Default)]
pub struct Output {
    /// Journeys that ended, in the order of their ends.
    pub closed: Vec<Draft>,
    /// Packets that ended without being freed under our eyes.
    pub forget: Vec<Forget>,
}

/// Puts journeys together.
pub struct Correlator {
    pub view: View,
    filter: Filter,
    names: Names,
    open: HashMap<u64, Open>,
    flows: Flows,
    datagrams: Datagrams,
    copies: Copies,
    nested: Nested,
    /// When events were lost last: from, to.
    loss: Option<(u64, u64)>,
    left_out: bool,
    /// The journey last seen on each CPU: what the kernel sends from there next may be its answer.
    last_on_cpu: HashMap<u32, u64>,
    errors: SentErrors,
}

impl Correlator {
    #[must_use]
    pub fn new(filter: Filter, names: Names) -> Self {
        Self {
            view: View::default(),
            filter,
            names,
            open: HashMap::new(),
            flows: Flows::default(),
            datagrams: Datagrams::default(),
            copies: Copies::default(),
            nested: Nested::default(),
            loss: None,
            left_out: false,
            last_on_cpu: HashMap::new(),
            errors: SentErrors::default(),
        }
    }

    /// Handles one event.
    pub fn event(&mut self, event: Event, output: &mut Output) {
        let journey = event.journey();
        match event {
            Event::Sight(sight) => self.sight(journey, &sight, output),
            Event::Tuples(tuples) => {
                let matched = tuples_match(&self.filter, &tuples);
                // This record comes before the first sight of its journey.
                let open = self.open.entry(journey).or_insert_with(|| Open::waiting_since(tuples.time));
                open.matched |= matched;
                open.connection(tuples);
            }
            Event::Hits(hits) => {
                let hits = self.nested.settle(hits);
                self.with(journey, |open| open.hits.push(hits));
            }
            // Outside a gap it is of a table that is not followed: of a bridge, or a device.
            Event::Part(part) => self.with(journey, |open| {
                if open.gap.is_some() {
                    open.parts.push(part);
                }
            }),
            Event::Route(route) => self.with(journey, |open| open.routes.push(route)),
            Event::Answer(answer) => self.with(journey, |open| open.answered(answer.icmp)),
            Event::Socket(socket) => self.with(journey, |open| {
                if open.waiting == Waiting::Delivery {
                    open.wait(Waiting::SocketVerdict, socket.time);
                }
                if !open.sockets.contains(&socket.sock) {
                    open.sockets.push(socket.sock);
                }
                open.socket_inode = open.socket_inode.or(socket.inode);
                open.socket.get_or_insert(socket);
            }),
        }
    }

    /// Changes a journey under way; of one that has been closed there is nothing to say any more.
    fn with(&mut self, journey: u64, change: impl FnOnce(&mut Open)) {
        if let Some(open) = self.open.get_mut(&journey) {
            change(open);
        }
    }

    fn sight(&mut self, journey: u64, sight: &SightEvent, output: &mut Output) {
        if sight.raw.flags & SIGHT_COPY != 0 {
            return self.copied(journey, sight);
        }
        if sight.kind == SightKind::Xdp {
            return self.at_xdp(journey, sight);
        }
        if matches!(sight.kind, SightKind::Verdict { .. }) && sight.raw.skb == 0 {
            return self.ended_at_xdp(journey, sight, output);
        }
        let joined = self.joined(sight);
        let sight = joined.as_ref().unwrap_or(sight);
        let ends = matches!(sight.kind, SightKind::Drop { .. } | SightKind::Consume { .. } | SightKind::Left);
        if sight.raw.flags & SIGHT_FIRST != 0 {
            self.answer_to_another(sight);
            self.note_copy(journey, sight);
            self.note_fragment(journey, sight);
        } else if self.open.get(&journey).is_none_or(|open| open.first.is_none() || open.absorbed) {
            let absorbed = self.open.get(&journey).is_some_and(|open| open.absorbed);
            if ends {
                // The end of a journey that was closed before, as delivered say.
                self.open.remove(&journey);
            }
            if ends || absorbed {
                return;
            }
            let open = self.open.entry(journey).or_default();
            open.notes.push("its beginning was not seen, or it had been given up".to_owned());
        }
        self.last_on_cpu.insert(sight.raw.head.cpu, journey);
        self.put_together(journey, sight);
        let open = self.open.entry(journey).or_default();
        if matches!(sight.kind, SightKind::Drop { .. }) {
            open.answered_by(self.errors.of_cpu(sight.raw.head.cpu));
        }
        open.see(sight, &self.filter);
        open.cross(sight, &self.view);
        if matches!(sight.kind, SightKind::Consume { .. }) {
            open.look_whether_echo_shows(sight, &self.filter, &self.view);
        }
        if open.pass(sight, &self.view, &self.names)
            && let Some(open) = self.open.remove(&journey)
        {
            self.close(journey, open, output);
        }
    }

    /// Events were lost between these times: what came to no end meanwhile may have had one.
    pub fn lost(&mut self, from: u64, to: u64) {
        let from = match self.loss {
            Some((earlier, until)) if until >= from => earlier,
            _ => from,
        };
        self.loss = Some((from, to));
    }

    /// Packets that are asked for were not followed, for want of room: that one was not seen says nothing any more.
    pub fn left_out(&mut self) {
        self.left_out = true;
    }

    /// Closes what has waited long enough, `now` on the events' clock.
    pub fn tick(&mut self, now: u64, output: &mut Output) {
        self.give_up_where(|open| open.deadline <= now, output);
    }

    /// Closes everything: the trace ends.
    pub fn finish(&mut self, output: &mut Output) {
        self.give_up_where(|_| true, output);
    }

    /// When the packet came that has been under way longest; nanoseconds of CLOCK_MONOTONIC.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.open.values().map(Open::began).min()
    }

    /// As [`Self::oldest`], of those packets that go no further: what became of them shows in a moment.
    #[must_use]
    pub fn ending(&self) -> Option<u64> {
        self.open.values().filter(|open| open.waiting != Waiting::Travel).map(Open::began).min()
    }

    /// In the order in which they began.
    fn give_up_where(&mut self, late: impl Fn(&Open) -> bool, output: &mut Output) {
        let late = self.open.iter().filter(|(_, open)| late(open));
        let mut late: Vec<(u64, u64)> = late.map(|(journey, open)| (open.began(), *journey)).collect();
        late.sort_unstable();
        for (_, journey) in late {
            self.give_up(journey, output);
        }
    }

    fn give_up(&mut self, journey: u64, output: &mut Output) {
        let Some(mut open) = self.open.remove(&journey) else { return };
        if let Some(skb) = open.skb {
            output.forget.push(Forget { skb, journey });
        }
        if open.waiting == Waiting::Travel
            && let Some(error) = self.errors.take_about(&open)
        {
            open.told_by(&error);
        }
        open.echo_would_show &= !self.left_out;
        let unseen = self.loss.is_some_and(|(from, to)| open.time <= to && open.deadline >= from);
        open.timed_out(unseen);
        self.close(journey, open, output);
    }

    fn close(&mut self, journey: u64, open: Open, output: &mut Output) {
        self.forget_fragment(journey, &open);
        if open.matched
            && !open.absorbed
            && let Some(draft) = open.into_draft(&mut self.flows)
        {
            output.closed.push(draft);
        }
    }

    /// Journeys under way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.open.len()
    }
}

fn tuples_match(filter: &Filter, tuples: &TuplesEvent) -> bool {
    filter.matches(&tuples.original) || filter.matches(&tuples.reply.inverse())
}

impl Open {
    fn began(&self) -> u64 {
        self.first.as_ref().map_or(self.time, |first| first.raw.head.time)
    }

    /// What a sight means by its kind; true when the journey ended there.
    fn pass(&mut self, sight: &SightEvent, view: &View, names: &Names) -> bool {
        match sight.kind {
            SightKind::Xdp | SightKind::DeviceIn => self.device(sight, DeviceDirection::In),
            SightKind::Verdict { program, verdict } => self.program(sight, program, verdict, names),
            SightKind::DeviceOut => {
                self.leave_gap(sight);
                self.device(sight, DeviceDirection::Out);
            }
            SightKind::Netfilter { family, hook, priority } => {
                self.netfilter(sight, family, hook, priority, view);
            }
            SightKind::Consume { location } if self.may_be_part(sight) => {
                self.wait_for_others(sight, location, names);
            }
            SightKind::Drop { reason, location } => {
                self.dropped(sight, reason, location, names);
                return true;
            }
            SightKind::Consume { location } if self.ends_unanswered() => {
                self.freed_by = names.function(location);
                self.wait(Waiting::Answer, sight.raw.head.time);
            }
            SightKind::Consume { location } => {
                self.consumed(sight, location, names);
                return true;
            }
            SightKind::Left => {
                self.left();
                return true;
            }
        }
        false
    }

    /// Takes note of a sight, wherever it was.
    fn see(&mut self, sight: &SightEvent, filter: &Filter) {
        // That it left is all that is said of a packet that did: neither flags nor addresses.
        let says_all = !matches!(sight.kind, SightKind::Left);
        if says_all && (sight.raw.flags & SIGHT_TENTATIVE == 0 || filter.matches(&sight.raw.tuple)) {
            self.matched = true;
        }
        if sight.raw.flags & SIGHT_GAP != 0 && !self.has_gap {
            self.has_gap = true;
            self.notes.push("events were lost: its way is not shown in full".to_owned());
        }
        if self.first.is_none() {
            if sight.raw.flags & SIGHT_LATE != 0 {
                self.notes
                    .push("joined behind connection tracking: what came before was not seen".to_owned());
            }
            self.first = Some(Box::new(sight.clone()));
        } else {
            self.pace = self.pace.max(sight.raw.head.time.saturating_sub(self.time));
        }
        if let Some(tuple) = sight.tuple {
            self.tuple = Some(tuple);
        }
        if !matches!(sight.kind, SightKind::Left) {
            if sight.raw.netns != 0 {
                self.netns = sight.raw.netns;
            }
            if let Some(info) = sight.conntrack_info() {
                self.conntrack_info = Some(info);
                self.conntrack_mark = sight.raw.conntrack_mark;
                self.conntrack_zone = sight.raw.conntrack_zone;
                self.conntrack_status = sight.raw.conntrack_status;
                self.conntrack = sight.raw.conntrack;
            }
        }
        self.skb = Some(sight.raw.skb);
        self.time = sight.raw.head.time;
        self.cpu = sight.raw.head.cpu;
        self.wait(Waiting::Travel, sight.raw.head.time);
    }

    fn device(&mut self, sight: &SightEvent, direction: DeviceDirection) {
        let (device, ifindex) = match direction {
            DeviceDirection::In => (sight.device_in(), sight.raw.in_ifindex),
            DeviceDirection::Out => (sight.device_out(), sight.raw.out_ifindex),
        };
        let Some(device) = device else { return };
        self.hook = None;
        self.input = None;
        self.note_fragmentation(sight, direction);
        if direction == DeviceDirection::Out {
            self.wait(Waiting::Departure, sight.raw.head.time);
        }
        let xdp = sight.kind == SightKind::Xdp || sight.raw.flags & SIGHT_XDP != 0;
        self.push(DraftStage::Device(DeviceStage { device, ifindex, direction, xdp, programs: Vec::new() }));
    }

    /// The hook in which the packet is or was last.
    fn last_hook(&self) -> Option<Hook> {
        self.hook
    }
}
