//! The packet went its way, and no reply came.

use std::net::IpAddr;

use crate::{enrich::Question, model::Finding};

use super::{
    Answer, Case, Check,
    addresses::{is_private, stays_here},
    leg::Leg,
    words,
};

/// The leg in which the packet was forwarded, its source as it came.
fn forwarded_as_is<'a>(case: &Case<'a>) -> Option<Leg<'a>> {
    case.legs()
        .into_iter()
        .filter(|_| case.is_fine())
        .find(|leg| leg.is_forwarded() && !leg.source_rewritten())
}

/// A private source left by an uplink.
pub(super) struct PrivateSourceNotTranslated;

impl Check for PrivateSourceNotTranslated {
    fn code(&self) -> &'static str {
        "private-source-not-translated"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let found = forwarded_as_is(case).zip(case.reply_missing()).and_then(|(leg, missing)| {
            let left = leg.destination_rewritten().is_none() && is_private(leg.entry.source);
            left.then(|| outward(case, &leg)).flatten().map(|why| (leg, missing, why))
        });
        let Some((leg, missing, why)) = found else { return Answer::No };
        missing.then(|| private_source(self.code(), case, &leg, why))
    }
}

/// Why the far side is taken to be one that knows no way back.
fn outward(case: &Case<'_>, leg: &Leg<'_>) -> Option<String> {
    let (source, destination) = (leg.entry.source, leg.exit.destination);
    let output = leg.output()?;
    if stays_here(destination) {
        return None;
    }
    if !is_private(destination) {
        return Some(format!("{destination} is a public address"));
    }
    let network = case.network(leg.netns)?;
    let (behind, _) = network.on_link(source).filter(|(link, _)| link.name != output)?;
    let uplink = network.link_named(output)?;
    let is_bridge = |kind: &Option<String>| kind.as_deref() == Some("bridge");
    let default = |address: IpAddr| {
        let any: IpAddr =
            if address.is_ipv4() { [192, 0, 2, 1].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into() };
        network.route(Question::to(any)).and_then(|route| network.way(route)).map(|(device, _)| device)
    };
    if is_bridge(&behind.kind) && !is_bridge(&uplink.kind) {
        return Some(format!(
            "{source} is behind bridge {} of this host, which others need not know",
            behind.name
        ));
    }
    let leaves_by_default = default(destination) == Some(output) && network.on_link(destination).is_none();
    leaves_by_default.then(|| format!("{output} is the device of the default route"))
}

fn private_source(code: &'static str, case: &Case<'_>, leg: &Leg<'_>, why: String) -> Finding {
    let source = leg.entry.source;
    let output = leg.output().unwrap_or("a device");
    let summary = format!(
        "{} left by {output} with its private source address untranslated, and no reply came: the other side most likely knows no way back to {}.",
        words::packet(case.protocol(), leg.exit),
        case.name(source),
    );
    let mut evidence = vec![format!("source {source} is the same before and after POSTROUTING"), why];
    let ruleset = case.ruleset(leg.netns);
    if let Some(ruleset) = ruleset {
        let rules: Vec<_> =
            ruleset.source_nat(case.is_ipv6()).map(|placed| format!("`{}`", placed.rule.text)).collect();
        evidence.push(match (rules.as_slice(), ruleset.unread.is_empty()) {
            ([], true) => "ruleset: no MASQUERADE or SNAT rule at all".to_owned(),
            ([], false) => "ruleset: no MASQUERADE or SNAT rule in what could be read".to_owned(),
            (rules, _) => format!("ruleset: these did not take it: {}", rules.join(", ")),
        });
    }
    evidence.push(no_reply(case));
    evidence.push(format!(
        "to tell it apart from a silent {0}: if {0} has a route to {source} over this host, the cause is there",
        leg.exit.destination
    ));
    let subnet =
        case.network(leg.netns).and_then(|network| network.on_link(source)).map(|(_, prefix)| prefix);
    let from = subnet.map_or_else(|| source.to_string(), |prefix| prefix.to_string());
    let docker =
        ruleset.is_some_and(|ruleset| ruleset.chain("filter", "DOCKER-USER", case.is_ipv6()).is_some());
    let hint = if docker { "  # Docker makes this rule itself: systemctl restart docker" } else { "" };
    let fix = format!(
        "{} -t nat -A POSTROUTING -s {from} -o {} -j MASQUERADE{hint}",
        nat_binary(case, leg),
        words::quoted(output)
    );
    words::finding(code, &summary, &evidence, &fix)
}

fn no_reply(case: &Case<'_>) -> String {
    match case.flow {
        Some(flow) => {
            let waited = case.now.duration_since(flow.first_seen).as_secs();
            format!("no packet of the reply direction within {waited} s")
        }
        None => "no packet of the reply direction".to_owned(),
    }
}

/// The iptables whose nat table is in use; the plain name where neither is.
fn nat_binary(case: &Case<'_>, leg: &Leg<'_>) -> &'static str {
    let in_use = case.ruleset(leg.netns).and_then(|ruleset| {
        let nat = ruleset.tables.iter().find(|table| table.name == "nat" && table.judges(case.is_ipv6()))?;
        words::iptables(Some(nat.backend), case.is_ipv6())
    });
    in_use.unwrap_or(if case.is_ipv6() { "ip6tables" } else { "iptables" })
}

/// The destination was rewritten to a host whose answers do not come back through here.
pub(super) struct ReplyBypassesNat;

impl Check for ReplyBypassesNat {
    fn code(&self) -> &'static str {
        "reply-bypasses-nat"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let found = forwarded_as_is(case).zip(case.reply_missing()).and_then(|(leg, missing)| {
            let rewritten = leg.destination_rewritten()?;
            let target = rewritten.after.destination;
            let ours = case.container_at(target).is_some() || behind_bridge(case, &leg, target);
            (!ours || same_side(case, &leg)).then_some((leg, missing))
        });
        let Some((leg, missing)) = found else { return Answer::No };
        missing.then(|| bypassing(self.code(), case, &leg))
    }
}

/// The target's network is a bridge of this host: its only way out is through here.
fn behind_bridge(case: &Case<'_>, leg: &Leg<'_>, target: IpAddr) -> bool {
    let on_link = case.network(leg.netns).and_then(|network| network.on_link(target));
    on_link.is_some_and(|(link, _)| link.kind.as_deref() == Some("bridge"))
}

/// It left by the device that it came in by, or both ends are in one network: the target answers directly.
fn same_side(case: &Case<'_>, leg: &Leg<'_>) -> bool {
    let network = case.network(leg.netns);
    let shared = network.and_then(|network| {
        let (_, prefix) = network.on_link(leg.exit.destination)?;
        Some(prefix.contains(leg.exit.source))
    });
    shared == Some(true) || (leg.input().is_some() && leg.input() == leg.output())
}

fn bypassing(code: &'static str, case: &Case<'_>, leg: &Leg<'_>) -> Finding {
    let target = leg.exit.destination;
    let source = leg.exit.source;
    let direct = same_side(case, leg);
    let cause = if direct {
        format!(
            "{target} answers {source} directly, as both are on the same side, and the client does not know that address"
        )
    } else {
        format!(
            "most likely {target} sends its answers to {source} another way than through this host, which alone could translate them back"
        )
    };
    let summary = format!(
        "{} was translated to {} with its source kept, and no reply came back through here: {cause}.",
        words::packet(case.protocol(), leg.entry),
        case.name_with_port(leg.exit),
    );
    let mut evidence: Vec<String> = leg.destination_rewritten().map(words::rewriting).into_iter().collect();
    evidence.push(format!("source {source} is the same before and after POSTROUTING"));
    evidence.push(no_reply(case));
    if !direct {
        evidence.push(format!(
            "to tell it apart from a silent service: `ip route get {source}` on {target} must name this host as the gateway"
        ));
    }
    let port = match leg.exit.destination_port {
        Some(port) if case.protocol().has_ports() => format!(" --dport {port}"),
        _ => String::new(),
    };
    let fix = format!(
        "{} -t nat -A POSTROUTING -d {target} -p {}{port} -m conntrack --ctstate DNAT -j MASQUERADE  # or let {target} route its answers through this host",
        nat_binary(case, leg),
        case.protocol()
    );
    words::finding(code, &summary, &evidence, &fix)
}
