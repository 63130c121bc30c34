//! A packet that ended in a queue was queued by the last table, also where its rules leave that open.

use crate::model::{Journey, NetfilterStage, Outcome, OutcomeKind, StageKind, Verdict};

/// The function that frees what no program takes (net/netfilter/nf_queue.c; as a packet's location seen on 5.10 and 6.18).
pub(crate) const UNTAKEN_IN: &str = "nf_queue";

/// Makes the DROP of a table whose rules are not certain QUEUE where the packet was freed on its way to a program.
pub(super) fn complete(journey: &mut Journey) {
    let Some(stage) = journey.outcome.stage.and_then(|stage| journey.stages.get_mut(stage)) else { return };
    let StageKind::Netfilter(stage) = &mut stage.kind else { return };
    if was_queued(stage, &journey.outcome) {
        stage.verdict = Some(Verdict::Queue);
    }
}

/// Whether the table where the packet ended handed it to a queue, though its rules do not tell.
fn was_queued(stage: &NetfilterStage, outcome: &Outcome) -> bool {
    outcome.result == OutcomeKind::Dropped
        && outcome.location.as_deref() == Some(UNTAKEN_IN)
        && !stage.exact
        && stage.verdict == Some(Verdict::Drop)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::{Hook, TableFamily, Tuple};

    fn stage(exact: bool, verdict: Verdict) -> NetfilterStage {
        let any = Ipv4Addr::LOCALHOST.into();
        let tuple = Tuple { source: any, source_port: None, destination: any, destination_port: None };
        NetfilterStage {
            hook: Hook::Input,
            family: TableFamily::Ip,
            table: "filter".to_owned(),
            chain: None,
            priority: 0,
            backend: None,
            verdict: Some(verdict),
            decided_by: None,
            rules: Vec::new(),
            rules_source: None,
            exact,
            inexact_because: None,
            nat: None,
            mapping_rule: None,
            before: tuple,
            after: tuple,
        }
    }

    #[test]
    fn only_an_uncertain_drop_on_the_way_to_a_queue_is_one() {
        let end =
            |result, location: &str| Outcome { location: Some(location.to_owned()), ..Outcome::new(result) };
        let untaken = end(OutcomeKind::Dropped, UNTAKEN_IN);
        assert!(was_queued(&stage(false, Verdict::Drop), &untaken));
        // Its rules tell: nothing is put above them.
        assert!(!was_queued(&stage(true, Verdict::Drop), &untaken));
        // It let the packet pass: another table at this hook had the queue.
        assert!(!was_queued(&stage(false, Verdict::Accept), &untaken));
        assert!(!was_queued(&stage(false, Verdict::Drop), &end(OutcomeKind::Dropped, "nf_hook_slow")));
        assert!(!was_queued(&stage(false, Verdict::Drop), &end(OutcomeKind::Rejected, UNTAKEN_IN)));
    }
}
