//! Anything else that the kernel drops.

use crate::model::{CtState, Protocol};

use super::{Answer, Case, Check, case::ICMP_REDIRECT, reasons, words};

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
        let (why, fix) = match (outcome.reason.as_deref(), explanation) {
            (Some("NETFILTER_DROP"), _) if redirect && case.state() == Some(CtState::Related) => (
                "it is a redirect about a translated connection, and NAT lets none of those out".to_owned(),
                "# nothing: harmless; it shows that the packet it is about left by the device that it came in by",
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
        let evidence: Vec<String> = [
            outcome.reason.as_ref().map(|reason| format!("reason {reason}")),
            outcome.location.as_ref().map(|location| format!("freed in {location}")),
            outcome.answer.as_ref().map(|answer| format!("answered with {answer}")),
        ]
        .into_iter()
        .flatten()
        .collect();
        Answer::Found(words::finding(self.code(), &summary, &evidence, fix))
    }
}
