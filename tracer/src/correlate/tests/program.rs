//! Verdicts of XDP and tc programs of others.

use super::*;
use crate::model::{DeviceDirection, ProgramStage, ProgramType, ProgramVerdict};

const XDP: ProgramType = ProgramType::Xdp;
const TC: ProgramType = ProgramType::Tc;
const ID: u32 = 12;

/// A program on `eth0` returned, or on the device that the packet goes out by.
fn verdict(program: ProgramType, code: i32, direction: DeviceDirection, tuple: Tuple) -> SightEvent {
    let mut sight = match direction {
        DeviceDirection::In => came_in(tuple),
        DeviceDirection::Out => went_out(tuple),
    };
    sight.raw.flags = 0;
    sight.kind = SightKind::Verdict { program: ID, verdict: ProgramVerdict::new(program, code) };
    sight
}

fn into(program: ProgramType, code: i32, tuple: Tuple) -> SightEvent {
    verdict(program, code, DeviceDirection::In, tuple)
}

/// A frame that is no `sk_buff`.
fn frame(code: i32, tuple: Tuple) -> SightEvent {
    let mut sight = first(into(XDP, code, tuple));
    sight.raw.skb = 0;
    sight
}

fn programs(draft: &crate::correlate::Draft) -> Vec<&ProgramStage> {
    let stages = draft.stages.iter().filter_map(|timed| match &timed.stage {
        DraftStage::Program(program) => Some(program),
        _ => None,
    });
    stages.collect()
}

fn trace() -> Trace {
    let mut trace = Trace::new();
    let name = |id| (id == ID).then(|| "their".to_owned());
    let names = std::mem::take(&mut trace.correlator.names);
    trace.correlator.names = names.with_programs(name);
    trace
}

#[test]
fn a_frame_that_xdp_keeps_is_a_journey_that_ends_there() {
    let tuple = tcp(CLIENT, PUBLISHED);
    for (code, result, reason, device) in [
        (0, OutcomeKind::Dropped, Some("XDP_ABORTED"), None),
        (1, OutcomeKind::Dropped, Some("XDP_DROP"), None),
        (3, OutcomeKind::Forwarded, None, Some("eth0")),
        (4, OutcomeKind::Forwarded, None, None),
    ] {
        let mut trace = trace();
        trace.see(1, frame(code, tuple));
        let draft = trace.only();
        assert_eq!(kinds(draft), ["device", "program"], "{code}");
        assert_eq!(draft.outcome.result, result, "{code}");
        assert_eq!((draft.outcome.reason.as_deref(), draft.outcome.device.as_deref()), (reason, device));
        assert_eq!(draft.notes.len(), usize::from(code == 4), "{:?}", draft.notes);
        let program = programs(draft)[0];
        assert_eq!((program.label().as_str(), program.device.as_str()), ("their (program 12)", "eth0"));
        assert_eq!((trace.correlator.pending(), trace.output.forget.len()), (0, 0));
    }
}

#[test]
fn a_frame_that_was_only_perhaps_asked_for_is_not_shown() {
    let mut trace = Trace::of_port(PUBLISHED.1);
    trace.see(1, tentative(frame(1, tcp(CLIENT, INNER))));
    assert!(trace.output.closed.is_empty());
    trace.see(2, tentative(frame(1, tcp(CLIENT, PUBLISHED))));
    assert_eq!(trace.only().outcome.result, OutcomeKind::Dropped);
}

#[test]
fn a_packet_that_tc_drops_ends_at_the_program_with_the_kernels_reason() {
    let mut trace = trace();
    let tuple = tcp(CLIENT, PUBLISHED);
    trace.see(1, came_in(tuple));
    trace.see(1, into(TC, 2, tuple));
    trace.see(1, dropped(NO_ROUTE, IN_TCP, tuple));
    let draft = trace.only();
    assert_eq!(kinds(draft), ["device", "program"]);
    assert_eq!((draft.outcome.result, draft.outcome.stage), (OutcomeKind::Dropped, Some(1)));
    assert_eq!(draft.outcome.reason.as_deref(), Some("IP_INNOROUTES"));
}

#[test]
fn a_packet_that_tc_keeps_is_dropped_and_one_that_it_redirects_is_forwarded() {
    let tuple = tcp(CLIENT, PUBLISHED);
    for (code, result) in [(4, OutcomeKind::Dropped), (7, OutcomeKind::Forwarded)] {
        let mut trace = trace();
        trace.see(1, came_in(tuple));
        trace.see(1, into(TC, code, tuple));
        trace.see(1, consumed(tuple));
        assert_eq!(trace.only().outcome.result, result, "{code}");
    }
    // Nobody frees it under our eyes.
    let mut trace = trace();
    trace.see(1, came_in(tuple));
    trace.see(1, into(TC, 7, tuple));
    trace.wait(50 * MILLISECOND);
    assert_eq!(trace.only().outcome.result, OutcomeKind::Forwarded);
    assert_eq!(trace.only().notes, ["redirected by their (program 12); where it went was not seen"]);
}

#[test]
fn a_redirected_packet_that_is_seen_again_goes_on() {
    let mut trace = trace();
    let tuple = tcp(CLIENT, PUBLISHED);
    trace.see(1, came_in(tuple));
    trace.see(1, into(TC, 7, tuple));
    trace.see(1, went_out(tuple));
    trace.see(1, consumed(tuple));
    let draft = trace.only();
    assert_eq!(kinds(draft), ["device", "program", "device"]);
    assert_eq!(draft.outcome.device.as_deref(), Some("eth1"));
    assert!(draft.notes.is_empty(), "{:?}", draft.notes);
}

#[test]
fn what_passes_at_the_last_device_departs_as_without_a_program() {
    let tuple = tcp(CLIENT, INNER);
    for freed in [true, false] {
        let mut trace = trace();
        trace.see(1, came_in(tuple));
        trace.see(1, before(Hook::Forward, -1, tuple));
        trace.see(1, before(Hook::Forward, 1, tuple));
        trace.see(1, went_out(tuple));
        trace.see(1, verdict(TC, 0, DeviceDirection::Out, tuple));
        if freed {
            trace.see(1, consumed(tuple));
        } else {
            trace.wait(50 * MILLISECOND);
        }
        let draft = trace.only();
        assert_eq!(kinds(draft), ["device", "table", "device", "program"]);
        assert_eq!(draft.outcome.result, OutcomeKind::Forwarded);
        assert_eq!(draft.outcome.device.as_deref(), Some("eth1"));
    }
}

#[test]
fn a_program_that_sees_the_packet_first_begins_its_journey_at_the_device() {
    let mut trace = trace();
    let tuple = tcp(CLIENT, PUBLISHED);
    trace.see(1, first(into(TC, 2, tuple)));
    trace.see(1, dropped(NO_ROUTE, IN_TCP, tuple));
    assert_eq!(kinds(trace.only()), ["device", "program"]);
}
