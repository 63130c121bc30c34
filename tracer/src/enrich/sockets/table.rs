//! The kernel's lists of sockets in `/proc/net`.

use std::{fs::File, io::BufReader, path::Path};

use anyhow::{Context, Result};
use procfs_core::{
    ExplicitSystemInfo, FromBufReadSI,
    net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState},
};

use super::{SocketEntry, SocketState, endpoint};
use crate::model::Protocol;

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

pub(super) fn tcp(path: &Path) -> Result<Vec<SocketEntry>> {
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
            limits: None,
            owner: None,
        })
        .collect())
}

pub(super) fn udp(path: &Path) -> Result<Vec<SocketEntry>> {
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
            limits: None,
            owner: None,
        })
        .collect())
}
