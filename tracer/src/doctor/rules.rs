//! What in the ruleset is likely to surprise.

use std::collections::BTreeSet;

use crate::{
    diagnose::ruleset::{
        Condition, Ending, NatTarget, Placed, Question, RulesetView, TableView, Target, docker_chains,
    },
    enrich::{self, Network},
    model::{Backend, CtState, Hook, Protocol, Verdict},
};

use super::{Level, Machine, Report, Section};

pub(super) fn examine(machine: &Machine<'_>, report: &mut Report) {
    backends(machine.ruleset, report);
    docker(machine.ruleset, report);
    let network = machine.surroundings.network.known().map(|network| &**network);
    let blocked: Vec<String> = [false, true]
        .into_iter()
        .flat_map(|ipv6| machine.ruleset.destination_nat(ipv6).map(move |placed| (ipv6, placed)))
        .filter_map(|(ipv6, placed)| blocked_target(machine.ruleset, network, ipv6, &placed))
        .collect();
    if !blocked.is_empty() {
        report.add(
            Section::Rules,
            Level::Warning,
            "dnat-target-not-accepted",
            "DNAT rules lead to targets that no rule of FORWARD accepts:",
            &blocked,
            Some("pathtrace --port PORT  # shows such a packet's end; then accept it in FORWARD, or with Docker: systemctl restart docker"),
        );
    }
}

/// A table that does anything: it has a rule, or a policy other than ACCEPT.
fn is_active(table: &TableView) -> bool {
    table
        .chains
        .iter()
        .any(|chain| !chain.rules.is_empty() || chain.base.is_some_and(|base| base.policy != Verdict::Accept))
}

fn backends(ruleset: &RulesetView, report: &mut Report) {
    let mut active = BTreeSet::new();
    let mut lines = Vec::new();
    for table in ruleset.tables.iter().filter(|table| is_active(table)) {
        active.insert(table.backend);
        let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
        lines.push(format!(
            "{} table {} {}: {rules} rules",
            table.backend.name(),
            table.family.name(),
            table.name
        ));
    }
    lines.extend(ruleset.unread.iter().map(|what| format!("not read: {what}")));
    let mixed = active.contains(&Backend::IptablesLegacy) && active.contains(&Backend::IptablesNft);
    let names: Vec<_> = active.iter().map(|backend| backend.name()).collect();
    let (level, summary, fix) = if mixed {
        (
            Level::Warning,
            "iptables-legacy and iptables-nft both have rules: a packet must pass both".to_owned(),
            Some(
                "update-alternatives --display iptables  # which one `iptables` writes to; move the other's rules there",
            ),
        )
    } else if names.is_empty() {
        (Level::Info, "no rules in any backend".to_owned(), None)
    } else {
        (Level::Ok, format!("rules in use: {}", names.join(" and ")), None)
    };
    let code = if mixed { "mixed-backends" } else { "backends" };
    report.add(Section::Rules, level, code, &summary, &lines, fix);
}

fn docker(ruleset: &RulesetView, report: &mut Report) {
    for (ipv6, name) in [(false, "IPv4"), (true, "IPv6")] {
        let chains = docker_chains(ruleset, ipv6);
        let (left, gone) = match (chains.nat, chains.filter) {
            (true, false) => ("nat", "filter"),
            (false, true) => ("filter", "nat"),
            (true, true) => {
                let summary = format!("Docker's {name} chains are complete");
                report.add(Section::Rules, Level::Ok, "docker-chains", &summary, &[], None);
                continue;
            }
            (false, false) => continue,
        };
        report.add(
            Section::Rules,
            Level::Warning,
            "docker-chains-half-present",
            &format!("Docker's {name} chains are in {left} but not in {gone}: published ports do not work"),
            &[format!("chains of Docker: reached in table {left}, missing or not reached in table {gone}")],
            Some("systemctl restart docker  # and load your own rules with iptables-restore --noflush from then on"),
        );
    }
}

/// One line about a DNAT rule whose target FORWARD blocks for certain.
fn blocked_target(
    ruleset: &RulesetView,
    network: Option<&Network>,
    ipv6: bool,
    placed: &Placed<'_>,
) -> Option<String> {
    let Target::Dnat(NatTarget { address: Some(address), port }) = placed.rule.facts.target else {
        return None;
    };
    if network.is_none_or(|network| network.is_own_address(address))
        || !placed.table.is_reached(&placed.chain.name)
    {
        return None;
    }
    let wanted = &placed.rule.facts.selectors;
    let single = |condition: &Condition<(u16, u16)>| match condition.any_of.as_slice() {
        [(first, last)] if first == last && !condition.negated => Some(*first),
        _ => None,
    };
    let protocol = match wanted.protocol.as_ref().map(|condition| condition.any_of.as_slice()) {
        Some([protocol]) => *protocol,
        _ => Protocol::TCP,
    };
    let output = network.and_then(|network| {
        let route = network.route(enrich::Question::to(address))?;
        network.way(route).map(|(device, _)| device)
    });
    let question = Question {
        protocol,
        source: None,
        source_port: None,
        destination: address,
        destination_port: port.or_else(|| wanted.destination_port.as_ref().and_then(single)),
        input: None,
        output,
        state: Some(CtState::New),
        to_local: Some(false),
    };
    ruleset.base_chains(Hook::Forward, ipv6).find_map(|(table, chain)| {
        let walk = table.walk(chain, &question)?;
        let blocked = matches!(walk.ending.verdict(), Verdict::Drop | Verdict::Reject) && !walk.may_accept;
        let by = match walk.ending {
            Ending::Policy { chain, .. } => format!("the policy of {}", chain.name),
            Ending::Rule { chain, rule, .. } => {
                format!("rule {} of {} (`{}`)", rule.position, chain.name, rule.text)
            }
        };
        blocked.then(|| {
            format!("`{}`: {} table {} stops it by {by}", placed.rule.text, table.backend.name(), table.name)
        })
    })
}
