//! What happens to the trace itself, told once.

use jiff::Timestamp;
use tracer_common::counters::Counter;

use super::Trace;
use crate::{
    error::Failure,
    kernel::monotonic,
    model::{Line, Notice, NoticeLevel},
};

/// How many events were lost when that was looked at, and when (CLOCK_MONOTONIC, nanoseconds).
pub(super) struct Loss {
    /// Wherever that was.
    all: u64,
    /// Of packets that are followed.
    followed: u64,
    looked: u64,
}

impl Loss {
    /// None so far.
    pub(super) fn none() -> Self {
        Self { all: 0, followed: 0, looked: monotonic() }
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
            self.findings.lost(Timestamp::now());
            if self.loss.all == 0 {
                let message = "more events than can be read: some are lost, and the summary says how many";
                self.notice(NoticeLevel::Warning, message.to_owned())?;
            }
        }
        self.loss = Loss { all, followed, looked: now };
        Ok(())
    }

    /// Tables that no two probes enclose, of which it was not said yet.
    pub(super) fn new_unbounded(&mut self) -> Vec<String> {
        let all = self.kernel.namespaces().flat_map(|namespace| namespace.unbounded());
        let new: Vec<String> = all.filter(|text| !self.unbounded.contains(*text)).cloned().collect();
        self.unbounded.extend(new.iter().cloned());
        new
    }

    /// Says it of those that appeared under way.
    pub(super) fn say_unbounded(&mut self) -> Result<(), Failure> {
        for text in self.new_unbounded() {
            self.notice(NoticeLevel::Warning, text)?;
        }
        Ok(())
    }
}
