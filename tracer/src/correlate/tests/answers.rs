//! A packet that is refused, and the answer that is sent.

use tracer_common::filter::{Filter, Ports};

use super::*;

#[test]
fn an_answer_makes_a_drop_a_rejection() {
    let cases = [
        (None, "tcp-reset"),
        (Some((3, 3)), "icmp-port-unreachable"),
        (Some((3, 13)), "icmp-admin-prohibited"),
    ];
    for (icmp, answer) in cases {
        let mut trace = Trace::new();
        trace.reach_input_end(1);
        trace.event(Event::Answer(AnswerEvent { journey: 1, icmp }));
        trace.see(1, dropped(NO_SOCKET, IN_TCP, tcp(CLIENT, PUBLISHED)));
        let outcome = &trace.only().outcome;
        assert_eq!((outcome.result, outcome.answer.as_deref()), (OutcomeKind::Rejected, Some(answer)));
    }
}

/// A packet dies in FORWARD's table; just before, the host sends `sent` on `cpu`.
fn drop_while_sending(mut sent: SightEvent, cpu: u32, flags: u8) -> Trace {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, on_cpu(came_in(tuple), 1));
    trace.see(1, on_cpu(before(Hook::Forward, -1, tuple), 1));
    sent.raw.tcp_flags = flags;
    trace.see(2, on_cpu(first(sent), cpu));
    trace.see(1, on_cpu(dropped(NETFILTER_DROP, IN_NETFILTER, tuple), 1));
    trace
}

#[test]
fn the_reset_that_a_rule_sends_is_found() {
    let reset = before(Hook::Output, -1, tcp(INNER, CLIENT));
    let trace = drop_while_sending(reset.clone(), 1, RESET);
    let outcome = &trace.only().outcome;
    assert_eq!((outcome.result, outcome.answer.as_deref()), (OutcomeKind::Rejected, Some("tcp-reset")));

    let stranger = before(Hook::Output, -1, tcp(INNER, ([10, 1, 0, 3], 40_000)));
    for (sent, cpu, flags) in [(reset.clone(), 2, RESET), (reset, 1, 0x10), (stranger, 1, RESET)] {
        let trace = drop_while_sending(sent, cpu, flags);
        let outcome = &trace.only().outcome;
        assert_eq!((outcome.result, outcome.answer.as_deref()), (OutcomeKind::Dropped, None));
    }
}

#[test]
fn the_icmp_error_that_a_rule_sends_is_found_by_its_quotation() {
    let mut error = before(Hook::Output, -1, Tuple { protocol: 1, ..tcp((PUBLISHED.0, 0), (CLIENT.0, 0)) });
    error.raw.icmp_type = 3;
    error.raw.icmp_code = 1;
    error.raw.quoted = tcp(CLIENT, INNER);
    let trace = drop_while_sending(error, 1, 0);
    assert_eq!(trace.only().outcome.answer.as_deref(), Some("icmp-host-unreachable"));
}

#[test]
fn the_icmp_error_of_a_timer_on_another_cpu_is_found() {
    let tuple = tcp(CLIENT, INNER);
    let error_about = |quoted| {
        let mut error =
            before(Hook::Output, -1, Tuple { protocol: 1, ..tcp((PUBLISHED.0, 0), (CLIENT.0, 0)) });
        (error.raw.icmp_type, error.raw.icmp_code, error.raw.quoted) = (3, 1, quoted);
        first(error)
    };
    let answer = |about, sent_on, dropped_on| {
        let mut trace = Trace::new();
        trace.see(1, on_cpu(came_in(tuple), 1));
        trace.see(2, on_cpu(error_about(about), sent_on));
        trace.see(1, on_cpu(dropped(NETFILTER_DROP, IN_NETFILTER, tuple), dropped_on));
        trace.only().outcome.answer.clone()
    };
    assert_eq!(answer(tuple, 2, 2).as_deref(), Some("icmp-host-unreachable"));
    assert_eq!(answer(tuple, 2, 3), None, "sent from one CPU, dropped on another");
    assert_eq!(answer(tcp(CLIENT, PUBLISHED), 2, 2), None, "about another packet");

    let mut trace = Trace::new();
    trace.see(2, on_cpu(error_about(tuple), 2));
    trace.see(1, on_cpu(came_in(tuple), 1));
    trace.see(1, on_cpu(dropped(NETFILTER_DROP, IN_NETFILTER, tuple), 2));
    assert_eq!(trace.only().outcome.answer, None, "sent before the packet came");
}

#[test]
fn a_packet_whose_end_is_not_seen_was_rejected_when_an_error_was_sent_about_it() {
    let tuple = tcp(CLIENT, INNER);
    let outcome = |about, before_it| {
        let mut trace = Trace::new();
        let mut error =
            before(Hook::Output, -1, Tuple { protocol: 1, ..tcp((PUBLISHED.0, 0), (CLIENT.0, 0)) });
        (error.raw.icmp_type, error.raw.icmp_code, error.raw.quoted) = (3, 1, about);
        if before_it {
            trace.see(2, on_cpu(first(error.clone()), 2));
        }
        for journey in [1, 3] {
            trace.see(journey, on_cpu(came_in(tuple), 1));
            trace.see(journey, on_cpu(before(Hook::Forward, -1, tuple), 1));
        }
        if !before_it {
            trace.see(2, on_cpu(first(error), 2));
        }
        trace.wait(5_001 * MILLISECOND);
        let closed = trace.output.closed.iter();
        let mut both = closed.filter(|draft| draft.packet.tuple.source_port == Some(CLIENT.1));
        [both.next(), both.next()].map(|draft| {
            let outcome = &draft.expect("both are shown").outcome;
            (outcome.result, outcome.answer.clone())
        })
    };
    let rejected = (OutcomeKind::Rejected, Some("icmp-host-unreachable".to_owned()));
    let incomplete = (OutcomeKind::Incomplete, None);
    assert_eq!(outcome(tuple, false), [rejected, incomplete.clone()], "one error is about one packet");
    assert_eq!(outcome(tuple, true), [incomplete.clone(), incomplete.clone()], "it was sent before");
    assert_eq!(outcome(tcp(CLIENT, PUBLISHED), false), [incomplete.clone(), incomplete], "about another");
}

#[test]
fn what_a_synproxy_answers_itself_has_arrived() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Forward, -1, tuple));
    trace.see(1, seen(SightKind::Consume { location: IN_SYNPROXY }, tuple));
    let draft = trace.only();
    assert_eq!(draft.outcome.result, OutcomeKind::Delivered);
    assert_eq!(draft.notes, ["SYNPROXY took it, and answers in the place of the server"]);
}

/// A listener whose queue is full frees a SYN as consumed, without an answer.
#[test]
fn a_syn_that_nobody_answered_was_not_delivered() {
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;
    let arrives = |filter: Filter, answer: Option<SightEvent>| {
        let mut trace = Trace::with(filter);
        let tuple = tcp(CLIENT, PUBLISHED);
        let mut came = came_in(tuple);
        came.raw.tcp_flags = SYN;
        trace.see(1, came);
        trace.see(1, before(Hook::Input, -1, tuple));
        trace.see(1, before(Hook::Input, 1, tuple));
        if let Some(mut answer) = answer {
            answer.raw.tcp_flags = SYN_ACK;
            trace.see(2, first(answer));
        }
        let mut end = consumed(tuple);
        end.raw.netns = 0;
        trace.see(1, end);
        trace.wait(50 * MILLISECOND);
        let draft = trace.output.closed.first().expect("a journey").clone();
        (draft.outcome.result, draft.outcome.location)
    };
    let mut trace = Trace::with(Filter::default());
    let mut came = came_in(tcp(CLIENT, PUBLISHED));
    came.raw.tcp_flags = SYN;
    trace.see(1, came);
    trace.see(1, before(Hook::Input, 1, tcp(CLIENT, PUBLISHED)));
    trace.see(1, consumed(tcp(CLIENT, PUBLISHED)));
    trace.correlator.left_out();
    trace.wait(50 * MILLISECOND);
    assert_eq!(trace.only().outcome.result, OutcomeKind::Delivered, "the answer may not have been followed");

    let answer = |to| Some(before(Hook::Output, -1, tcp(PUBLISHED, to)));
    let silence = (OutcomeKind::Dropped, Some("tcp_v4_rcv".to_owned()));
    assert_eq!(arrives(Filter::default(), None), silence);
    assert_eq!(arrives(Filter::default(), answer(([10, 1, 0, 3], 40_000))), silence);
    assert_eq!(arrives(Filter::default(), answer(CLIENT)).0, OutcomeKind::Delivered);
    // Where answers are not asked for, their absence says nothing.
    let mut ports = Ports { count: 1, ..Ports::default() };
    ports.ranges[0] = [PUBLISHED.1, PUBLISHED.1];
    let one_way =
        Filter { destination_port: ports, protocol: Filter::ANY_PROTOCOL, active: 1, ..Filter::default() };
    assert_eq!(arrives(one_way, None).0, OutcomeKind::Delivered);
}

/// `ip rule add ... prohibit` looks into no table; the sender is told.
#[test]
fn a_policy_rule_that_prohibits_is_no_missing_route() {
    let mut trace = Trace::new();
    let tuple = tcp(CLIENT, INNER);
    trace.see(1, came_in(tuple));
    trace.see(1, before(Hook::Prerouting, -99, tuple));
    trace.lookup(1, 255, NOT_IN_THIS_TABLE);
    trace.event(Event::Answer(AnswerEvent { journey: 1, icmp: Some((3, 13)) }));
    trace.see(1, dropped(NO_ROUTE, 0, tuple));
    let stages = &trace.only().stages;
    let Some(DraftStage::Route(route)) = stages.last().map(|timed| &timed.stage) else {
        panic!("{stages:?}")
    };
    assert_eq!(route.error.as_deref(), Some("EACCES"));
}

/// IPv6 looks into a table, finds nothing, and gives the packet a route that only says why not.
#[test]
fn the_route_that_refuses_says_why() {
    let refused = |error| {
        let mut trace = Trace::new();
        let tuple = tcp(CLIENT, INNER);
        trace.see(1, came_in(tuple));
        trace.see(1, before(Hook::Prerouting, -99, tuple));
        trace.lookup(1, 255, 0);
        let mut end = dropped(NO_ROUTE, 0, tuple);
        (end.raw.routed, end.raw.route_error) = (1, error);
        trace.see(1, end);
        let draft = trace.only();
        match draft.stages.last().map(|timed| &timed.stage) {
            Some(DraftStage::Route(route)) => route.error.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(-libc::EACCES).as_deref(), Some("EACCES"));
    assert_eq!(refused(libc::EHOSTUNREACH).as_deref(), Some("EHOSTUNREACH"));
    assert_eq!(refused(0).as_deref(), Some("IP_INNOROUTES"));
}
