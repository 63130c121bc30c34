//! Routing found no way, or one that refuses.

use crate::{
    enrich::{Network, Question, Route, RouteKind},
    model::RouteStage,
};

use super::{
    Answer, Case, Check,
    leg::Leg,
    routing::{ask, ended},
    words,
};

/// No route leads to the destination.
pub(super) struct NoRoute;

impl Check for NoRoute {
    fn code(&self) -> &'static str {
        "no-route"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(leg) = case.last().filter(|_| case.is_bad() && case.judge().is_none()) else {
            return Answer::No;
        };
        let by_reason = case.reason_is(&["IP_INNOROUTES", "IP_OUTNOROUTES"]);
        let failed = failed_route(&leg).filter(|_| by_reason || case.reason_is_vague());
        let network = case.network(leg.netns);
        let at_refusal =
            by_reason || (case.reason_is_vague() && REFUSALS.iter().any(|place| case.location_has(place)));
        let refusing = failed
            .filter(|_| at_refusal)
            .and_then(|route| in_table(network, route))
            .or_else(|| network.filter(|_| at_refusal).and_then(|network| refusal(network, ask(&leg))));
        if !by_reason && failed.is_none() && refusing.is_none() {
            return Answer::No;
        }
        let vrf = Vrf::of(network, &leg);
        let after = if leg.destination_rewritten().is_some() { "after translation, " } else { "" };
        let by_rule = refusing.as_ref().is_some_and(|refusing| refusing.by_rule);
        let why = match &refusing {
            Some(refusing) => format!("{} refuses it", refusing.text),
            None => format!("no route leads to {}{}", leg.exit.destination, vrf.inside()),
        };
        let summary = format!(
            "{} was {}: {after}{why}.",
            words::packet(case.protocol(), leg.entry),
            words::ending(case)
        );
        let mut evidence: Vec<String> =
            leg.destination_rewritten().map(words::rewriting).into_iter().collect();
        evidence.extend(failed.filter(|_| !by_rule).map(|route| {
            format!(
                "route: lookup for {} gave {}",
                route.destination,
                route.error.as_deref().unwrap_or("an error")
            )
        }));
        evidence.push(ended(case));
        evidence.extend(
            case.journey
                .outcome
                .answer
                .as_ref()
                .map(|answer| format!("answered {} with {answer}", leg.entry.source)),
        );
        let fix = match (refusing, leg.destination_rewritten()) {
            (Some(refusing), _) => refusing.fix,
            (None, None) if leg.exit.destination.is_multicast() => group_fix(&leg),
            (None, Some(_)) => format!(
                "ip route get {}{}  # is the NAT rule's target right, and its network attached (container, bridge or VPN down)?",
                leg.exit.destination,
                vrf.word(),
            ),
            (None, None) => format!(
                "ip route get {0}{1}  # then: ip route add {0}{1} via GATEWAY",
                leg.exit.destination,
                vrf.word()
            ),
        };
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// The VRF that the device it came in by belongs to: its table is asked before the main one.
struct Vrf<'a>(Option<&'a str>);

impl<'a> Vrf<'a> {
    fn of(network: Option<&'a Network>, leg: &Leg<'_>) -> Self {
        let found = leg.input().zip(network).and_then(|(input, network)| {
            let links = [network.master_of(input), network.link_named(input)];
            links.into_iter().flatten().find(|link| link.kind.as_deref() == Some("vrf"))
        });
        Self(found.map(|link| link.name.as_str()))
    }

    fn inside(&self) -> String {
        self.0.map_or_else(String::new, |name| format!(" in VRF {name}"))
    }

    /// As `ip route` takes it.
    fn word(&self) -> String {
        self.0.map_or_else(String::new, |name| format!(" vrf {}", words::quoted(name)))
    }
}

/// A group is reached by its device's own route, which comes with the device.
fn group_fix(leg: &Leg<'_>) -> String {
    let device = leg.input().or_else(|| leg.output()).unwrap_or("DEVICE");
    format!(
        "# nothing, if {device} came up just now: its route to groups comes with it. Else: ip addr show dev {device}"
    )
}

/// Where packets end that a route or rule refuses (net/ipv4/route.c; `dst_discard_out` in net/core/dst.c for a
/// blackhole of IPv6).
const REFUSALS: [&str; 2] = ["ip_error", "dst_discard"];

/// What refuses the packet: a route, or a policy rule before any route.
struct Refusing {
    text: String,
    by_rule: bool,
    fix: String,
}

/// What a failed lookup says of the table in which it ended: each type of route has an error of its own (`fib_props`,
/// net/ipv4/fib_semantics.c; `ip6_rt_type_to_error`, net/ipv6/route.c).
fn in_table(network: Option<&Network>, failed: &RouteStage) -> Option<Refusing> {
    let table = failed.table?;
    let (kind, name) = match failed.error.as_deref()? {
        "EHOSTUNREACH" => (RouteKind::Unreachable, "unreachable"),
        "EACCES" => (RouteKind::Prohibit, "prohibit"),
        "EINVAL" => (RouteKind::Blackhole, "blackhole"),
        _ => return None,
    };
    let known = network.and_then(|network| network.route_in(table, failed.destination));
    let ip = if failed.destination.is_ipv6() { "ip -6" } else { "ip" };
    match (network, known) {
        (Some(network), Some(route)) if route.kind == kind => Some(refused_by(network, route, ip)),
        // Gone since, or not to be read.
        _ if kind == RouteKind::Unreachable => Some(Refusing {
            text: format!("most likely a route of type {name} in table {table}"),
            by_rule: false,
            fix: format!("{ip} route show table {table}"),
        }),
        _ => None,
    }
}

fn refused_by(network: &Network, route: &Route, ip: &str) -> Refusing {
    let text = network.route_text(route);
    let fix = format!(
        "{ip} route show table {}  # then, if that route is not wanted: {ip} route del {text}",
        route.table
    );
    Refusing { text: format!("the route `{text}`"), by_rule: false, fix }
}

fn refusal(network: &Network, question: Question<'_>) -> Option<Refusing> {
    if let Some(rule) = network.refusing_rule(question) {
        let kind = match rule.refuses? {
            RouteKind::Blackhole => "blackhole",
            RouteKind::Prohibit => "prohibit",
            _ => "unreachable",
        };
        let (ip, priority) = (if rule.ipv6 { "ip -6" } else { "ip" }, rule.priority);
        let text = format!("the policy rule {priority} (`{kind}`, see `{ip} rule`)");
        let fix =
            format!("{ip} rule show  # then, if that rule is not wanted: {ip} rule del pref {priority}");
        return Some(Refusing { text, by_rule: true, fix });
    }
    let route = network.route(question).filter(|route| !route.kind.leads_on())?;
    let ip = if question.destination.is_ipv6() { "ip -6" } else { "ip" };
    Some(refused_by(network, route, ip))
}

/// The last routing decision, if it failed.
fn failed_route<'a>(leg: &Leg<'a>) -> Option<&'a RouteStage> {
    leg.routes().next_back().filter(|route| {
        let errno = route.error.as_deref();
        route.device.is_none()
            && matches!(
                errno,
                Some("ENETUNREACH" | "EHOSTUNREACH" | "ENETDOWN" | "EACCES" | "EINVAL" | "ESRCH")
            )
    })
}
