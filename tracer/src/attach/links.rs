//! News about the devices of a namespace (rtnetlink's group of links).

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// `RTMGRP_LINK` (include/uapi/linux/rtnetlink.h).
const LINKS: u32 = 1;

/// A socket that hears of devices that come and go.
pub(super) struct LinkSocket(Socket);

impl LinkSocket {
    /// Listens in the namespace of the calling thread.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("open an rtnetlink socket")?;
        socket.bind(&SocketAddr::new(0, LINKS)).context("listen to rtnetlink")?;
        socket.set_non_blocking(true).context("listen to rtnetlink")?;
        Ok(Self(socket))
    }

    /// Reads what has come, and gives the indices of devices that are gone. (Where news were lost nothing is said of
    /// them: whoever is told that something changed lists devices anew.)
    pub(super) fn gone(&self) -> BTreeSet<u32> {
        let mut gone = BTreeSet::new();
        while let Ok((bytes, _)) = self.0.recv_from_full() {
            let mut rest = bytes.as_slice();
            while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
                let length = message.header.length as usize;
                if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) = message.payload {
                    gone.insert(link.header.index);
                }
                // Messages are aligned to 4 bytes.
                rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
            }
        }
        gone
    }
}

impl AsFd for LinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
