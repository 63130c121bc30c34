//! Nobody took the packet.

use crate::{
    enrich::{Arrival, SocketEntry},
    model::Protocol,
};

use super::{Answer, Case, Check, leg::Leg, words};

/// The packet found no socket, and how it got there.
pub(super) struct Refused<'a> {
    pub(super) leg: Leg<'a>,
    pub(super) port: u16,
    pub(super) arrival: Option<Arrival>,
}

impl Refused<'_> {
    /// Whether nothing that is known keeps a socket from taking it; `None` where too little is known.
    pub(super) fn is_taken_by(&self, socket: &SocketEntry) -> Option<bool> {
        match (socket.admits(self.leg.exit.destination), socket.admits_from(self.arrival)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }
}

/// A packet that asks for something new and found no socket of TCP or UDP.
pub(super) fn refused<'a>(case: &Case<'a>) -> Option<Refused<'a>> {
    let leg = case.last().filter(|_| case.found_no_socket() && case.opens())?;
    let port = leg.exit.destination_port?;
    let protocol = case.protocol();
    let arrival = leg.input().zip(case.surroundings(leg.netns));
    let arrival = arrival.and_then(|(device, around)| Arrival::by(device, protocol, around));
    matches!(protocol, Protocol::TCP | Protocol::UDP).then_some(Refused { leg, port, arrival })
}

pub(super) fn refusal(case: &Case<'_>) -> String {
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
        let Some(Refused { leg, port, .. }) = refused(case) else { return Answer::No };
        let wanted = leg.exit.destination;
        let mut others: Vec<_> =
            case.sockets(leg.netns).into_iter().flat_map(|s| s.listeners(case.protocol(), port)).collect();
        if others.iter().any(|socket| socket.admits(wanted) == Some(true)) {
            return Answer::No;
        }
        others.sort_by_key(|socket| socket.admits(wanted).is_some());
        let Some(first) = others.first() else { return Answer::No };
        let is_any = first.local.address.is_unspecified() && wanted.is_ipv4();
        let only = match first.admits(wanted) {
            None => ", most likely for IPv6 only (that could not be read)",
            Some(_) if is_any => ", for IPv6 only",
            Some(_) => " only",
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

pub(super) fn listening(socket: &SocketEntry) -> String {
    format!("socket: {} listens on {} {}", socket.owner_text(), socket.protocol, socket.local)
}

/// A socket that, by what is known, should have taken it.
fn late(refused: &Refused<'_>, socket: &SocketEntry) -> String {
    let listening = listening(socket);
    match refused.is_taken_by(socket) {
        Some(true) => format!("{listening} by now: it began after the packet came"),
        _ => format!(
            "{listening} by now: it began after the packet came, or is bound to a device that this one did not come in by"
        ),
    }
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
        let Some(refused) = refused(case) else { return Answer::No };
        let Refused { leg, port, .. } = refused;
        let protocol = case.protocol();
        let place = match case.netns_name(leg.netns) {
            Some(name) => format!("in {name}"),
            None => "on this host".to_owned(),
        };
        let now = case.sockets(leg.netns).map(|sockets| {
            sockets.listeners(protocol, port).find(|socket| refused.is_taken_by(socket) != Some(false))
        });
        let listens = match now {
            Some(Some(_)) => "took it, though one listens",
            _ => "listens",
        };
        let nothing = if now.flatten().is_some() { "no socket" } else { "nothing" };
        let summary = format!(
            "{} was {}: {nothing} {place} {listens} on {protocol} port {port}.",
            words::packet(protocol, leg.exit),
            refusal(case),
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        evidence.push(match now {
            Some(None) => match connected(case, &leg, port).filter(|_| protocol == Protocol::UDP) {
                Some(held) => held,
                None => format!("sockets: no {protocol} socket of this namespace is bound to port {port}"),
            },
            Some(Some(socket)) => late(&refused, socket),
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
