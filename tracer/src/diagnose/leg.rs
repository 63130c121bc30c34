//! The part of a journey that lies in one network namespace.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    enrich::Network,
    model::{
        DeviceDirection, Hook, Journey, NatKind, NetfilterStage, Outcome, RouteStage, Stage, StageKind,
        Tuple, Verdict,
    },
};

/// Consecutive stages in one namespace, and the packet's addresses at both ends of them.
#[derive(Clone, Copy, Debug)]
pub struct Leg<'a> {
    pub netns: u32,
    stages: &'a [Stage],
    /// As it came in, or was made.
    pub entry: Tuple,
    /// As it was at the last stage here.
    pub exit: Tuple,
    outcome: Option<&'a Outcome>,
}

/// The legs of a journey, in order; only the last one has the outcome.
pub(super) fn legs(journey: &Journey) -> Vec<Leg<'_>> {
    let mut legs: Vec<Leg<'_>> = Vec::new();
    let mut tuple = journey.packet.tuple;
    for stages in journey.stages.chunk_by(|a, b| a.netns == b.netns) {
        let entry = tuple;
        for stage in stages {
            if let StageKind::Netfilter(netfilter) = &stage.kind {
                tuple = netfilter.after;
            }
        }
        legs.push(Leg { netns: stages[0].netns, stages, entry, exit: tuple, outcome: None });
    }
    if let Some(last) = legs.last_mut() {
        last.outcome = Some(&journey.outcome);
    }
    legs
}

impl<'a> Leg<'a> {
    pub fn netfilter(&self) -> impl DoubleEndedIterator<Item = &'a NetfilterStage> {
        self.stages.iter().filter_map(|stage| match &stage.kind {
            StageKind::Netfilter(netfilter) => Some(netfilter),
            _ => None,
        })
    }

    pub fn routes(&self) -> impl DoubleEndedIterator<Item = &'a RouteStage> {
        self.stages.iter().filter_map(|stage| match &stage.kind {
            StageKind::Route(route) => Some(route),
            _ => None,
        })
    }

    fn device(&self, wanted: DeviceDirection) -> Option<&'a str> {
        self.stages.iter().rev().find_map(|stage| match &stage.kind {
            StageKind::Device(device) if device.direction == wanted => Some(device.device.as_str()),
            _ => None,
        })
    }

    /// The device that netfilter calls the input: of a bridge and its port, the one seen last.
    #[must_use]
    pub fn input(&self) -> Option<&'a str> {
        self.device(DeviceDirection::In)
    }

    /// The device it left by, or was routed to.
    #[must_use]
    pub fn output(&self) -> Option<&'a str> {
        let left = || self.outcome.and_then(|outcome| outcome.device.as_deref());
        let routed = || self.routes().rev().find_map(|route| route.device.as_deref());
        self.device(DeviceDirection::Out).or_else(left).or_else(routed)
    }

    /// Made by a process of this namespace.
    #[must_use]
    pub fn starts_here(&self) -> bool {
        let first = self.stages.iter().find(|stage| !matches!(stage.kind, StageKind::Route(_)));
        match first.map(|stage| &stage.kind) {
            Some(StageKind::Netfilter(stage)) => matches!(stage.hook, Hook::Output | Hook::Postrouting),
            Some(StageKind::Device(stage)) => stage.direction == DeviceDirection::Out,
            _ => false,
        }
    }

    /// Came in by one device and left by another, or the same.
    #[must_use]
    pub fn is_forwarded(&self) -> bool {
        !self.starts_here()
            && self.input().is_some()
            && (self.device(DeviceDirection::Out).is_some()
                || self.outcome.is_some_and(|outcome| outcome.device.is_some()))
    }

    #[must_use]
    pub fn passed(&self, hook: Hook) -> bool {
        self.netfilter().any(|stage| stage.hook == hook)
    }

    /// The stage that rewrote the destination.
    #[must_use]
    pub fn destination_rewritten(&self) -> Option<&'a NetfilterStage> {
        self.netfilter().find(|stage| {
            (stage.before.destination, stage.before.destination_port)
                != (stage.after.destination, stage.after.destination_port)
        })
    }

    /// Whether the source address was rewritten.
    #[must_use]
    pub fn source_rewritten(&self) -> bool {
        self.entry.source != self.exit.source
            || self.netfilter().any(|stage| matches!(stage.nat, Some(NatKind::Snat | NatKind::Masquerade)))
    }

    /// The table that dropped or rejected the packet here.
    #[must_use]
    pub fn judge(&self) -> Option<&'a NetfilterStage> {
        self.netfilter().rev().find(|stage| matches!(stage.verdict, Some(Verdict::Drop | Verdict::Reject)))
    }

    /// Sent to a multicast group or a broadcast address.
    #[must_use]
    pub fn is_for_group(&self) -> bool {
        let to = self.exit.destination;
        let routed = |route: &RouteStage| {
            route.destination == to && matches!(route.route_type.as_deref(), Some("broadcast" | "multicast"))
        };
        to.is_multicast() || to == IpAddr::V4(Ipv4Addr::BROADCAST) || self.routes().any(routed)
    }

    /// Whether `address` is one of this host's own; routing's word counts for more than the address list.
    #[must_use]
    pub fn is_local(&self, address: IpAddr, network: Option<&Network>) -> bool {
        let routed_local = self
            .routes()
            .any(|route| route.destination == address && route.route_type.as_deref() == Some("local"));
        routed_local || network.is_some_and(|network| network.is_own_address(address))
    }
}
