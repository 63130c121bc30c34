//! What a machine showed of each scenario, without what no two runs share: kernels are compared by it.
//!
//! Left out are times, ids, processes, rule handles, numbers of devices and namespaces, what fills a packet, and ports
//! that the kernel chose; of findings all but the code. `location` is left out, too: which function frees a packet, and
//! whether it was inlined, is each kernel's own. Retransmissions and segments behind the opening of a connection are
//! left out because how many there are is a matter of time.

mod difference;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::Path,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{expect, machine};

/// The first port that Linux chooses by itself (`net.ipv4.ip_local_port_range`, which labs leave alone).
const FIRST_CHOSEN_PORT: u64 = 32768;

/// ICMPv6 types that hosts send when they like: listener queries and reports, routers and neighbours (RFC 2710, 4861, 3810).
const UNASKED: [u64; 9] = [130, 131, 132, 133, 134, 135, 136, 137, 143];

/// Keys whose values are of one run or one kernel only.
const OF_ONE_RUN: [&str; 16] = [
    "type",
    "id",
    "flow",
    "time",
    "elapsed_ns",
    "netns",
    "ifindex",
    "handle",
    "pid",
    "ip_id",
    "length",
    "segments",
    "status",
    "location",
    "notes",
    "ttl",
];

/// What of a kernel decides how much it can say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knows {
    /// Drop reasons that it has names for.
    pub reasons: BTreeSet<String>,
    /// Whether it describes nftables' types: without them nobody can read rules of nft.
    pub nft_types: bool,
}

impl Knows {
    fn here() -> Self {
        Self { reasons: machine::drop_reasons().clone(), nft_types: machine::has_nft_types() }
    }
}

/// What one machine showed, by case.
#[derive(Clone, Debug, Default)]
pub struct Stories(BTreeMap<String, Story>);

/// One case's journeys on one machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Story {
    knows: Knows,
    journeys: Vec<Value>,
}

/// The file of a story, in a folder of its case.
const STORY: &str = "story.json";

/// Puts this machine's story of a case into a folder, which is made.
///
/// # Errors
/// When the file cannot be written.
pub fn write(folder: &Path, case: &str, lines: &[Value]) -> Result<()> {
    let folder = folder.join(case);
    let story = Story { knows: Knows::here(), journeys: told(lines) };
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(folder.join(STORY), serde_json::to_string_pretty(&story)?)
        .with_context(|| format!("write {}", folder.display()))
}

impl Stories {
    /// Reads all of a folder; none where it is not there.
    ///
    /// # Errors
    /// When a file is no story.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut stories = Self::default();
        stories.add(folder, folder)?;
        Ok(stories)
    }

    fn add(&mut self, top: &Path, folder: &Path) -> Result<()> {
        if let Ok(text) = fs::read_to_string(folder.join(STORY)) {
            let story = serde_json::from_str(&text).with_context(|| folder.display().to_string())?;
            self.0.insert(folder.strip_prefix(top)?.display().to_string(), story);
        }
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                self.add(top, &entry.path())?;
            }
        }
        Ok(())
    }

    /// Each case that both have, with the first differences in words, ours before theirs; none where they tell the same.
    #[must_use]
    pub fn compared(&self, theirs: &Self) -> Vec<(String, Option<String>)> {
        let both = self.0.iter().filter_map(|(case, ours)| Some((case, ours, theirs.0.get(case)?)));
        both.map(|(case, ours, others)| (case.clone(), difference::between(ours, others))).collect()
    }
}

/// The journeys that open something, one of each packet: a second one meets what the first has left behind. One that was
/// interrupted in its rules, which is a matter of time, stands back.
fn told(lines: &[Value]) -> Vec<Value> {
    let mut journeys: Vec<&Value> = expect::journeys(lines).filter(|journey| opens(journey)).collect();
    journeys.sort_by_key(|journey| journey["id"].as_u64());
    let mut story: Vec<Value> = Vec::new();
    for journey in journeys.into_iter().map(plain) {
        match story.iter_mut().find(|known| known["packet"] == journey["packet"]) {
            None => story.push(journey),
            Some(known) if is_interrupted(known) => *known = journey,
            Some(_) => {}
        }
    }
    story.sort_by_key(|journey| journey["packet"].to_string());
    story
}

fn is_interrupted(journey: &Value) -> bool {
    const INTERRUPTED: [&str; 2] =
        ["another packet passed on this CPU at the same time", "the packet changed CPU in this table"];
    let stages = journey["stages"].as_array().into_iter().flatten();
    let mut why = stages.filter_map(|stage| stage["inexact_because"].as_str());
    why.any(|why| INTERRUPTED.contains(&why))
}

/// Whether a packet comes once in a lab, whatever the time that all takes.
fn opens(journey: &Value) -> bool {
    let packet = &journey["packet"];
    match packet["tcp_flags"].as_str() {
        // A reset that acknowledges nothing answers what came too late for its socket.
        Some(flags) => flags.contains('S') || (flags.contains('R') && flags.contains('A')),
        None => {
            packet["protocol"] != "icmp6"
                || packet["icmp_type"].as_u64().is_none_or(|t| !UNASKED.contains(&t))
        }
    }
}

/// A journey, or a part of it, without what is of one run only.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| !OF_ONE_RUN.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key.clone(), field(key, value))).collect())
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        _ => value.clone(),
    }
}

fn field(key: &str, value: &Value) -> Value {
    match (key, value) {
        ("findings", Value::Array(findings)) => {
            findings.iter().map(|finding| finding["code"].clone()).collect()
        }
        ("source_port" | "destination_port", Value::Number(port))
            if port.as_u64() >= Some(FIRST_CHOSEN_PORT) =>
        {
            json!("chosen")
        }
        // Who had a client's socket can be asked only while that is open.
        ("socket", Value::Object(socket)) if socket.get("local").is_some_and(is_of_client) => Value::Null,
        // Test binaries have a number behind their name.
        ("process", Value::String(name)) => json!(name.split('-').next()),
        _ => plain(value),
    }
}

fn is_of_client(local: &Value) -> bool {
    let address = local.as_str().and_then(|text| text.parse::<SocketAddr>().ok());
    address.is_some_and(|address| u64::from(address.port()) >= FIRST_CHOSEN_PORT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::told;

    #[test]
    fn a_story_has_each_opening_packet_once_and_nothing_of_its_run() {
        let journey = |id: u64, port: u16, flags: &str, state: &str| {
            json!({"type": "journey", "id": id, "time": "now", "packet": {"source_port": port, "tcp_flags": flags},
                "stages": [{"elapsed_ns": id, "rules": [{"handle": id, "text": "-j DROP"}]}],
                "conntrack": {"state": state}, "findings": [{"code": "a", "fix": "b"}]})
        };
        let mut interrupted = journey(6, 40001, "S", "new");
        interrupted["stages"][0]["inexact_because"] =
            "another packet passed on this CPU at the same time".into();
        let lines = [
            journey(9, 40001, "S", "established"),
            journey(7, 40000, "S", "new"),
            journey(8, 40000, "A", "new"),
            journey(10, 40000, "R", "established"),
            interrupted,
            json!({"type": "notice"}),
        ];
        let expected = json!([{"packet": {"source_port": "chosen", "tcp_flags": "S"},
            "stages": [{"rules": [{"text": "-j DROP"}]}], "conntrack": {"state": "new"}, "findings": ["a"]}]);
        assert_eq!(json!(told(&lines)), expected);
    }
}
