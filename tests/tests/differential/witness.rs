//! The kernel's own trace, put together into stories.

use std::{collections::HashMap, time::Duration};

use anyhow::{Result, bail};
use tests::{netns::Netns, random::rules::Table};
use tracer::rules::nftrace::{
    Headers, LegacyLog, LegacyStep, LegacyStepKind, NftStep, NftStepKind, NftVerdict, TraceEvent, Witness,
};
use tracer_common::filter::Filter;

use super::story::{Key, Stories, Story};

/// Rules in each chain of iptables-legacy's tables: family, table and chain.
pub(crate) type Sizes = HashMap<(&'static str, String, String), usize>;

pub(crate) struct Told {
    witness: Witness,
    nft: HashMap<u32, (Key, Vec<(String, u64)>)>,
    legacy: HashMap<(u8, String, u64), Group>,
    pub(crate) stories: Stories,
    pub(crate) sizes: Sizes,
}

/// TRACE lines of one packet in one table.
struct Group {
    key: Key,
    lines: Vec<Line>,
    /// Nothing was added since the last look.
    still: bool,
}

/// A TRACE line.
#[derive(Clone, Debug)]
struct Line {
    chain: String,
    position: u32,
    kind: LegacyStepKind,
}

impl Told {
    /// The table that switches the trace on is the witness's own: it is no part of the ruleset under test.
    pub(crate) fn start(netns: &Netns, filter: &Filter) -> Result<Self> {
        let witness = netns.run(|| -> Result<_> { Ok(Witness::start(filter, Some(LegacyLog::bind()?))?) })?;
        Ok(Self {
            witness,
            nft: HashMap::new(),
            legacy: HashMap::new(),
            stories: Stories::default(),
            sizes: Sizes::new(),
        })
    }

    pub(crate) fn table(&self) -> &str {
        self.witness.table()
    }

    /// Whether the kernel told of a packet that was not shown yet, or is still telling.
    pub(crate) fn is_open(&self) -> bool {
        !self.legacy.is_empty() || self.stories.is_open()
    }

    pub(crate) fn know(&mut self, family: &'static str, tables: &[Table], rename: impl Fn(&str) -> String) {
        for table in tables {
            for chain in &table.chains {
                self.sizes.insert((family, table.name.clone(), rename(&chain.name)), chain.rules.len());
            }
        }
    }

    /// Everything that the kernel has told up to now; twice nothing new of a walk ends it.
    pub(crate) fn listen(&mut self) -> Result<()> {
        self.take()?;
        // The last line of a walk does not say so: but for a packet that is under way just now, it was the last.
        self.end_where(|group| std::mem::replace(&mut group.still, true));
        Ok(())
    }

    /// Makes room for more: what waits to be read fills up the witness's sockets.
    pub(crate) fn take(&mut self) -> Result<()> {
        for event in self.witness.wait(Duration::ZERO)? {
            match event {
                TraceEvent::Nft(step) => self.nft(step),
                TraceEvent::Legacy(step) => self.legacy(step),
                TraceEvent::Begun { .. } => {}
                TraceEvent::Lost => bail!("the witness lost events: send less"),
            }
        }
        Ok(())
    }

    /// The packet is known to have passed: there will be no further line of it.
    pub(crate) fn end(&mut self, key: &Key) {
        self.end_where(|group| group.key == *key);
    }

    fn end_where(&mut self, is_over: impl Fn(&mut Group) -> bool) {
        let over: Vec<Group> =
            self.legacy.extract_if(|_, group| is_over(group)).map(|(_, group)| group).collect();
        for Group { key, lines, .. } in over {
            self.end_legacy(key, &lines);
        }
    }

    fn nft(&mut self, step: NftStep) {
        if let (Some(packet), Some(family)) = (&step.packet, step.family) {
            let key = key(family.name(), &step.table, &step.chain, packet);
            self.nft.insert(step.id, (key, Vec::new()));
        }
        let Some((_, steps)) = self.nft.get_mut(&step.id) else { return };
        let end = match step.kind {
            NftStepKind::Rule { handle, verdict } => {
                steps.push((step.chain, handle));
                match verdict {
                    NftVerdict::Final(verdict) => Some((true, verdict)),
                    _ => None,
                }
            }
            NftStepKind::Return => None,
            NftStepKind::Policy { verdict } => verdict.map(|verdict| (false, verdict)),
        };
        if let Some((by_rule, verdict)) = end
            && let Some((key, steps)) = self.nft.remove(&step.id)
        {
            let verdict = Some(format!("{verdict:?}").to_lowercase());
            self.stories.add(key, Story { steps, by_rule, verdict });
        }
    }

    fn legacy(&mut self, step: LegacyStep) {
        let (Some(packet), Some(hook)) = (&step.packet, step.hook) else { return };
        let base = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"][usize::from(hook)];
        let family = if packet.tuple.source.is_ipv4() { "ip" } else { "ip6" };
        let key = key(family, &step.table, base, packet);
        let group = (hook, step.table, step.digest);
        let line = Line { chain: step.chain, position: step.position, kind: step.kind };
        // Every base chain begins with a rule that every packet matches.
        if line.chain == base
            && line.position == 1
            && let Some(Group { key, lines, .. }) = self.legacy.remove(&group)
        {
            self.end_legacy(key, &lines);
        }
        let group =
            self.legacy.entry(group).or_insert_with(|| Group { key, lines: Vec::new(), still: false });
        group.lines.push(line);
        group.still = false;
    }

    fn end_legacy(&mut self, key: Key, lines: &[Line]) {
        let family = if key.family == "ip" { "ip" } else { "ip6" };
        let size = |line: &Line| self.size(family, &key, lines, line);
        let steps: Vec<_> = lines
            .iter()
            .filter(|line| line.kind == LegacyStepKind::Rule || line.position as usize <= size(line))
            .map(|line| (line.chain.clone(), u64::from(line.position)))
            .collect();
        let by_rule = lines.last().is_some_and(|last| last.position as usize <= size(last));
        self.stories.add(key, Story { steps, by_rule, verdict: None });
    }

    /// Rules in the chain of a line. Base chains have the same name in every ruleset: the chain that their first rule
    /// enters tells which it is.
    fn size(&self, family: &'static str, key: &Key, lines: &[Line], line: &Line) -> usize {
        let tag = lines.get(1).map_or("", |line| line.chain.as_str());
        let known = |chain: String| self.sizes.get(&(family, key.table.clone(), chain)).copied();
        known(format!("{}{tag}", line.chain)).or_else(|| known(line.chain.clone())).unwrap_or(0)
    }
}

fn key(family: &str, table: &str, chain: &str, packet: &Headers) -> Key {
    let Headers { protocol, tuple, ip_id, tcp_flags, .. } = packet;
    Key {
        family: family.to_owned(),
        table: table.to_owned(),
        chain: chain.to_owned(),
        protocol: protocol.to_string(),
        ends: [
            (tuple.source.to_string(), tuple.source_port),
            (tuple.destination.to_string(), tuple.destination_port),
        ],
        ip_id: *ip_id,
        flags: tcp_flags.map(letters),
    }
}

fn letters(byte: u8) -> String {
    "SAFRPUEC"
        .chars()
        .zip([2, 0x10, 1, 4, 8, 0x20, 0x40, 0x80])
        .filter(|(_, bit)| byte & bit != 0)
        .map(|(l, _)| l)
        .collect()
}
