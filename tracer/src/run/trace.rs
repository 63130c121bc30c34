//! A live trace, from start to summary.

mod notices;

mod devices;

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

use self::notices::Loss;
use super::{
    ended::{Ended, Waiting},
    findings::Findings,
    kernel_trace::KernelTrace,
    scope::Scoped,
    setup::{self, Loaded},
    shown,
    signals::Signals,
};
use crate::{
    attach::{Kernel, Namespace},
    attribute::Attributor,
    config::{Config, Format},
    correlate::{Correlator, Output},
    decode::decode,
    error::Failure,
    kernel::monotonic,
    model::{Journey, Line, NoticeLevel, OutcomeKind, Start},
    render::{Environment, Render, renderer},
    summary::{Events, Shown, Tally},
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
    attributor: Attributor,
    ended: Waiting,
    scoped: Scoped,
    findings: Findings,
    kernel_trace: KernelTrace,
    render: Box<dyn Render>,
    tally: Tally,
    received: u64,
    malformed: u64,
    loss: Loss,
    /// Tables of which it was said that their verdict is not seen.
    unbounded: BTreeSet<String>,
    shown: u64,
    done: bool,
    ticks: u32,
    /// Whether tcx was to take over from the tracepoints on devices.
    tcx_tried: bool,
}

impl<'c> Trace<'c> {
    fn start(config: &'c Config, started: Instant) -> Result<Self, Failure> {
        let mut scoped = Scoped::new(config)?;
        let Loaded { mut kernel, names, absent } = setup::load(config)?;
        scoped.check_devices(config)?;
        // SAFETY: the ring buffer owns its descriptor, and both are dropped together.
        let records = unsafe { AsyncFd::register(kernel.records()?) }.context("watching the ring buffer")?;
        let mut correlator = Correlator::new(config.filter, names);
        let mut kernel_trace = KernelTrace::new(config);
        let said = kernel_trace.start(scoped.namespaces(), &mut kernel);
        let problems = scoped.attach(&mut kernel, &mut correlator.view)?;
        kernel.attach_tracepoints()?;
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
            attributor: Attributor::new(setup::epoch()?),
            ended: Waiting::default(),
            scoped,
            findings: Findings::new(),
            kernel_trace,
            render,
            tally: Tally::default(),
            received: 0,
            malformed: 0,
            unbounded: BTreeSet::new(),
            loss: Loss::none(),
            shown: 0,
            done: false,
            ticks: 0,
            tcx_tried: false,
        };
        trace.announce(problems, absent)?;
        trace.tell(said)?;
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
        let mut empty = false;
        for _ in 0..BATCH {
            let Some(record) = ring.next() else {
                empty = true;
                break;
            };
            self.received += 1;
            match decode(&record) {
                Ok(event) => self.correlator.event(event, &mut output),
                Err(_) => self.malformed += 1,
            }
        }
        self.kernel_trace.listen(&mut self.attributor.passages);
        self.show(output)?;
        Ok(empty)
    }

    fn tick(&mut self) -> Result<(), Failure> {
        let mut output = Output::default();
        let now = monotonic();
        self.look_for_loss(now)?;
        self.correlator.tick(now, &mut output);
        self.kernel_trace.listen(&mut self.attributor.passages);
        self.show(output)?;
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(2) {
            self.sync()?;
        }
        self.show_all()?;
        for journey in self.findings.overdue(&self.scoped, &self.kernel) {
            self.print(journey)?;
        }
        if self.ticks.is_multiple_of(50) {
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

    fn look_at_scope(&mut self) -> Result<(), Failure> {
        let change = self.scoped.look();
        for namespace in change.vanished {
            self.kernel.remove_namespace(namespace.inode)?;
            self.kernel_trace.remove(namespace.inode);
            self.notice(NoticeLevel::Warning, format!("namespace {} has gone", namespace.name))?;
        }
        for namespace in change.appeared {
            let said = self.kernel_trace.add(&namespace);
            self.tell(said)?;
            let added =
                self.kernel.add_namespace(namespace.inode, namespace.path.clone(), &mut self.correlator.view);
            if added.is_ok() {
                self.render.name_netns(namespace.inode, &namespace.name);
                self.notice(
                    NoticeLevel::Info,
                    format!("namespace {} is traced from now on", namespace.name),
                )?;
                self.scoped.add(namespace);
            }
        }
        let said = self.kernel_trace.look(self.scoped.namespaces());
        self.tell(said)?;
        if self.scoped.is_empty() {
            self.notice(NoticeLevel::Warning, "no namespace is left to trace".to_owned())?;
            self.done = true;
        }
        Ok(())
    }

    /// What concerns the user's ruleset is said to a person, also where a program reads the results.
    fn tell(&mut self, said: Vec<String>) -> Result<(), Failure> {
        for message in said {
            if self.config.output.format == Format::Json {
                writeln!(io::stderr(), "pathtrace: {message}").map_err(Failure::Output)?;
            }
            self.notice(NoticeLevel::Warning, message)?;
        }
        Ok(())
    }

    /// Attributes, enriches and prints what ended and need not wait.
    fn show(&mut self, output: Output) -> Result<(), Failure> {
        self.kernel.forget(&output.forget)?;
        self.ended.add(output.closed, monotonic());
        let ready = self.ended.ready();
        if ready.is_empty() {
            return Ok(());
        }
        self.settle_texts()?;
        self.attribute(ready)
    }

    /// Shows also what waited for a look at the rulesets.
    fn show_all(&mut self) -> Result<(), Failure> {
        if self.ended.is_empty() {
            return Ok(());
        }
        self.settle_texts()?;
        let _ = self.kernel.sync_these(self.ended.netns(), &mut self.correlator.view);
        let ended = self.ended.all();
        self.attribute(ended)
    }

    fn attribute(&mut self, ended: Vec<Ended>) -> Result<(), Failure> {
        for (draft, read) in ended {
            let (netns, tuple, port) = (draft.netns, draft.last_tuple, draft.socket_port);
            let mut journey = self.attributor.journey(draft, read);
            if !shown::is_wanted(self.config, &journey) {
                continue;
            }
            if journey.outcome.result == OutcomeKind::Delivered {
                self.findings.find_socket(&self.scoped, &mut journey, netns, tuple, port);
            }
            for ready in self.findings.add(&self.scoped, &self.kernel, journey) {
                self.print(ready)?;
            }
        }
        Ok(())
    }

    /// Rule texts are trusted once the ruleset was seen unchanged after they had been read.
    fn settle_texts(&mut self) -> Result<(), Failure> {
        let pending: Vec<_> = self
            .kernel
            .namespaces()
            .map(|namespace| namespace.texts().clone())
            .filter(|t| t.is_pending())
            .collect();
        if pending.is_empty() {
            return Ok(());
        }
        for texts in pending {
            texts.wait();
        }
        self.sync()
    }

    fn print(&mut self, journey: Journey) -> Result<(), Failure> {
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

    fn line(&mut self, line: &Line) -> Result<(), Failure> {
        self.render.line(line).map_err(Failure::Output)
    }

    /// Closes what is open and prints the summary.
    fn end(mut self) -> Result<(), Failure> {
        let mut output = Output::default();
        self.correlator.finish(&mut output);
        self.show(output)?;
        self.show_all()?;
        for journey in self.findings.finish() {
            self.print(journey)?;
        }
        let mut lost: BTreeMap<String, u64> = self
            .kernel
            .counters()?
            .into_iter()
            .filter(|(counter, _)| counter.is_loss())
            .map(|(counter, count)| (counter.name().to_owned(), count))
            .collect();
        lost.insert("malformed".to_owned(), self.malformed);
        let events = Events { received: self.received, lost };
        let summary = std::mem::take(&mut self.tally).finish(events, self.started.elapsed());
        self.line(&Line::Summary(summary))?;
        io::stdout().flush().map_err(Failure::Output)
    }
}
