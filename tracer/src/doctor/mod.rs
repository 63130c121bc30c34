//! What this machine can show, what is missing, and which settings are risky. Pure: it puts together what the
//! readers, the ruleset and the plan of probes say. Every line has its evidence.

mod capabilities;
mod report;
mod rules;
mod system;

#[cfg(test)]
mod tests;

pub use capabilities::{Capabilities, Capability, HookFunction};
pub use report::{Item, Level, Report, Section};

use crate::{
    diagnose::RulesetView,
    enrich::{Loggers, Reading, Surroundings},
};

/// Everything that doctor looks at, in the namespace in question.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    pub capabilities: &'a Capabilities,
    pub surroundings: &'a Surroundings,
    pub ruleset: &'a RulesetView,
    pub loggers: &'a Reading<Loggers>,
}

/// Looks at everything.
#[must_use]
pub fn examine(machine: &Machine<'_>) -> Report {
    let mut report = Report::default();
    capabilities::examine(machine.capabilities, &mut report);
    rules::examine(machine, &mut report);
    system::examine(machine, &mut report);
    report
}
