//! A service that is bound to another device or VRF than the packet came in by.

use crate::{
    enrich::{Arrival, Network, SocketEntry},
    model::Protocol,
};

use super::{
    Answer, Case, Check,
    listener::{Refused, listening, refusal, refused},
    words,
};

/// The service listens, but for what comes in by other devices.
pub(super) struct OnOtherDevice;

/// Where a socket takes packets from.
enum From {
    Device(u32),
    /// Bound to no device: from no VRF.
    DefaultVrf,
    /// Not known; from a VRF only if it is bound to it.
    Unread,
}

impl Check for OnOtherDevice {
    fn code(&self) -> &'static str {
        "listener-on-other-device"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &["no-listener", "listener-on-other-address"]
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(refused) = refused(case) else { return Answer::No };
        let found = refused.arrival.and_then(|arrival| {
            let sockets = case.sockets(refused.leg.netns)?;
            let listeners: Vec<_> = sockets.listeners(case.protocol(), refused.port).collect();
            let taken = listeners.iter().any(|socket| refused.is_taken_by(socket) == Some(true));
            let kept =
                listeners.into_iter().find_map(|socket| Some((socket, from(&refused, arrival, socket)?)));
            kept.filter(|_| !taken).map(|(socket, from)| (arrival, socket, from))
        });
        let network = case.network(refused.leg.netns);
        let (Some((arrival, socket, from)), Some(network)) = (found, network) else { return Answer::No };
        let texts = Texts { refused: &refused, arrival, socket, from, network, protocol: case.protocol() };
        let (why, fix) = texts.why_and_fix();
        let summary =
            format!("{} was {}: {why}.", words::packet(case.protocol(), refused.leg.exit), refusal(case));
        Answer::Found(words::finding(self.code(), &summary, &texts.evidence(), &fix))
    }
}

/// Where a socket that is for the packet's address takes packets from, if not from where this one came.
fn from(refused: &Refused<'_>, arrival: Arrival, socket: &SocketEntry) -> Option<From> {
    if socket.admits(refused.leg.exit.destination) == Some(false) {
        return None;
    }
    match (socket.limits, socket.admits_from(Some(arrival))) {
        (Some(limits), Some(false)) => Some(limits.device.map_or(From::DefaultVrf, From::Device)),
        (None, _) if arrival.vrf.is_some() && arrival.vrf_for_all == Some(false) => Some(From::Unread),
        _ => None,
    }
}

struct Texts<'a> {
    refused: &'a Refused<'a>,
    arrival: Arrival,
    socket: &'a SocketEntry,
    from: From,
    network: &'a Network,
    protocol: Protocol,
}

impl Texts<'_> {
    fn name(&self, index: u32) -> String {
        self.network.link(index).map_or_else(|| format!("device {index}"), |link| link.name.clone())
    }

    fn vrf(&self) -> String {
        self.arrival.vrf.map(|index| self.name(index)).unwrap_or_default()
    }

    fn setting(&self) -> String {
        format!("net.ipv4.{}_l3mdev_accept", self.protocol)
    }

    fn why_and_fix(&self) -> (String, String) {
        let (owner, local) = (self.socket.owner_text(), self.socket.local);
        let (input, vrf, setting) = (self.name(self.arrival.device), self.vrf(), self.setting());
        let came = format!("it came in by {input} of VRF {vrf}");
        let into_vrf =
            format!("sysctl -w {setting}=1  # or bind the service to the VRF: `ip vrf exec {vrf} COMMAND`");
        match self.from {
            From::Device(device) => {
                let device = self.name(device);
                let why = format!(
                    "{owner} listens on {local}, but is bound to {device}, and the packet came in by {input}"
                );
                (why, format!("# bind the service to {input}, or to no device (SO_BINDTODEVICE)"))
            }
            From::DefaultVrf => (
                format!(
                    "{came}, and {owner}, which listens on {local}, is bound to no VRF and takes none of their packets"
                ),
                into_vrf,
            ),
            From::Unread => (
                format!(
                    "{came}, whose packets {owner}, which listens on {local}, takes only if it is bound to {vrf}; most likely it is not"
                ),
                into_vrf,
            ),
        }
    }

    fn evidence(&self) -> Vec<String> {
        let mut evidence: Vec<String> =
            self.refused.leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        let listening = listening(self.socket);
        evidence.push(match self.from {
            From::Device(device) => format!("{listening}, bound to {}", self.name(device)),
            From::DefaultVrf => format!("{listening}, bound to no device"),
            From::Unread => {
                format!(
                    "{listening}; its device could not be read (sock_diag is not loaded, which `ss` does)"
                )
            }
        });
        if !matches!(self.from, From::Device(_)) {
            evidence.push(format!(
                "setting: {} is 0: no VRF's packets for sockets without a device",
                self.setting()
            ));
        }
        evidence
    }
}
