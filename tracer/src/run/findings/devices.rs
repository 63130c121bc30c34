//! What is known of the devices that a journey passed.

use std::sync::Arc;

use crate::{
    enrich::{Link, Surroundings},
    model::{DeviceDirection, DeviceStage, Journey, OutcomeKind, StageKind},
};

/// Kinds of devices that send what they are given inside other packets (`IFLA_INFO_KIND`; the names of `rtnl_link_ops` in
/// net/ipv4, net/ipv6, net/xfrm and drivers/net, 6.12).
const TUNNELS: [&str; 16] = [
    "amt",
    "bareudp",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "sit",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
];

/// Names who else judges packets on the devices, and says what becomes of a packet in the last.
pub(super) fn tell(journey: &mut Journey, surroundings: &[Arc<Surroundings>]) {
    for stage in &mut journey.stages {
        let StageKind::Device(device) = &mut stage.kind else { continue };
        let Some(link) = link(surroundings, stage.netns, device) else { continue };
        device.programs = match device.direction {
            DeviceDirection::In => link.programs.input.clone(),
            DeviceDirection::Out => link.programs.output.clone(),
        };
    }
    if journey.outcome.result == OutcomeKind::Forwarded
        && let Some(last) = journey.stages.last()
        && let StageKind::Device(device) = &last.kind
        && device.direction == DeviceDirection::Out
        && let Some(kind) = link(surroundings, last.netns, device).and_then(|link| link.kind.as_deref())
        && let Some(note) = beyond(&device.device, kind)
        // A journey that was held is looked at again.
        && !journey.notes.contains(&note)
    {
        journey.notes.push(note);
    }
}

fn link<'a>(surroundings: &'a [Arc<Surroundings>], netns: u32, device: &DeviceStage) -> Option<&'a Link> {
    let around = surroundings.iter().find(|around| around.netns == netns)?;
    around.network.known()?.links.iter().find(|link| link.index == device.ifindex)
}

/// What becomes of a packet in a device of a kind, where that is no wire.
fn beyond(name: &str, kind: &str) -> Option<String> {
    match kind {
        "dummy" => Some(format!("{name} is a dummy device: it throws away what it is given")),
        "tun" => Some(format!("{name} is a tun device: a program takes it from there")),
        _ if TUNNELS.contains(&kind) => Some(format!(
            "{name} is a tunnel ({kind}): it goes on inside another packet, with other addresses"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_wire_says_more() {
        assert_eq!(beyond("eth0", "veth"), None);
        assert!(beyond("d0", "dummy").is_some_and(|note| note.contains("throws away")));
        assert!(beyond("wg0", "wireguard").is_some_and(|note| note.contains("inside another packet")));
    }
}
