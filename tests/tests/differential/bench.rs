//! A lab, the real binary and the witness in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tests::{
    netns::Netns,
    pathtrace::Pathtrace,
    random::packets::Packet,
    topology::{Family, Lab, Topology},
    traffic::{self, Flood, Server},
    wait::PATIENCE,
};
use tracer::config::Command;

use super::{
    case::{Case, Kind, Script, TAG, make_sets},
    score::Round,
    shown::{is_housekeeping, judgements},
    witness::Told,
};

/// How long a journey of which the kernel told may take to be shown. Some wait for a reply that may never come.
const LATEST: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);
/// Datagrams to this port ask whether pathtrace knows the ruleset that was just loaded.
const MARKER: u16 = 9;

pub(crate) struct Bench {
    lab: Lab,
    kind: Kind,
    trace: Pathtrace,
    told: Told,
    _servers: Vec<Server>,
    /// Other traffic while packets are sent.
    floods: Vec<Flood>,
    loads: u32,
    /// Lines of pathtrace that were looked at.
    read: usize,
}

impl Bench {
    pub(crate) fn new(kind: Kind, filter: &[&str]) -> Result<Self> {
        let lab = Lab::new(Topology::Routed)?;
        let host = lab.netns("host")?;
        calm(&lab)?;
        make_sets(host)?;
        let servers = servers(&lab)?;
        let words = ["pathtrace", "--json"].iter().chain(filter).map(Into::into);
        let Command::Trace(config) = Command::parse(words)? else { bail!("not a trace") };
        let mut told = Told::start(host, &config.filter)?;
        // The base chains are there from the start.
        let first =
            Case { kind, packets: Vec::new(), ..Case::random(kind, &mut tests::random::Dice::new(0), 0) };
        // A packet may still be judged by these when others are loaded in a loop.
        know(&mut told, &first, "first");
        first.script("first").load(&host.door()?)?;
        let trace = Pathtrace::start(Some(host), filter)?;
        Ok(Self { lab, kind, trace, told, _servers: servers, floods: Vec::new(), loads: 0, read: 0 })
    }

    /// From now on, packets of a round are sent amid other traffic. While rules are loaded there is none, or pathtrace would
    /// have no time to learn them where there are few CPUs.
    pub(crate) fn flood(&mut self, floods: Vec<Flood>) {
        self.floods = floods;
    }

    /// From now on, rules are replaced while packets are under way.
    pub(crate) fn expect_replacements(&mut self) {
        self.told.stories.may_be_twice = true;
    }

    /// Datagrams of other traffic.
    pub(crate) fn flooded(&self) -> u64 {
        self.floods.iter().map(Flood::sent).sum()
    }

    pub(crate) fn netns(&self, role: &str) -> Result<&Netns> {
        self.lab.netns(role)
    }

    /// A case's script under a tag of its own, which the witness is told of.
    pub(crate) fn prepare(&mut self, case: &Case) -> Script {
        self.loads += 1;
        let tag = format!("r{}", self.loads);
        know(&mut self.told, case, &tag);
        case.script(&tag)
    }

    /// Loads the rules, waits until pathtrace knows them, sends the packets and compares.
    pub(crate) fn round(&mut self, case: &Case) -> Result<Round> {
        let script = self.prepare(case);
        script.load(&self.lab.netns("host")?.door()?)?;
        let wrong = self.wait_until_current()?;
        let floods = std::mem::take(&mut self.floods);
        let round = traffic::amid(&floods, || self.send(&case.packets));
        self.floods = floods;
        let mut round = round?;
        round.wrong.extend(wrong);
        Ok(round)
    }

    /// Until a packet is judged by rules that pathtrace has read. Gives what was wrong meanwhile.
    fn wait_until_current(&mut self) -> Result<Vec<String>> {
        let target = (self.lab.address("server", Family::Ipv4)?, MARKER).into();
        let mut before = self.trace.lines().len();
        let deadline = Instant::now() + *PATIENCE;
        loop {
            let client = self.lab.netns("client")?;
            drop(traffic::lone_datagram(client, target)?);
            let seen = self.trace.lines_after(before);
            before += seen.len();
            let mut markers = seen.iter().filter(|line| line["packet"]["destination_port"] == MARKER);
            // While they are read anew, stages say that rules are being changed, or that no reading arrived.
            let is_read = |journey: &Value| {
                let text = journey.to_string();
                !["being changed", "no counter reading"].iter().any(|reason| text.contains(reason))
            };
            if markers.next_back().is_some_and(is_read) {
                break;
            }
            anyhow::ensure!(Instant::now() < deadline, "pathtrace does not learn the new rules");
            std::thread::sleep(PAUSE);
        }
        // What was judged until here may rightly not be exact.
        Ok(self.settle()?.wrong)
    }

    /// Waits until every packet under way has been told by both sides.
    fn settle(&mut self) -> Result<Round> {
        let deadline = Instant::now() + LATEST;
        let mut round = Round::default();
        loop {
            let lines = self.trace.lines_after(self.read);
            // The kernel tells before the packet goes on, and so before pathtrace does.
            self.told.listen()?;
            for journey in lines.iter().filter(|line| line["type"] == "journey") {
                self.compare(journey, &mut round);
            }
            self.read += lines.len();
            if !self.told.is_open() || Instant::now() > deadline {
                round.untold = self.told.stories.left();
                round.untold_stories = self.told.stories.told();
                self.told.stories.clear();
                return Ok(round);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends the trace; gives how many events it lost.
    pub(crate) fn end(self) -> Result<u64> {
        let report = self.trace.stop()?;
        anyhow::ensure!(report.status.success(), "{}: {}", report.status, report.stderr);
        report.summary()?["events_lost"].as_u64().context("no count of lost events")
    }

    /// Sends packets and compares what both sides tell of them and of what they set off.
    pub(crate) fn send(&mut self, packets: &[Packet]) -> Result<Round> {
        let mut kept = Vec::new();
        for packet in packets {
            kept.push(packet.send(&self.lab).with_context(|| format!("{packet:?}"))?);
            self.told.take()?;
        }
        drop(kept);
        self.settle()
    }

    fn compare(&mut self, journey: &Value, round: &mut Round) {
        if is_housekeeping(journey) {
            return;
        }
        let shown = judgements(journey, self.told.table(), self.kind == Kind::Legacy);
        round.journey(journey, &shown);
        for one in &shown {
            self.told.end(&one.key);
            let known = self.told.stories.of(&one.key).to_vec();
            if known.is_empty() {
                round.unwitnessed += 1;
            } else if !one.exact {
                self.told.stories.take_any(&one.key);
            } else if !self.told.stories.take(&one.key, &one.story) || one.bad_text.is_some() {
                round.wrong.push(format!(
                    "{:?}\nis shown as {:?}\n{}\nthe kernel told {known:?}\nstage {}\nin {journey}",
                    one.key,
                    one.story,
                    one.bad_text.as_deref().unwrap_or("its texts are right"),
                    one.stage,
                ));
            }
        }
    }
}

/// Tells the witness of a script's chains.
fn know(told: &mut Told, case: &Case, tag: &str) {
    if case.kind != Kind::Legacy {
        return;
    }
    for (family, tables) in [("ip", &case.v4), ("ip6", &case.v6)] {
        // Base chains are remembered with the name of the chain that they enter first.
        told.know(family, tables, |chain| match chain.strip_suffix(TAG) {
            Some(user) => format!("{user}{tag}"),
            None => format!("{chain}T{tag}"),
        });
    }
}

/// Nothing happens but what the test does.
fn calm(lab: &Lab) -> Result<()> {
    let neighbours = [
        ("client", "eth0", "host", "eth0"),
        ("server", "eth0", "host", "eth1"),
        ("outside", "eth0", "host", "eth2"),
    ];
    for (left, left_device, right, right_device) in neighbours {
        for (one, device, other, other_device) in
            [(left, left_device, right, right_device), (right, right_device, left, left_device)]
        {
            let link: Vec<Value> = serde_json::from_str(
                &lab.netns(other)?.exec(&format!("ip -j address show dev {other_device}"))?,
            )?;
            let hardware = link[0]["address"].as_str().context("no hardware address")?;
            for address in
                link[0]["addr_info"].as_array().into_iter().flatten().filter_map(|a| a["local"].as_str())
            {
                lab.netns(one)?.exec(&format!(
                    "ip neigh replace {address} lladdr {hardware} dev {device} nud permanent"
                ))?;
            }
        }
    }
    for role in ["client", "host", "server"] {
        for (setting, value) in [("tcp_synack_retries", "0"), ("icmp_ratelimit", "0")] {
            lab.netns(role)?.set_sysctl(&format!("net.ipv4.{setting}"), value)?;
        }
    }
    Ok(())
}

fn servers(lab: &Lab) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    // This takes IPv4 as well.
    let any = lab.address("any", Family::Ipv6)?;
    for role in ["client", "host", "server"] {
        let netns = lab.netns(role)?;
        servers.push(Server::tcp(netns, (any, 80).into())?);
        servers.push(Server::udp(netns, (any, 5001).into())?);
    }
    Ok(servers)
}
