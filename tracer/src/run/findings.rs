//! Joins what diagnosis needs: the flow so far, the surroundings and rulesets of the namespaces that a journey
//! passed. A journey whose cause may show only later (a reply that never comes) is held until then.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::scope::Scoped;
use crate::{
    attach::Kernel,
    diagnose::{Case, Delivery, Flow, RulesetView, diagnose},
    enrich::{Endpoint, NetnsPath, Reader, Roots, Surroundings},
    kernel::in_netns,
    model::{DeviceDirection, Journey, LocalSocket, StageKind, Tuple},
    rules::{
        late::{LateTexts, Printed},
        text::{Processes, Runner, Tool},
    },
};

/// How old surroundings may be for a journey that ended well, and for one that did not.
const KEEP_FINE: Duration = Duration::from_secs(1);
const KEEP_BAD: Duration = Duration::from_millis(50);
/// A socket that is not in the last list may be newer than it.
const KEEP_MISSED: Duration = Duration::from_millis(10);
/// A tool that takes longer is killed.
const TOOL_DEADLINE: Duration = Duration::from_secs(2);
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
    reader: Reader,
    flows: HashMap<u64, Flow>,
    deliveries: Vec<Delivery>,
    /// Rulesets as diagnosis sees them, with the texts they were made of.
    rulesets: HashMap<u32, (Arc<LateTexts>, Arc<RulesetView>)>,
    /// Whole listings by `nft`, and when they were made.
    listings: HashMap<u32, (Instant, Option<Arc<RulesetView>>)>,
    held: Vec<Held>,
}

impl Findings {
    pub(super) fn new() -> Self {
        Self {
            reader: Reader::new(Roots::default()),
            flows: HashMap::new(),
            deliveries: Vec::new(),
            rulesets: HashMap::new(),
            listings: HashMap::new(),
            held: Vec::new(),
        }
    }

    /// Finds who received a delivered packet; `port` is the receiving socket's where the kernel told it.
    pub(super) fn find_socket(
        &mut self,
        scoped: &Scoped,
        journey: &mut Journey,
        netns: u32,
        tuple: Tuple,
        port: Option<u16>,
    ) {
        let (Some(source_port), Some(destination_port)) = (tuple.source_port, tuple.destination_port) else {
            return;
        };
        let local = Endpoint { address: tuple.destination, port: destination_port };
        let peer = Endpoint { address: tuple.source, port: source_port };
        let protocol = journey.packet.protocol;
        for age in [KEEP_FINE, KEEP_MISSED] {
            let Some(around) = self.surroundings(scoped, netns, age) else { return };
            let Some(sockets) = around.sockets.known() else { return };
            let found = sockets.find(protocol, local, peer);
            let owned = |socket: &LocalSocket| socket.pid.is_some();
            // A connection that is not accepted yet has no owner, and one that is over has none any more: the
            // listener's process is who takes it.
            let listener =
                || sockets.find_listener(protocol, Endpoint { port: port.unwrap_or(local.port), ..local });
            let best = match found {
                Some(socket) if owned(&socket) => Some(socket),
                Some(socket) => Some(listener().filter(owned).unwrap_or(socket)),
                None => listener(),
            };
            journey.outcome.socket = best.or(journey.outcome.socket.take());
            if journey.outcome.socket.as_ref().is_some_and(owned) {
                return;
            }
        }
    }

    fn surroundings(&mut self, scoped: &Scoped, netns: u32, age: Duration) -> Option<Arc<Surroundings>> {
        let path = NetnsPath::new(&scoped.get(netns)?.path);
        Some(self.reader.surroundings(netns, &path, Instant::now(), age))
    }

    /// Takes note of a journey, and gives back those that are ready to be shown: it, unless its cause may show later,
    /// and those that its arrival decides.
    pub(super) fn add(&mut self, scoped: &Scoped, kernel: &Kernel, journey: Journey) -> Vec<Journey> {
        self.note(&journey);
        let mut ready = Vec::new();
        if Flow::is_answer(&journey) {
            ready.extend(self.answered(scoped, kernel, journey.flow));
        }
        ready.extend(self.look(scoped, kernel, journey, Timestamp::now()));
        ready
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
        let flow = self.flows.entry(number).or_insert(Flow { first_seen: journey.time, replies: 0 });
        flow.replies += u64::from(Flow::is_answer(journey));
    }

    /// Journeys that waited for this flow's reply.
    fn answered(&mut self, scoped: &Scoped, kernel: &Kernel, flow: Option<u64>) -> Vec<Journey> {
        let (answered, waiting) = std::mem::take(&mut self.held)
            .into_iter()
            .partition::<Vec<_>, _>(|held| held.journey.flow == flow && held.replies == 0);
        self.held = waiting;
        answered
            .into_iter()
            .filter_map(|held| self.look(scoped, kernel, held.journey, Timestamp::now()))
            .collect()
    }

    /// Journeys whose time to wait is over.
    pub(super) fn overdue(&mut self, scoped: &Scoped, kernel: &Kernel) -> Vec<Journey> {
        let now = Timestamp::now();
        if self.held.iter().all(|held| held.again_at > now) {
            return Vec::new();
        }
        let (late, waiting) =
            std::mem::take(&mut self.held).into_iter().partition::<Vec<_>, _>(|held| held.again_at <= now);
        self.held = waiting;
        late.into_iter().filter_map(|held| self.look(scoped, kernel, held.journey, now)).collect()
    }

    /// Whether a journey is held.
    pub(super) fn is_waiting(&self) -> bool {
        !self.held.is_empty()
    }

    /// Everything still held, with what is known by now: the trace ends.
    pub(super) fn finish(&mut self) -> Vec<Journey> {
        std::mem::take(&mut self.held).into_iter().map(|held| held.journey).collect()
    }

    /// Diagnoses; `None` when the journey is held.
    fn look(
        &mut self,
        scoped: &Scoped,
        kernel: &Kernel,
        mut journey: Journey,
        now: Timestamp,
    ) -> Option<Journey> {
        // What opens a connection says something about the sockets of this moment.
        let opens = journey.packet.tcp_flags.as_deref() == Some("S");
        let age = if opens || journey.outcome.result.is_bad() { KEEP_BAD } else { KEEP_FINE };
        let passed: BTreeSet<u32> = journey.stages.iter().map(|stage| stage.netns).collect();
        let surroundings: Vec<_> =
            passed.iter().filter_map(|netns| self.surroundings(scoped, *netns, age)).collect();
        name_programs(&mut journey, &surroundings);
        let mut rulesets: Vec<_> = passed.iter().filter_map(|netns| self.ruleset(kernel, *netns)).collect();
        if let Some(netns) = refused_at_device(&journey) {
            rulesets.retain(|view| view.netns != netns);
            rulesets.extend(self.listing(scoped, netns));
        }
        let flow = journey.flow.and_then(|number| self.flows.get(&number).copied());
        let recent = &self.deliveries;
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

    /// The nft tables of a namespace with those that judge at devices. Those have no place at the hooks of IP, so their
    /// changes are not followed: they are listed when a packet was refused there.
    fn listing(&mut self, scoped: &Scoped, netns: u32) -> Option<Arc<RulesetView>> {
        if let Some((made, view)) = self.listings.get(&netns)
            && made.elapsed() < KEEP_FINE
        {
            return view.clone();
        }
        let runner = Processes { deadline: TOOL_DEADLINE };
        let text = in_netns(&scoped.get(netns)?.path, || runner.run(Tool::Nft)).ok()?.ok();
        let view = text.map(|text| {
            let mut view = RulesetView::new(netns);
            view.add_nft_list(&text);
            Arc::new(view)
        });
        self.listings.insert(netns, (Instant::now(), view.clone()));
        view
    }

    fn ruleset(&mut self, kernel: &Kernel, netns: u32) -> Option<Arc<RulesetView>> {
        let namespace = kernel.namespaces().find(|namespace| namespace.inode() == netns)?;
        let texts = namespace.texts();
        if let Some((made_of, view)) = self.rulesets.get(&netns)
            && Arc::ptr_eq(made_of, texts)
        {
            return Some(view.clone());
        }
        let view = view(netns, texts.printed()?);
        let view = Arc::new(view);
        self.rulesets.insert(netns, (texts.clone(), view.clone()));
        Some(view)
    }
}

/// Names who else judges packets on the devices that a journey passed.
fn name_programs(journey: &mut Journey, surroundings: &[Arc<Surroundings>]) {
    for stage in &mut journey.stages {
        let StageKind::Device(device) = &mut stage.kind else { continue };
        let around = surroundings.iter().find(|around| around.netns == stage.netns);
        let link = around
            .and_then(|around| around.network.known())
            .and_then(|network| network.links.iter().find(|link| link.index == device.ifindex));
        if let Some(link) = link {
            device.programs = match device.direction {
                DeviceDirection::In => link.programs.input.clone(),
                DeviceDirection::Out => link.programs.output.clone(),
            };
        }
    }
}

/// The namespace in which netfilter refused the packet at a device, where no hook of IP is.
fn refused_at_device(journey: &Journey) -> Option<u32> {
    let by_netfilter = journey.outcome.reason.as_deref() == Some("NETFILTER_DROP");
    let last = journey.stages.last().filter(|_| by_netfilter)?;
    matches!(last.kind, StageKind::Device(_)).then_some(last.netns)
}

/// The rulesets as diagnosis sees them.
pub(super) fn view(netns: u32, printed: &Printed) -> RulesetView {
    let mut view = RulesetView::new(netns);
    for (tool, text) in &printed.raw {
        if let Some((backend, family)) = tool.iptables() {
            view.add_iptables_save(backend, family, text);
        }
    }
    // Tables that iptables-nft printed are known by now, and left out of nft's.
    for (_, text) in printed.raw.iter().filter(|(tool, _)| *tool == Tool::Nft) {
        view.add_nft_list(text);
    }
    view.unread = printed.texts.missing().iter().map(ToString::to_string).collect();
    view
}
