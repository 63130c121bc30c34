//! Netfilter judged a packet that was only bridged.

use crate::model::{Hook, Verdict};

use super::{Answer, Case, Check, VERDICTS, words};

/// br_netfilter hands bridged packets to iptables, and a table there dropped one.
pub(super) struct BridgedPacketFiltered;

impl Check for BridgedPacketFiltered {
    fn code(&self) -> &'static str {
        "bridged-packet-filtered"
    }

    fn replaces(&self) -> &'static [&'static str] {
        &VERDICTS
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some((leg, judge)) = case.judge() else { return Answer::No };
        let network = case.network(leg.netns);
        // A routed packet's last input is the bridge itself, and it has a routing decision.
        let bridge = leg
            .input()
            .and_then(|port| Some((port, network?.bridge_of(port)?)))
            .filter(|_| judge.hook == Hook::Forward && leg.routes().next().is_none());
        let Some((port, bridge)) = bridge else { return Answer::No };
        let (setting, value) = match (case.is_ipv6(), case.settings(leg.netns)) {
            (false, settings) => ("bridge-nf-call-iptables", settings.and_then(|s| s.bridge_calls_iptables)),
            (true, settings) => ("bridge-nf-call-ip6tables", settings.and_then(|s| s.bridge_calls_ip6tables)),
        };
        if value == Some(false) {
            return Answer::No;
        }
        let did = if judge.verdict == Some(Verdict::Reject) { "rejected" } else { "dropped" };
        let summary = format!(
            "{} stays within bridge {}, but net.bridge.{setting} is on, so chain {} judged it like a routed packet and {did} it.",
            words::packet(case.protocol(), judge.before),
            bridge.name,
            judge.chain.as_deref().unwrap_or_else(|| judge.hook.iptables_name()),
        );
        let evidence = vec![
            format!("device: {port} is a port of bridge {}, and no routing decision was made", bridge.name),
            words::judgement(judge),
            match value {
                Some(_) => format!("net.bridge.{setting} = 1"),
                None => format!("net.bridge.{setting} could not be read"),
            },
        ];
        let fix = format!(
            "{}  # or, if nothing on this host relies on it (Docker's isolation and Kubernetes do): sysctl -w net.bridge.{setting}=0",
            words::accept_command(case, judge, Some(judge.before.source)),
        );
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}
