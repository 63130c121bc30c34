//! Who watches devices: tracepoints at first, tcx when a trace lasts.

use std::time::Duration;

use super::Trace;
use crate::{attach::News, error::Failure, model::NoticeLevel};

/// A trace that ends sooner is not worth the grace periods that tcx links cost the machine.
const TCX_DELAY: Duration = Duration::from_secs(1);

impl Trace<'_> {
    /// Moves from tracepoints to tcx when the trace lasts, and tells what came of it.
    pub(super) fn look_at_devices(&mut self) -> Result<(), Failure> {
        if !self.tcx_tried && self.scoped.is_fixed() && self.started.elapsed() >= TCX_DELAY {
            self.tcx_tried = true;
            if let Err(error) = self.kernel.start_tcx() {
                self.devices_say(&format!("tracepoints go on watching devices: {error:#}"))?;
            }
        }
        for message in self.observed.look(&self.scoped, &mut self.kernel) {
            self.notice(NoticeLevel::Warning, message)?;
        }
        for news in self.kernel.device_news()? {
            match news {
                News::Placed => self.devices_say("tcx programs watch devices from now on")?,
                News::Refused(why) => {
                    self.devices_say(&format!("tracepoints go on watching devices: {why}"))?;
                }
                News::Problem(problem) => self.notice(NoticeLevel::Warning, problem)?,
            }
        }
        Ok(())
    }

    /// Of interest to nobody but who looks into the trace itself.
    fn devices_say(&mut self, message: &str) -> Result<(), Failure> {
        if self.config.kernel_log { self.notice(NoticeLevel::Info, message.to_owned()) } else { Ok(()) }
    }
}
