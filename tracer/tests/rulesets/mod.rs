//! Random rulesets: nested chains, goto, RETURN, targets that go on, and conditions that nobody can foretell.

use std::ops::Range;

/// splitmix64: a seed gives the same ruleset for ever.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }
}

const CONDITIONS: &[&str] = &[
    "",
    "",
    "-p udp",
    "-p udp --dport 5001",
    "-p tcp",
    "-s 10.99.0.1",
    "! -s 10.99.0.1",
    "-i inner",
    "! -i inner",
    "-p udp -m multiport --dports 5001,5002",
    "-m limit --limit 5/sec --limit-burst 2",
    "-m statistic --mode random --probability 0.5",
    "-m statistic --mode random --probability 0.5",
    "-m statistic --mode nth --every 2 --packet 0",
    "-m comment --comment \"-j DROP # handle 3\"",
];
const TARGETS: &[&str] =
    &["", "", "-j RETURN", "-j ACCEPT", "-j DROP", "-j NFLOG --nflog-group 5", "-j NFLOG", "-j LOG"];

/// For iptables-restore: chains jump only to later ones.
pub(crate) fn random_table(dice: &mut Dice, table: &str, base: &str) -> String {
    let users = dice.below(5);
    let mut text = format!("*{table}\n:{base} {} [0:0]\n", dice.pick(&["ACCEPT", "ACCEPT", "DROP"]));
    (0..users).for_each(|user| text += &format!(":U{user} - [0:0]\n"));
    for (chain, later) in
        [(base.to_owned(), 0..users)].into_iter().chain((0..users).map(|n| (format!("U{n}"), n + 1..users)))
    {
        for _ in 0..dice.below(6) {
            let condition = dice.pick(CONDITIONS);
            text += &format!("-A {chain} {condition} {}\n", random_target(dice, table, later.clone()));
        }
    }
    text + "COMMIT\n"
}

fn random_target(dice: &mut Dice, table: &str, later: Range<usize>) -> String {
    match dice.below(8) {
        0..4 if !later.is_empty() => {
            let to = later.start + dice.below(later.len());
            format!("{} U{to}", dice.pick(&["-j", "-j", "-g"]))
        }
        4 if table == "filter" => "-j REJECT".into(),
        _ => dice.pick(TARGETS).into(),
    }
}

const NFT_CONDITIONS: &[&str] = &[
    "",
    "",
    "udp dport 5001",
    "ip ttl < 3",
    "ip saddr != 10.99.0.1",
    "udp dport { 5001, 5002 }",
    "iifname \"inner\"",
    "numgen random mod 2 == 0",
    "numgen random mod 2 == 0",
    "limit rate 5/second burst 2 packets",
];
const NFT_TARGETS: &[&str] = &[
    "counter",
    "return",
    "accept",
    "drop",
    "log prefix \"x # handle 3\" group 5",
    "meta mark set 7",
    "ip dscp set 1",
];

/// For `nft -f`: counters in front of conditions, behind them, or nowhere.
pub(crate) fn random_nft_table(dice: &mut Dice, table: &str, hook: &str, priority: i32) -> String {
    let users = dice.below(5);
    let policy = dice.pick(&["accept", "accept", "drop"]);
    let base = format!("chain base {{ type filter hook {hook} priority {priority}; policy {policy};\n");
    let mut text = format!("table ip {table} {{\n");
    for (head, later) in
        [(base, 0..users)].into_iter().chain((0..users).map(|n| (format!("chain U{n} {{\n"), n + 1..users)))
    {
        text += &head;
        for _ in 0..dice.below(6) {
            let mut condition = || dice.pick(NFT_CONDITIONS).to_owned();
            let (first, second) = (condition(), condition());
            let count = dice.pick(&["counter", "counter", ""]);
            let parts = match dice.below(4) {
                0 => format!("{count} {first}"),
                1 => format!("{first} {count} {second}"),
                _ => format!("{first} {count}"),
            };
            text += &format!("{parts} {}\n", random_nft_target(dice, hook, later.clone()));
        }
        text += "}\n";
    }
    text + "}\n"
}

fn random_nft_target(dice: &mut Dice, hook: &str, later: Range<usize>) -> String {
    let to = if later.is_empty() {
        "return".into()
    } else {
        format!("U{}", later.start + dice.below(later.len()))
    };
    let jump = dice.pick(&["jump", "jump", "goto"]);
    match dice.below(9) {
        0..3 if !later.is_empty() => format!("{jump} {to}"),
        3 if !later.is_empty() => format!("udp dport vmap {{ 5001 : {jump} {to}, 7 : drop }}"),
        4 => format!(
            "numgen random mod 3 vmap {{ 0 : {}, 1 : continue }}",
            dice.pick(&["accept", "drop", "return"])
        ),
        5 if hook == "input" => "reject".into(),
        _ => dice.pick(NFT_TARGETS).into(),
    }
}
