use super::*;

fn container_to(destination: &str) -> Lab {
    Lab::tcp("10.2.0.2:40000", destination)
        .comes_in("v0")
        .comes_in("br0")
        .routed(254, "u0", "unicast")
        .accepted(Hook::Forward)
        .goes_out("u0")
}

#[test]
fn a_private_source_is_blamed_only_when_the_reply_is_overdue() {
    let waiting = container_to("203.0.113.9:443").diagnose();
    assert_eq!(waiting.findings, []);
    assert_eq!(waiting.again_at, Some(Timestamp::UNIX_EPOCH.checked_add(REPLY_PATIENCE).unwrap()));
    let finding = container_to("203.0.113.9:443").after(1).only("private-source-not-translated");
    assert!(
        finding.evidence.contains(&"ruleset: no MASQUERADE or SNAT rule at all".to_owned()),
        "{:?}",
        finding.evidence
    );
    assert_eq!(finding.fix, "iptables -t nat -A POSTROUTING -s 10.2.0.0/24 -o u0 -j MASQUERADE");
    container_to("203.0.113.9:443").after(9).answered(1).healthy();
}

#[test]
fn a_reply_that_may_have_been_lost_is_not_called_missing() {
    let found = container_to("203.0.113.9:443").events_lost().after(9).diagnose();
    assert_eq!((found.findings, found.again_at), (vec![], None));
}

#[test]
fn behind_a_bridge_a_private_destination_counts_too() {
    let finding = container_to("192.168.7.9:443").after(3).only("private-source-not-translated");
    assert!(finding.evidence[1].contains("behind bridge br0"), "{:?}", finding.evidence);
}

#[test]
fn plain_routing_between_private_networks_is_nobodys_fault() {
    let lan =
        |to| Lab::tcp("10.1.0.2:40000", to).comes_in("c0").accepted(Hook::Forward).goes_out("br0").after(9);
    lan("10.2.0.2:80").healthy();
}

#[test]
fn the_rules_that_did_not_take_it_are_named() {
    let nat = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.3.0.0/24 -o u0 -j MASQUERADE\nCOMMIT\n";
    let finding = container_to("203.0.113.9:443")
        .backend(Backend::IptablesLegacy)
        .ruleset(nat)
        .after(3)
        .only("private-source-not-translated");
    assert!(
        finding.evidence[2].contains("did not take it: `-A POSTROUTING -s 10.3.0.0/24"),
        "{:?}",
        finding.evidence
    );
    assert!(finding.fix.starts_with("iptables-legacy -t nat "), "{}", finding.fix);
}

#[test]
fn a_redirect_of_this_host_answers_nothing() {
    let mut lab = Lab::new(Protocol::ICMP, "10.2.0.1", "10.2.0.2");
    lab.journey.direction = Some(Direction::Reply);
    lab.journey.packet.icmp_type = Some(5);
    assert!(!Flow::is_answer(&lab.journey));
    let redirect = lab.state(CtState::Related).dropped("NETFILTER_DROP", "nf_hook_slow");
    assert!(redirect.only("dropped-by-kernel").summary.contains("NAT lets none of those out"));
    let mut unreachable = Lab::new(Protocol::ICMP, "10.2.0.1", "10.2.0.2");
    unreachable.journey.direction = Some(Direction::Reply);
    unreachable.journey.packet.icmp_type = Some(3);
    assert!(Flow::is_answer(&unreachable.journey));
}

fn redirected(from: &str, to: &str, out: &str) -> Lab {
    Lab::tcp(from, "10.1.0.1:80")
        .comes_in("c0")
        .dnat(to, DecidedBy::Rule)
        .accepted(Hook::Forward)
        .goes_out(out)
        .after(3)
}

#[test]
fn a_target_that_answers_another_way() {
    let finding = redirected("10.1.0.2:40000", "192.0.2.80:80", "u0").only("reply-bypasses-nat");
    assert!(
        finding.summary.contains("most likely 192.0.2.80 sends its answers to 10.1.0.2 another way"),
        "{}",
        finding.summary
    );
    assert!(finding.fix.starts_with("iptables -t nat -A POSTROUTING -d 192.0.2.80 -p tcp --dport 80 -m conntrack --ctstate DNAT -j MASQUERADE"));
    let direct = redirected("10.1.0.2:40000", "10.1.0.9:80", "c0").only("reply-bypasses-nat");
    assert!(direct.summary.contains("answers 10.1.0.2 directly"), "{}", direct.summary);
}

#[test]
fn a_target_that_can_only_answer_through_here_is_not_blamed() {
    redirected("10.1.0.2:40000", "10.2.0.2:80", "br0").healthy();
    Lab::tcp("10.1.0.2:40000", "10.1.0.1:80")
        .comes_in("c0")
        .dnat("192.0.2.80:80", DecidedBy::Rule)
        .masqueraded("192.0.2.1")
        .goes_out("u0")
        .after(9)
        .healthy();
    redirected("10.1.0.2:40000", "192.0.2.80:80", "u0").answered(2).healthy();
}
