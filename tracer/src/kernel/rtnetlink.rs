//! Questions to rtnetlink, the network configuration of the calling thread's namespace, and to its like.

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A socket to ask with, in the namespace of the calling thread.
///
/// # Errors
/// What the kernel refused.
pub fn open() -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE).context("open an rtnetlink socket")?;
    socket.bind_auto().context("bind the rtnetlink socket")?;
    socket.connect(&SocketAddr::new(0, 0)).context("connect the rtnetlink socket")?;
    Ok(socket)
}

/// Asks for a list, and hands over what is in it.
///
/// # Errors
/// When the kernel refuses, or its answer cannot be parsed.
pub fn dump<M: NetlinkSerializable + NetlinkDeserializable>(
    socket: &Socket,
    request: M,
    mut take: impl FnMut(M),
) -> Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).context("ask by netlink")?;
    loop {
        let (bytes, _) = socket.recv_from_full().context("read netlink's answer")?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest)
                .map_err(|error| anyhow::anyhow!("netlink's answer is malformed: {error}"))?;
            let length = message.header.length as usize;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => bail!("the kernel refused: {error}"),
                NetlinkPayload::InnerMessage(inner) => take(inner),
                _ => {}
            }
            // Messages are aligned to 4 bytes.
            rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
        }
    }
}
