//! What happens to the trace itself, told once.

use tracer_common::counters::Counter;

use super::Trace;
use crate::{
    error::Failure,
    kernel::monotonic,
    model::{Line, Notice, NoticeLevel},
};

/// How many events were lost when that was looked at, and when (CLOCK_MONOTONIC, nanoseconds).
pub(super) struct Loss {
    count: u64,
    looked: u64,
}

impl Loss {
    /// None so far.
    pub(super) fn none() -> Self {
        Self { count: 0, looked: monotonic() }
    }
}

impl Trace<'_> {
    pub(super) fn notice(&mut self, level: NoticeLevel, message: String) -> Result<(), Failure> {
        self.line(&Line::Notice(Notice { level, message }))
    }

    /// Silence means something only while no events are lost.
    pub(super) fn look_for_loss(&mut self, now: u64) -> Result<(), Failure> {
        let lost = self.kernel.counter(Counter::RingFull)?;
        if lost > self.loss.count {
            self.correlator.lost(self.loss.looked, now);
            if self.loss.count == 0 {
                let message = "more events than can be read: some are lost, and the summary says how many";
                self.notice(NoticeLevel::Warning, message.to_owned())?;
            }
        }
        self.loss = Loss { count: lost, looked: now };
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
