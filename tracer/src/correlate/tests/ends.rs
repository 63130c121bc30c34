//! Drops that are none, and what only the reason or the place tells apart.

use super::*;

#[test]
fn tcp_frees_a_segment_that_did_its_work_as_a_drop() {
    let tuple = tcp(CLIENT, PUBLISHED);
    for (location, result) in [(IN_TCP, OutcomeKind::Delivered), (IN_NETFILTER, OutcomeKind::Dropped)] {
        let mut trace = Trace::new();
        trace.reach_input_end(1);
        trace.see(1, dropped(TCP_RESET, location, tuple));
        assert_eq!(trace.only().outcome.result, result);
    }
}

#[test]
fn what_a_closed_socket_has_not_read_was_delivered() {
    let cases = [
        (QUEUE_PURGE, IN_TCP, OutcomeKind::Delivered),
        (NOT_SPECIFIED, IN_SOCKETS_END, OutcomeKind::Delivered),
        (NO_SOCKET, IN_SOCKETS_END, OutcomeKind::Dropped),
        (NOT_SPECIFIED, IN_NETFILTER, OutcomeKind::Dropped),
    ];
    for (reason, location, result) in cases {
        let mut trace = Trace::new();
        trace.reach_input_end(1);
        trace.see(1, dropped(reason, location, tcp(CLIENT, PUBLISHED)));
        assert_eq!(trace.only().outcome.result, result);
    }
}

#[test]
fn without_reasons_what_tcp_frees_was_received_most_likely() {
    const ACK_FIN: u8 = 0x11;
    const SYN: u8 = 0x02;
    for (flags, location, result) in [
        (ACK_FIN, IN_TCP, OutcomeKind::Delivered),
        (SYN, IN_TCP, OutcomeKind::Dropped),
        (ACK_FIN, IN_FORWARD, OutcomeKind::Dropped),
    ] {
        let mut trace = Trace::new();
        trace.reach_input_end(1);
        let mut end = seen(SightKind::Drop { reason: None, location }, tcp(CLIENT, PUBLISHED));
        end.raw.tcp_flags = flags;
        trace.see(1, end);
        let draft = trace.only();
        assert_eq!(draft.outcome.result, result);
        let told = draft.notes.iter().any(|note| note.contains("does not say why"));
        assert_eq!(told, result == OutcomeKind::Delivered, "a guess is called one: {:?}", draft.notes);
    }
}

#[test]
fn icmpv6_frees_a_message_that_it_handled_as_a_drop() {
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    let cases = [
        (NEIGHBOUR_ADVERTISEMENT, NOT_SPECIFIED, OutcomeKind::Delivered),
        (NEIGHBOUR_ADVERTISEMENT, NO_ROUTE, OutcomeKind::Dropped),
        (200, NOT_SPECIFIED, OutcomeKind::Dropped),
    ];
    for (icmp_type, reason, result) in cases {
        let mut trace = Trace::new();
        trace.reach_input_end(1);
        let mut end = dropped(reason, IN_ICMPV6, tcp(CLIENT, PUBLISHED));
        end.raw.icmp_type = icmp_type;
        trace.see(1, end);
        let outcome = &trace.only().outcome;
        assert_eq!(outcome.result, result);
        assert_eq!(
            outcome.reason.is_none(),
            result == OutcomeKind::Delivered,
            "no reason is no reason: {outcome:?}"
        );
    }
}

#[test]
fn an_echo_reply_that_only_raw_sockets_want_arrives() {
    let mut trace = Trace::new();
    trace.reach_input_end(1);
    trace.see(1, dropped(NO_SOCKET, IN_PING, tcp(CLIENT, PUBLISHED)));
    let outcome = &trace.only().outcome;
    assert_eq!((outcome.result, outcome.reason.as_deref()), (OutcomeKind::Delivered, Some("NO_SOCKET")));
}
