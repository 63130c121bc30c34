//! How findings name things, and commands that can be pasted.

use std::net::IpAddr;

use crate::model::{
    Backend, DecidedBy, Finding, MatchedRule, NetfilterStage, OutcomeKind, Protocol, Tuple, Verdict,
};

use super::Case;

/// A finding whose texts hold no control characters, whatever a rule comment or a name held.
pub(super) fn finding(code: &'static str, summary: &str, evidence: &[String], fix: &str) -> Finding {
    let clean = |text: &str| text.replace(char::is_control, "?");
    Finding {
        code,
        summary: clean(summary),
        evidence: evidence.iter().map(|line| clean(line)).collect(),
        fix: clean(fix),
    }
}

/// `tcp 10.1.0.2:40000 -> 10.1.0.1:80`
pub(super) fn packet(protocol: Protocol, tuple: Tuple) -> String {
    format!("{protocol} {} -> {}", tuple.source_text(), tuple.destination_text())
}

pub(super) fn backend(stage: &NetfilterStage) -> &'static str {
    stage.backend.map_or("unknown backend", Backend::name)
}

/// `iptables-nft`, `ip6tables-legacy`, ...; `None` for native nftables.
pub(super) fn iptables(backend: Option<Backend>, ipv6: bool) -> Option<&'static str> {
    Some(match (backend?, ipv6) {
        (Backend::IptablesLegacy, false) => "iptables-legacy",
        (Backend::IptablesLegacy, true) => "ip6tables-legacy",
        (Backend::IptablesNft, false) => "iptables-nft",
        (Backend::IptablesNft, true) => "ip6tables-nft",
        (Backend::Nftables, _) => return None,
    })
}

/// The rule that decided, where one did and it is known: the last that matched.
pub(super) fn deciding_rule(stage: &NetfilterStage) -> Option<&MatchedRule> {
    stage.rules.last().filter(|_| stage.decided_by == Some(DecidedBy::Rule))
}

/// ``rule 1 of DOCKER-USER (`-A DOCKER-USER ...`)``
pub(super) fn rule(rule: &MatchedRule) -> String {
    match &rule.text {
        Some(text) => format!("rule {} of {} (`{text}`)", rule.position, rule.chain),
        None => format!("rule {} of {}", rule.position, rule.chain),
    }
}

/// `PREROUTING: table nat (iptables-nft) rewrote ...`, one line of evidence.
pub(super) fn rewriting(stage: &NetfilterStage) -> String {
    let by = match (deciding_rule(stage), stage.mapping_rule.as_ref()) {
        (Some(matched), _) => format!(" by {}", rule(matched)),
        (None, Some(maker)) => format!(" by the connection's mapping, made by {}", rule(maker)),
        (None, None) => " by the connection's mapping".to_owned(),
    };
    format!(
        "{}: table {} ({}) rewrote {} => {}{by}",
        stage.hook.iptables_name(),
        stage.table,
        backend(stage),
        stage.before.destination_text(),
        stage.after.destination_text(),
    )
}

/// One line about what a table decided.
pub(super) fn judgement(stage: &NetfilterStage) -> String {
    let verdict = match stage.verdict {
        Some(Verdict::Drop) => "dropped",
        Some(Verdict::Reject) => "rejected",
        Some(Verdict::Accept) => "accepted",
        _ => "passed on",
    };
    let by = match (stage.decided_by, deciding_rule(stage)) {
        (Some(DecidedBy::Policy), _) => {
            format!(" by the policy of chain {}", stage.chain.as_deref().unwrap_or("?"))
        }
        (_, Some(matched)) => format!(" by {}", rule(matched)),
        _ => String::new(),
    };
    let doubt = match (&stage.inexact_because, stage.exact) {
        (_, true) => String::new(),
        (Some(because), false) => format!(" (rules not certain: {because})"),
        (None, false) => " (rules not certain)".to_owned(),
    };
    format!(
        "{}: table {} {} ({}) {verdict}{by}{doubt}",
        stage.hook.iptables_name(),
        stage.family.name(),
        stage.table,
        backend(stage)
    )
}

/// What happened, for the middle of a sentence.
pub(super) fn ending(case: &Case<'_>) -> &'static str {
    match case.journey.outcome.result {
        OutcomeKind::Rejected => "refused",
        _ => "dropped",
    }
}

/// A word that a shell takes as it is.
pub(super) fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:,+=@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// `-s 10.1.0.2 -d 10.2.0.2 -p tcp --dport 80`, the packet as iptables would match it.
pub(super) fn selectors(protocol: Protocol, source: Option<IpAddr>, to: Tuple) -> String {
    let source = source.map(|address| format!("-s {address} ")).unwrap_or_default();
    let port = match to.destination_port {
        Some(port) if protocol.has_ports() => format!(" --dport {port}"),
        _ => String::new(),
    };
    format!("{source}-d {} -p {protocol}{port}", to.destination)
}

/// The same for nft.
pub(super) fn nft_selectors(protocol: Protocol, source: Option<IpAddr>, to: Tuple) -> String {
    let ip = if to.destination.is_ipv6() { "ip6" } else { "ip" };
    let source = source.map(|address| format!("{ip} saddr {address} ")).unwrap_or_default();
    let tail = match (to.destination_port, protocol.name()) {
        (Some(port), Some(name @ ("tcp" | "udp" | "sctp"))) => format!("{name} dport {port}"),
        _ => format!("meta l4proto {protocol}"),
    };
    format!("{source}{ip} daddr {} {tail}", to.destination)
}

/// A command that lets the packet through `stage`, before the rule or policy that took it.
pub(super) fn accept_command(case: &Case<'_>, stage: &NetfilterStage, source: Option<IpAddr>) -> String {
    let deciding = deciding_rule(stage);
    let base = stage.chain.as_deref().unwrap_or_else(|| stage.hook.iptables_name());
    let chain = deciding.map_or(base, |rule| rule.chain.as_str());
    match iptables(stage.backend, case.is_ipv6()) {
        Some(binary) => {
            let table = if stage.table == "filter" { String::new() } else { format!("-t {} ", stage.table) };
            let position = deciding.map_or(1, |rule| rule.position);
            let wanted = selectors(case.protocol(), source, stage.before);
            format!("{binary} {table}-I {} {position} {wanted} -j ACCEPT", quoted(chain))
        }
        None => {
            let position = deciding
                .and_then(|rule| rule.handle)
                .map(|handle| format!("position {handle} "))
                .unwrap_or_default();
            let verb = if stage.decided_by == Some(DecidedBy::Policy) { "add" } else { "insert" };
            format!(
                "nft {verb} rule {} {} {} {position}{} accept",
                stage.family.name(),
                quoted(&stage.table),
                quoted(chain),
                nft_selectors(case.protocol(), source, stage.before)
            )
        }
    }
}

/// A command that deletes the rule; `None` where the rule is not known well enough.
pub(super) fn delete_command(case: &Case<'_>, stage: &NetfilterStage) -> Option<String> {
    let rule = deciding_rule(stage).filter(|_| stage.exact)?;
    match iptables(stage.backend, case.is_ipv6()) {
        Some(binary) => {
            Some(format!("{binary} -t {} -D {} {}", stage.table, quoted(&rule.chain), rule.position))
        }
        None => Some(format!(
            "nft delete rule {} {} {} handle {}",
            stage.family.name(),
            quoted(&stage.table),
            quoted(&rule.chain),
            rule.handle?
        )),
    }
}
