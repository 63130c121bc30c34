//! Random tables for iptables-restore: chains jump only to later ones, so that none can be entered in a circle.

use std::ops::Range;

use super::{
    Dice,
    rules::{Chain, Rule, Table},
};

/// What rules speak of.
#[derive(Clone, Debug)]
pub struct Words {
    pub v6: bool,
    /// An address that packets come from, and one that they go to.
    pub near: String,
    pub far: String,
    /// A device that packets come in by.
    pub device: String,
    /// An ipset of addresses, if there is one.
    pub set: Option<String>,
}

/// A table's base chains.
pub const TABLES: [(&str, &[&str]); 5] = [
    ("raw", &["PREROUTING", "OUTPUT"]),
    ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
    ("security", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// How much a table may hold.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// User chains, and rules in each chain; the numbers themselves are never reached.
    pub users: usize,
    pub rules: usize,
}

/// A table with these base chains. Names of user chains end in `tag`, and every base chain first jumps to one that
/// is named after it and empty: where the ruleset is replaced, a trace tells which one it was.
pub fn table(dice: &mut Dice, words: &Words, name: &str, bases: &[&str], tag: &str, size: Size) -> Table {
    let users = dice.below(size.users);
    let mut chains = Vec::new();
    for base in bases {
        let policy = if name == "filter" && dice.once_in(4) { "DROP" } else { "ACCEPT" };
        let mut rules = random_rules(dice, words, name, Some(base), tag, 0..users, size);
        if !tag.is_empty() {
            rules.insert(0, Rule::new("", &format!("-j T{tag}")));
        }
        chains.push(Chain { name: (*base).to_owned(), head: policy.to_owned(), rules });
    }
    for user in 0..users {
        let rules = random_rules(dice, words, name, None, tag, user + 1..users, size);
        chains.push(Chain { name: format!("U{user}{tag}"), head: "-".to_owned(), rules });
    }
    if !tag.is_empty() {
        chains.push(Chain { name: format!("T{tag}"), head: "-".to_owned(), rules: Vec::new() });
    }
    Table { name: name.to_owned(), before: String::new(), chains }
}

fn random_rules(
    dice: &mut Dice,
    words: &Words,
    table: &str,
    base: Option<&str>,
    tag: &str,
    later: Range<usize>,
    size: Size,
) -> Vec<Rule> {
    (0..dice.below(size.rules))
        .map(|_| {
            let condition = condition(dice, words, base);
            match base.and_then(|base| translation(dice, words, table, base)) {
                Some(rule) => rule,
                None => Rule { condition, action: target(dice, table, tag, later.clone()) },
            }
        })
        .collect()
}

const CONDITIONS: &[&str] = &[
    "",
    "",
    "-p udp",
    "-p udp --dport 5001",
    "-p udp -m udp ! --dport 5001",
    "-p udp -m multiport --dports 5001,5002",
    "-p tcp",
    "-p tcp --dport 80",
    "-p tcp --syn",
    "-p tcp --tcp-flags SYN,ACK,RST ACK",
    "-p tcp -m multiport ! --dports 80,81",
    "-m limit --limit 5/sec --limit-burst 2",
    "-m statistic --mode random --probability 0.5",
    "-m statistic --mode nth --every 2 --packet 0",
    "-m conntrack --ctstate NEW",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m conntrack ! --ctstate INVALID",
    "-m mark --mark 0x7",
    "-m mark ! --mark 0x7",
    "-m addrtype --dst-type LOCAL",
    "-m length --length 0:60",
];

fn condition(dice: &mut Dice, words: &Words, base: Option<&str>) -> String {
    let Words { v6, near, far, device, set } = words;
    match dice.below(12) {
        0 => format!("-s {near}"),
        1 => format!("! -s {near}"),
        2 => format!("-d {far}"),
        3 => format!("! -d {far}"),
        4 => (if *v6 { "-p ipv6-icmp" } else { "-p icmp" }).to_owned(),
        5 => match (base, set) {
            (_, Some(set)) => format!("-m set {} --match-set {set} src", dice.pick(&["", "!"])),
            _ => String::new(),
        },
        6 => match base {
            Some("OUTPUT") => format!("-m owner {} --uid-owner 0", dice.pick(&["", "!"])),
            Some("POSTROUTING") => format!("! -o {device}"),
            _ => format!("{} -i {device}", dice.pick(&["", "!"])),
        },
        _ => (*dice.pick(CONDITIONS)).to_owned(),
    }
}

fn target(dice: &mut Dice, table: &str, tag: &str, later: Range<usize>) -> String {
    const ON: &[&str] = &["", "-j RETURN", "-j LOG", "-j NFLOG --nflog-group 5", "-j NFLOG"];
    let ends = if matches!(table, "filter") { 4 } else { 16 };
    match dice.below(12) {
        0..4 if !later.is_empty() => {
            let to = later.start + dice.below(later.len());
            format!("{} U{to}{tag}", dice.pick(&["-j", "-j", "-g"]))
        }
        4 if table == "filter" && dice.once_in(2) => "-j REJECT".to_owned(),
        5 if table == "raw" && dice.once_in(3) => "-j CT --notrack".to_owned(),
        6 if table == "mangle" => "-j MARK --set-mark 0x7".to_owned(),
        // The kernel allows no DROP in nat.
        7 if table != "nat" && dice.once_in(ends / 2) => "-j DROP".to_owned(),
        8 => "-j ACCEPT".to_owned(),
        9 if table != "nat" && dice.once_in(ends) => "-j DROP".to_owned(),
        _ => (*dice.pick(ON)).to_owned(),
    }
}

/// Now and then a rule that translates.
fn translation(dice: &mut Dice, words: &Words, table: &str, base: &str) -> Option<Rule> {
    if table != "nat" || !dice.once_in(3) {
        return None;
    }
    let host = |address: &str| if words.v6 { format!("[{address}]") } else { address.to_owned() };
    Some(match base {
        "PREROUTING" => {
            Rule::new("-p udp --dport 5003", &format!("-j DNAT --to-destination {}:5001", host(&words.far)))
        }
        "OUTPUT" => Rule::new("-p udp --dport 5003", "-j REDIRECT --to-ports 5001"),
        "POSTROUTING" => Rule::new("-p udp --dport 5002", "-j MASQUERADE"),
        _ => return None,
    })
}
