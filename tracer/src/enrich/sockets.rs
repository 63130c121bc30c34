//! The TCP and UDP sockets of a namespace, and which of them takes a packet.

use std::{
    fs::File,
    io::BufReader,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use procfs_core::{
    ExplicitSystemInfo, FromBufReadSI,
    net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState},
};

use crate::model::{LocalSocket, Protocol};

use super::{Owner, Owners};

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

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketEntry {
    pub protocol: Protocol,
    /// The wildcard address is kept as such (`0.0.0.0`, `::`).
    pub local: Endpoint,
    pub state: SocketState,
    /// sockfs inode; 0 for a connection that no process holds any more (TIME_WAIT).
    pub inode: u64,
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

    /// Whether the address it is bound to admits packets for `address`. `::` takes IPv4 too unless the socket
    /// is IPv6-only, which `/proc/net` does not tell.
    #[must_use]
    fn admits(&self, address: IpAddr) -> bool {
        match (self.local.address, address) {
            (IpAddr::V6(local), IpAddr::V4(wanted)) => {
                local.is_unspecified() || local.to_ipv4_mapped() == Some(wanted)
            }
            (local, wanted) => {
                local == wanted || (local.is_unspecified() && local.is_ipv4() == wanted.is_ipv4())
            }
        }
    }

    /// Higher is nearer to the packet, as the kernel's lookup scores it (`compute_score`, net/ipv4).
    fn closeness(&self, address: IpAddr) -> u8 {
        match (self.local.address.is_unspecified(), self.local.address.is_ipv4() == address.is_ipv4()) {
            (false, _) => 2,
            (true, true) => 1,
            (true, false) => 0,
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
        let mut entries = tcp(&net.join("tcp"))?;
        entries.extend(udp(&net.join("udp"))?);
        for (file, read) in [("tcp6", tcp as fn(&Path) -> Result<Vec<SocketEntry>>), ("udp6", udp)]
            .map(|(f, r)| (net.join(f), r))
        {
            if file.exists() {
                entries.extend(read(&file)?);
            }
        }
        if entries.iter().any(|socket| socket.inode != 0 && owners.get(socket.inode).is_none()) {
            owners.refresh();
        }
        for socket in &mut entries {
            socket.owner = owners.get(socket.inode).cloned();
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

    /// The socket that takes a packet from `peer` for `local`: the connected one, else the nearest listener.
    #[must_use]
    pub fn entry(&self, protocol: Protocol, local: Endpoint, peer: Endpoint) -> Option<&SocketEntry> {
        let connected = self.entries.iter().find(|socket| {
            socket.protocol == protocol
                && socket.local.port == local.port
                && matches!(socket.state, SocketState::Connected { peer: held } if same(held, peer))
                && (same(socket.local, local) || socket.admits(local.address))
        });
        connected.or_else(|| self.listener(protocol, local))
    }

    /// [`Self::entry`] in the form that journeys show.
    #[must_use]
    pub fn find(&self, protocol: Protocol, local: Endpoint, peer: Endpoint) -> Option<LocalSocket> {
        self.entry(protocol, local, peer).map(shown)
    }

    /// The nearest listener for a local end.
    #[must_use]
    pub fn find_listener(&self, protocol: Protocol, local: Endpoint) -> Option<LocalSocket> {
        self.listener(protocol, local).map(shown)
    }

    fn listener(&self, protocol: Protocol, local: Endpoint) -> Option<&SocketEntry> {
        self.listeners(protocol, local.port)
            .filter(|socket| socket.admits(local.address))
            .max_by_key(|socket| socket.closeness(local.address))
    }
}

fn shown(socket: &SocketEntry) -> LocalSocket {
    LocalSocket {
        local: socket.local.to_string(),
        process: socket.owner.as_ref().map(|owner| owner.comm.clone()),
        pid: socket.owner.as_ref().map(|owner| owner.pid),
    }
}

/// Equal, an IPv4-mapped IPv6 address counting as the IPv4 address.
fn same(a: Endpoint, b: Endpoint) -> bool {
    a.port == b.port && a.address.to_canonical() == b.address.to_canonical()
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address: address.ip(), port: address.port() }
}

fn table<T: FromBufReadSI>(path: &Path) -> Result<T> {
    // Only the byte order matters to these tables.
    let system = ExplicitSystemInfo {
        boot_time_secs: 0,
        ticks_per_second: 0,
        page_size: 0,
        is_little_endian: cfg!(target_endian = "little"),
    };
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    T::from_buf_read(BufReader::new(file), &system).with_context(|| format!("read {}", path.display()))
}

fn tcp(path: &Path) -> Result<Vec<SocketEntry>> {
    Ok(table::<TcpNetEntries>(path)?
        .0
        .into_iter()
        .map(|entry| SocketEntry {
            protocol: Protocol::TCP,
            local: endpoint(entry.local_address),
            state: match entry.state {
                TcpState::Listen => SocketState::Listening,
                _ => SocketState::Connected { peer: endpoint(entry.remote_address) },
            },
            inode: entry.inode,
            owner: None,
        })
        .collect())
}

fn udp(path: &Path) -> Result<Vec<SocketEntry>> {
    Ok(table::<UdpNetEntries>(path)?
        .0
        .into_iter()
        .map(|entry| SocketEntry {
            protocol: Protocol::UDP,
            local: endpoint(entry.local_address),
            state: match entry.state {
                UdpState::Close => SocketState::Listening,
                UdpState::Established => SocketState::Connected { peer: endpoint(entry.remote_address) },
            },
            inode: entry.inode,
            owner: None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn socket(local: &str, state: SocketState, inode: u64) -> SocketEntry {
        SocketEntry { protocol: Protocol::TCP, local: end(local), state, inode, owner: None }
    }

    fn end(text: &str) -> Endpoint {
        endpoint(text.parse().unwrap())
    }

    #[test]
    fn the_socket_nearest_to_the_packet_takes_it() {
        let connected = |peer: &str| SocketState::Connected { peer: end(peer) };
        let sockets = Sockets::new(vec![
            socket("[::]:80", SocketState::Listening, 1),
            socket("0.0.0.0:80", SocketState::Listening, 2),
            socket("10.0.0.1:80", SocketState::Listening, 3),
            socket("10.0.0.1:80", connected("10.0.0.9:4000"), 4),
            socket("[::ffff:10.0.0.1]:80", connected("[::ffff:10.0.0.9]:4001"), 5),
            socket("[::]:443", SocketState::Listening, 6),
            socket("127.0.0.1:22", SocketState::Listening, 7),
        ]);
        let taker = |local: &str, peer: &str| {
            sockets.entry(Protocol::TCP, end(local), end(peer)).map(|socket| socket.inode)
        };
        assert_eq!(taker("10.0.0.1:80", "10.0.0.9:4000"), Some(4));
        assert_eq!(taker("10.0.0.1:80", "10.0.0.9:4001"), Some(5));
        assert_eq!(taker("10.0.0.1:80", "10.0.0.9:4002"), Some(3));
        assert_eq!(taker("10.0.0.2:80", "10.0.0.9:4002"), Some(2));
        assert_eq!(taker("[fd00::1]:80", "[fd00::9]:4002"), Some(1));
        assert_eq!(taker("10.0.0.1:443", "10.0.0.9:4002"), Some(6));
        assert_eq!(taker("10.0.0.1:22", "10.0.0.9:4002"), None);
        assert_eq!(sockets.entry(Protocol::UDP, end("10.0.0.1:80"), end("10.0.0.9:1")), None);
    }

    #[test]
    fn the_kernels_tables_are_read_and_a_missing_one_is_an_error() {
        let proc = tempfile::tempdir().unwrap();
        let mut owners = Owners::new(proc.path());
        assert!(Sockets::read(proc.path(), &mut owners).is_err());
        let net = proc.path().join("thread-self/net");
        fs::create_dir_all(&net).unwrap();
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let tail = "00000000:00000000 00:00000000 00000000     0        0";
        fs::write(
            net.join("tcp"),
            format!("{head}   0: 0100007F:1F90 00000000:0000 0A {tail} 77 1 0 100 0\n"),
        )
        .unwrap();
        fs::write(net.join("udp"), format!("{head}   0: 00000000:0035 00000000:0000 07 {tail} 78 2 0 0\n"))
            .unwrap();
        let any = "00000000000000000000000000000000";
        fs::write(net.join("tcp6"), format!("{head}   0: {any}:0050 {any}:0000 0A {tail} 79 1 0 100 0\n"))
            .unwrap();
        let sockets = Sockets::read(proc.path(), &mut owners).unwrap();
        let found: Vec<_> = sockets.iter().map(|socket| (socket.local.to_string(), socket.inode)).collect();
        assert_eq!(found, [("127.0.0.1:8080".into(), 77), ("0.0.0.0:53".into(), 78), ("[::]:80".into(), 79)]);
        assert!(
            sockets.iter().all(|socket| socket.state == SocketState::Listening && socket.owner.is_none())
        );
        fs::write(net.join("tcp"), "header\nnonsense\n").unwrap();
        assert!(format!("{:#}", Sockets::read(proc.path(), &mut owners).unwrap_err()).contains("net/tcp"));
    }
}
