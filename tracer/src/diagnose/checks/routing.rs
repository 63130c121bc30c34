//! Routing refused the packet, or could not deliver it to the next hop.

use crate::{
    correlate::is_routing,
    enrich::{Network, Question, RouteKind},
    model::{Hook, OutcomeKind},
};

use super::{Answer, Case, Check, leg::Leg, words};

/// The packet died between PREROUTING and what would have come next, in a function of routing: a bridge or a VLAN device is
/// not asked for a way.
fn at_routing<'a>(case: &Case<'a>) -> Option<Leg<'a>> {
    case.last().filter(|leg| {
        case.is_bad()
            && case.judge().is_none()
            && by_routing(case, leg)
            && leg.routes().all(|route| route.error.is_some())
            && ![Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
                .iter()
                .any(|hook| leg.passed(*hook))
    })
}

/// A place without a name may be any.
fn by_routing(case: &Case<'_>, leg: &Leg<'_>) -> bool {
    let is_port = || {
        let network = case.network(leg.netns);
        leg.input().zip(network).is_some_and(|(input, network)| network.bridge_of(input).is_some())
    };
    case.journey.outcome.location.as_deref().map_or_else(|| !is_port(), is_routing)
}

fn guess(certain: bool) -> &'static str {
    if certain { "" } else { "Most likely (this kernel gives no reason): " }
}

/// This host does not forward.
pub(super) struct IpForwardingOff;

impl Check for IpForwardingOff {
    fn code(&self) -> &'static str {
        "ip-forwarding-off"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &["no-route"]
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(leg) = at_routing(case) else { return Answer::No };
        let certain = case.reason_is(&["IP_INADDRERRORS"]);
        let ipv6 = case.is_ipv6();
        let (Some(input), Some(_)) = (leg.input(), case.settings(leg.netns)) else { return Answer::No };
        let forwards = case.settings(leg.netns).and_then(|settings| settings.forwarding(input, ipv6));
        let for_others = !leg.is_for_group() && !leg.is_local(leg.exit.destination, case.network(leg.netns));
        if forwards != Some(false) || !for_others || !(certain || case.reason_is_vague()) {
            return Answer::No;
        }
        let (setting, switch) = if ipv6 {
            ("net.ipv6.conf.all.forwarding".to_owned(), "net.ipv6.conf.all.forwarding")
        } else {
            let whole = case.settings(leg.netns).and_then(|settings| settings.ip_forward);
            let device = format!("net.ipv4.conf.{input}.forwarding");
            (
                if whole == Some(false) { "net.ipv4.ip_forward".to_owned() } else { device },
                "net.ipv4.ip_forward",
            )
        };
        let summary = format!(
            "{}{} must be forwarded to {}, but this host does not forward: {setting} is 0.",
            guess(certain),
            words::packet(case.protocol(), leg.entry),
            leg.exit.destination,
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        evidence.push(format!("{setting} = 0"));
        evidence.push(ended(case));
        let fix =
            format!("sysctl -w {switch}=1  # keep it: echo '{switch}=1' > /etc/sysctl.d/99-forward.conf");
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// One line with the kernel's own words.
pub(super) fn ended(case: &Case<'_>) -> String {
    let outcome = &case.journey.outcome;
    let reason = outcome.reason.as_deref().unwrap_or("no reason given");
    match &outcome.location {
        Some(location) => format!("kernel: {} in {location}, {reason}", words::ending(case)),
        None => format!("kernel: {}, {reason}", words::ending(case)),
    }
}

/// A destination of 127.0.0.0/8 on a packet from outside.
pub(super) struct RouteLocalnetOff;

impl Check for RouteLocalnetOff {
    fn code(&self) -> &'static str {
        "route-localnet-off"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(leg) = at_routing(case) else { return Answer::No };
        let loopback = leg.exit.destination.is_ipv4() && leg.exit.destination.is_loopback();
        let input = leg.input().filter(|device| *device != "lo");
        let (Some(input), true) = (input, loopback) else { return Answer::No };
        let certain = case.reason_is(&["IP_LOCALNET"]);
        let allowed = case.settings(leg.netns).and_then(|settings| settings.route_localnet(input));
        if !(certain || case.reason_is_vague() && allowed == Some(false)) {
            return Answer::No;
        }
        let rewritten = leg.destination_rewritten();
        let came = if rewritten.is_some() { "was translated to" } else { "came in for" };
        let summary = format!(
            "{}{} {came} {}, and the kernel refuses loopback addresses on packets from {input}: net.ipv4.conf.{input}.route_localnet is 0.",
            guess(certain),
            words::packet(case.protocol(), leg.entry),
            leg.exit.destination_text(),
        );
        let mut evidence: Vec<String> = rewritten.map(words::rewriting).into_iter().collect();
        evidence.push(match allowed {
            Some(value) => {
                format!("net.ipv4.conf.{input}.route_localnet = {} (all or device)", u8::from(value))
            }
            None => format!("net.ipv4.conf.{input}.route_localnet could not be read"),
        });
        evidence.push(ended(case));
        let fix = format!(
            "sysctl -w net.ipv4.conf.{input}.route_localnet=1  # then others on that link can reach services on 127.0.0.1, too; better: let the service listen on an address of this host and translate to that"
        );
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// The way back to the source leads over another device.
pub(super) struct ReversePathFilter;

impl Check for ReversePathFilter {
    fn code(&self) -> &'static str {
        "reverse-path-filter"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some((leg, input)) = at_routing(case).and_then(|leg| Some((leg, leg.input()?))) else {
            return Answer::No;
        };
        let source = leg.exit.source;
        let certain = case.reason_is(&["IP_RPFILTER"]);
        let mode = case.settings(leg.netns).and_then(|settings| settings.rp_filter(input));
        let back = case.network(leg.netns).map(|network| way_back(network, &leg, input));
        let suspicious = case.reason_is_vague()
            && case.location_has("ip_rcv_finish")
            && mode.is_some_and(|mode| mode > 0)
            && back.as_ref().is_some_and(|back| back.device != Some(input));
        if !certain && !suspicious {
            return Answer::No;
        }
        let leads = match &back {
            Some(Back { device: Some(device), .. }) => {
                format!("the route back to {source} leads over {device}")
            }
            Some(Back { device: None, .. }) => format!("there is no route back to {source}"),
            None => format!("the route back to {source} leads elsewhere"),
        };
        let summary = format!(
            "{}{} came in by {input}, but {leads}, so reverse-path filtering dropped it.",
            guess(certain),
            words::packet(case.protocol(), leg.entry),
        );
        let all = case.settings(leg.netns).and_then(|settings| settings.all.rp_filter);
        let own = case.device_settings(leg.netns, input).and_then(|settings| settings.rp_filter);
        let shown = |value: Option<u8>| value.map_or("unknown".to_owned(), |value| value.to_string());
        let mut evidence = vec![format!(
            "net.ipv4.conf.all.rp_filter = {}, net.ipv4.conf.{input}.rp_filter = {} (the larger one applies)",
            shown(all),
            shown(own)
        )];
        evidence.extend(back.and_then(|back| back.text));
        evidence.push(ended(case));
        let fix = format!(
            "sysctl -w net.ipv4.conf.{input}.rp_filter=2  # loose: any route back suffices; or give {source} a route over {input}"
        );
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// The route that an answer would take.
struct Back<'a> {
    device: Option<&'a str>,
    text: Option<String>,
}

fn way_back<'a>(network: &'a Network, leg: &Leg<'_>, input: &str) -> Back<'a> {
    let question =
        Question { source: Some(leg.exit.destination), input: Some(input), ..Question::to(leg.exit.source) };
    let route = network.route(question).filter(|route| route.kind == RouteKind::Unicast);
    Back {
        device: route.and_then(|route| network.way(route)).map(|(device, _)| device),
        text: route.map(|route| format!("route back: {}", network.route_text(route))),
    }
}

/// The next hop does not answer ARP or neighbour discovery.
pub(super) struct NeighbourUnreachable;

impl Check for NeighbourUnreachable {
    fn code(&self) -> &'static str {
        "neighbour-unreachable"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(leg) = case.last().filter(|_| case.is_bad() && case.judge().is_none()) else {
            return Answer::No;
        };
        let certain = case.reason_is(&["NEIGH_FAILED", "NEIGH_DEAD", "NEIGH_QUEUEFULL"]);
        let by_place = case.reason_is_vague()
            && ["neigh_invalidate", "arp_error_report", "ndisc_error_report"]
                .iter()
                .any(|f| case.location_has(f));
        if !certain && !by_place && !told_unreachable(case, &leg) {
            return Answer::No;
        }
        let (device, next) = next_hop(case, &leg);
        let via = if next == leg.exit.destination {
            String::new()
        } else {
            format!(" (the gateway to {})", leg.exit.destination)
        };
        let on = device.map(|device| format!(" on {device}")).unwrap_or_default();
        let asks = if case.is_ipv6() { "neighbour discovery" } else { "ARP" };
        let answered = match case.journey.outcome.result {
            OutcomeKind::Rejected => ", and the sender was told so",
            _ => "",
        };
        let summary = format!(
            "{} could not be delivered: {}{via} does not answer {asks}{on}{answered}.",
            words::packet(case.protocol(), leg.entry),
            case.name(next),
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        let entry = device.and_then(|device| case.network(leg.netns)?.neighbour(device, next));
        evidence.extend(entry.map(|entry| format!("neighbour: {next}{on} {}", entry.state)));
        evidence.push(ended(case));
        let fix = match device {
            Some(device) => format!(
                "ip neigh show {next} dev {device}  # is that machine or container up, its address right, and on the network of {device}?"
            ),
            None => {
                format!("ip neigh show {next}  # is that machine or container up, and its address right?")
            }
        };
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// The end was not seen, only that this machine told the sender that the next machine cannot be reached: with a route, and
/// no table that refused it, that is said for want of the neighbour (`ipv4_link_failure`, `ndisc_error_report`).
fn told_unreachable(case: &Case<'_>, leg: &Leg<'_>) -> bool {
    let outcome = &case.journey.outcome;
    let told = matches!(outcome.answer.as_deref(), Some("icmp-host-unreachable" | "icmp6-addr-unreachable"));
    let has_route = leg.routes().next_back().is_some_and(|route| route.device.is_some());
    told && has_route && outcome.reason.is_none() && outcome.location.is_none()
}

fn next_hop<'a>(case: &Case<'a>, leg: &Leg<'a>) -> (Option<&'a str>, std::net::IpAddr) {
    let seen = leg.routes().next_back().map(|route| (route.device.as_deref(), route.gateway));
    let known = || {
        let network = case.network(leg.netns)?;
        let (device, gateway) = network.way(network.route(ask(leg))?)?;
        Some((Some(device), gateway))
    };
    let (device, gateway) = seen.filter(|(device, _)| device.is_some()).or_else(known).unwrap_or_default();
    (device.or_else(|| leg.output()), gateway.unwrap_or(leg.exit.destination))
}

/// The way of the packet as it was at last.
pub(super) fn ask<'a>(leg: &Leg<'a>) -> Question<'a> {
    let mark = leg.routes().next_back().and_then(|route| route.mark).unwrap_or_default();
    Question { source: Some(leg.exit.source), input: leg.input(), mark, ..Question::to(leg.exit.destination) }
}
