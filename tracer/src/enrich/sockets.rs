//! The TCP and UDP sockets of a namespace, and which of them takes a packet.

mod diag;
mod lookup;
mod table;
#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::Result;

pub use self::lookup::{Arrival, Lookup, Takers};
use super::{Owner, Owners};
use crate::model::{LocalSocket, Protocol};

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub address: IpAddr,
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// What a socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// TCP: new connections. UDP: datagrams from anybody.
    Listening,
    /// Packets of this one peer.
    Connected { peer: Endpoint },
}

/// What a socket does not take although it is for its address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Index of the device, or VRF, that it is bound to (SO_BINDTODEVICE).
    pub device: Option<u32>,
    /// IPV6_V6ONLY; `None` where the kernel does not say so of such a socket.
    pub v6_only: Option<bool>,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketEntry {
    pub protocol: Protocol,
    /// The wildcard address is kept as such (`0.0.0.0`, `::`).
    pub local: Endpoint,
    pub state: SocketState,
    /// sockfs inode; 0 for a connection that no process holds any more (TIME_WAIT).
    pub inode: u64,
    /// `None` where they are not known: the kernel tells them by sock_diag alone, which may have to be loaded first.
    pub limits: Option<Limits>,
    pub owner: Option<Arc<Owner>>,
}

impl SocketEntry {
    /// `PROCESS (pid N)`, or what is known instead.
    #[must_use]
    pub fn owner_text(&self) -> String {
        match &self.owner {
            Some(owner) => format!("{} (pid {})", owner.comm, owner.pid),
            None => "a process that could not be found".to_owned(),
        }
    }
}

/// All TCP and UDP sockets of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    entries: Vec<SocketEntry>,
}

impl Sockets {
    #[must_use]
    pub fn new(entries: Vec<SocketEntry>) -> Self {
        Self { entries }
    }

    /// Reads `thread-self/net/{tcp,tcp6,udp,udp6}` and looks up the owners, scanning processes anew only when a
    /// listener's owner is not known yet.
    ///
    /// # Errors
    /// When a table cannot be read or is not in the kernel's format. A machine without IPv6 has no second ones.
    pub fn read(proc: &Path, owners: &mut Owners) -> Result<Self> {
        let net = proc.join("thread-self/net");
        let mut entries = table::tcp(&net.join("tcp"))?;
        entries.extend(table::udp(&net.join("udp"))?);
        for (file, read) in
            [("tcp6", table::tcp as fn(&Path) -> Result<Vec<SocketEntry>>), ("udp6", table::udp)]
                .map(|(f, r)| (net.join(f), r))
        {
            if file.exists() {
                entries.extend(read(&file)?);
            }
        }
        let limits = diag::limits(proc);
        if entries.iter().any(|socket| socket.inode != 0 && owners.get(socket.inode).is_none()) {
            owners.refresh();
        }
        for socket in &mut entries {
            socket.owner = owners.get(socket.inode).cloned();
            socket.limits = limits.get(&socket.inode).copied();
        }
        Ok(Self { entries })
    }

    pub fn iter(&self) -> impl Iterator<Item = &SocketEntry> {
        self.entries.iter()
    }

    /// Everything that takes new connections or datagrams on a port, whatever its address.
    pub fn listeners(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = &SocketEntry> {
        self.entries.iter().filter(move |socket| {
            socket.protocol == protocol && socket.local.port == port && socket.state == SocketState::Listening
        })
    }

    /// Everything on a port that takes packets of one peer only.
    pub fn connected(&self, protocol: Protocol, port: u16) -> impl Iterator<Item = (&SocketEntry, Endpoint)> {
        self.entries.iter().filter_map(move |socket| match socket.state {
            SocketState::Connected { peer } if socket.protocol == protocol && socket.local.port == port => {
                Some((socket, peer))
            }
            _ => None,
        })
    }
}

fn shown(socket: &SocketEntry) -> LocalSocket {
    LocalSocket {
        local: socket.local.to_string(),
        process: socket.owner.as_ref().map(|owner| owner.comm.clone()),
        pid: socket.owner.as_ref().map(|owner| owner.pid),
    }
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address: address.ip(), port: address.port() }
}
