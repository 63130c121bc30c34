//! Packets that a rule handed to a program, and that did not come back.

use std::ops::RangeInclusive;

use crate::{
    attribute::UNTAKEN_IN,
    enrich::NfQueue,
    model::{NetfilterStage, Verdict},
};

use super::Case;

/// What became of a packet in a queue, in the words of a finding.
pub(super) struct InQueue {
    pub(super) why: String,
    pub(super) fix: &'static str,
    pub(super) evidence: Vec<String>,
}

const NO_READER: &str = "# start the program that reads the queue (cat /proc/net/netfilter/nfnetlink_queue), or let the rule pass \
                         what nobody reads: iptables `--queue-bypass`, nft `queue flags bypass`";
const FULL: &str = "# see why the program that reads the queue is slow or hangs; a longer queue or fail-open is set by that \
                    program (NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_F_FAIL_OPEN)";
const REFUSED: &str = "# the verdict is that program's: see its log and its rules (cat /proc/net/netfilter/nfnetlink_queue: the \
                       second column is its netlink port, usually the pid)";

/// Where what a program refuses is freed.
const REFUSED_IN: [&str; 3] = ["nf_reinject", "nfqnl_reinject", "nfqnl_recv_verdict"];

/// `None`: the packet did not end in a queue. `nf_queue` frees what no program takes, `nf_reinject` (here, on 6.18,
/// `nfqnl_reinject`) what one refuses or leaves behind (net/netfilter/nf_queue.c, nfnetlink_queue.c).
pub(super) fn explain(case: &Case<'_>) -> Option<InQueue> {
    let leg = case.last()?;
    let stage = leg.netfilter().next_back();
    let refused = REFUSED_IN.iter().any(|place| case.location_has(place));
    let queued = stage.is_some_and(|stage| stage.verdict == Some(Verdict::Queue));
    let untaken = queued && case.location_has(UNTAKEN_IN);
    if !refused && !untaken {
        return None;
    }
    let rule = stage.map_or_else(|| "a rule".to_owned(), queueing_rule);
    let certain = stage.filter(|stage| stage.exact);
    let numbers = certain.and_then(|stage| numbers(stage.rules.last()?.text.as_deref()?));
    let name = match &numbers {
        Some(numbers) if numbers.start() == numbers.end() => format!("queue {}", numbers.start()),
        Some(numbers) => format!("the queues {} to {}", numbers.start(), numbers.end()),
        None => "a queue".to_owned(),
    };
    let all = case.settings(leg.netns).and_then(|settings| settings.queues.as_ref());
    let read: Option<Vec<&NfQueue>> = all
        .zip(numbers)
        .map(|(queues, numbers)| queues.iter().filter(|queue| numbers.contains(&queue.number)).collect());
    let evidence = read.iter().flatten().map(|queue| line(queue)).collect();
    if refused {
        let why = format!("{rule} handed it to {name}, and the program that reads it refused it, or ended");
        return Some(InQueue { why, fix: REFUSED, evidence });
    }
    let (why, fix) = match read.as_deref() {
        Some([]) => ("and no program reads that queue", NO_READER),
        Some(queues) if queues.iter().any(|queue| queue.overflowed > 0) => {
            ("which was full: the program that reads it does not keep up", FULL)
        }
        None if all.is_some_and(Vec::is_empty) => ("and no program reads any queue", NO_READER),
        _ => ("and either no program reads that queue, or it was full", NO_READER),
    };
    Some(InQueue { why: format!("{rule} hands it to {name}, {why}"), fix, evidence })
}

/// A queue as evidence.
fn line(queue: &NfQueue) -> String {
    let NfQueue { number, reader, waiting, overflowed } = queue;
    format!(
        "queue {number}: read by netlink port {reader}, {waiting} waiting, {overflowed} dropped since because no more fit"
    )
}

/// The rule, where it is certain; else the table.
fn queueing_rule(stage: &NetfilterStage) -> String {
    let rule = stage.rules.last().filter(|_| stage.exact && stage.verdict == Some(Verdict::Queue));
    match rule.and_then(|rule| Some((rule, rule.text.as_ref()?))) {
        Some((rule, text)) => format!("rule {} of {} (`{text}`)", rule.position, rule.chain),
        None => format!("table {}", stage.table),
    }
}

/// The queues that a rule names: `--queue-num 3`, `--queue-balance 0:3`, `queue num 3`, `queue flags bypass to 0-3`.
fn numbers(text: &str) -> Option<RangeInclusive<u16>> {
    let words = text
        .split_whitespace()
        .skip_while(|word| !matches!(*word, "--queue-num" | "--queue-balance" | "queue"));
    let mut names = words.clone().zip(words.skip(1));
    let is_named = |word: &str| matches!(word, "--queue-num" | "--queue-balance" | "num" | "to");
    let (_, first) = names.find(|(word, _)| is_named(word))?;
    let (low, high) = first.split_once([':', '-']).unwrap_or((first, first));
    Some(low.parse().ok()?..=high.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn both_tools_name_queues() {
        for (text, expected) in [
            ("-A FORWARD -p tcp --dport 80 -j NFQUEUE --queue-num 3 --queue-bypass", Some(3..=3)),
            ("-A FORWARD -j NFQUEUE --queue-balance 0:3", Some(0..=3)),
            ("tcp dport 80 counter queue num 7 bypass", Some(7..=7)),
            ("tcp dport 80 queue flags bypass,fanout to 1-2", Some(1..=2)),
            ("-A FORWARD -p tcp -j DROP", None),
            ("queue to numgen inc mod 4", None),
        ] {
            let found = numbers(text);
            assert_eq!(found, expected, "{text}");
        }
    }
}
