//! As much of nfnetlink (include/uapi/linux/netfilter/nfnetlink.h) as tracing needs: a socket, messages with
//! attributes to send, and received messages taken apart.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use bytes::{Buf, BufMut};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
        socket, sockopt,
    },
};

/// `struct nlmsghdr`, `struct nfgenmsg`, `struct nlattr`.
const HEADER: usize = 16;
const NFGEN: usize = 4;
const ATTRIBUTE: usize = 4;
/// Kernel messages are smaller: a page, or what the sender asked for.
const DATAGRAM: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 8 << 20;

/// A netlink socket of the namespace that the calling thread was in when it was opened.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    /// Where a datagram is received.
    room: Vec<u8>,
}

impl Socket {
    /// Opens a socket and joins `groups` (a mask of `1 << (NFNLGRP_* - 1)`).
    pub(super) fn open(groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        Ok(Self { fd, sequence: 0, room: vec![0; DATAGRAM] })
    }

    /// Sends messages as one datagram and waits until the kernel has acknowledged each that asked for it.
    pub(super) fn transact(&mut self, messages: Vec<Message>) -> io::Result<()> {
        let mut datagram = Vec::new();
        let mut waiting = 0;
        for mut message in messages {
            self.sequence += 1;
            waiting += usize::from(message.wants_answer());
            datagram.extend(message.finish(self.sequence));
        }
        send(self.fd.as_raw_fd(), &datagram, MsgFlags::empty())?;
        while waiting > 0 {
            poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
            while let Some(datagram) = self.receive()? {
                for code in received(datagram).filter_map(|answer| answer.error()) {
                    if code != 0 {
                        return Err(io::Error::from_raw_os_error(-code));
                    }
                    waiting = waiting.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// One datagram; `None` when none is waiting. `ENOBUFS`: some were lost.
    pub(super) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        match recv(self.fd.as_raw_fd(), &mut self.room, MsgFlags::empty()) {
            Ok(length) => Ok(Some(&self.room[..length])),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A request being put together.
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A request for message `kind` of `subsystem` (`NFNL_SUBSYS_*`), with further `flags` (`NLM_F_*`).
    pub(super) fn new(subsystem: u8, kind: u8, flags: i32, family: u8, resource: u16) -> Self {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut bytes = Vec::with_capacity(HEADER + NFGEN);
        // The length, which is known at the end.
        bytes.put_u32_ne(0);
        bytes.put_slice(&[kind, subsystem]);
        bytes.put_u16_ne(flags);
        // The sequence number, and the sender, which the kernel fills in.
        bytes.put_bytes(0, 8);
        bytes.put_slice(&[family, libc::NFNETLINK_V0 as u8]);
        bytes.put_u16(resource);
        Self(bytes)
    }

    fn wants_answer(&self) -> bool {
        (&self.0[6..]).get_u16_ne() & libc::NLM_F_ACK as u16 != 0
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.0
    }
}

/// Attributes inside an attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

/// What holds attributes: a message, or an attribute.
pub(super) trait Fields: Sized {
    /// The bytes, to which attributes are added.
    fn room(&mut self) -> &mut Vec<u8>;

    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(self.room(), kind, value);
        self
    }

    /// A number, in network byte order as nfnetlink has them.
    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A C string.
    fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn nested(self, kind: u16, attributes: &Attributes) -> Self {
        self.bytes(kind | libc::NLA_F_NESTED as u16, &attributes.0)
    }
}

impl Fields for Message {
    fn room(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl Fields for Attributes {
    fn room(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.put_u16_ne((ATTRIBUTE + value.len()) as u16);
    message.put_u16_ne(kind);
    message.put_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received<'a> {
    pub(super) subsystem: u8,
    pub(super) kind: u8,
    body: &'a [u8],
}

impl<'a> Received<'a> {
    /// The code of an error or acknowledgement: 0 or a negative errno.
    fn error(&self) -> Option<i32> {
        let is_error = self.subsystem == 0 && i32::from(self.kind) == libc::NLMSG_ERROR;
        let mut body = self.body;
        if is_error { body.try_get_i32_ne().ok() } else { None }
    }

    /// `NFPROTO_*` of the message.
    pub(super) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }

    pub(super) fn attributes(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.body.get(NFGEN..).unwrap_or_default())
    }
}

/// Messages of a datagram; what is cut short ends the list.
pub(super) fn received(datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    pieces(datagram, HEADER, |mut head| head.get_u32_ne() as usize).map(|message| Received {
        kind: message[4],
        subsystem: message[5],
        body: &message[HEADER..],
    })
}

/// Attributes as (type, value).
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    pieces(bytes, ATTRIBUTE, |mut head| usize::from(head.get_u16_ne())).map(|attribute| {
        let (head, value) = attribute.split_at(ATTRIBUTE);
        let kind = (&head[2..]).get_u16_ne() & libc::NLA_TYPE_MASK as u16;
        (kind, value)
    })
}

/// Pieces that begin with their length and are padded to four bytes.
fn pieces(bytes: &[u8], head: usize, length: impl Fn(&[u8]) -> usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = length(rest.get(..head)?);
        let piece = rest.get(..length).filter(|_| length >= head)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(piece)
    })
}

/// An attribute's number, in network byte order.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

/// An attribute's text, up to its end mark.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back_as_written() {
        let inner = Attributes::default().text(1, "x").number(2, 7);
        let mut message = Message::new(10, 3, libc::NLM_F_ACK, 1, 0).text(1, "table").nested(4, &inner);
        assert!(message.wants_answer());
        let bytes = message.finish(9).to_vec();
        let all: Vec<_> = received(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].subsystem, all[0].kind, all[0].family()), (10, 3, Some(1)));
        let outer: Vec<_> = all[0].attributes().collect();
        assert_eq!((outer[0].0, text(outer[0].1)), (1, "table".into()));
        let inner: Vec<_> = attributes(outer[1].1).collect();
        assert_eq!((outer[1].0, text(inner[0].1), number(inner[1].1)), (4, "x".into(), Some(7)));
    }

    #[test]
    fn damaged_datagrams_end_early_and_never_panic() {
        let mut bytes = Message::new(10, 3, 0, 1, 0).text(1, "table").number(2, 5).finish(1).to_vec();
        for length in 0..bytes.len() {
            received(&bytes[..length]).for_each(|m| m.attributes().for_each(drop));
        }
        for at in 0..bytes.len() {
            bytes[at] ^= 0xff;
            received(&bytes).for_each(|m| m.attributes().for_each(drop));
            bytes[at] ^= 0xff;
        }
    }
}
