//! Which socket received a packet that was delivered.

use std::num::NonZeroU64;

use crate::{
    enrich::{Arrival, Endpoint, Lookup, Surroundings},
    model::{DeviceDirection, Journey, Protocol, StageKind, Tuple},
};

/// Whose socket is looked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::run) struct Receiver {
    pub(in crate::run) netns: u32,
    pub(in crate::run) tuple: Tuple,
    /// The receiving socket's port where the kernel told it.
    pub(in crate::run) port: Option<u16>,
    /// And its inode.
    pub(in crate::run) inode: Option<NonZeroU64>,
}

/// What came of it, beside the socket itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sought {
    /// A newer list of sockets may say more.
    pub(super) newer_may_help: bool,
    /// For the journey.
    pub(super) note: Option<String>,
}

/// Writes the socket into the journey's outcome.
pub(super) fn find(receiver: &Receiver, journey: &mut Journey, around: &Surroundings) -> Sought {
    let tuple = receiver.tuple;
    let (Some(source_port), Some(port)) = (tuple.source_port, tuple.destination_port) else {
        return Sought::default();
    };
    let Some(sockets) = around.sockets.known() else { return Sought::default() };
    let protocol = journey.packet.protocol;
    let lookup = Lookup {
        protocol,
        local: Endpoint { address: tuple.destination, port },
        peer: Endpoint { address: tuple.source, port: source_port },
        arrival: input(journey, receiver.netns).and_then(|device| Arrival::by(device, protocol, around)),
    };
    let takers = sockets.receivers(&lookup, receiver.inode, receiver.port);
    journey.outcome.socket = takers.shown().or(journey.outcome.socket.take());
    let note = takers.note();
    let is_owned = takers.one().is_some_and(|socket| socket.owner.is_some());
    // Of several listeners the newest list says no more, until a connection is accepted.
    Sought { newer_may_help: !is_owned && (note.is_none() || protocol == Protocol::TCP), note }
}

/// The device by which it came into that namespace; of a bridge and its port, the one seen last.
fn input(journey: &Journey, netns: u32) -> Option<&str> {
    journey.stages.iter().rev().filter(|stage| stage.netns == netns).find_map(|stage| match &stage.kind {
        StageKind::Device(device) if device.direction == DeviceDirection::In => Some(device.device.as_str()),
        _ => None,
    })
}
