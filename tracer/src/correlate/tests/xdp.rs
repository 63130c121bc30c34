//! Packets that XDP saw first.

use super::*;
use tracer_common::records::{SIGHT_FIRST, SIGHT_XDP};

const AT_XDP: u64 = 900;

/// A frame at XDP on `eth0`, which knows no `sk_buff`.
fn at_xdp(tuple: Tuple) -> SightEvent {
    let mut sight = came_in(tuple);
    sight.kind = SightKind::Xdp;
    sight.raw.skb = 0;
    sight
}

/// The packet's first sight in the stack, of which the kernel side says that it is the frame of [`AT_XDP`].
fn after_xdp(tuple: Tuple) -> SightEvent {
    let mut sight = came_in(tuple);
    sight.raw.flags |= SIGHT_XDP;
    sight.raw.location = AT_XDP;
    sight
}

fn marked(draft: &crate::correlate::Draft) -> Vec<bool> {
    let devices = draft.stages.iter().filter_map(|timed| match &timed.stage {
        DraftStage::Device(device) => Some(device.xdp),
        _ => None,
    });
    devices.collect()
}

#[test]
fn a_packet_that_xdp_saw_is_one_journey_from_there_on() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(AT_XDP, at_xdp(tuple));
    let began = trace.time;
    trace.see(1, after_xdp(tuple));
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    let draft = trace.only();
    assert_eq!((draft.time, draft.stages[0].time), (began, began));
    assert_eq!(marked(draft), [true, false]);
    assert_eq!(draft.outcome.result, OutcomeKind::Forwarded);
    assert!(draft.notes.is_empty(), "{:?}", draft.notes);
    assert_eq!(trace.correlator.pending(), 0);
}

#[test]
fn a_packet_that_was_followed_before_goes_on_in_its_journey() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, first(went_out(tuple)));
    trace.see(AT_XDP, at_xdp(tuple));
    let mut arrived = after_xdp(tuple);
    arrived.raw.flags &= !SIGHT_FIRST;
    trace.see(1, arrived);
    trace.see(1, dropped(NO_ROUTE, IN_TCP, tuple));
    let draft = trace.only();
    assert_eq!(marked(draft), [false, true]);
    assert_eq!(trace.correlator.pending(), 0);
}

#[test]
fn what_the_tracepoint_saw_first_is_marked() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    let mut frame = at_xdp(tuple);
    frame.raw.flags &= !SIGHT_FIRST;
    trace.see(1, frame);
    trace.see(1, dropped(NO_ROUTE, IN_TCP, tuple));
    assert_eq!(marked(trace.only()), [true]);
}

#[test]
fn packets_that_look_alike_are_not_joined_without_the_kernel_s_word() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(AT_XDP, at_xdp(tuple));
    trace.see(1, came_in(tuple));
    trace.see(1, dropped(NO_ROUTE, IN_TCP, tuple));
    trace.wait(5_000 * MILLISECOND);
    let drafts = &trace.output.closed;
    assert_eq!(drafts.len(), 2);
    assert_eq!((marked(&drafts[0]), marked(&drafts[1])), (vec![false], vec![true]));
    assert_eq!(drafts[1].outcome.result, OutcomeKind::Incomplete);
    assert_eq!(drafts[1].notes, ["seen at XDP on eth0 and not afterwards"]);
    assert!(trace.output.forget.is_empty(), "{:?}", trace.output.forget);
}
