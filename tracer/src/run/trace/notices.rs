//! What happens to the trace itself, told once.

use jiff::Timestamp;
use tracer_common::counters::Counter;

use super::Trace;
use crate::{
    attach::RuleProbes,
    error::Failure,
    kernel::monotonic,
    model::{Line, Notice, NoticeLevel},
};

/// How long journeys may have waited since probes were left out (nanoseconds).
const REMEMBERED: u64 = 1_000_000_000;

/// How many events were lost when that was looked at, and when (CLOCK_MONOTONIC, nanoseconds).
pub(super) struct Loss {
    /// Wherever that was.
    all: u64,
    /// Of packets that are followed.
    followed: u64,
    looked: u64,
    /// Rule probes that were left out, and when that was looked at.
    skipped: u64,
    asked: u64,
}

impl Loss {
    /// None so far.
    pub(super) fn none() -> Self {
        let now = monotonic();
        Self { all: 0, followed: 0, looked: now, skipped: 0, asked: now }
    }
}

impl Trace<'_> {
    pub(super) fn notice(&mut self, level: NoticeLevel, message: String) -> Result<(), Failure> {
        self.line(&Line::Notice(Notice { level, message }))
    }

    /// Silence means something only while no events are lost.
    pub(super) fn look_for_loss(&mut self, now: u64) -> Result<(), Failure> {
        let counters = self.kernel.counters()?;
        let lost = |which: fn(Counter) -> bool| -> u64 {
            counters.iter().filter(|(counter, _)| which(*counter)).map(|(_, count)| count).sum()
        };
        let (all, followed) = (lost(Counter::is_loss), lost(|counter| counter == Counter::RingFull));
        if followed > self.loss.followed {
            self.correlator.lost(self.loss.looked, now);
        }
        if all > self.loss.all {
            self.correlator.left_out();
            self.findings.lost(Timestamp::now());
            if self.loss.all == 0 {
                let message = "more events than can be read: some are lost, and the summary says how many";
                self.notice(NoticeLevel::Warning, message.to_owned())?;
            }
        }
        self.loss = Loss { all, followed, looked: now, ..self.loss };
        Ok(())
    }

    /// Takes note of rule probes that were left out, before journeys up to now are put together.
    pub(super) fn look_for_skipped(&mut self) {
        // Where the kernel does not say, nothing is known to have been left out.
        let skipped = self.kernel.skipped_rule_probes().unwrap_or(self.loss.skipped);
        let (from, now) = (self.loss.asked, monotonic());
        if skipped > self.loss.skipped {
            let before = self.attributor.skipped.filter(|(_, to)| from.saturating_sub(*to) < REMEMBERED);
            self.attributor.skipped = Some((before.map_or(from, |(from, _)| from), now));
        }
        (self.loss.skipped, self.loss.asked) = (skipped, now);
    }

    /// Of what is not seen, what was not said yet: tables that no two probes enclose, rules that no probe looks at.
    pub(super) fn new_unbounded(&mut self) -> Vec<String> {
        let tables = self.kernel.namespaces().flat_map(|namespace| namespace.unbounded()).cloned();
        let all = tables.chain(self.kernel.rule_probes().and_then(RuleProbes::problem));
        let new: Vec<String> = all.filter(|text| !self.unbounded.contains(text)).collect();
        self.unbounded.extend(new.iter().cloned());
        new
    }

    /// Says once that `--ct-state` has nothing to go by.
    pub(super) fn say_stateless(&mut self) -> Result<(), Failure> {
        if self.config.ct_states.is_empty() || !self.stateless || self.said_stateless {
            return Ok(());
        }
        self.said_stateless = true;
        let message = "--ct-state: packets pass here that connection tracking does not look at, so they have no state and \
                       are not shown; it works where a rule asks for it (NAT, `ct state`, `-m conntrack`)";
        self.notice(NoticeLevel::Warning, message.to_owned())
    }

    /// Says it of those that appeared under way.
    pub(super) fn say_unbounded(&mut self) -> Result<(), Failure> {
        for text in self.new_unbounded() {
            self.notice(NoticeLevel::Warning, text)?;
        }
        Ok(())
    }
}
