//! The places a packet passes.

use std::net::IpAddr;

use serde::Serialize;

use super::{NetfilterStage, ProgramStage};

/// One place on the packet's way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Stage {
    #[serde(flatten)]
    pub kind: StageKind,
    /// Nanoseconds since the packet's first sight.
    pub elapsed_ns: u64,
    /// Network namespace, by the inode number of its nsfs file.
    pub netns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum StageKind {
    Device(DeviceStage),
    Netfilter(NetfilterStage),
    Route(RouteStage),
    Program(ProgramStage),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceDirection {
    In,
    Out,
}

/// A packet entered from, or was handed to, a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DeviceStage {
    pub device: String,
    pub ifindex: u32,
    pub direction: DeviceDirection,
    /// Our XDP observer saw the packet here (`--xdp`); left out where not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub xdp: bool,
    /// XDP and tc programs of others on this device and side, by name; they judge before or after we look.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<String>,
}

/// A routing decision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RouteStage {
    /// Number of the routing table that answered; `None` when a cached route was used.
    pub table: Option<u32>,
    pub destination: IpAddr,
    /// `None` when routing failed.
    pub device: Option<String>,
    pub gateway: Option<IpAddr>,
    /// Symbolic errno (`ENETUNREACH`) or the drop reason, when routing failed.
    pub error: Option<String>,
    /// Route type as `ip route` names it: `local`, `unicast`, `broadcast`, `multicast`, `blackhole`, ...
    pub route_type: Option<String>,
    /// Firewall mark that took part in the lookup, when not 0.
    pub mark: Option<u32>,
}
