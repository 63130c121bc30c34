//! Packets made by hand, and sockets that send one packet and stay open.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;

/// One IP packet of any protocol with this payload; nothing is awaited.
///
/// # Errors
/// When the kernel refuses to send it, unless rules made it.
pub fn raw(netns: &Netns, to: IpAddr, protocol: u8, payload: &[u8]) -> Result<()> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let send = || -> io::Result<()> {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
        unless_rules_did(socket.send_to(payload, &SocketAddr::new(to, 0).into()).map(drop))
    };
    netns.run(send).with_context(|| format!("send a packet of protocol {protocol} to {to}"))
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP6: u8 = 58;
const ACK: u8 = 0x10;

/// A TCP segment with only ACK set that belongs to no connection.
///
/// # Errors
/// When the kernel refuses to send it.
pub fn stray_ack(netns: &Netns, from: IpAddr, to: SocketAddr) -> Result<()> {
    segment(netns, SocketAddr::new(from, 40_000), to, ACK, 1)
}

/// A TCP segment that belongs to no connection, with these flags and sequence number.
///
/// # Errors
/// When the kernel refuses to send it, unless rules made it.
pub fn segment(netns: &Netns, from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32) -> Result<()> {
    let mut segment = [0_u8; 20];
    segment[..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&1_u32.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    segment[14..16].copy_from_slice(&1024_u16.to_be_bytes());
    let checksum = tcp_checksum(from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    raw(netns, to.ip(), TCP, &segment)
}

/// One echo request with this number; nothing is awaited.
///
/// # Errors
/// As [`segment`].
pub fn echo_request(netns: &Netns, to: IpAddr, number: u16) -> Result<()> {
    let (protocol, kind) = if to.is_ipv4() { (ICMP, 8) } else { (ICMP6, 128) };
    let mut message = [kind, 0, 0, 0, 0, 1, 0, 0];
    message[6..].copy_from_slice(&number.to_be_bytes());
    // The kernel fills in that of ICMPv6.
    let checksum = if to.is_ipv4() { !folded(sum(&message)) } else { 0 };
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    raw(netns, to, protocol, &message)
}

/// A socket that has sent one packet: while it is kept, an answer finds it.
#[derive(Debug)]
pub struct Kept(#[expect(dead_code, reason = "kept for what it does when it is dropped")] Socket);

/// One datagram from a port of its own; nothing is awaited.
///
/// # Errors
/// As [`segment`].
pub fn lone_datagram(netns: &Netns, to: SocketAddr) -> Result<Kept> {
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    netns.run(|| {
        let socket = UdpSocket::bind(any)?;
        unless_rules_did(socket.send_to(b"x", to).map(drop))?;
        Ok(Kept(socket.into()))
    })
}

/// A TCP connection that begins; whether it is answered is not awaited.
///
/// # Errors
/// As [`segment`].
pub fn begin_connection(netns: &Netns, to: SocketAddr) -> Result<Kept> {
    netns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // It ends with one packet, and nothing is repeated.
        socket.set_linger(Some(Duration::ZERO))?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => unless_rules_did(other)?,
        }
        Ok(Kept(socket))
    })
}

/// A rule of OUTPUT that drops or rejects shows as an error of the sender.
fn unless_rules_did(sent: io::Result<()>) -> io::Result<()> {
    const BY_RULES: [ErrorKind; 5] = [
        ErrorKind::PermissionDenied,
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
    ];
    match sent {
        Err(error) if BY_RULES.contains(&error.kind()) => Ok(()),
        other => other,
    }
}

/// RFC 1071 over the pseudo header and the segment, whose own checksum field is 0.
fn tcp_checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let length = u16::try_from(segment.len()).unwrap_or(u16::MAX).to_be_bytes();
    let covered = [octets(from), octets(to), vec![0, TCP], length.to_vec(), segment.to_vec()].concat();
    !folded(sum(&covered))
}

/// Of 16-bit words in network byte order.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum()
}

fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::tcp_checksum;

    #[test]
    fn a_segment_with_its_checksum_filled_in_sums_to_zero() {
        let (from, to): (IpAddr, IpAddr) = ([10, 1, 0, 2].into(), [10, 1, 0, 1].into());
        let mut segment = [7_u8; 20];
        segment[16..18].fill(0);
        let checksum = tcp_checksum(from, to, &segment);
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(tcp_checksum(from, to, &segment), 0);
    }
}
