//! Where XDP and tc programs stand in a namespace, by their numbers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached},
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::Socket;

use crate::{
    kernel::rtnetlink::{dump, open},
    model::ProgramType,
};

/// A program's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stands {
    pub(super) program_type: ProgramType,
    pub(super) devices: BTreeSet<String>,
}

/// Programs by number.
pub(super) type Placed = BTreeMap<u32, Stands>;

/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` (include/uapi/linux/pkt_sched.h).
const PARENTS: [TcHandle; 2] = [
    TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS },
    TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS },
];

/// Adds what stands on the devices of the calling thread's namespace.
///
/// # Errors
/// When its devices cannot be listed.
pub(super) fn read() -> Result<Placed> {
    let socket = open()?;
    let mut placed = Placed::new();
    let mut devices = Vec::new();
    dump(&socket, RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        let RouteNetlinkMessage::NewLink(link) = message else { return };
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let Some(name) = name else { return };
        for attribute in &link.attributes {
            if let LinkAttribute::Xdp(said) = attribute {
                xdp(said).for_each(|id| add(&mut placed, id, ProgramType::Xdp, &name));
            }
        }
        devices.push((link.header.index, name));
    })?;
    for (index, name) in devices {
        for id in tcx(&name).into_iter().chain(filters(&socket, index)) {
            add(&mut placed, id, ProgramType::Tc, &name);
        }
    }
    Ok(placed)
}

fn add(placed: &mut Placed, id: u32, program_type: ProgramType, device: &str) {
    let none = || Stands { program_type, devices: BTreeSet::new() };
    placed.entry(id).or_insert_with(none).devices.insert(device.to_owned());
}

/// Numbers of the XDP programs that run on a CPU.
fn xdp(said: &[LinkXdp]) -> impl Iterator<Item = u32> {
    let in_hardware = said.iter().any(|one| matches!(one, LinkXdp::Attached(XdpAttached::Hardware)));
    said.iter().filter_map(move |one| match one {
        LinkXdp::ProgId(id) if !in_hardware => Some(*id),
        LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
        _ => None,
    })
}

/// Numbers of the tcx programs of a device; none before 6.6.
fn tcx(device: &str) -> Vec<u32> {
    let at =
        |side| SchedClassifier::query_tcx(device, side).map(|(_, programs)| programs).unwrap_or_default();
    [TcAttachType::Ingress, TcAttachType::Egress]
        .map(at)
        .iter()
        .flatten()
        .map(|program| program.id())
        .collect()
}

/// Numbers of the programs that are filters of a device and decide themselves. (Of others the number that they return
/// is a class.)
fn filters(socket: &Socket, device: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for parent in PARENTS {
        let mut request = TcMessage::default();
        request.header.index = device.cast_signed();
        request.header.parent = parent;
        // Without clsact the kernel refuses, or gives nothing.
        let _ = dump(socket, RouteNetlinkMessage::GetTrafficFilter(request), |message| {
            if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
                found.extend(decides(&message));
            }
        });
    }
    found
}

fn decides(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let (mut id, mut decides) = (None, false);
    for option in options.flatten() {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => id = Some(*number),
            TcOption::Bpf(TcFilterBpfOption::Flags(flags)) => {
                decides |= flags.contains(TcBpfFlags::DirectAction);
            }
            _ => {}
        }
    }
    id.filter(|_| decides)
}
