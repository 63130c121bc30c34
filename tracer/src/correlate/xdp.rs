//! XDP comes before there is an `sk_buff`: what it saw is a journey by itself, until the kernel side says at the
//! packet's first sight in the stack that it is this one. It says so only where nothing came in between, so that
//! packets that look alike are never mixed up; where it does not, both are told apart.

use tracer_common::records::{SIGHT_FIRST, SIGHT_XDP};

use super::{Correlator, DraftStage, open::Open};
use crate::{
    decode::SightEvent,
    model::{DeviceDirection, DeviceStage},
};

impl Correlator {
    /// A frame came by XDP.
    pub(super) fn at_xdp(&mut self, journey: u64, sight: &SightEvent) {
        if sight.raw.flags & SIGHT_FIRST == 0 {
            // The packet had been seen on this device the instant before.
            self.with(journey, |open| open.confirmed_by_xdp(sight.raw.in_ifindex));
            return;
        }
        let open = self.open.entry(journey).or_default();
        open.see(sight, &self.filter);
        open.skb = None;
        open.device(sight, DeviceDirection::In);
    }

    /// The sight of a packet in the stack, as the beginning that it had at XDP; `None` where XDP did not see it.
    pub(super) fn joined(&mut self, sight: &SightEvent) -> Option<SightEvent> {
        if sight.raw.flags & SIGHT_XDP == 0 {
            return None;
        }
        let mut sight = sight.clone();
        // It is not there where the packet was not asked for at XDP, or where its record was lost.
        if let Some(began) = self.open.remove(&sight.raw.location) {
            sight.raw.head.time = began.time;
        }
        Some(sight)
    }
}

impl Open {
    fn confirmed_by_xdp(&mut self, device: u32) {
        if let Some(DraftStage::Device(stage)) = self.stages.last_mut().map(|timed| &mut timed.stage)
            && stage.direction == DeviceDirection::In
            && stage.ifindex == device
        {
            stage.xdp = true;
        }
    }

    /// The device, where XDP saw the packet and nobody since.
    pub(super) fn only_at_xdp(&self) -> Option<&str> {
        match self.stages.as_slice() {
            [one] if self.skb.is_none() => match &one.stage {
                DraftStage::Device(DeviceStage { device, xdp: true, .. }) => Some(device),
                _ => None,
            },
            _ => None,
        }
    }
}
