//! A local program stands between the client and the service.

use std::time::Duration;

use crate::{
    enrich::{Endpoint, Lookup, SocketEntry, SocketState, Sockets},
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
        let found = first.and_then(|leg| {
            let relay = by_socket(case, &leg).or_else(|| by_delivery(case, &leg))?;
            Some((leg, relay))
        });
        let Some((leg, relay)) = found else { return Answer::No };
        let tuple = leg.exit;
        let summary = format!(
            "{} comes from {}, a program on this host that {} for others: the service at {} sees {} and not the real client.",
            words::packet(case.protocol(), leg.entry),
            relay.program,
            if relay.certain { "relays" } else { "most likely relays" },
            case.name_with_port(tuple),
            tuple.source,
        );
        let mut evidence = vec!["the packet's way begins in OUTPUT: it was made on this host".to_owned()];
        evidence.extend(relay.evidence);
        let fix = "# let the packets reach the service by NAT instead of the proxy (with Docker: a DNAT rule that takes them; `--userland-proxy=false`), or have the proxy pass the client's address on (PROXY protocol, X-Forwarded-For)";
        Answer::Found(words::finding(self.code(), &summary, &evidence, fix))
    }
}

/// A program that sends for somebody else.
struct Relay {
    /// Its name and pid.
    program: String,
    evidence: Vec<String>,
    /// The program is one whose business that is.
    certain: bool,
}

/// By the sending socket, if the connection still stands.
fn by_socket(case: &Case<'_>, leg: &Leg<'_>) -> Option<Relay> {
    let local = endpoint(leg.entry.source, leg.entry.source_port)?;
    let peer = endpoint(leg.entry.destination, leg.entry.destination_port)?;
    let sockets = case.sockets(leg.netns)?;
    let sending = Lookup { protocol: case.protocol(), local, peer, arrival: None };
    let socket = sockets
        .takers(&sending)
        .one()
        .filter(|socket| matches!(socket.state, SocketState::Connected { .. }))?;
    let owner = socket.owner.as_ref()?;
    let known = RELAYS.contains(&owner.comm.as_str());
    let (why, certain) = if owner.holds_tun {
        ("the program has /dev/net/tun open: it takes packets from a tunnel device".to_owned(), true)
    } else {
        let (accepted, client) = foreign_client(case, leg, sockets, owner.pid)
            .filter(|(accepted, _)| known || alike(accepted.local.port, peer.port))?;
        (format!("socket: the same program has accepted {client} on {}", accepted.local), known)
    };
    let program = socket.owner_text();
    let sending = format!("socket: {} -> {peer} belongs to {program}", socket.local);
    Some(Relay { program, evidence: vec![sending, why], certain })
}

/// How long after its client's packet a relay's own connection may begin.
const AT_ONCE: Duration = Duration::from_millis(500);

/// By what came in just before: a packet of another host for a socket on a port like this one's, and not the socket
/// that takes this one. The connection itself may be over by now.
fn by_delivery(case: &Case<'_>, leg: &Leg<'_>) -> Option<Relay> {
    let network = case.network(leg.netns)?;
    let service = case.journey.outcome.socket.as_ref()?;
    let port = leg.entry.destination_port?;
    let before = case.recent.iter().rev().find(|delivery| {
        let age = Duration::try_from(case.journey.time.duration_since(delivery.time));
        age.is_ok_and(|age| age <= AT_ONCE)
            && (delivery.netns, delivery.protocol) == (leg.netns, case.protocol())
            && delivery.socket.local != service.local
            && alike(delivery.port, port)
            && !network.is_own_address(delivery.client)
    })?;
    let program = match (&before.socket.process, before.socket.pid) {
        (Some(process), Some(pid)) => format!("{process} (pid {pid})"),
        _ => format!("the program that listens on {}", before.socket.local),
    };
    let evidence =
        format!("just before, {program} received a packet of {} on {}", before.client, before.socket.local);
    Some(Relay { program, evidence: vec![evidence], certain: false })
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
