//! Who else judges packets on devices: XDP programs, tcx programs and tc filters, as the kernel names them.

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use netlink_packet_route::{
    link::{LinkXdp, XdpAttached},
    tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::network::{JudgingPrograms, Link};

/// Our own: they never judge ([`crate::attach`]).
const OWN: [&str; 2] = ["tcx_in", "tcx_out"];
const OWN_FILTER: &str = " pathtrace-";
const OWN_XDP: &str = "XDP xdp_in (";

/// What a link message says of XDP programs of others.
pub(super) fn foreign_xdp(said: &[LinkXdp]) -> Option<String> {
    xdp(said).filter(|program| !program.starts_with(OWN_XDP))
}

/// What a link message says of XDP: mode and program number.
pub(super) fn xdp(said: &[LinkXdp]) -> Option<String> {
    let mode = said.iter().find_map(|one| match one {
        LinkXdp::Attached(mode) => Some(*mode),
        _ => None,
    })?;
    let mode = match mode {
        XdpAttached::None => return None,
        XdpAttached::Driver => "native",
        XdpAttached::SocketBuffer => "generic",
        XdpAttached::Hardware => "in hardware",
        _ => "several modes",
    };
    let number = said.iter().find_map(|one| match one {
        LinkXdp::ProgId(number) => Some(*number),
        _ => None,
    });
    let Some(number) = number else { return Some(format!("XDP ({mode})")) };
    let name = loaded_programs().flatten().find(|program| program.id() == number).as_ref().and_then(name);
    Some(format!("XDP {} (program {number}, {mode})", name.unwrap_or_default()).replace("  ", " "))
}

fn name(program: &ProgramInfo) -> Option<String> {
    program.name_as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The tcx programs of a device of the calling thread's namespace, in their order; none before 6.6.
pub(super) fn tcx(link: &str) -> JudgingPrograms {
    let at = |side| {
        let programs =
            SchedClassifier::query_tcx(link, side).map(|(_, programs)| programs).unwrap_or_default();
        let foreign = programs.iter().filter(|program| !OWN.map(Some).contains(&program.name_as_str()));
        foreign
            .map(|one| {
                format!("tcx {} (program {})", name(one).unwrap_or_default(), one.id()).replace("  ", " ")
            })
            .collect()
    };
    JudgingPrograms { input: at(TcAttachType::Ingress), output: at(TcAttachType::Egress) }
}

/// The parents of filters at ingress and egress: `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of `TC_H_CLSACT`
/// (include/uapi/linux/pkt_sched.h).
pub(super) const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
pub(super) const EGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff3 };

/// Asks for the filters of a device at one of its ends.
pub(super) fn filters_of(link: &Link, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = link.index.cast_signed();
    message.header.parent = parent;
    message
}

/// A filter's kind, and the program of one that is BPF; `None` for the head of a list, which judges nothing.
pub(super) fn filter(message: &TcMessage) -> Option<String> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })?;
    if message.header.handle == TcHandle::default() {
        return None;
    }
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let program = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(format!(" {name}")),
        _ => None,
    });
    if program.as_ref().is_some_and(|name| name.starts_with(OWN_FILTER)) {
        return None;
    }
    Some(format!("tc filter {kind}{}", program.unwrap_or_default()))
}
