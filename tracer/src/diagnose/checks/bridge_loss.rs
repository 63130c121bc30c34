//! A bridge threw away a frame that it was given.

use crate::{
    enrich::Link,
    model::{DeviceDirection, StageKind},
};

use super::{Answer, Case, Check, leg::Leg, words};

/// The bridge did not pass it on, neither to another port nor up to this host.
pub(super) struct BridgeDidNotForward;

/// Reasons that bridges give (from 6.14): what their ports may not do. Of the rest they say nothing.
const REASONS: [&str; 2] = ["BRIDGE_INGRESS_STP_STATE", "NO_TX_TARGET"];

/// Where a bridge frees a frame (net/bridge, 5.10 to 6.18), and what that can mean.
#[derive(Clone, Copy)]
enum Place {
    /// The VLAN filter, where frames come in.
    VlanIn,
    /// The VLAN filter, where they leave.
    VlanOut,
    /// On the way up to this host.
    Up,
    /// Where frames come in; the kernel said that spanning tree blocks there.
    Blocked,
    /// Where frames come in.
    Port,
    /// On the way to another port.
    Across,
    /// The same, of a packet for many.
    Group,
    /// Handed to the port that it was to leave by.
    Leaving,
}

/// The device that it came in by, and the bridge.
#[derive(Clone, Copy)]
struct Devices<'a> {
    port: Option<&'a str>,
    bridge: Option<&'a str>,
}

impl Place {
    fn of(case: &Case<'_>, leg: &Leg<'_>) -> Option<Self> {
        if case.reason_is(&REASONS[..1]) {
            return Some(Self::Blocked);
        }
        // Compilers add to names (`.isra.0`), and what is called last in a function may be told as its caller:
        // `br_handle_frame_finish` stands for `br_forward` and `br_flood`, too.
        let across = if leg.is_for_group() { Self::Group } else { Self::Across };
        Some(match case.journey.outcome.location.as_deref()?.split('.').next()? {
            "br_allowed_ingress" | "__allowed_ingress" => Self::VlanIn,
            "br_handle_vlan" => Self::VlanOut,
            "br_pass_frame_up" => Self::Up,
            "br_handle_frame" => Self::Port,
            "br_handle_frame_finish"
            | "br_forward"
            | "__br_forward"
            | "br_flood"
            | "br_multicast_flood"
            | "br_dev_xmit" => across,
            "br_dev_queue_push_xmit" => Self::Leaving,
            _ => return None,
        })
    }

    fn why(self, devices: Devices<'_>) -> String {
        let (port, bridge) = (devices.port.unwrap_or("the port"), devices.bridge.unwrap_or("the bridge"));
        match self {
            Self::VlanIn => {
                format!("{bridge} filters VLANs, and {port} takes no frame of that VLAN, or none without a tag")
            }
            Self::VlanOut => "it filters VLANs, and what the frame was to leave by is not in its VLAN".to_owned(),
            Self::Up => format!("it filters VLANs, and {bridge} itself, the port to this host, is not in that VLAN"),
            Self::Blocked => format!("{port} does not forward (spanning tree, or set so)"),
            Self::Port => format!(
                "most likely {port} does not forward (spanning tree, or set so), or the frame's Ethernet addresses are none \
                 that a bridge passes on"
            ),
            Self::Across if devices.port.is_none() => {
                "most likely the port that its Ethernet address leads to is not in its VLAN, or does not forward".to_owned()
            }
            Self::Across => format!(
                "most likely the port that its Ethernet address leads to is {port} itself, is isolated as {port} is, is not in \
                 its VLAN, or does not forward; or {port} is locked"
            ),
            Self::Group => "most likely nobody behind another port listens to that group, or no other port may have it".to_owned(),
            Self::Leaving => {
                "most likely it is larger than the port that it was to leave by takes, or that port is down".to_owned()
            }
        }
    }

    fn fix(self, devices: Devices<'_>) -> String {
        let port = words::quoted(devices.port.unwrap_or("PORT"));
        let bridge = words::quoted(devices.bridge.unwrap_or("BRIDGE"));
        match self {
            Self::VlanIn => format!(
                "bridge vlan show dev {port}  # then: bridge vlan add dev {port} vid VLAN (`pvid untagged` for frames without a tag)"
            ),
            Self::VlanOut => "bridge vlan show  # then: bridge vlan add dev PORT vid VLAN".to_owned(),
            Self::Up => {
                format!("bridge vlan show dev {bridge}  # then: bridge vlan add dev {bridge} vid VLAN self")
            }
            Self::Blocked | Self::Port => format!("bridge -d link show dev {port}  # its state"),
            Self::Across => format!(
                "bridge -d link  # state, isolated, locked; where the Ethernet address leads: bridge fdb show br {bridge}; VLANs: \
                 bridge vlan show"
            ),
            Self::Group => {
                "bridge mdb show; bridge -d link  # nothing, if nobody there should get it".to_owned()
            }
            Self::Leaving => format!("ip link show master {bridge}  # mtu, state"),
        }
    }
}

impl Check for BridgeDidNotForward {
    fn code(&self) -> &'static str {
        "bridge-did-not-forward"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let dropped = case.is_bad() && case.judge().is_none();
        let told = case.reason_is_vague() || case.reason_is(&REASONS);
        let at_bridge = case.journey.outcome.location.as_deref().filter(|place| place.contains("br_"));
        let (Some(location), Some(leg), true) = (at_bridge, case.last(), dropped && told) else {
            return Answer::No;
        };
        let Some(place) = Place::of(case, &leg) else { return Answer::No };
        let devices = devices(case, &leg);
        let bridge = devices.bridge.map_or_else(|| "The bridge".to_owned(), |name| format!("Bridge {name}"));
        let came =
            devices.port.map_or_else(String::new, |port| format!(", which came in by its port {port}"));
        let packet = words::packet(case.protocol(), leg.exit);
        let summary = format!("{bridge} did not pass on {packet}{came}: {}.", place.why(devices));
        let reason = case.journey.outcome.reason.as_deref().unwrap_or("no reason given");
        let evidence =
            [format!("kernel: {} in {location}, a function of bridges, {reason}", words::ending(case))];
        Answer::Found(words::finding(self.code(), &summary, &evidence, &place.fix(devices)))
    }
}

/// The bridge, and the port of it that the packet came in by; none where this host sent it by the bridge.
fn devices<'a>(case: &Case<'a>, leg: &Leg<'a>) -> Devices<'a> {
    let network = case.network(leg.netns);
    let bridge_of =
        |port: &str| network.and_then(|network| network.bridge_of(port)).map(|link| link.name.as_str());
    let last = case.journey.stages.iter().rev().find_map(|stage| match &stage.kind {
        StageKind::Device(device) => Some(device),
        _ => None,
    });
    let Some(last) = last else { return Devices { port: None, bridge: None } };
    let name = last.device.as_str();
    let is_bridge = network.and_then(|network| network.link_named(name)).is_some_and(Link::is_bridge);
    match (last.direction, bridge_of(name)) {
        _ if is_bridge => Devices { port: None, bridge: Some(name) },
        (DeviceDirection::In, bridge) => Devices { port: Some(name), bridge },
        (DeviceDirection::Out, None) => Devices { port: None, bridge: None },
        (DeviceDirection::Out, bridge) => {
            Devices { port: leg.input().filter(|port| bridge_of(port) == bridge), bridge }
        }
    }
}
