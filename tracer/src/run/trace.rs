//! A live trace, from start to summary.

mod devices;
mod early;
mod namespaces;
mod notices;
mod show;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use tokio::{
    io::unix::AsyncFd,
    time::{MissedTickBehavior, interval, sleep_until},
};

use self::{devices::TakingOver, early::Early, notices::Loss};
use super::{
    ended::Waiting,
    findings::Findings,
    kernel_trace::KernelTrace,
    order::Order,
    scope::Scoped,
    setup::{self, Loaded},
    signals::Signals,
    xdp::Observed,
};
use crate::{
    attach::{Kernel, Namespace},
    attribute::Attributor,
    config::{Config, RulesMode},
    correlate::{Correlator, Output},
    decode::decode,
    error::Failure,
    kernel::monotonic,
    model::{Line, Start},
    render::{Environment, Render, renderer},
    summary::{Events, Tally},
};
/// How often stalled journeys and the ruleset are looked at.
const TICK: Duration = Duration::from_millis(10);
/// How often namespaces are listed.
const SCOPE_TICK: Duration = Duration::from_millis(250);
/// How long the end waits for journeys under way.
const LAST_WAIT: Duration = Duration::from_millis(100);
/// How long the end waits for causes that show only after a while (a reply that never comes).
const LAST_CAUSE: Duration = Duration::from_millis(1_200);
/// Records handled before timers and signals get their turn.
const BATCH: usize = 4096;

/// Traces until told to stop.
pub(super) fn run(config: &Config) -> Result<(), Failure> {
    let started = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(async {
        // From here on a signal ends the trace in good order, also one that comes right after the start line.
        let mut signals = Signals::new()?;
        let mut trace = Trace::start(config, started)?;
        trace.run(&mut signals).await?;
        trace.end()
    })
}

struct Trace<'c> {
    config: &'c Config,
    started: Instant,
    kernel: Kernel,
    records: Option<AsyncFd<RingBuf<MapData>>>,
    correlator: Correlator,
    early: Early,
    attributor: Attributor,
    order: Order,
    ended: Waiting,
    scoped: Scoped,
    observed: Observed,
    findings: Findings,
    kernel_trace: KernelTrace,
    render: Box<dyn Render>,
    tally: Tally,
    received: u64,
    /// All records from before this time were handled; on the events' clock.
    read_until: u64,
    malformed: u64,
    loss: Loss,
    /// Tables of which it was said that their verdict is not seen.
    unbounded: BTreeSet<String>,
    /// Packets had no state that `--ct-state` could ask for.
    stateless: bool,
    said_stateless: bool,
    shown: u64,
    done: bool,
    ticks: u32,
    /// Nothing is waited for any more but what decides the rest.
    is_ending: bool,
    taking_over: TakingOver,
}

impl<'c> Trace<'c> {
    fn start(config: &'c Config, started: Instant) -> Result<Self, Failure> {
        let mut scoped = Scoped::new(config)?;
        let Loaded { mut kernel, names, absent } = setup::load(config)?;
        scoped.check_devices(config)?;
        if config.rules == RulesMode::Auto {
            kernel.watch_rules();
        }
        // SAFETY: the ring buffer owns its descriptor, and both are dropped together.
        let records = unsafe { AsyncFd::register(kernel.records()?) }.context("watching the ring buffer")?;
        let mut correlator = Correlator::new(config.filter, names);
        let mut kernel_trace = KernelTrace::new(config);
        let said = kernel_trace.start(scoped.namespaces(), &mut kernel);
        // They see where packets end: without them one journey would go on with the next packet in the same buffer.
        kernel.attach_tracepoints()?;
        let problems = scoped.attach(&mut kernel, &mut correlator.view)?;
        kernel.start_verdicts()?;
        let observed = Observed::start(config, &scoped, &mut kernel)?;
        let (taking_over, on_clsact) = TakingOver::plan(config, &kernel, scoped.is_fixed());
        let render = renderer(
            &config.output,
            &Environment::of_process(),
            scoped.several(),
            io::stdout().lock(),
            io::stderr(),
        );
        let mut trace = Self {
            config,
            started,
            records: Some(records),
            kernel,
            correlator,
            early: Early::before(monotonic()),
            attributor: Attributor::new(setup::epoch()?),
            order: Order::default(),
            ended: Waiting::default(),
            scoped,
            observed,
            findings: Findings::new(),
            kernel_trace,
            render,
            tally: Tally::default(),
            received: 0,
            read_until: 0,
            malformed: 0,
            unbounded: BTreeSet::new(),
            stateless: false,
            said_stateless: false,
            loss: Loss::none(),
            shown: 0,
            done: false,
            ticks: 0,
            is_ending: false,
            taking_over,
        };
        trace.announce(problems, absent)?;
        trace.findings.look_ahead(trace.scoped.namespaces());
        trace.tell(said)?;
        trace.tell(on_clsact.into_iter().collect())?;
        Ok(trace)
    }

    fn announce(&mut self, problems: Vec<String>, absent: Vec<String>) -> Result<(), Failure> {
        for namespace in self.scoped.namespaces() {
            self.render.name_netns(namespace.inode, &namespace.name);
        }
        let (attached, missing) = self.kernel.attached();
        let mut probes: Vec<String> = vec![self.kernel.mechanism().name().to_owned()];
        probes.extend(attached.iter().map(|name| (*name).to_owned()));
        let mut missing = missing.to_vec();
        missing.extend(problems);
        missing.extend(self.new_unbounded());
        missing.extend(self.kernel.mechanism().problems());
        let unreadable: BTreeSet<&str> = self.kernel.namespaces().filter_map(Namespace::unreadable).collect();
        missing.extend(unreadable.into_iter().map(str::to_owned));
        missing.extend(absent.into_iter().map(|member| format!("{member}: this kernel does not have it")));
        let start = Start {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
            netns: self.scoped.namespaces().map(|namespace| namespace.inode).collect(),
            probes,
            missing,
            ready_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        self.line(&Line::Start(start))
    }

    async fn run(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scope_tick = interval(SCOPE_TICK);
        scope_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = self.config.stop.duration.map(|duration| (Instant::now() + duration).into());
        let mut records = self.records.take().context("the ring buffer is read twice")?;
        let mut more = false;
        while !self.done {
            tokio::select! {
                // The kernel side wakes us only under load; else the tick finds what has come.
                ready = records.readable_mut() => {
                    ready.context("watching the ring buffer")?.clear_ready();
                    more = true;
                }
                () = std::future::ready(()), if more => more = !self.drain(records.get_mut())?,
                _ = tick.tick() => {
                    more = !self.drain(records.get_mut())?;
                    self.tick()?;
                }
                _ = scope_tick.tick() => {
                    self.look_at_scope()?;
                    self.look_at_devices()?;
                }
                () = signals.any() => break,
                () = async { if let Some(end) = end { sleep_until(end).await } else { std::future::pending().await } } => break,
            }
        }
        let (last, last_cause) = (Instant::now() + LAST_WAIT, Instant::now() + LAST_CAUSE);
        while (self.correlator.pending() > 0 && Instant::now() < last)
            || (self.findings.is_waiting() && Instant::now() < last_cause)
        {
            tokio::select! {
                _ = tick.tick() => {
                    self.drain(records.get_mut())?;
                    self.tick()?;
                }
                // Whoever asks twice does not want to wait.
                () = signals.any() => break,
            }
        }
        self.drain(records.get_mut())?;
        self.records = Some(records);
        Ok(())
    }

    /// Handles records; true when none is left.
    fn drain(&mut self, ring: &mut RingBuf<MapData>) -> Result<bool, Failure> {
        let mut output = Output::default();
        let (begun, mut empty) = (monotonic(), false);
        for _ in 0..BATCH {
            let Some(record) = ring.next() else {
                empty = true;
                break;
            };
            self.received += 1;
            match decode(&record) {
                Ok(event) if self.early.has(&event, &mut output) => {}
                Ok(event) => self.correlator.event(event, &mut output),
                Err(_) => self.malformed += 1,
            }
        }
        if empty {
            self.read_until = begun;
        }
        self.kernel_trace.listen(&mut self.attributor.passages);
        self.show(output)?;
        Ok(empty)
    }

    fn tick(&mut self) -> Result<(), Failure> {
        let mut output = Output::default();
        let now = monotonic();
        self.look_for_loss(now)?;
        // What lies unread may be what a journey waits for, however late it is.
        self.correlator.tick(self.read_until, &mut output);
        self.kernel_trace.listen(&mut self.attributor.passages);
        self.show(output)?;
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(2) {
            self.sync()?;
        }
        self.show_all()?;
        if self.ticks.is_multiple_of(50) {
            self.kernel.write_diagnostics();
            self.render.idle().map_err(Failure::Output)?;
        }
        Ok(())
    }

    /// Follows changes of rulesets and base chains. A namespace may vanish at any moment: the next look at the scope
    /// says so.
    fn sync(&mut self) -> Result<(), Failure> {
        let _ = self.kernel.sync(&mut self.correlator.view);
        self.say_unbounded()
    }

    /// Closes what is open and prints the summary.
    fn end(mut self) -> Result<(), Failure> {
        self.is_ending = true;
        let mut output = Output::default();
        self.correlator.finish(&mut output);
        self.show(output)?;
        self.show_all()?;
        for journey in self.findings.finish(&self.scoped, &self.kernel, self.settled()) {
            self.print(journey)?;
        }
        self.kernel.write_diagnostics();
        let mut lost: BTreeMap<String, u64> = self
            .kernel
            .counters()?
            .into_iter()
            .filter(|(counter, _)| counter.is_loss())
            .map(|(counter, count)| (counter.name().to_owned(), count))
            .collect();
        lost.insert("malformed".to_owned(), self.malformed);
        lost.insert("rule-probe-skipped".to_owned(), self.kernel.skipped_rule_probes()?);
        let events = Events { received: self.received, lost };
        let summary = std::mem::take(&mut self.tally).finish(events, self.started.elapsed());
        self.line(&Line::Summary(summary))?;
        io::stdout().flush().map_err(Failure::Output)
    }
}
