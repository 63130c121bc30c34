//! Random rulesets of both backends, real packets, and two accounts of each packet's way: the walk found from the
//! counters that moved, and the kernel's own trace. They must tell the same story. Needs root.

#![allow(clippy::unwrap_used)]

mod lab;

use std::{
    net::UdpSocket,
    process,
    sync::LazyLock,
    time::{Duration, Instant},
};

use lab::Lab;
use tests::random::{
    Dice, iptables, nft,
    rules::{self, Syntax},
};
use tracer::{
    model::{Backend, Hook, Verdict},
    rules::{
        index::{ChainRef, CounterAddress, Effect, TableIndex},
        live::RulesetReader,
        nftrace::{LegacyLog, LegacyStep, NftStep, NftStepKind, NftVerdict, TraceEvent, Witness},
        path::{Decision, Fate, Inexact, Step, solve},
    },
};
use tracer_common::{
    filter::Filter,
    records::{HITS_INTERLEAVED, Hit},
};

static PATIENCE: LazyLock<Duration> = LazyLock::new(|| lab::scaled(Duration::from_secs(20)));
const PORT: u16 = 5001;
const RULESETS: u64 = 60;
const PACKETS: usize = 4;
const SIZE: iptables::Size = iptables::Size { users: 5, rules: 6 };
/// A table under test and its hook, in the order in which an incoming packet passes them.
type Tables = [(&'static str, Hook); 2];
const IPTABLES: Tables = [("raw", Hook::Prerouting), ("filter", Hook::Input)];
const NATIVE: Tables = [("early", Hook::Prerouting), ("late", Hook::Input)];

/// A namespace that sends and one that judges.
struct Pair {
    sender: Lab,
    judge: Lab,
}

impl Pair {
    fn new() -> Self {
        let (sender, judge) = (Lab::new(), Lab::new());
        // Else neighbour discovery and multicast reports would pass between two readings now and then.
        for lab in [&sender, &judge] {
            lab.run("sysctl -q net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        }
        let path = judge.path().display().to_string().replace("self", &process::id().to_string());
        sender.run(&format!("ip link add outer type veth peer name inner netns {path}"));
        sender.run("ip address add 10.99.0.1/24 dev outer");
        sender.run("ip link set outer up");
        judge.run("ip address add 10.99.0.2/24 dev inner");
        judge.run("ip link set inner up");
        judge.run("sysctl -q net.ipv4.icmp_ratelimit=0");
        Self { sender, judge }
    }

    fn tables(&self, backend: Backend, names: &Tables) -> Vec<TableIndex> {
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
        names.iter().map(|(name, _)| find(name)).collect()
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
    /// `verdict`: what the kernel says that the rule gave, if it ended the walk.
    fn rule(&mut self, table: &TableIndex, step: Step, verdict: Option<Verdict>) {
        self.steps.push(step);
        let known = match table.chains[step.chain.0].rules[step.rule].effect {
            // To the kernel a REJECT is a DROP.
            Effect::Final { verdict, .. } => Some(verdict),
            _ => None,
        };
        self.end = known.or(verdict).map(|verdict| (Decision::Rule(step), verdict));
    }

    fn nft(&mut self, table: &TableIndex, event: &NftStep) {
        let chain = chain(table, &event.chain);
        match &event.kind {
            NftStepKind::Rule { handle, verdict } => {
                let rules = &table.chains[chain.0].rules;
                let rule = rules.iter().position(|r| r.handle == Some(*handle)).unwrap();
                let ended = if let NftVerdict::Final(verdict) = verdict { Some(*verdict) } else { None };
                self.rule(table, Step { chain, rule }, ended);
                assert_eq!(ended.is_some(), self.end.is_some(), "{event:?} in {table:#?}");
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
            self.rule(table, Step { chain, rule }, None);
        } else if let Some(base) = &known.base {
            self.end = Some((Decision::Policy, base.policy));
        }
    }
}

fn base_chain(table: &TableIndex, hook: Hook) -> ChainRef {
    ChainRef(table.chains.iter().position(|c| c.base.as_ref().is_some_and(|b| b.hook == hook)).unwrap())
}

fn chain(table: &TableIndex, name: &str) -> ChainRef {
    ChainRef(table.chains.iter().position(|c| c.name == name).unwrap())
}

/// What the witness says of one packet, table by table, up to where it ended.
fn stories(witness: &mut Witness, tables: &[TableIndex], context: &str) -> Vec<Story> {
    let deadline = Instant::now() + *PATIENCE;
    let mut stories = vec![Story::default(); tables.len()];
    let ended = |stories: &[Story]| {
        let dead = stories.iter().any(|s| s.end.is_some_and(|(_, verdict)| verdict != Verdict::Accept));
        dead || stories.last().unwrap().end.is_some()
    };
    while !ended(&stories) {
        assert!(Instant::now() < deadline, "{context}: the story does not end: {stories:#?}");
        for event in witness.wait(*PATIENCE).unwrap() {
            let name = match &event {
                TraceEvent::Nft(step) => &step.table,
                TraceEvent::Legacy(step) => &step.table,
                TraceEvent::Begun { .. } => continue,
                TraceEvent::Lost => panic!("{context}: events were lost"),
            };
            let number = tables.iter().position(|t| t.name == *name).unwrap();
            match &event {
                TraceEvent::Nft(step) => stories[number].nft(&tables[number], step),
                TraceEvent::Legacy(step) => stories[number].legacy(&tables[number], step),
                TraceEvent::Begun { .. } | TraceEvent::Lost => {}
            }
        }
    }
    stories
}

/// How many walks were compared, and how many of them were exact.
#[derive(Debug, Default)]
struct Score {
    walks: u64,
    exact: u64,
    /// Readings that no walk explains: there should be none, since nothing but the packets in question passes.
    unexplained: u64,
}

/// One backend's trial.
struct Trial {
    backend: Backend,
    names: Tables,
    pair: Pair,
    witness: Witness,
    sender: UdpSocket,
    /// Takes what arrives, so that no ICMP error answers it.
    _receiver: UdpSocket,
    score: Score,
}

impl Trial {
    fn new(backend: Backend, names: Tables) -> Self {
        let pair = Pair::new();
        let mut filter = Filter { protocol: 17, active: 1, ..Filter::default() };
        filter.destination_port.ranges[0] = [PORT, PORT];
        filter.destination_port.count = 1;
        let witness = pair.judge.inside(|| {
            let legacy = (backend == Backend::IptablesLegacy).then(|| LegacyLog::bind().unwrap());
            Witness::start(&filter, legacy).unwrap()
        });
        let sender = pair.sender.inside(|| UdpSocket::bind(("10.99.0.1", 0)).unwrap());
        let receiver = pair.judge.inside(|| UdpSocket::bind(("10.99.0.2", PORT)).unwrap());
        Self { backend, names, pair, witness, sender, _receiver: receiver, score: Score::default() }
    }

    fn send(&self) {
        // An ICMP error that answers an earlier packet is reported here, and then this one was not sent.
        if self.sender.send_to(b"x", ("10.99.0.2", PORT)).is_err() {
            self.sender.send_to(b"x", ("10.99.0.2", PORT)).unwrap();
        }
    }

    /// Sends packets through the ruleset that is loaded.
    fn compare(&mut self, context: &str) {
        let tables = self.pair.tables(self.backend, &self.names);
        for packet in 0..PACKETS {
            let context = format!("{context}, packet {packet}");
            let before: Vec<_> = tables.iter().map(|t| self.pair.counters(t)).collect();
            self.send();
            let stories = stories(&mut self.witness, &tables, &context);
            // The answer of a REJECT leaves through OUTPUT of the same tables.
            let rejected =
                stories.iter().any(|s| s.end.is_some_and(|(_, verdict)| verdict == Verdict::Reject));
            let flags = if rejected { HITS_INTERLEAVED } else { 0 };
            for (number, (table, story)) in tables.iter().zip(&stories).enumerate() {
                let hits = hits(&before[number], &self.pair.counters(table));
                self.judge(table, base_chain(table, self.names[number].1), &hits, flags, story, &context);
            }
        }
    }

    fn judge(
        &mut self,
        table: &TableIndex,
        base: ChainRef,
        hits: &[Hit],
        flags: u32,
        story: &Story,
        context: &str,
    ) {
        let Some((decision, verdict)) = story.end else { return };
        let fate = if verdict == Verdict::Accept { Fate::Passed } else { Fate::Dropped };
        let walk = solve(table, base, hits, flags, fate);
        self.score.walks += 1;
        if walk.is_exact() {
            self.score.exact += 1;
            let found = (&walk.steps, walk.decision, walk.verdict);
            assert_eq!(found, (&story.steps, Some(decision), Some(verdict)), "{context}: {table:#?}");
        }
        let part = walk.steps.iter().all(|step| story.steps.contains(step));
        assert!(part, "{context}: {walk:?} against {story:?} in {table:#?}");
        self.score.unexplained += u64::from(walk.inexact == Some(Inexact::NoWalk));
    }

    fn done(&self, least_percent: u64) {
        let Score { walks, exact, unexplained } = self.score;
        eprintln!("{:?}: {exact} of {walks} walks exact", self.backend);
        assert!(walks > RULESETS * PACKETS as u64, "{walks} walks in all");
        assert_eq!(unexplained, 0, "of {walks} readings: no walk explains them");
        assert!(exact * 100 >= walks * least_percent, "{exact} of {walks} exact");
    }
}

fn iptables(backend: Backend, restore: &str) {
    let mut trial = Trial::new(backend, IPTABLES);
    for seed in 0..RULESETS {
        let dice = &mut Dice::new(seed);
        let words = iptables::Words {
            v6: false,
            near: "10.99.0.1".to_owned(),
            far: "10.99.0.2".to_owned(),
            device: "inner".to_owned(),
            set: None,
        };
        let tables = IPTABLES
            .map(|(table, hook)| iptables::table(dice, &words, table, &[hook.iptables_name()], "", SIZE));
        let rules = rules::script(Syntax::Iptables, &tables, None);
        trial.pair.judge.feed(&[restore], &rules);
        trial.compare(&format!("{restore}, seed {seed}:\n{rules}"));
    }
    trial.done(95);
}

#[test]
fn iptables_legacy() {
    iptables(Backend::IptablesLegacy, "iptables-legacy-restore");
}

#[test]
fn iptables_nft() {
    iptables(Backend::IptablesNft, "iptables-nft-restore");
}

/// Rules without a counter make many walks uncertain, and none may be wrong.
#[test]
fn native_nft() {
    let mut trial = Trial::new(Backend::Nftables, NATIVE);
    for seed in 0..RULESETS {
        let dice = &mut Dice::new(seed);
        let [(early, _), (late, _)] = NATIVE;
        let words = nft::Words {
            near: ["10.99.0.1".to_owned(), "fd99::1".to_owned()],
            far: ["10.99.0.2".to_owned(), "fd99::2".to_owned()],
            device: "inner".to_owned(),
            counted: 3,
            maps: true,
        };
        let tables = [(early, "prerouting", -300), (late, "input", 0)]
            .map(|(name, hook, priority)| nft::table(dice, &words, name, &[("base", hook, priority)], ""));
        let rules = rules::script(Syntax::Nft, &tables, None);
        trial.pair.judge.nft(&rules);
        trial.compare(&format!("nft, seed {seed}:\n{rules}"));
    }
    trial.done(30);
}
