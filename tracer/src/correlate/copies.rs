//! Copies (`skb_clone`): a bridge floods, a multicast has several listeners. A copy that leaves is said in the
//! journey of the packet; one that turns up in another traced namespace has a journey of its own.

use std::collections::HashMap;

use super::{Correlator, DraftStage, open::Open};
use crate::decode::SightEvent;

/// Copies that were handed to a device, by `sk_buff`: its buffer, and the device.
#[derive(Default)]
pub(super) struct Copies(HashMap<u64, (u64, String)>);

/// Copies remembered; beyond, all are forgotten, since nobody tells when a copy is freed.
const MOST: usize = 4096;

impl Correlator {
    /// A copy of a followed packet was handed to a device.
    pub(super) fn copied(&mut self, journey: u64, sight: &SightEvent) {
        let Some(device) = sight.device_out() else { return };
        if self.copies.0.len() >= MOST {
            self.copies.0.clear();
        }
        self.copies.0.insert(sight.raw.skb, (sight.raw.buffer, device.clone()));
        self.with(journey, |open| open.copies.push(device));
    }

    /// Says of a journey that begins that its packet is such a copy.
    pub(super) fn note_copy(&mut self, journey: u64, sight: &SightEvent) {
        let Some((buffer, device)) = self.copies.0.remove(&sight.raw.skb) else { return };
        if buffer == sight.raw.buffer {
            let open = self.open.entry(journey).or_default();
            open.notes.push(format!("a copy, made for {device}, of a packet that has a journey of its own"));
        }
    }
}

impl Open {
    /// What became of one packet that went several ways.
    pub(super) fn note_copies(&mut self) {
        if !self.copies.is_empty() {
            self.notes.push(format!("copies of it went out of {}", self.copies.join(", ")));
        }
        // Of one host's packet, a listener and the connection that it opens speak up.
        if self.is_for_many() && self.sockets.len() > 1 {
            self.notes.push(format!("{} sockets received it", self.sockets.len()));
        }
    }

    /// Whether it was routed as a multicast or broadcast.
    fn is_for_many(&self) -> bool {
        self.stages.iter().any(|timed| match &timed.stage {
            DraftStage::Route(route) => {
                route.destination.is_multicast() || route.route_type.as_deref() == Some("broadcast")
            }
            DraftStage::Device(_) | DraftStage::Table(_) | DraftStage::Program(_) => false,
        })
    }
}
