//! Anything else that the kernel drops.

use crate::model::{CtState, Hook, Protocol, StageKind, TableFamily, Verdict};

use super::{
    Answer, Case, Check,
    case::ICMP_REDIRECT,
    reasons,
    ruleset::{ChainView, TableView, Target},
    words,
};

/// The kernel's own reason, in plain words.
pub(super) struct DroppedByKernel;

impl Check for DroppedByKernel {
    fn code(&self) -> &'static str {
        "dropped-by-kernel"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let decided = case.judge().is_some_and(|(_, stage)| stage.decided_by.is_some());
        if !case.is_bad() || decided {
            return Answer::No;
        }
        let outcome = &case.journey.outcome;
        let packet = case.last().map_or(case.journey.packet.tuple, |leg| leg.exit);
        let place = match (case.judge(), &outcome.location) {
            (Some((_, stage)), _) => format!(" at {} by table {}", stage.hook.iptables_name(), stage.table),
            (None, Some(location)) => format!(" in {location}"),
            (None, None) => String::new(),
        };
        let explanation = outcome.reason.as_deref().and_then(reasons::explain);
        let redirect =
            (case.protocol(), case.journey.packet.icmp_type) == (Protocol::ICMP, Some(ICMP_REDIRECT));
        let outside = outside_ip(case);
        let (why, fix) = match (outcome.reason.as_deref(), explanation) {
            (Some("NETFILTER_DROP"), _) if redirect && case.state() == Some(CtState::Related) => (
                "it is a redirect about a translated connection, and NAT lets none of those out".to_owned(),
                "# nothing: harmless; it shows that the packet it is about left by the device that it came in by",
            ),
            (Some("NETFILTER_DROP"), _) if !outside.is_empty() => (
                "a table of family netdev or bridge refused it, which judge at the device and not at the hooks \
                 of IP; the rules there that can have done so are below"
                    .to_owned(),
                "nft -a list ruleset netdev; nft -a list ruleset bridge  # read-only; then `nft delete rule ...` by handle",
            ),
            (Some("NETFILTER_DROP"), _) => (
                "netfilter refused it, and which rule or function did so was not seen".to_owned(),
                "pathtrace --rules auto  # if rules were off; `pathtrace doctor` lists what judges at each hook",
            ),
            _ if case.reason_is_vague() && case.last().is_some_and(|leg| leg.is_for_group()) => (
                "most likely nobody here listens to that group or broadcast (this kernel gives no reason)"
                    .to_owned(),
                "# nothing: harmless; every host of the network gets such packets. To see who listens: ip maddress; ss -uln",
            ),
            (_, Some((meaning, look))) => (meaning.to_owned(), look),
            (Some(reason), None) if !case.reason_is_vague() => (
                format!("the kernel's reason is {reason}"),
                "# look for that name in the kernel's include/net/dropreason-core.h",
            ),
            _ => (
                "this kernel gives no reason for it".to_owned(),
                "# the place named above is the only trace; newer kernels (5.17 on) give reasons",
            ),
        };
        let summary = format!(
            "The kernel {} {}{place}: {why}.",
            words::ending(case),
            words::packet(case.protocol(), packet)
        );
        let mut evidence: Vec<String> = [
            outcome.reason.as_ref().map(|reason| format!("reason {reason}")),
            outcome.location.as_ref().map(|location| format!("freed in {location}")),
            outcome.answer.as_ref().map(|answer| format!("answered with {answer}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        evidence.extend(outside);
        Answer::Found(words::finding(self.code(), &summary, &evidence, fix))
    }
}

/// Most rules that are listed as possible.
const MOST: usize = 5;

/// For a packet that died at a device: what judges there besides the hooks of IP, one line a possible decision.
fn outside_ip(case: &Case<'_>) -> Vec<String> {
    let last = case.journey.stages.last().map(|stage| &stage.kind);
    let at_device = matches!(last, Some(StageKind::Device(_) | StageKind::Program(_)));
    let Some(ruleset) = case.last().filter(|_| at_device).and_then(|leg| case.ruleset(leg.netns)) else {
        return Vec::new();
    };
    let is_outside = |table: &TableView, chain: &ChainView| {
        let base = chain.base.as_ref();
        matches!(table.family, TableFamily::Netdev | TableFamily::Bridge)
            || base.is_some_and(|base| matches!(base.hook, Hook::Ingress | Hook::Egress))
    };
    let chains = ruleset.tables.iter().flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    let mut lines = Vec::new();
    for (table, chain) in chains.filter(|(table, chain)| is_outside(table, chain)) {
        let place = format!("table {} {}, chain {}", table.family.name(), table.name, chain.name);
        let ends = chain
            .rules
            .iter()
            .filter(|rule| matches!(rule.facts.target, Target::Drop | Target::Reject | Target::Unknown));
        lines.extend(ends.map(|rule| format!("{place}, rule {}: `{}`", rule.position, rule.text)));
        if chain.base.is_some_and(|base| base.policy == Verdict::Drop) {
            lines.push(format!("{place}: policy drop"));
        }
    }
    if lines.len() > MOST {
        let more = lines.len() - MOST;
        lines.truncate(MOST);
        lines.push(format!("and {more} more"));
    }
    lines
}
