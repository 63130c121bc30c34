//! A local program stands between the client and the service.

use crate::{
    enrich::{Endpoint, SocketEntry, SocketState, Sockets},
    model::{CtState, OutcomeKind},
};

use super::{Answer, Case, Check, case::endpoint, leg::Leg, words};

/// The service sees the proxy's address as its client.
pub(super) struct SourceHidden;

/// Programs whose business is to carry somebody else's packets or connections.
const RELAYS: [&str; 12] = [
    "docker-proxy",
    "rootlessport",
    "rootlesskit",
    "slirp4netns",
    "pasta",
    "passt",
    "gvproxy",
    "vpnkit",
    "socat",
    "haproxy",
    "redir",
    "sshuttle",
];

impl Check for SourceHidden {
    fn code(&self) -> &'static str {
        "source-hidden-by-local-proxy"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let first = case.legs().into_iter().next().filter(|leg| {
            leg.starts_here()
                && matches!(
                    case.journey.outcome.result,
                    OutcomeKind::Delivered | OutcomeKind::Forwarded | OutcomeKind::Rejected
                )
                && case.opens()
                && matches!(case.state(), None | Some(CtState::New))
        });
        let Some((leg, sockets)) = first.and_then(|leg| Some((leg, case.sockets(leg.netns)?))) else {
            return Answer::No;
        };
        let Some((socket, relayed)) = relay(case, &leg, sockets) else { return Answer::No };
        let tuple = leg.exit;
        let summary = format!(
            "{} comes from {}, a program on this host that relays for others: the service at {} sees {} and not the real client.",
            words::packet(case.protocol(), leg.entry),
            socket.owner_text(),
            case.name_with_port(tuple),
            tuple.source,
        );
        let evidence = vec![
            "the packet's way begins in OUTPUT: it was made on this host".to_owned(),
            format!(
                "socket: {} -> {} belongs to {}",
                socket.local,
                leg.entry.destination_text(),
                socket.owner_text()
            ),
            relayed,
        ];
        let fix = "# let the packets reach the service by NAT instead of the proxy (with Docker: a DNAT rule that takes them; `--userland-proxy=false`), or have the proxy pass the client's address on (PROXY protocol, X-Forwarded-For)";
        Answer::Found(words::finding(self.code(), &summary, &evidence, fix))
    }
}

/// The sending socket, and for whom it sends, where that is known.
fn relay<'a>(case: &Case<'_>, leg: &Leg<'_>, sockets: &'a Sockets) -> Option<(&'a SocketEntry, String)> {
    let local = endpoint(leg.entry.source, leg.entry.source_port)?;
    let peer = endpoint(leg.entry.destination, leg.entry.destination_port)?;
    let socket = sockets
        .entry(case.protocol(), local, peer)
        .filter(|socket| matches!(socket.state, SocketState::Connected { .. }))?;
    let owner = socket.owner.as_ref()?;
    if owner.holds_tun {
        return Some((
            socket,
            format!(
                "{} (pid {}) has /dev/net/tun open: it takes packets from a tunnel device",
                owner.comm, owner.pid
            ),
        ));
    }
    let own = |address: std::net::IpAddr| {
        address.is_loopback()
            || case.network(leg.netns).is_some_and(|network| network.is_own_address(address))
    };
    let held =
        || sockets.iter().filter(|other| other.owner.as_ref().is_some_and(|held| held.pid == owner.pid));
    held().find_map(|other| {
        let SocketState::Connected { peer: client } = other.state else { return None };
        let accepted = held().any(|listener| {
            listener.state == SocketState::Listening && listener.local.port == other.local.port
        });
        let relays = RELAYS.contains(&owner.comm.as_str()) || other.local.port == peer.port;
        (accepted && relays && !own(client.address.to_canonical()))
            .then(|| (socket, client_line(other, client)))
    })
}

fn client_line(accepted: &SocketEntry, client: Endpoint) -> String {
    format!("socket: the same program has accepted {client} on {}", accepted.local)
}
