//! Walks live rulesets of both backends and compares them with what iptables and nft print. Needs root.

#![allow(clippy::unwrap_used)]

mod changes;
#[path = "../lab/mod.rs"]
mod lab;

use std::{collections::BTreeMap, net::UdpSocket};

use lab::Lab;
use tracer::{
    model::{Backend, Hook, TableFamily, Verdict},
    rules::{
        index::{Chain, CounterAddress, Effect, TableIndex},
        live::{Ruleset, RulesetReader},
    },
};

fn reader(lab: &Lab) -> RulesetReader<'static> {
    RulesetReader {
        memory: lab.memory(),
        types: lab.types(),
        symbols: lab.symbols(),
        possible_cpus: lab.cpus().possible(),
    }
}

fn ruleset(lab: &Lab) -> Ruleset {
    reader(lab).read(lab.net()).unwrap()
}

fn table<'a>(ruleset: &'a Ruleset, backend: Backend, family: TableFamily, name: &str) -> &'a TableIndex {
    let found = ruleset.tables.iter().find(|t| t.backend == backend && t.family == family && t.name == name);
    found.unwrap_or_else(|| panic!("no {backend:?} {family:?} {name} in {:#?}", ruleset.tables))
}

fn chain<'a>(table: &'a TableIndex, name: &str) -> &'a Chain {
    table.chains.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no chain {name}"))
}

fn packets(lab: &Lab, table: &TableIndex, counter: usize) -> u64 {
    match table.counters[counter] {
        CounterAddress::PerCpu(address) => lab.cpus().sum(lab.memory(), address).unwrap(),
        CounterAddress::Plain(address) => lab.memory().read_u64(address).unwrap(),
    }
}

/// `-j X` and `-g X` as iptables-save prints them.
fn effect_text(table: &TableIndex, effect: &Effect) -> String {
    let name = |chain: &tracer::rules::index::ChainRef| &table.chains[chain.0].name;
    match effect {
        Effect::Continue { target: None } => String::new(),
        Effect::Continue { target: Some(target) }
        | Effect::Final { target, .. }
        | Effect::OneOf { target, .. }
        | Effect::Unknown { target } => format!("-j {target}"),
        Effect::Jump(chain) => format!("-j {}", name(chain)),
        Effect::Goto(chain) => format!("-g {}", name(chain)),
        Effect::Return => "-j RETURN".to_owned(),
    }
}

/// A table of `iptables-save -c`: per chain its policy, and per rule packets and `-j X`.
#[derive(Debug, Default, PartialEq)]
struct Saved {
    chains: BTreeMap<String, (String, Vec<(u64, String)>)>,
    policy_packets: BTreeMap<String, u64>,
}

fn packets_of(bracket: &str) -> u64 {
    bracket.trim_start_matches('[').split(':').next().unwrap().parse().unwrap()
}

fn saved(text: &str) -> Saved {
    let mut saved = Saved::default();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let Some(name) = line.strip_prefix(':').map(|_| words[0][1..].to_owned()) {
            if words[1] != "-" {
                saved.policy_packets.insert(name.clone(), packets_of(words[2]));
            }
            saved.chains.insert(name, (words[1].to_owned(), Vec::new()));
        } else if words.get(1) == Some(&"-A") {
            let action = words.iter().position(|w| *w == "-j" || *w == "-g");
            let action = action.map_or(String::new(), |i| format!("{} {}", words[i], words[i + 1]));
            saved.chains.get_mut(words[2]).unwrap().1.push((packets_of(words[0]), action));
        }
    }
    saved
}

fn walked(lab: &Lab, table: &TableIndex) -> Saved {
    let mut walked = Saved::default();
    for chain in &table.chains {
        let policy = chain.base.as_ref().map_or("-", |base| match base.policy {
            Verdict::Accept => "ACCEPT",
            Verdict::Drop => "DROP",
            other => panic!("policy {other:?}"),
        });
        let rules = chain.rules.iter().zip(1..).map(|(rule, position)| {
            assert_eq!(rule.position, position);
            let counter = rule.counter.expect("iptables counts every rule");
            assert!(counter.proves_match);
            (packets(lab, table, counter.index), effect_text(table, &rule.effect))
        });
        walked.chains.insert(chain.name.clone(), (policy.to_owned(), rules.collect()));
        if let (Some(_), Some(end)) = (&chain.base, chain.end_counter) {
            walked.policy_packets.insert(chain.name.clone(), packets(lab, table, end));
        }
    }
    walked
}

/// Loads into every table nested chains, goto, RETURN, rules without a target, and targets of every kind.
fn restore(lab: &Lab, restore: &str, v6: bool) {
    let host = if v6 { "::1" } else { "127.0.0.1" };
    let dnat = if v6 { "[::1]:7003" } else { "127.0.0.1:7003" };
    let reject = if v6 { "icmp6-port-unreachable" } else { "icmp-port-unreachable" };
    let rules = format!(
        "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:QUIET - [0:0]\n\
         -A PREROUTING -p udp --dport 7001 -j CT --notrack\n-A OUTPUT -j QUIET\n-A QUIET -p udp --dport 7002\nCOMMIT\n\
         *mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :POSTROUTING ACCEPT [0:0]\n-A OUTPUT -p udp -j MARK --set-xmark 0x7/0xff\n-A INPUT -m mark --mark 0x7\nCOMMIT\n\
         *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :PUBLISH - [0:0]\n-A OUTPUT -p udp --dport 7002 -g PUBLISH\n\
         -A PUBLISH -p udp --dport 7002 -j DNAT --to-destination {dnat}\n\
         -A POSTROUTING -p udp --dport 7009 -j MASQUERADE\nCOMMIT\n\
         *filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:first - [0:0]\n:second - [0:0]\n\
         :third - [0:0]\n:empty - [0:0]\n\
         -A INPUT -j first\n-A INPUT -p udp --dport 7004 -j DROP\n\
         -A INPUT -p udp --dport 7005 -j REJECT --reject-with {reject}\n-A INPUT -s {host} -j ACCEPT\n\
         -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j empty\n\
         -A first -p udp --dport 7001 -j second\n-A first -p udp --dport 7003 -g third\n\
         -A first -p udp -m limit --limit 1000/sec\n\
         -A second -p udp -m comment --comment \"two words\" -j third\n-A second -j RETURN\n-A second -j DROP\n\
         -A third -p udp --dport 7001 -j NFLOG --nflog-group 9\n-A third -p udp --sport 1 -j RETURN\nCOMMIT\n\
         *security\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A INPUT -p udp --dport 7001 -m multiport --dports 7001,7002 -j ACCEPT\nCOMMIT\n"
    );
    lab.feed(&[restore, "-w"], &rules);
}

fn send(lab: &Lab, v6: bool) {
    lab.inside(|| {
        let host = if v6 { "::1" } else { "127.0.0.1" };
        let socket = UdpSocket::bind((host, 0)).unwrap();
        for (port, count) in [(7001, 3), (7002, 2), (7003, 5), (7004, 4), (7005, 1), (7009, 2)] {
            for _ in 0..count {
                // What is rejected reports it on the next call.
                let _ = socket.send_to(b"x", (host, port));
            }
        }
    });
}

const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

fn compare(backend: Backend, v6: bool) {
    let lab = Lab::new();
    let (tool, family) = if v6 { ("ip6tables", TableFamily::Ip6) } else { ("iptables", TableFamily::Ip) };
    let flavour = if backend == Backend::IptablesLegacy { "legacy" } else { "nft" };
    restore(&lab, &format!("{tool}-{flavour}-restore"), v6);
    send(&lab, v6);
    let ruleset = ruleset(&lab);
    assert_eq!(ruleset.tables.len(), TABLES.len());
    for name in TABLES {
        let table = table(&ruleset, backend, family, name);
        let mut expected = saved(&lab.run(&format!("{tool}-{flavour}-save -c -t {name}")));
        let actual = walked(&lab, table);
        if backend == Backend::IptablesNft {
            // nft base chains do not count what their policy decides.
            expected.policy_packets.clear();
        }
        assert_eq!(actual, expected, "{name}");
    }
    let filter = table(&ruleset, backend, family, "filter");
    let moved: u64 = chain(filter, "third").rules[0].counter.map(|c| packets(&lab, filter, c.index)).unwrap();
    assert_eq!(moved, 3, "three packets to port 7001 passed first, second and third");
}

#[test]
fn iptables_legacy_is_walked_as_it_is_saved() {
    compare(Backend::IptablesLegacy, false);
}

#[test]
fn ip6tables_legacy_is_walked_as_it_is_saved() {
    compare(Backend::IptablesLegacy, true);
}

#[test]
fn iptables_nft_is_walked_as_it_is_saved() {
    compare(Backend::IptablesNft, false);
}

#[test]
fn ip6tables_nft_is_walked_as_it_is_saved() {
    compare(Backend::IptablesNft, true);
}

/// Chain to (handle, packets of the rule's counter), as `nft -j -a list table` prints them.
fn listed(lab: &Lab, family: &str, name: &str) -> BTreeMap<String, Vec<(u64, Option<u64>)>> {
    let json: serde_json::Value =
        serde_json::from_str(&lab.run(&format!("nft -j -a list table {family} {name}"))).unwrap();
    let mut chains: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for object in json["nftables"].as_array().unwrap() {
        if let Some(name) = object["chain"]["name"].as_str() {
            chains.insert(name.to_owned(), Vec::new());
        } else if let Some(rule) = object.get("rule") {
            let statements = rule["expr"].as_array().unwrap();
            let packets = statements.iter().find_map(|s| s["counter"]["packets"].as_u64());
            chains
                .get_mut(rule["chain"].as_str().unwrap())
                .unwrap()
                .push((rule["handle"].as_u64().unwrap(), packets));
        }
    }
    chains
}

fn walked_handles(lab: &Lab, table: &TableIndex) -> BTreeMap<String, Vec<(u64, Option<u64>)>> {
    let rules = |chain: &Chain| {
        let rules = chain.rules.iter();
        rules.map(|r| (r.handle.unwrap(), r.counter.map(|c| packets(lab, table, c.index)))).collect()
    };
    table.chains.iter().map(|chain| (chain.name.clone(), rules(chain))).collect()
}

#[test]
fn handles_of_iptables_nft_are_those_of_nft() {
    let lab = Lab::new();
    restore(&lab, "iptables-nft-restore", false);
    lab.run("iptables-nft -w -D INPUT 2");
    lab.run("iptables-nft -w -I INPUT 1 -p icmp -j ACCEPT");
    send(&lab, false);
    let ruleset = ruleset(&lab);
    for name in TABLES {
        let table = table(&ruleset, Backend::IptablesNft, TableFamily::Ip, name);
        assert_eq!(walked_handles(&lab, table), listed(&lab, "ip", name), "{name}");
    }
}

const NATIVE: &str = r#"
table inet wall {
    counter shared { }
    set bad { type ipv4_addr; elements = { 192.0.2.1 }; }
    map ports { type inet_service : verdict; elements = { 9 : drop }; }
    chain in {
        type filter hook input priority -5; policy drop;
        iif lo counter jump services
        counter ct state established,related accept
        ct state invalid counter log prefix "odd " drop
        ip saddr @bad counter drop
        tcp dport vmap @ports
        counter name shared
        limit rate 100/second counter accept
        counter meta mark set 0x5 goto tail
        reject
    }
    chain services {
        udp dport { 7001, 7002 } counter accept
        udp dport 7003 counter return
        counter
    }
    chain tail {
        counter notrack return
    }
}
table ip mynat {
    chain out { type nat hook output priority -90; udp dport 7002 counter dnat to 127.0.0.1:7001; }
    chain post { type nat hook postrouting priority 100; counter masquerade; }
}
"#;

#[test]
fn a_native_ruleset_is_walked_as_it_is_listed() {
    let lab = Lab::new();
    lab.nft(&NATIVE.replace("; }\n", ";\n}\n"));
    send(&lab, false);
    let ruleset = ruleset(&lab);
    let wall = table(&ruleset, Backend::Nftables, TableFamily::Inet, "wall");
    assert_eq!(walked_handles(&lab, wall), listed(&lab, "inet", "wall"));
    let mynat = table(&ruleset, Backend::Nftables, TableFamily::Ip, "mynat");
    assert_eq!(walked_handles(&lab, mynat), listed(&lab, "ip", "mynat"));

    let input = chain(wall, "in");
    let base = input.base.as_ref().unwrap();
    assert_eq!((base.hook, base.priority, base.policy), (Hook::Input, -5, Verdict::Drop));
    let effects: Vec<_> = input.rules.iter().map(|rule| effect_text(wall, &rule.effect)).collect();
    assert_eq!(
        effects,
        [
            "-j services",
            "-j accept",
            "-j drop",
            "-j drop",
            "-j vmap",
            "",
            "-j accept",
            "-g tail",
            "-j reject"
        ]
    );
    assert!(matches!(input.rules[4].effect, Effect::Unknown { .. }), "a verdict map may do anything");
    assert!(matches!(input.rules[8].effect, Effect::Final { verdict: Verdict::Reject, .. }));
    let proofs: Vec<_> = input.rules.iter().map(|rule| rule.counter.map(|c| c.proves_match)).collect();
    assert_eq!(
        proofs,
        [Some(true), Some(false), Some(true), Some(true), None, None, Some(true), Some(true), None],
        "a condition behind a counter takes its proof away"
    );
    let services: Vec<_> =
        chain(wall, "services").rules.iter().map(|r| effect_text(wall, &r.effect)).collect();
    assert_eq!(services, ["-j accept", "-j RETURN", ""]);
    let out = chain(mynat, "out");
    assert_eq!(out.base.as_ref().unwrap().priority, -90);
    assert!(
        matches!(&out.rules[0].effect, Effect::Final { verdict: Verdict::Accept, target } if target == "nat")
    );
}

#[test]
fn a_user_table_in_the_name_of_iptables_is_not_taken_for_its() {
    let lab = Lab::new();
    lab.nft("table ip filter { chain INPUT { type filter hook input priority 0;\n tcp dport 1 accept\n}\n}");
    lab.nft("table ip nat { chain PREROUTING { type nat hook prerouting priority -101;\n}\n}");
    lab.nft("table ip6 filter { chain FORWARD { type filter hook forward priority 0;\n counter ct state new drop\n}\n}");
    let ruleset = ruleset(&lab);
    let backends: Vec<_> = ruleset.tables.iter().map(|t| (t.name.as_str(), t.backend)).collect();
    assert!(backends.iter().all(|(_, backend)| *backend == Backend::Nftables), "{backends:?}");
    assert_eq!(backends.len(), 3);
}

#[test]
fn both_backends_are_told_apart_at_one_hook() {
    let lab = Lab::new();
    lab.run("iptables-legacy -w -A INPUT -j ACCEPT");
    lab.run("iptables-nft -w -A INPUT -j DROP");
    let ruleset = ruleset(&lab);
    let legacy = table(&ruleset, Backend::IptablesLegacy, TableFamily::Ip, "filter");
    let nft = table(&ruleset, Backend::IptablesNft, TableFamily::Ip, "filter");
    assert_eq!(effect_text(legacy, &chain(legacy, "INPUT").rules[0].effect), "-j ACCEPT");
    assert_eq!(effect_text(nft, &chain(nft, "INPUT").rules[0].effect), "-j DROP");
}
