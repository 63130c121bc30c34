//! Who watches devices: tracepoints at first, tcx when a trace lasts, or tc filters where the user allows them.

use std::time::Duration;

use super::Trace;
use crate::{
    attach::{Kernel, News, VerdictNews},
    config::{Config, KernelFeature},
    error::{Failure, one_line},
    model::NoticeLevel,
    plan::{DeviceProbes, device_probes},
};

/// A trace that ends sooner is not worth the grace periods that tcx links cost the machine.
const TCX_DELAY: Duration = Duration::from_secs(1);

/// Who is to take over from the tracepoints.
pub(super) struct TakingOver {
    probes: DeviceProbes,
    tried: bool,
}

impl TakingOver {
    /// Decides; gives also what is to be said of `--clsact`.
    pub(super) fn plan(config: &Config, kernel: &Kernel, fixed: bool) -> (Self, Option<String>) {
        let tcx = kernel.has_tcx() && !config.without.contains(&KernelFeature::Tcx);
        let probes = device_probes(tcx, config.clsact, fixed);
        let said = match probes {
            _ if !config.clsact => None,
            DeviceProbes::Clsact => Some(
                "--clsact: devices get tc filters, and a clsact qdisc where they have none, until the trace ends",
            ),
            DeviceProbes::Tcx => {
                Some("--clsact is not needed: this kernel has tcx, and no device is changed")
            }
            DeviceProbes::Tracepoints => Some(
                "--clsact is not needed: with --all-netns tracepoints watch devices, and none is changed",
            ),
        };
        (Self { probes, tried: false }, said.map(str::to_owned))
    }

    /// Whether now is the time, which comes once.
    fn is_due(&mut self, elapsed: Duration) -> bool {
        let due = match self.probes {
            DeviceProbes::Tracepoints => false,
            DeviceProbes::Tcx => elapsed >= TCX_DELAY,
            DeviceProbes::Clsact => true,
        };
        due && !std::mem::replace(&mut self.tried, true)
    }

    /// As messages name the programs.
    fn name(&self) -> &'static str {
        if self.probes == DeviceProbes::Clsact { "tc filters" } else { "tcx programs" }
    }
}

impl Trace<'_> {
    /// Moves from tracepoints to programs on devices, and tells what came of it.
    pub(super) fn look_at_devices(&mut self) -> Result<(), Failure> {
        if self.taking_over.is_due(self.started.elapsed())
            && let Err(error) = self.kernel.start_devices(self.taking_over.probes)
        {
            self.refused(&one_line(&format!("{error:#}")))?;
        }
        for message in self.observed.look(&self.scoped, &mut self.kernel) {
            self.notice(NoticeLevel::Warning, message)?;
        }
        for news in self.kernel.verdict_news() {
            match news {
                VerdictNews::Watched(program) => {
                    self.devices_say(&format!("verdicts of {program} are seen from now on"))?;
                }
                VerdictNews::Unseen(why) => {
                    self.notice(NoticeLevel::Info, format!("verdicts are not seen of {why}"))?;
                }
            }
        }
        for news in self.kernel.device_news()? {
            match news {
                News::Placed => {
                    self.devices_say(&format!("{} watch devices from now on", self.taking_over.name()))?;
                }
                News::Refused(why) => self.refused(&why)?,
                News::Problem(problem) => self.notice(NoticeLevel::Warning, problem)?,
                News::Changed { netns, what } => {
                    let name =
                        self.scoped.get(netns).map_or_else(|| netns.to_string(), |one| one.name.clone());
                    self.tell(vec![format!("--clsact, namespace {name}: {what}")])?;
                }
            }
        }
        Ok(())
    }

    fn refused(&mut self, why: &str) -> Result<(), Failure> {
        let message = format!("tracepoints go on watching devices: {why}");
        if self.taking_over.probes == DeviceProbes::Clsact {
            return self.tell(vec![format!("--clsact: {message}")]);
        }
        self.devices_say(&message)
    }

    /// Of interest to nobody but who looks into the trace itself.
    fn devices_say(&mut self, message: &str) -> Result<(), Failure> {
        if self.config.says_probes { self.notice(NoticeLevel::Info, message.to_owned()) } else { Ok(()) }
    }
}
