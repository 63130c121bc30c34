//! A packet's whole way and what it came to.

use jiff::Timestamp;
use serde::Serialize;

use super::{Packet, ProgramFate, ProgramStage, Stage, StageKind, Tuple};

/// The note of a journey whose SYN a listener took and freed without an answer.
pub const UNANSWERED: &str = "the listening socket took it and sent no answer";

/// Direction of a packet in its connection, as conntrack says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Original,
    Reply,
}

/// One packet's journey through the traced namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Journey {
    pub id: u64,
    /// Journeys of one connection share it; `None` where conntrack does not know the packet.
    pub flow: Option<u64>,
    pub direction: Option<Direction>,
    /// Wall clock at first sight.
    pub time: Timestamp,
    pub packet: Packet,
    pub stages: Vec<Stage>,
    pub conntrack: Option<Conntrack>,
    pub outcome: Outcome,
    pub findings: Vec<Finding>,
    /// What could not be seen of this packet, in words (`joined after raw`, `copy of journey 4`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl Journey {
    /// The XDP and tc programs of others that judged it, in order.
    pub fn programs(&self) -> impl DoubleEndedIterator<Item = &ProgramStage> {
        self.stages.iter().filter_map(|stage| match &stage.kind {
            StageKind::Program(program) => Some(program),
            _ => None,
        })
    }

    /// The program that ended it, where one did.
    #[must_use]
    pub fn fatal_program(&self) -> Option<&ProgramStage> {
        let index = self.outcome.stage.filter(|_| self.outcome.result.is_bad())?;
        match &self.stages.get(index)?.kind {
            StageKind::Program(program) => {
                let ends = matches!(program.verdict.fate(), ProgramFate::Dropped | ProgramFate::Taken);
                Some(program).filter(|_| ends)
            }
            _ => None,
        }
    }
}

/// Conntrack's idea of the packet, as iptables `--ctstate` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CtState {
    New,
    Established,
    Related,
    Invalid,
    Untracked,
}

impl CtState {
    pub const ALL: [Self; 5] = [Self::New, Self::Established, Self::Related, Self::Invalid, Self::Untracked];

    /// The word in the JSON contract, and nft's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
            Self::Invalid => "invalid",
            Self::Untracked => "untracked",
        }
    }

    /// By name, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(name))
    }
}

/// The packet's conntrack entry at last sight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conntrack {
    pub state: CtState,
    /// `None` for invalid and untracked packets.
    pub original: Option<Tuple>,
    pub reply: Option<Tuple>,
    pub mark: Option<u32>,
    pub zone: Option<u16>,
    /// `IPS_*` bits (include/uapi/linux/netfilter/nf_conntrack_common.h).
    pub status: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeKind {
    Delivered,
    Forwarded,
    Dropped,
    Rejected,
    Incomplete,
}

impl OutcomeKind {
    /// The word in the JSON contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Forwarded => "forwarded",
            Self::Dropped => "dropped",
            Self::Rejected => "rejected",
            Self::Incomplete => "incomplete",
        }
    }

    /// Whether `--drops` shows it.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Dropped | Self::Rejected)
    }
}

impl Outcome {
    /// Nothing is known but the result.
    #[must_use]
    pub fn new(result: OutcomeKind) -> Self {
        Self {
            result,
            stage: None,
            reason: None,
            location: None,
            device: None,
            left_as: None,
            socket: None,
            answer: None,
        }
    }
}

/// How the journey ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Outcome {
    pub result: OutcomeKind,
    /// Index into `stages` of the place where it ended, for a drop inside a stage.
    pub stage: Option<usize>,
    /// `enum skb_drop_reason` without its prefix, as this kernel names it.
    pub reason: Option<String>,
    /// Kernel function that freed the packet.
    pub location: Option<String>,
    /// Device through which it left the traced scope.
    pub device: Option<String>,
    /// What it was when it was handed to that device; left out where that was not seen whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_as: Option<Tuple>,
    /// Socket that received it.
    pub socket: Option<LocalSocket>,
    /// `tcp-reset`, or the ICMP error's name as iptables `--reject-with` spells it.
    pub answer: Option<String>,
}

/// A local socket and its owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LocalSocket {
    /// `address:port`
    pub local: String,
    pub process: Option<String>,
    pub pid: Option<u32>,
}

/// Why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable code, documented in docs/findings.md.
    pub code: &'static str,
    /// The cause in one sentence.
    pub summary: String,
    pub evidence: Vec<String>,
    /// A command or setting that can be pasted, or what to look at.
    pub fix: String,
}
