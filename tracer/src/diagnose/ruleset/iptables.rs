//! Reads the format of `iptables-save`.

use crate::model::{Backend, CtState, Hook, Protocol, TableFamily, Verdict};

use super::{
    BaseView, ChainView, Condition, RuleFacts, RuleView, Selectors, TableView, Target,
    facts::{nat_target, ports, prefix},
};

pub(super) fn tables(backend: Backend, family: TableFamily, text: &str) -> Vec<TableView> {
    let mut tables: Vec<TableView> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(TableView { backend, family, name: name.trim().to_owned(), chains: Vec::new() });
        } else if let Some(table) = tables.last_mut() {
            add_line(table, line);
        }
    }
    tables
}

fn add_line(table: &mut TableView, line: &str) {
    if let Some(declared) = line.strip_prefix(':') {
        let mut words = declared.split_whitespace();
        let (Some(name), policy) = (words.next(), words.next()) else { return };
        table.chains.push(ChainView { name: name.to_owned(), base: base(name, policy), rules: Vec::new() });
        return;
    }
    // `[packets:bytes] -A ...` with counters.
    let rule = match line.strip_prefix('[') {
        Some(rest) => rest.split_once("] ").map_or("", |(_, rule)| rule),
        None => line,
    };
    let Some(name) = rule.strip_prefix("-A ").and_then(|rest| rest.split(' ').next()) else { return };
    let targets: Vec<String> = table.chains.iter().map(|chain| chain.name.clone()).collect();
    if let Some(chain) = table.chains.iter_mut().find(|chain| chain.name == name) {
        let position = u32::try_from(chain.rules.len()).unwrap_or(u32::MAX).saturating_add(1);
        chain.rules.push(RuleView { position, text: rule.to_owned(), facts: facts(rule, &targets) });
    }
}

fn base(name: &str, policy: Option<&str>) -> Option<BaseView> {
    let hook = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
        .into_iter()
        .find(|hook| hook.iptables_name() == name)?;
    let policy = match policy? {
        "DROP" => Verdict::Drop,
        "ACCEPT" => Verdict::Accept,
        _ => return None,
    };
    Some(BaseView { hook, policy })
}

/// Splits as a shell would: double quotes hold together, a backslash takes the next character as it is.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quoted, mut characters) = (false, line.chars());
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            _ => {
                let kept = if character == '\\' { characters.next() } else { Some(character) };
                if let Some(word) = words.last_mut() {
                    word.extend(kept);
                }
            }
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Modules that only add options which are read below, or nothing that restricts the match.
const TRANSPARENT_MODULES: [&str; 8] =
    ["tcp", "udp", "sctp", "conntrack", "state", "comment", "multiport", "addrtype"];

fn facts(rule: &str, chains: &[String]) -> RuleFacts {
    let words = words(rule);
    let mut facts = RuleFacts::default();
    let mut negated = false;
    let mut rest = words.iter().map(String::as_str).skip(2).peekable();
    while let Some(word) = rest.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        match word {
            "-j" | "--jump" => {
                let target = rest.next().unwrap_or_default();
                facts.target = self::target(target, &rest.by_ref().collect::<Vec<_>>(), chains);
            }
            "-g" | "--goto" => facts.target = Target::Goto(rest.next().unwrap_or_default().to_owned()),
            _ => {
                if !selector(&mut facts.selectors, word, negated, || rest.next()) {
                    facts.selectors.others = true;
                }
            }
        }
        negated = false;
    }
    facts
}

/// Takes one option and its value; false when it was not understood.
fn selector<'a>(
    selectors: &mut Selectors,
    option: &str,
    negated: bool,
    mut value: impl FnMut() -> Option<&'a str>,
) -> bool {
    fn list<T>(negated: bool, text: Option<&str>, one: impl Fn(&str) -> Option<T>) -> Option<Condition<T>> {
        let any_of = text?.split(',').map(one).collect::<Option<Vec<T>>>()?;
        Some(Condition { negated, any_of })
    }
    let name = |text: &str| Some(text.to_owned());
    match option {
        "-m" | "--match" => return value().is_some_and(|module| TRANSPARENT_MODULES.contains(&module)),
        "--comment" => return value().is_some(),
        "-p" | "--protocol" => selectors.protocol = list(negated, value(), Protocol::from_name),
        "-s" | "--source" => selectors.source = list(negated, value(), prefix),
        "-d" | "--destination" => selectors.destination = list(negated, value(), prefix),
        "-i" | "--in-interface" => selectors.input = list(negated, value(), name),
        "-o" | "--out-interface" => selectors.output = list(negated, value(), name),
        "--dport" | "--destination-port" | "--dports" => {
            selectors.destination_port = list(negated, value(), ports);
        }
        "--sport" | "--source-port" | "--sports" => selectors.source_port = list(negated, value(), ports),
        "--ctstate" | "--state" => selectors.state = list(negated, value(), CtState::from_name),
        "--dst-type" => {
            let local = value() == Some("LOCAL");
            selectors.to_local = local.then_some(!negated);
            return local;
        }
        _ => return false,
    }
    // A value that could not be read leaves nothing behind, so the option counts as not understood.
    match option {
        "-p" | "--protocol" => selectors.protocol.is_some(),
        "-s" | "--source" => selectors.source.is_some(),
        "-d" | "--destination" => selectors.destination.is_some(),
        "-i" | "--in-interface" => selectors.input.is_some(),
        "-o" | "--out-interface" => selectors.output.is_some(),
        "--ctstate" | "--state" => selectors.state.is_some(),
        "--sport" | "--source-port" | "--sports" => selectors.source_port.is_some(),
        _ => selectors.destination_port.is_some(),
    }
}

fn target(name: &str, options: &[&str], chains: &[String]) -> Target {
    let value = |wanted: &str| {
        options.iter().position(|option| *option == wanted).and_then(|at| options.get(at + 1)).copied()
    };
    match name {
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "REJECT" => Target::Reject,
        "RETURN" => Target::Return,
        "MASQUERADE" => Target::Masquerade,
        "DNAT" => Target::Dnat(value("--to-destination").map(nat_target).unwrap_or_default()),
        "SNAT" => Target::Snat(value("--to-source").map(nat_target).unwrap_or_default()),
        "REDIRECT" => Target::Redirect(super::NatTarget {
            address: None,
            port: value("--to-ports").and_then(|port| port.parse().ok()),
        }),
        chain if chains.iter().any(|known| known == chain) => Target::Jump(chain.to_owned()),
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TRACE" | "CT" | "NOTRACK" | "TEE" | "TTL" | "HL"
        | "DSCP" | "TOS" | "TCPMSS" | "CLASSIFY" | "SET" | "CHECKSUM" | "SECMARK" | "CONNSECMARK"
        | "AUDIT" => Target::Continue,
        _ => Target::Unknown,
    }
}
