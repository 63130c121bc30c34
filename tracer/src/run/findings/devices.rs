//! What is known of the devices that a journey passed.

use std::sync::Arc;

use crate::{
    enrich::{Link, Surroundings},
    model::{DeviceDirection, DeviceStage, Journey, OutcomeKind, StageKind},
};

/// Names who else judges packets on the devices, and says what becomes of a packet in the last.
pub(super) fn tell(journey: &mut Journey, surroundings: &[Arc<Surroundings>]) {
    for stage in &mut journey.stages {
        let StageKind::Device(device) = &mut stage.kind else { continue };
        let Some(link) = link(surroundings, stage.netns, device) else { continue };
        device.programs = match device.direction {
            DeviceDirection::In => link.programs.input.clone(),
            DeviceDirection::Out => link.programs.output.clone(),
        };
    }
    if journey.outcome.result == OutcomeKind::Forwarded
        && let Some(last) = journey.stages.last()
        && let StageKind::Device(device) = &last.kind
        && device.direction == DeviceDirection::Out
        && let Some(note) = link(surroundings, last.netns, device).and_then(Link::beyond)
        // A journey that was held is looked at again.
        && !journey.notes.contains(&note)
    {
        journey.notes.push(note);
    }
}

fn link<'a>(surroundings: &'a [Arc<Surroundings>], netns: u32, device: &DeviceStage) -> Option<&'a Link> {
    let around = surroundings.iter().find(|around| around.netns == netns)?;
    around.network.known()?.links.iter().find(|link| link.index == device.ifindex)
}
