//! The known causes.

mod addresses;
mod bound;
mod bridge;
mod bridge_loss;
mod conntrack;
mod docker;
mod kernel;
mod listener;
mod no_route;
mod place;
mod program;
mod proxy;
mod queue;
mod replies;
mod routing;
mod verdict;

use super::{Answer, Case, Check, case, leg, reasons, ruleset, words};

/// All of them, the special before the general.
pub(super) static ALL: &[&dyn Check] = &[
    &program::DroppedByProgram,
    &docker::ForwardDropAfterDnat,
    &docker::PublishedPortNotTranslated,
    &docker::RuleOnUnusedChain,
    &verdict::MixedBackends,
    &bridge::BridgedPacketFiltered,
    &bridge_loss::BridgeDidNotForward,
    &conntrack::Invalid,
    &conntrack::Full,
    &conntrack::StaleMapping,
    &routing::IpForwardingOff,
    &routing::RouteLocalnetOff,
    &routing::ReversePathFilter,
    &no_route::NoRoute,
    &routing::NeighbourUnreachable,
    &replies::PrivateSourceNotTranslated,
    &replies::ReplyBypassesNat,
    &listener::OnOtherAddress,
    &bound::OnOtherDevice,
    &listener::Nobody,
    &proxy::SourceHidden,
    &verdict::DroppedByRule,
    &verdict::RejectedByRule,
    &verdict::DroppedByPolicy,
];

/// Asked when none of [`ALL`] found anything.
pub(super) static FALLBACK: &dyn Check = &kernel::DroppedByKernel;

/// What a table's verdict alone says.
const VERDICTS: [&str; 3] = ["dropped-by-rule", "dropped-by-policy", "rejected-by-rule"];
