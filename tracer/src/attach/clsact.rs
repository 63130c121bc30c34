//! Our tc programs as filters of a clsact qdisc, for kernels without tcx. This changes the machine: the qdisc is added
//! where there is none, and unlike links, filters outlive their process. So each is called after its trace; a socket of
//! that name in the same namespace says that the trace lives, and what no socket speaks for is swept by the next one.

use std::{
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram},
    },
};

use anyhow::{Context, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::devices::Placed;
use crate::kernel::monotonic;

/// How every filter's name begins.
const NAME: &str = "pathtrace-";
/// How it ends where the qdisc came with the filter.
const WITH_QDISC: &str = "-qdisc";
/// Before all others, for packets of every protocol (`ETH_P_ALL`): `tcm_info` (net/sched/cls_api.c).
const FIRST_OF_ALL: u32 = 1 << 16 | 0x0003_u16.to_be() as u32;
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS };
const PARENTS: [TcHandle; 2] = [INGRESS, EGRESS];

/// Filters of this trace in one namespace.
pub(super) struct Clsact {
    netlink: Socket,
    /// Handle of its filters.
    handle: TcHandle,
    name: String,
    /// Says that this trace lives.
    _alive: UnixDatagram,
}

/// A filter of a trace: where it is and what it is called.
struct Filter {
    message: TcMessage,
    name: String,
}

impl Clsact {
    /// Opens what it takes in the namespace of the calling thread; changes nothing.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn open() -> Result<Self> {
        let mut netlink = Socket::new(NETLINK_ROUTE).context("open an rtnetlink socket")?;
        netlink.bind_auto().context("bind the rtnetlink socket")?;
        netlink.connect(&SocketAddr::new(0, 0)).context("connect the rtnetlink socket")?;
        let (process, time) = (std::process::id(), monotonic());
        let name = format!("{NAME}{process}-{time}");
        let alive = UnixDatagram::bind_addr(&UnixAddress::from_abstract_name(&name)?)
            .context("a socket that says that we live")?;
        Ok(Self { netlink, handle: TcHandle::from(process), name, _alive: alive })
    }

    /// What this trace's filters are called, up to an ending.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Puts the programs at both ends of a device, with a qdisc where there is none.
    pub(super) fn place(&self, device: u32, programs: &[OwnedFd; 2]) -> io::Result<Placed> {
        let added = match self
            .ask(RouteNetlinkMessage::NewQueueDiscipline(qdisc(device)), NLM_F_CREATE | NLM_F_EXCL)
        {
            Ok(()) => true,
            // Where another trace brought it, whoever ends last takes it away.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.filters(device)?.iter().any(|filter| filter.name.ends_with(WITH_QDISC))
            }
            Err(error) => return Err(error),
        };
        let placed = Placed::Clsact { added };
        let name = if added { format!("{}{WITH_QDISC}", self.name) } else { self.name.clone() };
        for (parent, program) in PARENTS.into_iter().zip(programs) {
            let filter = self.filter(device, parent, program, &name);
            if let Err(error) =
                self.ask(RouteNetlinkMessage::NewTrafficFilter(filter), NLM_F_CREATE | NLM_F_EXCL)
            {
                self.remove(device, added);
                return Err(error);
            }
        }
        Ok(placed)
    }

    /// Takes this trace's filters off a device, and the qdisc if it was `added` with them and nobody uses it. A device
    /// that is gone took them along.
    pub(super) fn remove(&self, device: u32, added: bool) {
        let Ok(filters) = self.filters(device) else { return };
        let ours = filters.into_iter().filter(|filter| owner(&filter.name) == Some(self.name.as_str()));
        let removed = ours.map(|filter| self.delete(filter.message)).filter(Result::is_ok).count();
        // An index may be another device's by now.
        if added && removed > 0 {
            self.remove_unused_qdisc(device);
        }
    }

    /// Takes filters off a device whose trace has ended without doing so; gives their names.
    pub(super) fn sweep(&self, device: u32) -> io::Result<Vec<String>> {
        let left: Vec<Filter> = self
            .filters(device)?
            .into_iter()
            .filter(|filter| owner(&filter.name).is_some_and(is_dead))
            .collect();
        let mut swept = Vec::new();
        for Filter { message, name } in left {
            self.delete(message)?;
            swept.push(name);
        }
        if swept.iter().any(|name| name.ends_with(WITH_QDISC)) {
            self.remove_unused_qdisc(device);
        }
        swept.dedup();
        Ok(swept)
    }

    fn remove_unused_qdisc(&self, device: u32) {
        let used =
            PARENTS.into_iter().any(|parent| self.dump(device, parent).map_or(true, |all| !all.is_empty()));
        if !used {
            // Whoever removed it before us wanted the same.
            let _ = self.ask(RouteNetlinkMessage::DelQueueDiscipline(qdisc(device)), 0);
        }
    }

    fn delete(&self, filter: TcMessage) -> io::Result<()> {
        let mut message = TcMessage::default();
        message.header = filter.header;
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        self.ask(RouteNetlinkMessage::DelTrafficFilter(message), 0)
    }

    fn filter(&self, device: u32, parent: TcHandle, program: &OwnedFd, name: &str) -> TcMessage {
        let mut message = at(device, parent);
        message.header.handle = self.handle;
        message.header.info = FIRST_OF_ALL;
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
        ];
        message
    }

    /// Filters of traces, at both ends of a device.
    fn filters(&self, device: u32) -> io::Result<Vec<Filter>> {
        let mut found = Vec::new();
        for parent in PARENTS {
            // Without a clsact qdisc the kernel gives nothing.
            found.extend(self.dump(device, parent)?.into_iter().filter_map(Filter::of_a_trace));
        }
        Ok(found)
    }

    /// Every filter at one end of a device, heads of lists included.
    fn dump(&self, device: u32, parent: TcHandle) -> io::Result<Vec<TcMessage>> {
        let mut found = Vec::new();
        self.exchange(RouteNetlinkMessage::GetTrafficFilter(at(device, parent)), NLM_F_DUMP, |message| {
            found.extend(Some(message));
        })?;
        Ok(found)
    }

    fn ask(&self, request: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(request, flags | NLM_F_ACK, |_| {})
    }

    /// Sends a request and reads what comes back, to its end.
    fn exchange(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(TcMessage),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.netlink.send(&bytes, 0)?;
        loop {
            let (bytes, _) = self.netlink.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = message.header.length as usize;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                    }
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                        take(filter);
                    }
                    _ => {}
                }
                // Messages are aligned to 4 bytes.
                rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
            }
        }
    }
}

impl Filter {
    /// `None` for a filter of somebody else, and for the head of a list.
    fn of_a_trace(message: TcMessage) -> Option<Self> {
        if message.header.handle == TcHandle::UNSPEC {
            return None;
        }
        let options = message.attributes.iter().filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
        let name = options.flatten().find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
            _ => None,
        })?;
        owner(&name).is_some().then_some(Self { message, name })
    }
}

/// The name of the trace whose filter is called so; `None` for somebody else's.
fn owner(filter: &str) -> Option<&str> {
    let name = filter.strip_suffix(WITH_QDISC).unwrap_or(filter);
    let mut numbers = name.strip_prefix(NAME)?.split('-');
    let is_number = |part: Option<&str>| part.is_some_and(|part| part.parse::<u64>().is_ok());
    (is_number(numbers.next()) && is_number(numbers.next()) && numbers.next().is_none()).then_some(name)
}

/// Whether nobody in the calling thread's namespace has the socket of a trace of this name.
fn is_dead(name: &str) -> bool {
    UnixAddress::from_abstract_name(name).and_then(|address| UnixDatagram::bind_addr(&address)).is_ok()
}

fn at(device: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = device.cast_signed();
    message.header.parent = parent;
    message
}

/// As `tc qdisc add dev DEVICE clsact` names it.
fn qdisc(device: u32) -> TcMessage {
    let mut message = at(device, TcHandle::CLSACT);
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_traces_are_known_by_their_names() {
        assert_eq!(owner("pathtrace-12-3400"), Some("pathtrace-12-3400"));
        assert_eq!(owner("pathtrace-12-3400-qdisc"), Some("pathtrace-12-3400"));
        for other in ["pathtrace", "pathtrace-12", "pathtrace-x-1", "pathtrace-1-2-3", "cil_from_netdev", ""]
        {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
