use super::*;
use crate::{
    model::Hook,
    rules::{
        index::{BaseChain, ChainRef, RuleCounter},
        probes::Probes,
    },
};

/// Answers from a script.
struct Script(Vec<(Tool, Result<&'static str, Failure>)>);

impl Runner for Script {
    fn run(&self, tool: Tool) -> Result<String, Failure> {
        let (_, answer) = self.0.iter().find(|(t, _)| *t == tool).expect("asked a tool that cannot know");
        answer.clone().map(str::to_owned)
    }
}

fn table(backend: Backend, name: &str, chains: Vec<(&str, Vec<Effect>)>) -> TableIndex {
    let mut handle = 1;
    let mut rule = |position: usize, effect: Effect| {
        handle += 1;
        Rule {
            position: position as u32 + 1,
            handle: (backend != Backend::IptablesLegacy).then_some(handle),
            counter: Some(RuleCounter { index: 0, proves_match: true }),
            unconditional: false,
            tail_may_fail: false,
            effect,
        }
    };
    let mut chain = |name: &str, effects: Vec<Effect>| Chain {
        name: name.into(),
        base: None::<BaseChain>,
        rules: effects.into_iter().enumerate().map(|(n, e)| rule(n, e)).collect(),
        end_counter: None,
    };
    TableIndex {
        backend,
        family: TableFamily::Ip,
        name: name.into(),
        chains: chains.into_iter().map(|(name, effects)| chain(name, effects)).collect(),
        counters: Vec::new(),
        check: None,
        probes: Probes::default(),
        offloads: false,
    }
}

fn finish(target: &str) -> Effect {
    let verdict = if target == "DROP" { Verdict::Drop } else { Verdict::Accept };
    Effect::Final { verdict, target: target.into() }
}

fn step(chain: usize, rule: usize) -> Step {
    Step { chain: ChainRef(chain), rule }
}

const NAT: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -s 10.0.0.0/8 -j DOCKER\n\
    -A DOCKER -i docker0 -j RETURN\n-A DOCKER -p tcp -j DNAT --to-destination 10.0.0.2\nCOMMIT\n";

fn nat(backend: Backend) -> TableIndex {
    table(
        backend,
        "nat",
        vec![
            ("PREROUTING", vec![Effect::Jump(ChainRef(1))]),
            ("DOCKER", vec![Effect::Return, finish("DNAT")]),
        ],
    )
}

#[test]
fn legacy_rules_by_position() {
    let tables = [nat(Backend::IptablesLegacy)];
    let texts = Texts::read(&Script(vec![(Tool::IptablesLegacySave, Ok(NAT))]), &tables);
    assert_eq!(texts.of(&tables[0], step(1, 1)), Some("-A DOCKER -p tcp -j DNAT --to-destination 10.0.0.2"));
    assert_eq!(texts.of(&tables[0], step(1, 2)), None);
    assert!(texts.missing().is_empty());
}

#[test]
fn a_chain_that_is_not_the_indexs_has_no_text() {
    let mut longer = nat(Backend::IptablesLegacy);
    longer.chains[1].rules.pop();
    let mut elsewhere = nat(Backend::IptablesLegacy);
    elsewhere.chains[0].rules[0].effect = Effect::Goto(ChainRef(1));
    let script = Script(vec![(Tool::IptablesLegacySave, Ok(NAT))]);
    let texts = Texts::read(&script, std::slice::from_ref(&longer));
    assert_eq!(texts.of(&longer, step(1, 0)), None);
    assert!(texts.of(&longer, step(0, 0)).is_some());
    let texts = Texts::read(&script, std::slice::from_ref(&elsewhere));
    assert_eq!(texts.of(&elsewhere, step(0, 0)), None);
}

#[test]
fn a_missing_tool_is_named_with_its_package() {
    let tables = [nat(Backend::IptablesNft)];
    let script = Script(vec![
        (Tool::IptablesNftSave, Err(Failure::NotInstalled)),
        (
            Tool::Nft,
            Ok("table ip nat {\n\tchain DOCKER {\n\t\tip protocol tcp counter dnat to 10.0.0.2 # handle 4\n"),
        ),
    ]);
    let texts = Texts::read(&script, &tables);
    assert_eq!(texts.of(&tables[0], step(1, 1)), Some("ip protocol tcp counter dnat to 10.0.0.2"));
    assert_eq!(texts.of(&tables[0], step(1, 0)), None);
    let missing: Vec<String> = texts.missing().iter().map(ToString::to_string).collect();
    assert_eq!(missing, ["no text of iptables rules: iptables-nft-save is not installed (package iptables)"]);
}

#[test]
fn no_tables_no_tools() {
    let texts = Texts::read(&Script(Vec::new()), &[]);
    assert!(texts.missing().is_empty());
}

/// Recorded: what iptables-nft-save 1.8.9 makes of `ip saddr { 1.1.1.1, 2.2.2.2 } drop`.
#[test]
fn a_foreign_rule_among_those_of_iptables_nft_keeps_its_own_words() {
    let mut tables = [table(Backend::IptablesNft, "nat", vec![("PREROUTING", vec![finish("DROP"); 4])])];
    tables[0].chains[0].rules[2].counter = None;
    let printed = "*nat\n-A PREROUTING -j DROP\n-A PREROUTING -p tcp -m multiport --dports 1,2 -j DROP\n\
        -A PREROUTING -j DROP\n-A PREROUTING -m hashlimit --hashlimit-upto 1/hour --hashlimit-name hl -j DROP\nCOMMIT\n";
    let native = "table ip nat {\n\tchain PREROUTING {\n\t\tip saddr { 1.1.1.1, 2.2.2.2 } counter drop # handle 2\n\
        \t\ttcp dport { 1, 2 } counter drop # handle 3\n\t\tct mark 0x1 drop # handle 4\n\
        \t\tmeter hl { ip saddr timeout 3600s limit rate 1/hour } counter drop # handle 5\n";
    let texts =
        Texts::read(&Script(vec![(Tool::IptablesNftSave, Ok(printed)), (Tool::Nft, Ok(native))]), &tables);
    assert_eq!(texts.of(&tables[0], step(0, 0)), Some("ip saddr { 1.1.1.1, 2.2.2.2 } counter drop"));
    assert_eq!(
        texts.of(&tables[0], step(0, 1)),
        Some("-A PREROUTING -p tcp -m multiport --dports 1,2 -j DROP")
    );
    assert_eq!(texts.of(&tables[0], step(0, 2)), Some("ct mark 0x1 drop"));
    // `nft` translates a match of iptables' own into a meter.
    assert_eq!(
        texts.of(&tables[0], step(0, 3)),
        Some("-A PREROUTING -m hashlimit --hashlimit-upto 1/hour --hashlimit-name hl -j DROP")
    );
}

#[test]
fn base_chains_of_other_hooks_do_not_matter() {
    let mut tables = [nat(Backend::IptablesLegacy)];
    let base = BaseChain { hook: Hook::Prerouting, priority: -100, policy: Verdict::Accept, address: 1 };
    tables[0].chains[0].base = Some(base);
    let texts = Texts::read(&Script(vec![(Tool::IptablesLegacySave, Ok(NAT))]), &tables);
    assert!(texts.of(&tables[0], step(0, 0)).is_some());
}

#[test]
fn the_one_table_that_translates_is_known() {
    let chain = |name: &str, kind: &str| {
        format!("\tchain {name} {{\n\t\ttype {kind} hook output priority -100; policy accept;\n\t}}\n")
    };
    let one = format!("table inet own {{\n{}{}}}\n", chain("out", "nat"), chain("all", "filter"));
    let two = format!("{one}table ip other {{\n{}}}\n", chain("out", "nat"));
    let found = |listing: &str| {
        let listing = Box::leak(listing.to_owned().into_boxed_str());
        let texts = Texts::read_with(&Script(vec![(Tool::Nft, Ok(listing))]), &[], &[Tool::Nft]);
        [Family::Ipv4, Family::Ipv6].map(|family| texts.nat_chain(family).map(|chain| chain.table))
    };
    assert_eq!(found(&one), [Some("own".to_owned()), Some("own".to_owned())]);
    assert_eq!(found(&two), [None, Some("own".to_owned())]);
    assert_eq!(found(""), [None, None]);
}
