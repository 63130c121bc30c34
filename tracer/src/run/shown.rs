//! Which journeys are shown: conditions that only a whole journey can answer.

use crate::{
    config::Config,
    model::{Journey, StageKind},
};

/// Whether the journey passed a device and had a conntrack state that were asked for.
pub(super) fn is_wanted(config: &Config, journey: &Journey) -> bool {
    passes_device(config, journey) && has_state(config, journey)
}

fn passes_device(config: &Config, journey: &Journey) -> bool {
    config.interfaces.is_empty()
        || journey.stages.iter().any(|stage| match &stage.kind {
            StageKind::Device(device) => config.interfaces.iter().any(|name| name.as_str() == device.device),
            StageKind::Program(program) => {
                config.interfaces.iter().any(|name| name.as_str() == program.device)
            }
            StageKind::Route(_) | StageKind::Netfilter(_) => false,
        })
}

fn has_state(config: &Config, journey: &Journey) -> bool {
    config.ct_states.is_empty()
        || journey.conntrack.as_ref().is_some_and(|conntrack| config.ct_states.contains(&conntrack.state))
}
