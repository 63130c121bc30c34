//! Random rulesets of both backends, real packets, and two accounts of each packet's way: the walk found from the
//! counters that moved, and the kernel's own trace. They must tell the same story. Needs root.

#![allow(clippy::unwrap_used)]

#[expect(dead_code, reason = "its reader of nft scripts is for other tests")]
mod lab;

use std::{
    net::UdpSocket,
    ops::Range,
    process,
    time::{Duration, Instant},
};

use lab::Lab;
use tracer::{
    model::{Backend, Hook, Verdict},
    rules::{
        index::{ChainRef, CounterAddress, Effect, TableIndex},
        live::RulesetReader,
        nftrace::{LegacyLog, LegacyStep, NftStep, NftStepKind, NftVerdict, TraceEvent, Witness},
        path::{Decision, Fate, Step, solve},
    },
};
use tracer_common::{
    filter::Filter,
    records::{HITS_INTERLEAVED, Hit},
};

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 5001;
const RULESETS: u64 = 60;
const PACKETS: usize = 4;
/// The tables under test, in the order in which an incoming packet passes them, and the hook of each.
const TABLES: [(&str, Hook); 2] = [("raw", Hook::Prerouting), ("filter", Hook::Input)];

/// splitmix64: a seed gives the same ruleset for ever.
struct Dice(u64);

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
fn random_table(dice: &mut Dice, table: &str, base: &str) -> String {
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

/// A namespace that sends and one that judges.
struct Pair {
    sender: Lab,
    judge: Lab,
}

impl Pair {
    fn new() -> Self {
        let (sender, judge) = (Lab::new(), Lab::new());
        let path = judge.path().display().to_string().replace("self", &process::id().to_string());
        sender.run(&format!("ip link add outer type veth peer name inner netns {path}"));
        sender.run("ip address add 10.99.0.1/24 dev outer");
        sender.run("ip link set outer up");
        judge.run("ip address add 10.99.0.2/24 dev inner");
        judge.run("ip link set inner up");
        judge.run("sysctl -q net.ipv4.icmp_ratelimit=0");
        Self { sender, judge }
    }

    fn tables(&self, backend: Backend) -> Vec<TableIndex> {
        let lab = &self.judge;
        let reader = RulesetReader {
            memory: lab.memory(),
            types: lab.types(),
            symbols: lab.symbols(),
            possible_cpus: lab.cpus().possible(),
        };
        let tables = reader.read(lab.net()).unwrap().tables;
        let find =
            |name: &str| tables.iter().find(|t| t.name == name && t.backend == backend).cloned().unwrap();
        TABLES.iter().map(|(name, _)| find(name)).collect()
    }

    fn counters(&self, table: &TableIndex) -> Vec<u64> {
        let lab = &self.judge;
        let read = |counter: &CounterAddress| match *counter {
            CounterAddress::PerCpu(address) => lab.cpus().sum(lab.memory(), address).unwrap(),
            CounterAddress::Plain(address) => lab.memory().read_u64(address).unwrap(),
        };
        table.counters.iter().map(read).collect()
    }
}

fn hits(before: &[u64], after: &[u64]) -> Vec<Hit> {
    let moved = before.iter().zip(after).zip(0..).filter(|((before, after), _)| before != after);
    moved.map(|((before, after), rule)| Hit { rule, packets: (after - before) as u32 }).collect()
}

/// A packet's way through one table, as the witness tells it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Story {
    steps: Vec<Step>,
    end: Option<(Decision, Verdict)>,
}

impl Story {
    fn rule(&mut self, table: &TableIndex, step: Step) {
        self.steps.push(step);
        if let Effect::Final { verdict, .. } = table.chains[step.chain.0].rules[step.rule].effect {
            self.end = Some((Decision::Rule(step), verdict));
        }
    }

    fn nft(&mut self, table: &TableIndex, event: &NftStep) {
        let chain = chain(table, &event.chain);
        match &event.kind {
            NftStepKind::Rule { handle, verdict } => {
                let rules = &table.chains[chain.0].rules;
                let rule = rules.iter().position(|r| r.handle == Some(*handle)).unwrap();
                self.rule(table, Step { chain, rule });
                let ended = matches!(verdict, NftVerdict::Final(_));
                assert_eq!(ended, self.end.is_some(), "{event:?} in {table:#?}");
            }
            NftStepKind::Return => {}
            NftStepKind::Policy { verdict } => self.end = Some((Decision::Policy, verdict.unwrap())),
        }
    }

    fn legacy(&mut self, table: &TableIndex, event: &LegacyStep) {
        let chain = chain(table, &event.chain);
        let rule = event.position as usize - 1;
        let known = &table.chains[chain.0];
        if rule < known.rules.len() {
            self.rule(table, Step { chain, rule });
        } else if let Some(base) = &known.base {
            self.end = Some((Decision::Policy, base.policy));
        }
    }
}

fn chain(table: &TableIndex, name: &str) -> ChainRef {
    ChainRef(table.chains.iter().position(|c| c.name == name).unwrap())
}

/// What the witness says of one packet, table by table, up to where it ended.
fn stories(witness: &mut Witness, tables: &[TableIndex], context: &str) -> Vec<Story> {
    let deadline = Instant::now() + PATIENCE;
    let mut stories = vec![Story::default(); tables.len()];
    let ended = |stories: &[Story]| {
        let dead = stories.iter().any(|s| s.end.is_some_and(|(_, verdict)| verdict != Verdict::Accept));
        dead || stories.last().unwrap().end.is_some()
    };
    while !ended(&stories) {
        assert!(Instant::now() < deadline, "{context}: the story does not end: {stories:#?}");
        for event in witness.wait(PATIENCE).unwrap() {
            let name = match &event {
                TraceEvent::Nft(step) => &step.table,
                TraceEvent::Legacy(step) => &step.table,
                TraceEvent::Lost => panic!("{context}: events were lost"),
            };
            let number = tables.iter().position(|t| t.name == *name).unwrap();
            match &event {
                TraceEvent::Nft(step) => stories[number].nft(&tables[number], step),
                TraceEvent::Legacy(step) => stories[number].legacy(&tables[number], step),
                TraceEvent::Lost => {}
            }
        }
    }
    stories
}

/// Sends packets through one ruleset; gives how many walks there were and how many of them were exact.
fn compare(
    pair: &Pair,
    witness: &mut Witness,
    sockets: &[UdpSocket; 2],
    tables: &[TableIndex],
    context: &str,
) -> (u64, u64) {
    let (mut walks, mut exact) = (0, 0);
    for packet in 0..PACKETS {
        let context = format!("{context}, packet {packet}");
        let before: Vec<_> = tables.iter().map(|t| pair.counters(t)).collect();
        // An ICMP error that answers an earlier packet is reported here, and that packet was not sent.
        if sockets[0].send_to(b"x", ("10.99.0.2", PORT)).is_err() {
            sockets[0].send_to(b"x", ("10.99.0.2", PORT)).unwrap();
        }
        let stories = stories(witness, tables, &context);
        // The answer of a REJECT leaves through OUTPUT of the same tables.
        let rejected = stories.iter().any(|s| s.end.is_some_and(|(_, verdict)| verdict == Verdict::Reject));
        let flags = if rejected { HITS_INTERLEAVED } else { 0 };
        for (number, (table, story)) in tables.iter().zip(&stories).enumerate() {
            let Some((decision, verdict)) = story.end else { continue };
            let hook = TABLES[number].1;
            let is_base = |c: &tracer::rules::index::Chain| c.base.as_ref().is_some_and(|b| b.hook == hook);
            let base = ChainRef(table.chains.iter().position(is_base).unwrap());
            let hits = hits(&before[number], &pair.counters(table));
            let fate = if verdict == Verdict::Accept { Fate::Passed } else { Fate::Dropped };
            let walk = solve(table, base, &hits, flags, fate);
            walks += 1;
            if walk.is_exact() {
                exact += 1;
                let found = (&walk.steps, walk.decision, walk.verdict);
                assert_eq!(found, (&story.steps, Some(decision), Some(verdict)), "{context}: {table:#?}");
            }
            let part = walk.steps.iter().all(|step| story.steps.contains(step));
            assert!(part, "{context}: {walk:?} against {story:?} in {table:#?}");
        }
    }
    (walks, exact)
}

fn compare_all(backend: Backend, flavour: &str) {
    let pair = Pair::new();
    let sockets = [
        pair.sender.inside(|| UdpSocket::bind(("10.99.0.1", 0)).unwrap()),
        pair.judge.inside(|| UdpSocket::bind(("10.99.0.2", PORT)).unwrap()),
    ];
    let mut filter = Filter { protocol: 17, active: 1, ..Filter::default() };
    filter.destination_port.ranges[0] = [PORT, PORT];
    filter.destination_port.count = 1;
    let mut witness = pair.judge.inside(|| {
        let legacy = (backend == Backend::IptablesLegacy).then(|| LegacyLog::bind().unwrap());
        Witness::start(&filter, legacy).unwrap()
    });
    let (mut walks, mut exact) = (0, 0);
    for seed in 0..RULESETS {
        let dice = &mut Dice(seed);
        let rules: String =
            TABLES.iter().map(|(table, hook)| random_table(dice, table, hook.iptables_name())).collect();
        pair.judge.feed(&[&format!("iptables-{flavour}-restore")], &rules);
        let tables = pair.tables(backend);
        let context = format!("{flavour} seed {seed}:\n{rules}");
        let (more, more_exact) = compare(&pair, &mut witness, &sockets, &tables, &context);
        walks += more;
        exact += more_exact;
    }
    assert!(walks > RULESETS * PACKETS as u64, "{walks} walks in all");
    assert!(exact * 100 >= walks * 95, "{exact} of {walks} exact");
    eprintln!("{flavour}: {exact} of {walks} walks exact");
}

#[test]
fn iptables_legacy() {
    compare_all(Backend::IptablesLegacy, "legacy");
}

#[test]
fn iptables_nft() {
    compare_all(Backend::IptablesNft, "nft");
}
