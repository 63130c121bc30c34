//! Random nft tables of family inet.

use std::ops::Range;

use super::{
    Dice,
    rules::{Chain, Rule, Table},
};

/// What rules speak of.
#[derive(Clone, Debug)]
pub struct Words {
    /// Two addresses of each family.
    pub near: [String; 2],
    pub far: [String; 2],
    pub device: String,
    /// How often a rule has its counter, of four times.
    pub counted: usize,
    /// Whether there are verdict maps, which leave open what a counted rule did.
    pub maps: bool,
}

/// A base chain: name, hook and priority.
pub type Base<'a> = (&'a str, &'a str, i32);

/// A table with these base chains; names of user chains end in `tag`.
pub fn table(dice: &mut Dice, words: &Words, name: &str, bases: &[Base<'_>], tag: &str) -> Table {
    let users = dice.below(5);
    let mut chains = Vec::new();
    for (base, hook, priority) in bases {
        let policy = dice.pick(&["accept", "accept", "accept", "drop"]);
        let head = format!("type filter hook {hook} priority {priority}; policy {policy};");
        chains.push(Chain {
            name: (*base).to_owned(),
            head,
            rules: random_rules(dice, words, tag, 0..users, hook),
        });
    }
    for user in 0..users {
        let rules = random_rules(dice, words, tag, user + 1..users, "");
        chains.push(Chain { name: format!("U{user}{tag}"), head: String::new(), rules });
    }
    let [v4, v6] = &words.near;
    let before = format!(
        "set v4 {{ type ipv4_addr; elements = {{ {v4} }}; }}\nset v6 {{ type ipv6_addr; elements = {{ {v6} }}; }}\n"
    );
    Table { name: name.to_owned(), before, chains }
}

/// The layer of the protocol that a condition names.
fn layer(condition: &str) -> Option<u8> {
    match condition.split(' ').next()? {
        "ip" | "ip6" => Some(3),
        "tcp" | "udp" | "icmp" => Some(4),
        _ if condition.starts_with("meta l4proto") => Some(4),
        _ => None,
    }
}

fn random_rules(dice: &mut Dice, words: &Words, tag: &str, later: Range<usize>, hook: &str) -> Vec<Rule> {
    (0..dice.below(6))
        .map(|_| {
            let (first, mut second) = (condition(dice, words), condition(dice, words));
            // nft refuses a rule that asks for two protocols of one layer.
            if layer(&first).zip(layer(&second)).is_some_and(|(one, other)| one == other) {
                second.clear();
            }
            let counter = if dice.below(4) < words.counted { "counter" } else { "" };
            let condition = match dice.below(6) {
                // In front of a condition a counter proves nothing.
                0 if words.counted < 4 => format!("{counter} {first}"),
                1 if words.counted < 4 => format!("{first} {counter} {second}"),
                _ => format!("{first} {counter}"),
            };
            Rule { condition, action: target(dice, words.maps, tag, later.clone(), hook) }
        })
        .collect()
}

const CONDITIONS: &[&str] = &[
    "",
    "",
    "meta l4proto udp",
    "udp dport 5001",
    "udp dport != 5001",
    "udp dport { 5001, 5002 }",
    "tcp dport 80",
    "tcp flags syn / syn,ack",
    "meta l4proto { icmp, ipv6-icmp }",
    "ip ttl < 3",
    "ip saddr @v4",
    "ip6 saddr != @v6",
    "numgen random mod 2 == 0",
    "numgen inc mod 2 == 0",
    "limit rate 5/second burst 2 packets",
    "ct state new",
    "ct state established,related",
    "meta mark 7",
];

fn condition(dice: &mut Dice, words: &Words) -> String {
    let Words { near, far, device, .. } = words;
    match dice.below(8) {
        0 => format!("ip saddr {}{}", dice.pick(&["", "!= "]), near[0]),
        1 => format!("ip6 daddr {}{}", dice.pick(&["", "!= "]), far[1]),
        2 => format!("iifname {}\"{device}\"", dice.pick(&["", "!= "])),
        _ => (*dice.pick(CONDITIONS)).to_owned(),
    }
}

fn target(dice: &mut Dice, maps: bool, tag: &str, later: Range<usize>, hook: &str) -> String {
    const ON: &[&str] = &[
        "return",
        "accept",
        "log prefix \"x # handle 3\" group 5",
        "meta mark set 7",
        "continue",
        "ct mark set 3",
    ];
    let to = (!later.is_empty()).then(|| format!("U{}{tag}", later.start + dice.below(later.len().max(1))));
    let jump = dice.pick(&["jump", "jump", "goto"]);
    match (dice.below(10), to) {
        (0..3, Some(to)) => format!("{jump} {to}"),
        (3, Some(to)) if maps => format!("meta mark vmap {{ 0 : {jump} {to}, 9 : drop }}"),
        (4, _) if maps => {
            format!("numgen random mod 3 vmap {{ 0 : {}, 1 : continue }}", dice.pick(&["accept", "return"]))
        }
        (5, _) if matches!(hook, "input" | "forward" | "output") && dice.once_in(2) => "reject".to_owned(),
        (6, _) if dice.once_in(3) => "drop".to_owned(),
        _ => (*dice.pick(ON)).to_owned(),
    }
}
