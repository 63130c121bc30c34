//! One table's judgement of one packet.

use serde::Serialize;

use super::Tuple;

/// Netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Ingress,
    Egress,
}

impl Hook {
    /// The spelling that iptables users know.
    #[must_use]
    pub fn iptables_name(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
            Self::Ingress => "INGRESS",
            Self::Egress => "EGRESS",
        }
    }

    /// From `enum nf_inet_hooks` (include/uapi/linux/netfilter.h).
    #[must_use]
    pub fn from_inet_number(number: u8) -> Option<Self> {
        [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting]
            .get(usize::from(number))
            .copied()
    }

    /// The number in `enum nf_inet_hooks`; `None` for the netdev hooks.
    #[must_use]
    pub fn inet_number(self) -> Option<u8> {
        (0..5).find(|n| Self::from_inet_number(*n) == Some(self))
    }
}

/// Who owns the table that judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    IptablesLegacy,
    IptablesNft,
    Nftables,
}

impl Backend {
    /// The word in the JSON contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesLegacy => "iptables-legacy",
            Self::IptablesNft => "iptables-nft",
            Self::Nftables => "nftables",
        }
    }
}

/// Family of a table, as nft spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableFamily {
    Ip,
    Ip6,
    Inet,
    Bridge,
    Netdev,
    Arp,
}

impl TableFamily {
    /// The word in nft's syntax and in the JSON contract.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
            Self::Arp => "arp",
        }
    }

    /// The family of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ip, Self::Ip6, Self::Inet, Self::Bridge, Self::Netdev, Self::Arp]
            .into_iter()
            .find(|family| family.name() == name)
    }
}

/// What a table's walk ended in. `Reject` is a drop with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Accept,
    Drop,
    Reject,
    Queue,
    Stolen,
    Repeat,
}

/// What decided: a rule, the chain's policy, or an established NAT mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DecidedBy {
    Rule,
    Policy,
    Mapping,
}

/// Which mechanism named the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RulesSource {
    Counters,
    Nftrace,
    Probes,
}

/// What a NAT stage did. `Dnat` and `Snat` also name the rewriting of a reply's destination or source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NatKind {
    Dnat,
    Snat,
    Masquerade,
    Redirect,
}

/// A rule that matched, in the user's own words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MatchedRule {
    pub chain: String,
    /// As `iptables -L --line-numbers` counts: from 1 in its chain.
    pub position: u32,
    /// nft rule handle; `None` for iptables-legacy.
    pub handle: Option<u64>,
    /// iptables-save syntax, or as `nft list ruleset` prints it; `None` where no tool could be asked.
    pub text: Option<String>,
    /// `ACCEPT`, `DROP`, `DNAT`, `jump CHAIN`, `goto CHAIN`, `RETURN`, or nft's own verdict word.
    pub action: Option<String>,
}

/// Why nothing is certain of a packet that came while rules were replaced: begins [`NetfilterStage::inexact_because`].
pub const RULESET_CHANGED: &str = "the ruleset was being changed";

/// One base chain's judgement of the packet at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct NetfilterStage {
    pub hook: Hook,
    pub family: TableFamily,
    pub table: String,
    /// The base chain; `None` where only the NAT engine acted and no chain hangs there.
    pub chain: Option<String>,
    pub priority: i32,
    pub backend: Option<Backend>,
    /// `None` while unknown (the trace ended inside).
    pub verdict: Option<Verdict>,
    pub decided_by: Option<DecidedBy>,
    /// The rules that matched, in order.
    pub rules: Vec<MatchedRule>,
    /// `None` where rules were not asked for or cannot be seen.
    pub rules_source: Option<RulesSource>,
    /// True only when `rules` and `decided_by` are certain and complete.
    pub exact: bool,
    /// Why `exact` is false, in a few words.
    pub inexact_because: Option<String>,
    pub nat: Option<NatKind>,
    /// For `decided_by: mapping`: the rule that made the mapping, when its first packet was seen.
    pub mapping_rule: Option<MatchedRule>,
    pub before: Tuple,
    pub after: Tuple,
}

impl NetfilterStage {
    /// Whether rules were replaced while this packet was judged: a ruleset that was read later need not be the one that
    /// judged it.
    #[must_use]
    pub fn was_being_changed(&self) -> bool {
        self.inexact_because.as_deref().is_some_and(|why| why.starts_with(RULESET_CHANGED))
    }
}
