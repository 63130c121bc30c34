//! Connection tracking stood in the way.

use crate::model::{CtState, DecidedBy, Finding, Hook, NetfilterStage};

use super::{
    Answer, Case, Check, VERDICTS,
    leg::Leg,
    ruleset::{Placed, Target},
    words,
};

/// Conntrack takes the packet for invalid, and a table drops such packets.
pub(super) struct Invalid;

impl Check for Invalid {
    fn code(&self) -> &'static str {
        "conntrack-invalid"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &VERDICTS
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let judge = case.judge().filter(|(_, stage)| {
            case.state() == Some(CtState::Invalid) && stage.decided_by.is_some() && for_being_invalid(stage)
        });
        let Some((_, judge)) = judge else { return Answer::No };
        let flags = case.journey.packet.tcp_flags.as_deref();
        let likely = match flags {
            Some(flags) if !flags.contains('S') => {
                "it belongs to no connection that conntrack knows (the entry timed out or was deleted), or the other direction takes another way, so conntrack saw only half"
            }
            Some(_) => "its TCP flags or numbers do not fit the connection with the same ports",
            None => "it answers nothing that conntrack has seen, or is malformed",
        };
        let summary = format!(
            "Conntrack takes {} for INVALID, and {} {} such packets; most likely {likely}.",
            words::packet(case.protocol(), judge.before),
            match words::deciding_rule(judge).filter(|_| judge.decided_by == Some(DecidedBy::Rule)) {
                Some(rule) => words::rule(rule),
                None => format!("the policy of {}", judge.chain.as_deref().unwrap_or("the chain")),
            },
            if judge.verdict == Some(crate::model::Verdict::Reject) { "rejects" } else { "drops" },
        );
        let mut evidence = vec!["conntrack: state INVALID".to_owned(), words::judgement(judge)];
        evidence.extend(flags.map(|flags| format!("TCP flags {flags}")));
        let fix = "conntrack -L  # is there an entry for it? With one-way (asymmetric) routing: sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1, or do not track it (raw table, CT --notrack)";
        Answer::Found(words::finding(self.code(), &summary, &evidence, fix))
    }
}

/// The rule asks for INVALID, or it was the policy: valid packets of the connection would have been accepted.
fn for_being_invalid(stage: &NetfilterStage) -> bool {
    match stage.decided_by {
        Some(DecidedBy::Policy) => true,
        _ => words::deciding_rule(stage)
            .and_then(|rule| rule.text.as_deref())
            .is_some_and(|text| text.to_ascii_lowercase().contains("invalid")),
    }
}

/// The connection table is full.
pub(super) struct Full;

/// So near to the limit that it may well have been reached when the packet came: percent.
const NEARLY_FULL: u64 = 95;

impl Check for Full {
    fn code(&self) -> &'static str {
        "conntrack-full"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(leg) = case.last().filter(|_| case.is_bad() && case.judge().is_none()) else {
            return Answer::No;
        };
        // Conntrack sits in PREROUTING and OUTPUT; a packet that it refused has no entry and goes no further.
        let at_start = ![Hook::Input, Hook::Forward, Hook::Postrouting].iter().any(|hook| leg.passed(*hook));
        let untracked = case.journey.conntrack.is_none();
        let refused = case.reason_is(&["NETFILTER_DROP"]) || case.location_has("nf_hook_slow");
        let table = case.settings(leg.netns).and_then(|settings| settings.conntrack);
        let Some(table) = table.filter(|table| {
            at_start && untracked && refused && table.max > 0 && table.count * 100 >= table.max * NEARLY_FULL
        }) else {
            return Answer::No;
        };
        let summary = format!(
            "The connection table is full ({} of {}), so conntrack dropped {}, which would have been a new connection.",
            table.count,
            table.max,
            words::packet(case.protocol(), leg.entry),
        );
        let mut evidence = vec![
            format!("net.netfilter.nf_conntrack_count = {}, nf_conntrack_max = {}", table.count, table.max),
            "no table decided, the packet had no conntrack entry, and netfilter dropped it before routing"
                .to_owned(),
        ];
        evidence.extend(
            table.dropped.map(|dropped| format!("conntrack has dropped {dropped} packets since boot")),
        );
        let fix = format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}  # and look who fills it: conntrack -L | awk '{{print $1, $4, $5}}' | sort | uniq -c | sort -rn | head",
            table.max.saturating_mul(2)
        );
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// An old mapping decides, and the rules would now do otherwise.
pub(super) struct StaleMapping;

impl Check for StaleMapping {
    fn code(&self) -> &'static str {
        "stale-mapping"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &[
            "neighbour-unreachable",
            "no-route",
            "no-listener",
            "listener-on-other-address",
            "published-port-not-translated",
            "reply-bypasses-nat",
            "forward-drop-after-dnat",
            "dropped-by-policy",
        ]
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let found = case.legs().into_iter().filter(|_| case.is_original()).find_map(|leg| {
            let by_mapping = leg.netfilter().find(|stage| stage.decided_by == Some(DecidedBy::Mapping))?;
            let rewritten = leg.destination_rewritten();
            if rewritten.is_some_and(|stage| stage.decided_by != Some(DecidedBy::Mapping)) {
                return None;
            }
            let ruleset = case.ruleset(leg.netns).filter(|ruleset| ruleset.unread.is_empty())?;
            let hook = if leg.starts_here() { Hook::Output } else { Hook::Prerouting };
            // The connection's first packet is what the rules would be asked about.
            let question = super::ruleset::Question {
                state: Some(CtState::New),
                to_local: None,
                ..case.question(&leg, leg.entry, true)
            };
            let today = ruleset.destination_nat_for(hook, &question);
            let led = rewritten.unwrap_or(by_mapping).after;
            let differs = match (today.is_empty(), rewritten) {
                (true, rewritten) => rewritten.is_some(),
                (false, _) => {
                    today.iter().all(|placed| leads_elsewhere(placed, led.destination, led.destination_port))
                }
            };
            let today = today.first().copied();
            differs.then_some((leg, rewritten.unwrap_or(by_mapping), today))
        });
        let Some((leg, mapped, today)) = found else { return Answer::No };
        if case.is_bad() {
            return Answer::Found(stale(self.code(), case, &leg, mapped, today));
        }
        match case.reply_missing().filter(|_| case.is_fine()) {
            Some(missing) => missing.then(|| stale(self.code(), case, &leg, mapped, today)),
            None => Answer::No,
        }
    }
}

/// The rule's target is known, and it is not where the mapping leads.
fn leads_elsewhere(placed: &Placed<'_>, address: std::net::IpAddr, port: Option<u16>) -> bool {
    match &placed.rule.facts.target {
        Target::Dnat(target) => {
            target.address.is_some_and(|wanted| wanted != address)
                || target.port.is_some_and(|wanted| Some(wanted) != port)
        }
        Target::Redirect(target) => target.port.is_some_and(|wanted| Some(wanted) != port),
        _ => false,
    }
}

fn stale(
    code: &'static str,
    case: &Case<'_>,
    leg: &Leg<'_>,
    mapped: &NetfilterStage,
    today: Option<Placed<'_>>,
) -> Finding {
    let (first, led) = (leg.entry, mapped.after);
    let rules = match today {
        Some(placed) => format!("today's rule `{}` leads elsewhere", placed.rule.text),
        None => "no rule leads there today".to_owned(),
    };
    let went = if first.destination == led.destination { "leaves it untranslated" } else { "sends it to" };
    let target = if first.destination == led.destination {
        String::new()
    } else {
        format!(" {}", case.name_with_port(led))
    };
    let summary = format!(
        "{} follows an old conntrack mapping that {went}{target}; {rules}, but NAT rules are asked only for a connection's first packet.",
        words::packet(case.protocol(), first),
    );
    let mut evidence = vec![words::rewriting(mapped)];
    evidence.push(match today {
        Some(placed) => {
            format!("ruleset: rule {} of {}: `{}`", placed.rule.position, placed.chain.name, placed.rule.text)
        }
        None => format!("ruleset: no DNAT rule for {}", first.destination_text()),
    });
    evidence.extend(
        case.journey
            .outcome
            .reason
            .as_ref()
            .map(|reason| format!("kernel: {} ({reason})", words::ending(case))),
    );
    let port = first.destination_port.map(|port| format!(" --orig-port-dst {port}")).unwrap_or_default();
    let fix = format!("conntrack -D -p {} --orig-dst {}{port}", case.protocol(), first.destination);
    words::finding(code, &summary, &evidence, &fix)
}
