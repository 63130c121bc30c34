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
                && leg.destination_rewritten().is_none()
                && matches!(case.state(), None | Some(CtState::New))
        });
        let Some((leg, sockets)) = first.and_then(|leg| Some((leg, case.sockets(leg.netns)?))) else {
            return Answer::No;
        };
        let Some(Relay { socket, evidence: relayed, certain }) = relay(case, &leg, sockets) else {
            return Answer::No;
        };
        let tuple = leg.exit;
        let summary = format!(
            "{} comes from {}, a program on this host that {} for others: the service at {} sees {} and not the real client.",
            words::packet(case.protocol(), leg.entry),
            socket.owner_text(),
            if certain { "relays" } else { "most likely relays" },
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

/// A sending socket whose program sends for somebody else.
struct Relay<'a> {
    socket: &'a SocketEntry,
    evidence: String,
    /// The program is one whose business that is.
    certain: bool,
}

fn relay<'a>(case: &Case<'_>, leg: &Leg<'_>, sockets: &'a Sockets) -> Option<Relay<'a>> {
    let local = endpoint(leg.entry.source, leg.entry.source_port)?;
    let peer = endpoint(leg.entry.destination, leg.entry.destination_port)?;
    let socket = sockets
        .entry(case.protocol(), local, peer)
        .filter(|socket| matches!(socket.state, SocketState::Connected { .. }))?;
    let owner = socket.owner.as_ref()?;
    if owner.holds_tun {
        let evidence = format!(
            "{} (pid {}) has /dev/net/tun open: it takes packets from a tunnel device",
            owner.comm, owner.pid
        );
        return Some(Relay { socket, evidence, certain: true });
    }
    let (accepted, client) = foreign_client(case, leg, sockets, owner.pid)?;
    let certain = RELAYS.contains(&owner.comm.as_str());
    let evidence = format!("socket: the same program has accepted {client} on {}", accepted.local);
    (certain || alike(accepted.local.port, peer.port)).then_some(Relay { socket, evidence, certain })
}

/// A connection from another host that a process has accepted.
fn foreign_client<'a>(
    case: &Case<'_>,
    leg: &Leg<'_>,
    sockets: &'a Sockets,
    pid: u32,
) -> Option<(&'a SocketEntry, Endpoint)> {
    let network = case.network(leg.netns)?;
    let held = || sockets.iter().filter(|socket| socket.owner.as_ref().is_some_and(|owner| owner.pid == pid));
    let listens =
        |port| held().any(|socket| socket.state == SocketState::Listening && socket.local.port == port);
    held().find_map(|socket| {
        let SocketState::Connected { peer } = socket.state else { return None };
        let foreign = !network.is_own_address(peer.address.to_canonical());
        (foreign && listens(socket.local.port)).then_some((socket, peer))
    })
}

/// 80 and 8080, 443 and 8443, 53 and 5353, or the same: a program that listens on one and connects to the other
/// stands for the other. An application and its database have no such ports.
fn alike(one: u16, other: u16) -> bool {
    let (one, other) = (one.to_string(), other.to_string());
    one.ends_with(&other) || other.ends_with(&one)
}
