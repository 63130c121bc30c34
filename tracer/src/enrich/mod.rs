//! Readers of the system around a packet: sockets and their owners, settings, routes, names. Each part of
//! [`Surroundings`] says when it was read, or why it could not be; none changes anything, not even by having the
//! kernel load a module (which is why sockets come from `/proc/net`, and from sock_diag only what it can tell at once).

mod containers;
mod docker;
mod ipvs;
mod loggers;
mod netns;
mod network;
mod owners;
mod programs;
mod queues;
mod reader;
mod rtnetlink;
mod sockets;
mod sysctl;

pub use crate::netns::Roots;

pub use containers::Containers;
pub use ipvs::IpvsService;
pub use loggers::{Logger, Loggers};
pub use netns::{NetnsPath, in_netns};
pub use network::{
    Address, JudgingPrograms, Link, Neighbour, Network, Nexthop, PolicyRule, Prefix, Question, Route,
    RouteKind,
};
pub use owners::{Owner, Owners};
pub use queues::NfQueue;
pub use reader::Reader;
pub use rtnetlink::xdp_on;
pub use sockets::{Arrival, Endpoint, Limits, Lookup, SocketEntry, SocketState, Sockets, Takers};
pub use sysctl::{ConntrackUse, DeviceSettings, Settings};

use std::sync::Arc;

use jiff::Timestamp;

/// One reader's result, with its time; or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<T> {
    Known { value: T, at: Timestamp },
    Unknown { because: String },
}

impl<T> Reading<T> {
    /// Stamps a reader's result with the present time.
    #[must_use]
    pub fn now(result: anyhow::Result<T>) -> Self {
        match result {
            Ok(value) => Self::Known { value, at: Timestamp::now() },
            Err(error) => Self::Unknown { because: format!("{error:#}") },
        }
    }

    #[must_use]
    pub fn unread(because: &str) -> Self {
        Self::Unknown { because: because.to_owned() }
    }

    #[must_use]
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Unknown { .. } => None,
        }
    }

    /// When it was read.
    #[must_use]
    pub fn at(&self) -> Option<Timestamp> {
        match self {
            Self::Known { at, .. } => Some(*at),
            Self::Unknown { .. } => None,
        }
    }
}

/// Everything around a packet in one network namespace.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Inode number of the namespace.
    pub netns: u32,
    pub sockets: Reading<Arc<Sockets>>,
    pub settings: Reading<Arc<Settings>>,
    pub network: Reading<Arc<Network>>,
    /// Names of the whole machine: a container of another namespace is named here too.
    pub containers: Reading<Arc<Containers>>,
}

impl Surroundings {
    /// A namespace of which nothing is known.
    #[must_use]
    pub fn unread(netns: u32, because: &str) -> Self {
        Self {
            netns,
            sockets: Reading::unread(because),
            settings: Reading::unread(because),
            network: Reading::unread(because),
            containers: Reading::unread(because),
        }
    }
}
