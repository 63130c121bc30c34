//! A BPF program as a tc filter (rtnetlink), since `tc` takes programs from files only.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Priority 5, every protocol.
const INFO: u32 = 5 << 16 | 0x0003_u16.to_be() as u32;

/// Adds a filter that decides itself to a device of the calling thread's namespace.
///
/// # Errors
/// What the kernel refused: without a clsact qdisc, the filter.
pub(super) fn add(device: u32, ingress: bool, program: &OwnedFd, name: &str) -> Result<()> {
    let minor = if ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
    let mut filter = TcMessage::with_index(device.cast_signed());
    filter.header.parent = TcHandle { major: u16::MAX, minor };
    filter.header.info = INFO;
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
        TcFilterBpfOption::ProgName(name.to_owned()),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    filter.attributes = vec![
        TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
    ];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    let request = NetlinkPayload::from(RouteNetlinkMessage::NewTrafficFilter(filter));
    let mut message = NetlinkMessage::new(header, request);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0).context("send a filter")?;
    let (answer, _) = socket.recv_from_full().context("read rtnetlink's answer")?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => bail!("filter {name} was refused: {error}"),
        other => bail!("rtnetlink answered {other:?}"),
    }
}
