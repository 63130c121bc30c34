use crate::enrich::ConntrackUse;

use super::*;

const CLIENT: &str = "10.1.0.2:40000";

#[test]
fn an_invalid_packet_dropped_for_it() {
    let drop = |by| {
        Lab::tcp(CLIENT, "10.2.0.2:80").flags("A").state(CtState::Invalid).comes_in("c0").judged(
            Hook::Forward,
            Verdict::Drop,
            by,
        )
    };
    let finding = drop(Some(("FORWARD", 1, "-A FORWARD -m conntrack --ctstate INVALID -j DROP")))
        .only("conntrack-invalid");
    assert!(finding.summary.contains("rule 1 of FORWARD"), "{}", finding.summary);
    drop(Some(("forward", 1, "ct state invalid drop"))).only("conntrack-invalid");
    assert!(drop(None).only("conntrack-invalid").summary.contains("the policy of FORWARD drops"));
    // Dropped for another reason.
    drop(Some(("FORWARD", 1, "-A FORWARD -s 10.1.0.2/32 -j DROP"))).only("dropped-by-rule");
}

fn use_of(count: u64) -> impl FnOnce(&mut Lab) {
    move |lab| {
        lab.journey.conntrack = None;
        lab.settings.conntrack = Some(ConntrackUse { count, max: 1000, dropped: Some(7) });
    }
}

#[test]
fn a_full_table() {
    let lab = |count| {
        Lab::tcp(CLIENT, "10.1.0.1:80")
            .comes_in("c0")
            .stage(Hook::Prerouting, "raw", |_| {})
            .dropped("NETFILTER_DROP", "nf_hook_slow")
            .edit(use_of(count))
    };
    let finding = lab(1000).only("conntrack-full");
    assert!(finding.summary.contains("full (1000 of 1000)"), "{}", finding.summary);
    assert!(finding.fix.starts_with("sysctl -w net.netfilter.nf_conntrack_max=2000"), "{}", finding.fix);
    lab(400).only("dropped-by-kernel");
    Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .edit(use_of(1000))
        .judged(Hook::Input, Verdict::Drop, None)
        .only("dropped-by-policy");
}

const RULES: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:SEP-1 - [0:0]
-A PREROUTING -d 10.1.0.1/32 -p udp -m udp --dport 53 -m statistic --mode random --probability 0.5 -j SEP-1
-A PREROUTING -d 10.1.0.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.2.0.8:53
-A PREROUTING -d 10.1.0.99/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.2.0.66:53
-A SEP-1 -p udp -m udp -j DNAT --to-destination 10.2.0.7:53
COMMIT
";

fn mapped(to: &str) -> Lab {
    Lab::udp("10.1.0.2:5353", "10.1.0.1:53")
        .comes_in("c0")
        .ruleset(RULES)
        .dnat(to, DecidedBy::Mapping)
        .routed(254, "br0", "unicast")
}

#[test]
fn a_mapping_that_no_rule_makes_any_more() {
    let finding = mapped("10.2.0.66:53").dropped("NEIGH_FAILED", "neigh_invalidate").only("stale-mapping");
    assert!(finding.summary.contains("sends it to 10.2.0.66:53"), "{}", finding.summary);
    assert_eq!(finding.fix, "conntrack -D -p udp --orig-dst 10.1.0.1 --orig-port-dst 53");
    // Nobody answers, which takes a while to know.
    let silent = mapped("10.2.0.66:53").goes_out("br0");
    assert!(silent.diagnose().again_at.is_some());
    silent.after(3).only("stale-mapping");
}

#[test]
fn a_mapping_from_before_the_rule_leaves_the_packet_here() {
    let finding = Lab::udp("10.1.0.2:5353", "10.1.0.1:53")
        .comes_in("c0")
        .ruleset(RULES)
        .stage(Hook::Prerouting, "nat", |stage| stage.decided_by = Some(DecidedBy::Mapping))
        .accepted(Hook::Input)
        .refused()
        .only("stale-mapping");
    assert!(finding.summary.contains("leaves it untranslated"), "{}", finding.summary);
}

#[test]
fn a_mapping_that_any_of_the_rules_would_make_is_not_stale() {
    for target in ["10.2.0.7:53", "10.2.0.8:53"] {
        mapped(target).dropped("NEIGH_FAILED", "neigh_invalidate").only("neighbour-unreachable");
        mapped(target).goes_out("br0").answered(1).after(9).healthy();
    }
    mapped("10.2.0.66:53").goes_out("br0").answered(1).after(9).healthy();
    // The connection's first packet was judged by the rules themselves.
    Lab::udp("10.1.0.2:5353", "10.1.0.1:53")
        .comes_in("c0")
        .ruleset(RULES)
        .dnat("10.2.0.66:53", DecidedBy::Rule)
        .routed(254, "br0", "unicast")
        .dropped("NEIGH_FAILED", "neigh_invalidate")
        .only("neighbour-unreachable");
}
