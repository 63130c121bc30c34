//! What a scenario file may hold.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;
use serde_json::Value;

use crate::{ruleset::DockerLayout, topology::Topology};

/// A scenario after replacement of its names. The file also has `backends` and `families` to run it with (both,
/// where it does not say) and `variants` with names of their own; see [`super::case`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What is set up and what becomes of it, in one line.
    pub title: String,
    pub topology: Topology,
    /// Settings of the whole machine by their dotted names, set while the scenario runs: it needs a machine that may
    /// be changed at will, and has it alone.
    #[serde(default)]
    pub machine: BTreeMap<String, String>,
    #[serde(default)]
    pub prepare: Vec<Step>,
    #[serde(default)]
    pub server: Vec<Listen>,
    pub trace: Trace,
    pub traffic: Vec<Attempt>,
    #[serde(default)]
    pub journey: Vec<Expected>,
    /// Every journey ends well and none has a finding.
    #[serde(default)]
    pub healthy: bool,
    /// Items of `pathtrace doctor`, while the held connections are open; patterns of [`crate::expect`].
    #[serde(default)]
    pub doctor: Vec<Value>,
}

/// One step of the setting up.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// Role of the namespace.
    #[serde(rename = "in")]
    pub space: String,
    #[serde(flatten)]
    pub action: Action,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A file in iptables-save syntax, for the backend under test.
    Restore(String),
    /// The same for the other backend.
    RestoreOther(String),
    /// Commands of the iptables under test, one a line, without the program's name.
    Iptables(String),
    /// An nft script.
    Nft(String),
    /// Docker's own rules for its bridge networks.
    Docker(Docker),
    /// Settings by their dotted names.
    Sysctl(BTreeMap<String, String>),
    /// Commands, one a line, words parted by blanks.
    Run(String),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Docker {
    pub layout: DockerLayout,
    #[serde(default)]
    pub publish: Vec<Publish>,
}

/// `-p port:to_port` of a container of the first network.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    pub port: Number,
    pub to: IpAddr,
    pub to_port: Number,
}

/// A port number, or a string that holds one after replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Digits")]
pub struct Number(pub u16);

#[derive(Deserialize)]
#[serde(untagged)]
enum Digits {
    Plain(u16),
    Text(String),
}

impl TryFrom<Digits> for Number {
    type Error = String;

    fn try_from(digits: Digits) -> Result<Self, String> {
        match digits {
            Digits::Plain(number) => Ok(Self(number)),
            Digits::Text(text) => text.parse().map(Self).map_err(|e| format!("port {text:?}: {e}")),
        }
    }
}

/// A server that stays for the whole scenario.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    #[serde(rename = "in")]
    pub space: String,
    #[serde(default)]
    pub kind: ServerKind,
    pub address: IpAddr,
    pub port: Number,
    /// For a proxy: where it connects to.
    pub to: Option<IpAddr>,
    pub to_port: Option<Number>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    #[default]
    Tcp,
    Udp,
    TransparentTcp,
    TcpProxy,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    #[serde(rename = "in", default = "host")]
    pub space: String,
    /// Arguments of pathtrace, words parted by blanks; `@role` stands for that namespace's name.
    #[serde(default)]
    pub arguments: String,
}

fn host() -> String {
    "host".to_owned()
}

/// One attempt to get an answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    #[serde(rename = "from")]
    pub space: String,
    pub send: Send,
    pub to: IpAddr,
    pub port: Option<Number>,
    /// What must become of it; absent for what is sent without awaiting an answer.
    pub result: Option<Becomes>,
    /// The address under which the server must see the client.
    pub seen_as: Option<IpAddr>,
    /// TCP: the connection is opened, and used and closed only when the journeys were seen.
    #[serde(default)]
    pub hold: bool,
    /// Source address of a packet made by hand.
    pub source: Option<IpAddr>,
    /// Source port of a datagram; any, where it does not say.
    #[serde(default)]
    pub source_port: u16,
    /// IP protocol number of a packet made by hand.
    pub protocol: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Send {
    Tcp,
    Udp,
    Ping,
    /// A TCP ACK that belongs to no connection.
    StrayAck,
    /// An IP packet of `protocol`.
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Becomes {
    Answered,
    Refused,
    Unreachable,
    Silence,
}

/// A journey that must be shown; all keys but these two are a pattern of [`crate::expect`].
#[derive(Clone, Debug, Deserialize)]
pub struct Expected {
    pub about: String,
    #[serde(flatten)]
    pub pattern: serde_json::Map<String, Value>,
}
