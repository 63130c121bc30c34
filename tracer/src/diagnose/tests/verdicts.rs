use super::*;

const CLIENT: &str = "10.1.0.2:40000";

fn dropped_at_input(by: Option<(&str, u32, &str)>) -> Lab {
    Lab::tcp(CLIENT, "10.1.0.1:22").comes_in("c0").routed(255, "lo", "local").judged(
        Hook::Input,
        Verdict::Drop,
        by,
    )
}

#[test]
fn a_dropping_rule_is_named_with_its_text() {
    let text = "-A INPUT -s 10.1.0.2/32 -j DROP";
    let finding = dropped_at_input(Some(("INPUT", 3, text))).only("dropped-by-rule");
    assert_eq!(
        finding.summary,
        "Rule 3 of INPUT (`-A INPUT -s 10.1.0.2/32 -j DROP`) in table filter (iptables-nft) dropped tcp 10.1.0.2:40000 -> 10.1.0.1:22 at INPUT."
    );
    assert_eq!(
        finding.fix,
        "iptables-nft -I INPUT 3 -s 10.1.0.2 -d 10.1.0.1 -p tcp --dport 22 -j ACCEPT  # or, if the rule is not wanted at all: iptables-nft -t filter -D INPUT 3"
    );
}

#[test]
fn containers_at_both_ends_are_named() {
    let named = |addresses: &[&str]| {
        let names = addresses.iter().map(|address| (ip(address), format!("box-{address}")));
        let names = Containers::with_names([], names, []);
        let lab = Lab::tcp("172.18.0.2:40000", "172.19.0.2:80").judged(
            Hook::Forward,
            Verdict::Drop,
            Some(("DOCKER-ISOLATION-STAGE-2", 1, "-j DROP")),
        );
        lab.edit(|lab| lab.containers = names).only("dropped-by-rule").evidence
    };
    let both = "containers: 172.18.0.2 (box-172.18.0.2), 172.19.0.2 (box-172.19.0.2)".to_owned();
    assert!(named(&["172.18.0.2", "172.19.0.2"]).contains(&both));
    assert!(named(&["172.19.0.2"]).contains(&"containers: 172.19.0.2 (box-172.19.0.2)".to_owned()));
    assert!(!named(&[]).iter().any(|line| line.starts_with("containers")));
}

#[test]
fn the_fix_speaks_the_language_of_the_backend() {
    let drop = |backend| {
        Lab::tcp("[fd01::2]:4000", "[fd01::1]:22").backend(backend).comes_in("c0").judged(
            Hook::Input,
            Verdict::Drop,
            Some(("INPUT", 1, "x")),
        )
    };
    assert!(
        drop(Backend::IptablesLegacy).only("dropped-by-rule").fix.starts_with("ip6tables-legacy -I INPUT 1 ")
    );
    let nft = drop(Backend::Nftables).only("dropped-by-rule").fix;
    assert_eq!(
        nft,
        "nft insert rule ip6 filter INPUT position 7 ip6 saddr fd01::2 ip6 daddr fd01::1 tcp dport 22 accept  # or, if the rule is not wanted at all: nft delete rule ip6 filter INPUT handle 7"
    );
}

#[test]
fn a_rule_that_is_not_certain_is_not_deleted() {
    let mut lab = dropped_at_input(Some(("INPUT", 3, "-A INPUT -j DROP")));
    let stage = lab.last_stage();
    stage.exact = false;
    let finding = lab.only("dropped-by-rule");
    assert!(!finding.fix.contains(" -D "), "{}", finding.fix);
    assert!(finding.evidence.iter().any(|line| line.contains("not certain")), "{finding:?}");
}

#[test]
fn a_set_is_named() {
    let text = "-A DOCKER-USER -m set --match-set bad src -j DROP";
    let finding = Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .dnat("10.2.0.2:80", DecidedBy::Rule)
        .judged(Hook::Forward, Verdict::Drop, Some(("DOCKER-USER", 1, text)))
        .only("dropped-by-rule");
    assert!(finding.fix.starts_with("ipset test bad 10.1.0.2 && ipset del bad 10.1.0.2"), "{}", finding.fix);
    assert!(finding.evidence[0].contains("10.1.0.1:80 => 10.2.0.2:80"), "{:?}", finding.evidence);
}

#[test]
fn a_policy_is_told_from_a_rule() {
    let finding = dropped_at_input(None).only("dropped-by-policy");
    assert!(finding.summary.contains("chain's policy DROP dropped it at INPUT"), "{}", finding.summary);
    assert_eq!(finding.fix, "iptables-nft -I INPUT 1 -s 10.1.0.2 -d 10.1.0.1 -p tcp --dport 22 -j ACCEPT");
}

/// To delete a rule for one address would let all of the set in.
#[test]
fn an_address_is_taken_out_of_a_set_of_nft() {
    let judged = |text: &str| {
        let lab = Lab::tcp(CLIENT, "10.1.0.1:22").backend(Backend::Nftables).comes_in("c0");
        lab.judged(Hook::Input, Verdict::Drop, Some(("INPUT", 1, text))).only("dropped-by-rule").fix
    };
    let element = "ip filter bad '{ 10.1.0.2 }'";
    let removal = format!("nft get element {element} && nft delete element {element}  # or let this one");
    let fix = judged("tcp dport 22 ip saddr @bad counter drop");
    assert!(fix.starts_with(&removal), "{fix}");
    for other in ["ip saddr != @bad drop", "ip daddr . ip saddr @bad drop", "ip saddr @a ip daddr @b drop"] {
        assert!(judged(other).starts_with("nft insert rule "), "{other}");
    }
}

#[test]
fn a_rejection_says_what_was_answered() {
    let mut lab = Lab::udp(CLIENT, "10.2.0.2:53").comes_in("c0").judged(
        Hook::Forward,
        Verdict::Reject,
        Some(("FORWARD", 4, "-A FORWARD -j REJECT --reject-with icmp-port-unreachable")),
    );
    lab.journey.outcome.answer = Some("icmp-port-unreachable".to_owned());
    let finding = lab.only("rejected-by-rule");
    assert!(finding.summary.contains("answered 10.1.0.2 with icmp-port-unreachable"), "{}", finding.summary);
}

#[test]
fn a_verdict_without_a_known_decider_is_left_to_the_kernels_word() {
    let mut lab = dropped_at_input(None);
    let stage = lab.last_stage();
    (stage.decided_by, stage.exact) = (None, false);
    assert!(lab.only("dropped-by-kernel").summary.contains("which rule or function did so was not seen"));
}

/// Tables of family netdev and bridge judge where no probe of ours is.
#[test]
fn what_judges_at_a_device_is_listed() {
    let mut lab = Lab::tcp(CLIENT, "10.1.0.1:22").comes_in("c0").edit(|lab| {
        lab.ruleset.add_nft_list(
            "table netdev early {\nchain in {\ntype filter hook ingress device \"c0\" priority 0; policy accept;\n\
             tcp dport 22 drop\nudp dport 53 accept\n}\n}\n\
             table ip filter {\nchain INPUT {\ntype filter hook input priority 0; policy drop;\n}\n}",
        );
    });
    lab.journey.outcome.result = OutcomeKind::Dropped;
    lab.journey.outcome.reason = Some("NETFILTER_DROP".to_owned());
    lab.journey.outcome.location = Some("nft_do_chain".to_owned());
    let finding = lab.only("dropped-by-kernel");
    assert!(finding.summary.contains("a chain of hook ingress"), "{}", finding.summary);
    assert_eq!(finding.evidence[2..], ["table netdev early, chain in, rule 1: `tcp dport 22 drop`"]);
}

/// Behind the last hook of IP, too; a chain of the other side, and a rule that the packet does not meet, did not do it.
#[test]
fn what_judges_on_the_way_out_of_a_device_is_listed() {
    let lab = Lab::tcp(CLIENT, "10.2.0.2:22")
        .comes_in("c0")
        .routed(254, "br0", "unicast")
        .accepted(Hook::Forward)
        .dropped("NETFILTER_DROP", "nft_do_chain")
        .edit(|lab| {
            lab.ruleset.add_nft_list(
                "table inet early {\nchain in {\ntype filter hook ingress device \"c0\" priority 0; policy accept;\n\
                 tcp dport 22 drop\n}\n}\n\
                 table netdev late {\nchain out {\ntype filter hook egress device \"br0\" priority 0; policy accept;\n\
                 udp dport 53 drop\ntcp dport 22 drop\n}\n}",
            );
        });
    let finding = lab.only("dropped-by-kernel");
    assert!(finding.summary.contains("a chain of hook ingress or egress"), "{}", finding.summary);
    assert_eq!(finding.evidence[2..], ["table netdev late, chain out, rule 2: `tcp dport 22 drop`"]);
}

const QUEUEING: &str = "-A FORWARD -p tcp -j NFQUEUE --queue-num 5";

fn queued(location: &str, queues: Option<Vec<NfQueue>>) -> Finding {
    queued_by(vec![rule("FORWARD", 1, QUEUEING)], location, queues)
}

/// Without rules, it is not certain which it was.
fn queued_by(rules: Vec<MatchedRule>, location: &str, queues: Option<Vec<NfQueue>>) -> Finding {
    Lab::tcp(CLIENT, "10.2.0.2:22")
        .comes_in("c0")
        .routed(254, "br0", "unicast")
        .stage(Hook::Forward, "filter", |stage| {
            stage.verdict = Some(Verdict::Queue);
            stage.exact = !rules.is_empty();
            stage.decided_by = stage.exact.then_some(DecidedBy::Rule);
            stage.rules = rules;
        })
        .dropped("NOT_SPECIFIED", location)
        .edit(|lab| lab.settings.queues = queues)
        .only("dropped-by-kernel")
}

#[test]
fn where_no_queue_is_read_any_rule_hands_it_to_nobody() {
    let summary = |queues| queued_by(Vec::new(), "nf_queue", queues).summary;
    let nobody = "table filter hands it to a queue, and no program reads any queue.";
    assert!(summary(Some(Vec::new())).contains(nobody), "{}", summary(Some(Vec::new())));
    let one = NfQueue { number: 4, reader: 4711, waiting: 0, overflowed: 0 };
    for unsure in [Some(vec![one]), None] {
        let said = summary(unsure);
        assert!(said.contains("hands it to a queue, and either no program reads that queue"), "{said}");
    }
}

#[test]
fn what_became_of_a_packet_in_a_queue_is_told() {
    let read = |overflowed| NfQueue { number: 5, reader: 4711, waiting: 0, overflowed };
    let other = NfQueue { number: 4, ..read(0) };
    let cases = [
        ("nf_queue", Some(vec![other]), "hands it to queue 5, and no program reads that queue."),
        ("nf_queue", None, "hands it to queue 5, and either no program reads that queue, or it was full."),
        ("nf_queue", Some(vec![read(3)]), "which was full: the program that reads it does not keep up."),
        ("nfqnl_reinject", Some(vec![read(0)]), "and the program that reads it refused it, or ended."),
    ];
    for (location, queues, told) in cases {
        let finding = queued(location, queues);
        assert!(
            finding.summary.contains(&format!("rule 1 of FORWARD (`{QUEUEING}`) hand")),
            "{}",
            finding.summary
        );
        assert!(finding.summary.ends_with(told), "{}", finding.summary);
    }
    let line =
        "queue 5: read by netlink port 4711, 0 waiting, 3 dropped since because no more fit".to_owned();
    assert!(queued("nf_queue", Some(vec![read(3)])).evidence.contains(&line));
}

#[test]
fn a_listener_that_answers_nothing_is_most_likely_full() {
    let mut lab = Lab::tcp(CLIENT, "10.1.0.1:22").comes_in("c0").routed(255, "lo", "local");
    lab.journey.outcome.result = OutcomeKind::Dropped;
    lab.journey.outcome.location = Some("tcp_rcv_state_process".to_owned());
    lab.journey.notes.push(crate::model::UNANSWERED.to_owned());
    let finding = lab.only("dropped-by-kernel");
    assert!(
        finding.summary.contains("most likely its queue of new connections is full"),
        "{}",
        finding.summary
    );
    assert!(finding.fix.starts_with("ss -ltn"), "{}", finding.fix);
}

#[test]
fn a_ttl_that_ran_out_is_not_a_broken_header() {
    let mut lab = Lab::tcp(CLIENT, "10.2.0.2:22").comes_in("c0").dropped("IP_INHDR", "ip_forward");
    assert!(lab.only("dropped-by-kernel").summary.contains("malformed"));
    lab.journey.outcome.result = OutcomeKind::Rejected;
    lab.journey.outcome.answer = Some("icmp-time-exceeded".to_owned());
    assert!(lab.only("dropped-by-kernel").summary.ends_with("its TTL (hop limit) ran out."));
}

#[test]
fn under_an_accepting_policy_it_was_a_rule_even_if_none_was_seen() {
    let mut lab = dropped_at_input(None).backend(Backend::Nftables).edit(|lab| {
        lab.ruleset.add_nft_list(
            "table ip filter {\nchain INPUT {\ntype filter hook input priority 0; policy accept;\n}\n}",
        );
    });
    let stage = lab.last_stage();
    (stage.decided_by, stage.exact, stage.backend) = (None, false, Some(Backend::Nftables));
    let finding = lab.only("dropped-by-rule");
    assert!(
        finding.summary.starts_with("A rule of chain INPUT that was not seen in table filter"),
        "{}",
        finding.summary
    );
}

#[test]
fn who_was_answered_was_rejected_by_a_rule_even_if_none_was_seen() {
    let mut lab = dropped_at_input(None);
    let stage = lab.last_stage();
    (stage.decided_by, stage.exact) = (None, false);
    lab.journey.outcome.result = OutcomeKind::Rejected;
    lab.journey.outcome.answer = Some("icmp-port-unreachable".to_owned());
    let finding = lab.only("rejected-by-rule");
    let told = "A rule of chain INPUT that was not seen in table filter";
    assert!(finding.summary.starts_with(told), "{}", finding.summary);
}

/// The policy that is read afterwards is not the one that judged.
#[test]
fn while_the_ruleset_changes_nobody_is_accused() {
    let mut lab = dropped_at_input(None).edit(|lab| {
        lab.ruleset.add_nft_list(
            "table ip filter {\nchain INPUT {\ntype filter hook input priority 0; policy accept;\n}\n}",
        );
    });
    let stage = lab.last_stage();
    (stage.decided_by, stage.exact, stage.backend) = (None, false, Some(Backend::Nftables));
    stage.inexact_because = Some("the ruleset was being changed".to_owned());
    let finding = lab.only("dropped-by-kernel");
    assert!(finding.summary.contains("while the ruleset was being changed"), "{}", finding.summary);
    assert!(finding.fix.starts_with("# send the packet again"), "{}", finding.fix);
}

const ACCEPTING: &str =
    "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT\nCOMMIT\n";

fn forwarded(to: &str) -> Lab {
    Lab::tcp(CLIENT, to).comes_in("c0").routed(254, "br0", "unicast")
}

#[test]
fn what_one_backend_accepts_and_another_drops_is_mixed() {
    let seen = forwarded("10.2.0.2:80")
        .backend(Backend::IptablesLegacy)
        .stage(Hook::Forward, "filter", |stage| {
            stage.decided_by = Some(DecidedBy::Rule);
            stage.rules = vec![rule("FORWARD", 1, "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT")];
        })
        .backend(Backend::IptablesNft)
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("mixed-backends");
    assert!(seen.summary.contains("iptables-legacy accepts") && seen.summary.contains("iptables-nft drops"));
    assert!(seen.fix.starts_with("iptables-nft -I FORWARD 1 "), "{}", seen.fix);
    // This kernel tells nothing of the other's rules, but that the packet passed them.
    let unread = forwarded("10.2.0.2:80")
        .ruleset(ACCEPTING)
        .backend(Backend::IptablesNft)
        .stage(Hook::Forward, "filter", |stage| (stage.decided_by, stage.exact) = (None, false))
        .backend(Backend::IptablesLegacy)
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("mixed-backends");
    assert!(
        unread.evidence[0].contains("let it pass, which its rules do by rule 1"),
        "{:?}",
        unread.evidence
    );
    // The first of the two dropped it: the other is known by its rules only.
    let unseen = forwarded("10.2.0.2:80")
        .ruleset(ACCEPTING)
        .backend(Backend::IptablesLegacy)
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("mixed-backends");
    assert!(unseen.evidence[0].contains("would accept it by rule 1 of FORWARD"), "{:?}", unseen.evidence);
}

#[test]
fn two_backends_that_do_not_contradict_each_other_are_not_mixed() {
    // The other one's empty chain accepts by policy: nobody decided that.
    forwarded("10.2.0.2:80")
        .backend(Backend::IptablesLegacy)
        .accepted(Hook::Forward)
        .backend(Backend::IptablesNft)
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("dropped-by-policy");
    // The other one has rules, none of them for this port.
    forwarded("10.2.0.2:81")
        .ruleset(ACCEPTING)
        .backend(Backend::IptablesLegacy)
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("dropped-by-policy");
    // The same backend twice.
    forwarded("10.2.0.2:80")
        .ruleset(ACCEPTING)
        .judged(Hook::Forward, Verdict::Drop, Some(("FORWARD", 1, "-A FORWARD -s 10.1.0.2/32 -j DROP")))
        .only("dropped-by-rule");
}

#[test]
fn a_bridged_packet_is_told_from_a_routed_one() {
    let text = "-A FORWARD -i br0 -o br0 -j DROP";
    let judged = |lab: Lab| lab.judged(Hook::Forward, Verdict::Drop, Some(("FORWARD", 1, text)));
    let bridged = judged(Lab::tcp("10.2.0.3:40000", "10.2.0.2:80").comes_in("v0"));
    let finding = bridged.only("bridged-packet-filtered");
    assert!(finding.summary.contains("stays within bridge br0"), "{}", finding.summary);
    assert!(finding.fix.contains("sysctl -w net.bridge.bridge-nf-call-iptables=0"), "{}", finding.fix);
    judged(
        Lab::tcp("10.2.0.3:40000", "10.2.0.2:80")
            .comes_in("v0")
            .comes_in("br0")
            .routed(254, "br0", "unicast"),
    )
    .only("dropped-by-rule");
    bridged.edit(|lab| lab.settings.bridge_calls_iptables = Some(false)).only("dropped-by-rule");
}

#[test]
fn a_drop_reason_is_told_in_plain_words() {
    let lab = Lab::udp(CLIENT, "10.1.0.1:53")
        .comes_in("c0")
        .dropped("SOCKET_RCVBUFF", "__udp_enqueue_schedule_skb");
    let finding = lab.only("dropped-by-kernel");
    assert!(finding.summary.contains("the program reads too slowly"), "{}", finding.summary);
    let lab = Lab::udp(CLIENT, "10.1.0.1:53").comes_in("c0").dropped("BRAND_NEW_REASON", "f");
    assert!(lab.only("dropped-by-kernel").summary.contains("the kernel's reason is BRAND_NEW_REASON"));
    let lab = Lab::udp(CLIENT, "10.1.0.1:53").comes_in("c0").dropped("NOT_SPECIFIED", "some_function");
    assert!(lab.only("dropped-by-kernel").summary.contains("in some_function: this kernel gives no reason"));
}
