//! Nobody took the packet.

use std::net::IpAddr;

use crate::{enrich::SocketEntry, model::Protocol};

use super::{Answer, Case, Check, leg::Leg, words};

/// The packet found no socket, and how it got there.
struct Refused<'a> {
    leg: Leg<'a>,
    port: u16,
}

/// A packet that asks for something new and found no socket of TCP or UDP.
fn refused<'a>(case: &Case<'a>) -> Option<Refused<'a>> {
    let leg = case.last().filter(|_| case.found_no_socket() && case.opens())?;
    let port = leg.exit.destination_port?;
    matches!(case.protocol(), Protocol::TCP | Protocol::UDP).then_some(Refused { leg, port })
}

fn refusal(case: &Case<'_>) -> String {
    match case.journey.outcome.answer.as_deref() {
        Some("tcp-reset") => "refused with a TCP reset".to_owned(),
        Some(answer) => format!("refused with {answer}"),
        None => words::ending(case).to_owned(),
    }
}

/// The service listens, but on another address.
pub(super) struct OnOtherAddress;

impl Check for OnOtherAddress {
    fn code(&self) -> &'static str {
        "listener-on-other-address"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &["no-listener"]
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(Refused { leg, port }) = refused(case) else { return Answer::No };
        let others: Vec<_> =
            case.sockets(leg.netns).into_iter().flat_map(|s| s.listeners(case.protocol(), port)).collect();
        if others.iter().any(|socket| takes(socket, leg.exit.destination)) {
            return Answer::No;
        }
        let Some(first) = others.first() else { return Answer::No };
        let wanted = leg.exit.destination;
        // Bound to `::` and yet refused: it is for IPv6 only.
        let only = if first.local.address.is_unspecified() && wanted.is_ipv4() {
            ", for IPv6 only"
        } else {
            " only"
        };
        let summary = format!(
            "{} was {}: {} listens on {}{only}, and the packet is for {}.",
            words::packet(case.protocol(), leg.exit),
            refusal(case),
            first.owner_text(),
            first.local,
            leg.exit.destination_text(),
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        let mut listening: Vec<_> = others.iter().map(|socket| listening(socket)).collect();
        // One line for sockets that share a port (SO_REUSEPORT).
        listening.dedup();
        evidence.extend(listening);
        let any = if wanted.is_ipv4() { "0.0.0.0" } else { "[::]" };
        let fix = match leg.destination_rewritten() {
            Some(_) => format!(
                "# let the service listen on {wanted} (or {any}), or let the NAT rule lead to {}",
                first.local
            ),
            None => format!(
                "# let the service listen on {wanted} or {any} (its own configuration, e.g. `bind` or `listen`)"
            ),
        };
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// The socket takes packets for that address; one bound to `::` and yet passed over is for IPv6 only.
fn takes(socket: &SocketEntry, address: IpAddr) -> bool {
    let local = socket.local.address;
    local == address || (local.is_unspecified() && local.is_ipv4() == address.is_ipv4())
}

fn listening(socket: &SocketEntry) -> String {
    format!("socket: {} listens on {} {}", socket.owner_text(), socket.protocol, socket.local)
}

/// Who is bound to that port, but takes packets of one peer only: a UDP socket that was connected.
fn connected(case: &Case<'_>, leg: &Leg<'_>, port: u16) -> Option<String> {
    let (socket, peer) = case.sockets(leg.netns)?.connected(Protocol::UDP, port).next()?;
    let (owner, protocol, local) = (socket.owner_text(), case.protocol(), socket.local);
    Some(format!(
        "sockets: {owner} is bound to {protocol} {local}, but connected to {peer}: it takes packets from there only"
    ))
}

/// Nothing listens on that port.
pub(super) struct Nobody;

impl Check for Nobody {
    fn code(&self) -> &'static str {
        "no-listener"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(Refused { leg, port }) = refused(case) else { return Answer::No };
        let protocol = case.protocol();
        let place = match case.netns_name(leg.netns) {
            Some(name) => format!("in {name}"),
            None => "on this host".to_owned(),
        };
        let summary = format!(
            "{} was {}: nothing {place} listens on {protocol} port {port}.",
            words::packet(protocol, leg.exit),
            refusal(case),
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        let now = case.sockets(leg.netns).map(|sockets| {
            sockets.listeners(protocol, port).find(|socket| takes(socket, leg.exit.destination))
        });
        evidence.push(match now {
            Some(None) => match connected(case, &leg, port).filter(|_| protocol == Protocol::UDP) {
                Some(held) => held,
                None => format!("sockets: no {protocol} socket of this namespace is bound to port {port}"),
            },
            Some(Some(socket)) => format!("{} by now: it began after the packet came", listening(socket)),
            None if case.reason_is(&["NO_SOCKET"]) => {
                "the kernel's own word: NO_SOCKET (the socket list could not be read)".to_owned()
            }
            None => "a guess: this kernel gives no reasons, and the socket list could not be read".to_owned(),
        });
        let elsewhere = case.surroundings.iter().filter(|known| known.netns != leg.netns).find_map(|known| {
            known.sockets.known().and_then(|sockets| sockets.listeners(protocol, port).next())
        });
        if let Some(socket) = elsewhere {
            evidence
                .push(format!("in another namespace, {}", listening(socket).trim_start_matches("socket: ")));
        }
        let fix = format!(
            "ss -lnp 'sport = :{port}'  # start the service, or correct the port; in a container: `nsenter -t PID -n ss -lnp`"
        );
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}
