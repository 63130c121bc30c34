//! A packet that ended in a queue was queued by the last table, also where its rules leave that open.

use crate::model::{Journey, OutcomeKind, StageKind, Verdict};

/// The function that frees what no program takes (net/netfilter/nf_queue.c; as a packet's location seen on 5.10 and 6.18).
const FREED_IN: &str = "nf_queue";

/// Makes the DROP of a table whose rules are not certain QUEUE where the packet was freed on its way to a program.
pub(super) fn complete(journey: &mut Journey) {
    let outcome = &journey.outcome;
    if outcome.result != OutcomeKind::Dropped || outcome.location.as_deref() != Some(FREED_IN) {
        return;
    }
    let Some(stage) = outcome.stage.and_then(|stage| journey.stages.get_mut(stage)) else { return };
    let StageKind::Netfilter(stage) = &mut stage.kind else { return };
    if !stage.exact && stage.verdict == Some(Verdict::Drop) {
        stage.verdict = Some(Verdict::Queue);
    }
}
