//! Reads the format of `nft list ruleset`: chains, their policies, and of each rule what the diagnosis asks for.

use std::iter::Peekable;

use crate::model::{Backend, CtState, Hook, Protocol, TableFamily, Verdict};

use super::{
    BaseView, ChainView, Condition, NatTarget, RuleFacts, RuleView, Selectors, TableView, Target,
    facts::{nat_target, ports, prefix},
};

pub(super) fn tables(text: &str) -> Vec<TableView> {
    let mut tables: Vec<TableView> = Vec::new();
    // Depth of braces: 1 in a table, 2 in a chain, set or map.
    let mut depth = 0_usize;
    let mut in_chain = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let (opens, closes) = braces(line);
        match (depth, line.split_whitespace().collect::<Vec<_>>().as_slice()) {
            (0, ["table", family, name, ..]) => tables.extend(TableFamily::from_name(family).map(|family| {
                TableView { backend: Backend::Nftables, family, name: (*name).to_owned(), chains: Vec::new() }
            })),
            (1, ["chain", name, ..]) if opens > closes => {
                in_chain = true;
                if let Some(table) = tables.last_mut() {
                    let chain = ChainView { name: (*name).to_owned(), base: None, rules: Vec::new() };
                    table.chains.push(chain);
                }
            }
            (2, _) if in_chain && closes <= opens => {
                if let Some(chain) = tables.last_mut().and_then(|table| table.chains.last_mut()) {
                    add_line(chain, line);
                }
            }
            _ => {}
        }
        depth = (depth + opens).saturating_sub(closes);
        in_chain &= depth >= 2;
    }
    tables
}

/// Braces outside quotes.
fn braces(line: &str) -> (usize, usize) {
    let unquoted: String = line.split('"').step_by(2).collect();
    (unquoted.matches('{').count(), unquoted.matches('}').count())
}

fn add_line(chain: &mut ChainView, line: &str) {
    if line.starts_with("type ") {
        chain.base = base(line);
    } else if !line.is_empty() && !line.starts_with("comment ") {
        let position = u32::try_from(chain.rules.len()).unwrap_or(u32::MAX).saturating_add(1);
        let text = line.split(" # handle ").next().unwrap_or(line);
        chain.rules.push(RuleView { position, text: without_counter(text), facts: facts(text) });
    }
}

/// `type filter hook forward priority filter; policy drop;`
fn base(line: &str) -> Option<BaseView> {
    let words: Vec<&str> = line.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let after = |wanted: &str| words.iter().position(|word| *word == wanted).and_then(|at| words.get(at + 1));
    let hook = match *after("hook")? {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        "ingress" => Hook::Ingress,
        "egress" => Hook::Egress,
        _ => return None,
    };
    let policy = if after("policy") == Some(&"drop") { Verdict::Drop } else { Verdict::Accept };
    Some(BaseView { hook, policy })
}

/// The numbers behind `counter` change all the time and are not the user's words.
fn without_counter(text: &str) -> String {
    let mut words = text.split(' ').peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word == "counter" && words.peek() == Some(&"packets") {
            words.by_ref().take(4).for_each(drop);
        }
    }
    kept.join(" ")
}

/// Splits into words; a quoted text and a `{ set }` are one word each, without their marks.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (open, close) = match rest.as_bytes()[0] {
            b'"' => (1, '"'),
            b'{' => (1, '}'),
            _ => (0, ' '),
        };
        let body = &rest[open..];
        let end = body.find(close).unwrap_or(body.len());
        words.push(body[..end].trim().to_owned());
        rest = body[end..].strip_prefix(close).unwrap_or_default().trim_start();
    }
    words
}

fn facts(line: &str) -> RuleFacts {
    let words = words(line);
    let mut facts = RuleFacts::default();
    let mut rest = words.iter().map(String::as_str).peekable();
    while let Some(word) = rest.next() {
        match word {
            "counter" => {
                if rest.next_if_eq(&"packets").is_some() {
                    rest.by_ref().take(3).for_each(drop);
                }
            }
            "comment" => drop(rest.next()),
            // What a log statement's options say restricts nothing.
            "log" => while rest.next_if(|next| !is_statement(next)).is_some_and(|_| rest.next().is_some()) {},
            "ip" | "ip6" | "tcp" | "udp" | "sctp" | "th" | "ct" | "meta" | "fib" => {
                let field = rest.next().unwrap_or_default();
                facts.selectors.others |= !matched(&mut facts.selectors, word, field, &mut rest);
            }
            "iifname" | "iif" | "oifname" | "oif" => {
                facts.selectors.others |= !matched(&mut facts.selectors, "", word, &mut rest);
            }
            _ => match target(word) {
                Some(target) => facts.target = finish(target, &mut rest),
                None => facts.selectors.others = true,
            },
        }
    }
    if words.iter().any(|word| word == "vmap") {
        facts = RuleFacts {
            selectors: Selectors { others: true, ..Selectors::default() },
            target: Target::Unknown,
        };
    }
    facts
}

/// Takes one match with its value; false when it was not understood.
fn matched<'a>(
    selectors: &mut Selectors,
    outer: &str,
    field: &str,
    rest: &mut Peekable<impl Iterator<Item = &'a str>>,
) -> bool {
    let negated = rest.next_if_eq(&"!=").is_some();
    let value = rest.next().unwrap_or_default();
    if (outer, field, value) == ("fib", "daddr", "type") {
        let local = rest.next_if_eq(&"local").is_some();
        selectors.to_local = local.then_some(true);
        return local;
    }
    selector(selectors, outer, field, (negated, value))
}

fn is_statement(word: &str) -> bool {
    matches!(word, "counter" | "comment") || target(word).is_some()
}

fn target(word: &str) -> Option<Target> {
    Some(match word {
        "accept" => Target::Accept,
        "drop" => Target::Drop,
        "reject" => Target::Reject,
        "return" => Target::Return,
        "jump" => Target::Jump(String::new()),
        "goto" => Target::Goto(String::new()),
        "dnat" => Target::Dnat(NatTarget::default()),
        "snat" => Target::Snat(NatTarget::default()),
        "masquerade" => Target::Masquerade,
        "redirect" => Target::Redirect(NatTarget::default()),
        "queue" | "vmap" | "tproxy" | "fwd" | "dup" => Target::Unknown,
        _ => return None,
    })
}

/// Takes what belongs to a statement: the chain of a jump, the address of a NAT.
fn finish<'a>(target: Target, rest: &mut impl Iterator<Item = &'a str>) -> Target {
    let mut address = || rest.by_ref().find(|word| !matches!(*word, "ip" | "ip6" | "to")).map(nat_target);
    match target {
        Target::Dnat(_) => Target::Dnat(address().unwrap_or_default()),
        Target::Snat(_) => Target::Snat(address().unwrap_or_default()),
        Target::Redirect(_) => Target::Redirect(address().unwrap_or_default()),
        Target::Jump(_) => Target::Jump(rest.next().unwrap_or_default().to_owned()),
        Target::Goto(_) => Target::Goto(rest.next().unwrap_or_default().to_owned()),
        Target::Reject => {
            // `with tcp reset`, `with icmp type ...`: the rest of the rule.
            rest.for_each(drop);
            Target::Reject
        }
        other => other,
    }
}

/// False for a match that was not understood.
fn selector(selectors: &mut Selectors, outer: &str, field: &str, (negated, value): (bool, &str)) -> bool {
    fn list<T>(negated: bool, text: &str, one: impl Fn(&str) -> Option<T>) -> Option<Condition<T>> {
        let any_of = text.split(',').map(|item| one(item.trim())).collect::<Option<Vec<T>>>()?;
        Some(Condition { negated, any_of })
    }
    let name = |text: &str| Some(text.trim_matches('"').to_owned());
    let known = match (outer, field) {
        ("ip" | "ip6", "saddr") => list(negated, value, prefix).map(|c| selectors.source = Some(c)),
        ("ip" | "ip6", "daddr") => list(negated, value, prefix).map(|c| selectors.destination = Some(c)),
        ("ip", "protocol") | ("ip6", "nexthdr") | ("meta", "l4proto") => {
            list(negated, value, Protocol::from_name).map(|c| selectors.protocol = Some(c))
        }
        ("tcp" | "udp" | "sctp" | "th", "dport") => {
            implied(selectors, outer);
            list(negated, value, ports).map(|c| selectors.destination_port = Some(c))
        }
        ("tcp" | "udp" | "sctp" | "th", "sport") => {
            implied(selectors, outer);
            list(negated, value, ports).map(|c| selectors.source_port = Some(c))
        }
        ("tcp" | "udp" | "sctp", _) => {
            implied(selectors, outer);
            None
        }
        ("" | "meta", "iifname" | "iif") => list(negated, value, name).map(|c| selectors.input = Some(c)),
        ("" | "meta", "oifname" | "oif") => list(negated, value, name).map(|c| selectors.output = Some(c)),
        ("ct", "state") => list(negated, value, CtState::from_name).map(|c| selectors.state = Some(c)),
        _ => None,
    };
    known.is_some()
}

/// `tcp dport` asks for TCP.
fn implied(selectors: &mut Selectors, outer: &str) {
    if let Some(protocol) = Protocol::from_name(outer).filter(|protocol| *protocol != Protocol(0)) {
        selectors.protocol = Some(Condition::is(protocol));
    }
}
