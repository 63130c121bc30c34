//! Anything else that the kernel drops.

use crate::model::{
    CtState, DeviceDirection, Hook, NetfilterStage, Protocol, StageKind, TableFamily, UNANSWERED, Verdict,
};

use super::{
    Answer, Case, Check,
    case::ICMP_REDIRECT,
    place, queue, reasons,
    ruleset::{ChainView, Maybe, Question, TableView, Target},
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
        let outside = outside_ip(case);
        let queued = queue::explain(case);
        let (why, fix) = match (&queued, place::explain(case)) {
            (Some(queued), _) => (queued.why.clone(), queued.fix.to_owned()),
            (None, Some(told)) => (told.why, told.fix),
            (None, None) => why(case, !outside.is_empty()),
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
        evidence.extend(queued.into_iter().flat_map(|queued| queued.evidence));
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix))
    }
}

/// Why, and what to look at; `outside`: something besides the hooks of IP can have refused it.
fn why(case: &Case<'_>, outside: bool) -> (String, String) {
    let outcome = &case.journey.outcome;
    let explanation = outcome.reason.as_deref().and_then(reasons::explain);
    let redirect = (case.protocol(), case.journey.packet.icmp_type) == (Protocol::ICMP, Some(ICMP_REDIRECT));
    let (why, fix) = match (outcome.reason.as_deref(), explanation) {
        (Some("NETFILTER_DROP"), _) if redirect && case.state() == Some(CtState::Related) => (
            "it is a redirect about a connection that NAT translates, or has not decided about yet, and NAT lets none of \
             those out"
                .to_owned(),
            "# nothing: harmless; it shows that the packet it is about left by the device that it came in by",
        ),
        (Some("NETFILTER_DROP"), _) if outside => (
            "a chain of hook ingress or egress, or of family bridge, refused it, which judge at the device and \
             not at the hooks of IP; what can have done so there is below"
                .to_owned(),
            "nft -a list ruleset  # read-only; then `nft delete rule ...` by handle",
        ),
        (Some("NETFILTER_DROP"), _)
            if case
                .last()
                .and_then(|leg| leg.netfilter().next_back())
                .is_some_and(NetfilterStage::was_being_changed) =>
        (
            "netfilter refused it while the ruleset was being changed, so whether an old rule, a new one or a policy \
             did is not certain"
                .to_owned(),
            "# send the packet again: the new rules stand now",
        ),
        (Some("NETFILTER_DROP"), _) => (
            "netfilter refused it, and which rule or function did so was not seen".to_owned(),
            if rules_were_read(case) { JUDGES } else { RULES_OFF },
        ),
        _ if is_silent_listener(case) => (
            "the listening socket took it and answered nothing; most likely its queue of new connections is full: \
             the program accepts too slowly, or not at all"
                .to_owned(),
            "ss -ltn  # Recv-Q above Send-Q: full; raise net.core.somaxconn and the program's backlog, or see why it does not accept",
        ),
        (Some("IP_INHDR"), _) if is_too_old(case) => (
            "its TTL (hop limit) ran out".to_owned(),
            "# nothing, if somebody traces the route; else look for a routing loop, or a rule that sets the TTL",
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
        (Some(_), _) => (
            "this kernel gives no reason for it".to_owned(),
            "# the place named above is the only trace: that function in the kernel's source",
        ),
        (None, _) => (
            "this kernel gives no reason for it".to_owned(),
            "# the place named above is the only trace; newer kernels (5.17 on) give reasons",
        ),
    };
    (why, fix.to_owned())
}

const JUDGES: &str = "pathtrace doctor  # lists what judges at each hook, besides rules";
const RULES_OFF: &str =
    "pathtrace --rules auto  # if rules were off; `pathtrace doctor` lists what judges at each hook";

/// Whether some table's rules were: so they were not off.
fn rules_were_read(case: &Case<'_>) -> bool {
    let mut stages = case.legs().into_iter().flat_map(|leg| leg.netfilter().collect::<Vec<_>>());
    stages.any(|stage| stage.rules_source.is_some())
}

/// A SYN that the kernel calls consumed, so without a reason, and that was not answered.
fn is_silent_listener(case: &Case<'_>) -> bool {
    let silent = case.journey.notes.iter().any(|note| note == UNANSWERED);
    silent && case.protocol() == Protocol::TCP && case.opens() && case.journey.outcome.reason.is_none()
}

fn is_too_old(case: &Case<'_>) -> bool {
    matches!(case.journey.outcome.answer.as_deref(), Some("icmp-time-exceeded" | "icmp6-time-exceeded"))
}

/// Most rules that are listed as possible.
const MOST: usize = 5;

/// The side of the hooks of IP on which a packet died that netfilter dropped outside of them: on its way in, or behind the
/// last of them on its way out.
fn outside_hook(case: &Case<'_>) -> Option<Hook> {
    let by_nft = case.location_has("nft_do_chain") || case.location_has("nf_hook_slow");
    match case.journey.stages.last().map(|stage| &stage.kind)? {
        StageKind::Device(device) if device.direction == DeviceDirection::Out => Some(Hook::Egress),
        StageKind::Device(_) | StageKind::Program(_) => Some(Hook::Ingress),
        StageKind::Netfilter(table) => {
            let leaves = matches!(table.hook, Hook::Forward | Hook::Output | Hook::Postrouting);
            (leaves && by_nft && table.verdict == Some(Verdict::Accept)).then_some(Hook::Egress)
        }
        StageKind::Route(route) => {
            (by_nft && route.error.is_none() && route.route_type.as_deref() != Some("local"))
                .then_some(Hook::Egress)
        }
    }
}

/// For a packet that died at a device: what judges there besides the hooks of IP, one line a possible decision.
fn outside_ip(case: &Case<'_>) -> Vec<String> {
    let Some((leg, hook)) = case.last().zip(outside_hook(case)) else { return Vec::new() };
    let Some(ruleset) = case.ruleset(leg.netns) else { return Vec::new() };
    let question = Question { to_local: None, ..case.question(&leg, leg.exit, false) };
    let is_outside = |table: &TableView, chain: &ChainView| match chain.base {
        Some(base) => base.hook == hook || table.family == TableFamily::Bridge,
        // One that the others jump to.
        None => matches!(table.family, TableFamily::Netdev | TableFamily::Bridge),
    };
    let chains = ruleset.tables.iter().flat_map(|table| table.chains.iter().map(move |chain| (table, chain)));
    let mut lines = Vec::new();
    for (table, chain) in chains.filter(|(table, chain)| is_outside(table, chain)) {
        let place = format!("table {} {}, chain {}", table.family.name(), table.name, chain.name);
        let ends = chain
            .rules
            .iter()
            .filter(|rule| matches!(rule.facts.target, Target::Drop | Target::Reject | Target::Unknown))
            .filter(|rule| rule.facts.matches(&question) != Maybe::No);
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
