use super::*;

const CLIENT: &str = "10.1.0.2:40000";
const NAT: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i br0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.2.0.2:8080
COMMIT
";
const EMPTY_NAT: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n";
const FILTER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o br0 -j DOCKER
-A DOCKER -d 10.2.0.2/32 ! -i br0 -o br0 -p tcp -m tcp --dport 8080 -j ACCEPT
COMMIT
";
const EMPTY_FILTER: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n";

fn translated() -> Lab {
    Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .dnat("10.2.0.2:8080", DecidedBy::Rule)
        .routed(254, "br0", "unicast")
}

#[test]
fn wiped_filter_rules_are_told_from_a_missing_rule() {
    let wiped = translated()
        .ruleset(NAT)
        .ruleset(EMPTY_FILTER)
        .edit(|lab| lab.containers = Containers::with_names([], [(ip("10.2.0.2"), "web".to_owned())], []))
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("forward-drop-after-dnat");
    assert_eq!(
        wiped.summary,
        "tcp 10.1.0.2:40000 -> 10.1.0.1:80 was translated to 10.2.0.2:8080 (web), but nothing in FORWARD (iptables-nft) lets it through to there: its policy dropped it."
    );
    assert!(
        wiped.fix.starts_with("systemctl restart docker") && wiped.fix.contains("iptables-restore --noflush")
    );
    assert!(wiped.evidence.iter().any(|line| line.contains("they were wiped")), "{:?}", wiped.evidence);
    let missing = translated().judged(Hook::Forward, Verdict::Drop, None).only("forward-drop-after-dnat");
    assert_eq!(missing.fix, "iptables-nft -I FORWARD 1 -d 10.2.0.2 -p tcp --dport 8080 -j ACCEPT");
}

#[test]
fn a_final_rule_that_takes_the_rest_counts_as_a_policy() {
    for by in [
        ("FORWARD", 9, "-A FORWARD -j DROP"),
        ("FORWARD", 9, "counter drop"),
        ("DOCKER", 2, "-A DOCKER ! -i br0 -o br0 -j DROP"),
    ] {
        translated().judged(Hook::Forward, Verdict::Drop, Some(by)).only("forward-drop-after-dnat");
    }
    for by in [
        ("DOCKER-USER", 1, "-A DOCKER-USER -j DROP"),
        ("FORWARD", 2, "-A FORWARD -s 10.1.0.2/32 -j DROP"),
        ("DOCKER-ISOLATION-STAGE-2", 1, "-A DOCKER-ISOLATION-STAGE-2 -o br0 -j DROP"),
    ] {
        translated().judged(Hook::Forward, Verdict::Drop, Some(by)).only("dropped-by-rule");
    }
}

#[test]
fn a_drop_in_forward_without_translation_is_a_policys() {
    Lab::tcp(CLIENT, "10.2.0.2:8080")
        .comes_in("c0")
        .judged(Hook::Forward, Verdict::Drop, None)
        .only("dropped-by-policy");
}

fn refused(port: u16) -> Lab {
    Lab::tcp(CLIENT, &format!("10.1.0.1:{port}"))
        .comes_in("c0")
        .routed(255, "lo", "local")
        .accepted(Hook::Input)
        .refused()
}

#[test]
fn an_emptied_nat_table_leaves_the_port_to_the_host() {
    let finding = refused(80).ruleset(EMPTY_NAT).ruleset(FILTER).only("published-port-not-translated");
    assert!(finding.summary.contains("so the host itself refused it"), "{}", finding.summary);
    assert!(finding.evidence[0].contains("if no container publishes port 80"), "{:?}", finding.evidence);
    assert!(finding.fix.starts_with("systemctl restart docker"), "{}", finding.fix);
    let same_port = refused(8080).ruleset(EMPTY_NAT).ruleset(FILTER).only("published-port-not-translated");
    assert!(!same_port.evidence[0].contains("if no container"), "{:?}", same_port.evidence);
    // The host's own proxy listens on loopback; and where the firewall is closed, INPUT's policy takes it.
    refused(80)
        .ruleset(EMPTY_NAT)
        .ruleset(FILTER)
        .listens(Protocol::TCP, "127.0.0.1:80", "proxy")
        .only("published-port-not-translated");
    Lab::tcp(CLIENT, "10.1.0.1:80")
        .comes_in("c0")
        .ruleset(EMPTY_NAT)
        .ruleset(FILTER)
        .judged(Hook::Input, Verdict::Drop, None)
        .only("published-port-not-translated");
}

#[test]
fn other_signs_of_a_published_port_count_too() {
    refused(80).listens(Protocol::TCP, "127.0.0.1:80", "docker-proxy").only("published-port-not-translated");
    let listed = refused(80)
        .edit(|lab| {
            lab.containers = Containers::with_names([], [], [((Protocol::TCP, 80), "web".to_owned())]);
        })
        .only("published-port-not-translated");
    assert_eq!(listed.evidence, ["Docker: container web publishes tcp port 80"]);
    let no_jump = NAT.replace("-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n", "");
    let finding = refused(80).ruleset(&no_jump).only("published-port-not-translated");
    assert!(finding.evidence[0].ends_with("no rule jumps to its chain DOCKER"), "{:?}", finding.evidence);
    let other_device = NAT.replace("! -i br0", "-i u0");
    let finding = refused(80).ruleset(&other_device).only("published-port-not-translated");
    assert!(
        finding.evidence[0].contains("asks for something that this packet is not"),
        "{:?}",
        finding.evidence
    );
}

#[test]
fn an_unpublished_port_is_simply_not_listened_on() {
    refused(81).ruleset(NAT).ruleset(FILTER).only("no-listener");
    refused(80).only("no-listener");
    // What could not be read cannot be said to be empty.
    refused(80)
        .ruleset(FILTER)
        .edit(|lab| lab.ruleset.unread.push("iptables-legacy-save: not found".to_owned()))
        .only("no-listener");
}

fn published(input_rules: &str) -> Lab {
    let filter = FILTER.replace("COMMIT", &format!("{input_rules}\nCOMMIT"));
    translated().ruleset(NAT).ruleset(&filter).accepted(Hook::Forward).goes_out("br0").answered(1)
}

#[test]
fn an_input_rule_for_a_published_port_never_sees_it() {
    let finding = published("-A INPUT -p tcp -m tcp --dport 80 -j DROP").only("rule-on-unused-chain");
    assert!(finding.summary.contains("passes FORWARD, not INPUT"), "{}", finding.summary);
    assert!(finding.fix.starts_with("iptables-nft -I DOCKER-USER -p tcp -m conntrack --ctdir ORIGINAL --ctorigdst 10.1.0.1 --ctorigdstport 80 -j DROP"));
    // The port inside, and the source, are meant as well.
    published("-A INPUT -p tcp -m tcp --dport 8080 -j REJECT").only("rule-on-unused-chain");
    published("-A INPUT -s 10.1.0.0/24 -j DROP").only("rule-on-unused-chain");
}

#[test]
fn other_input_rules_do_not_matter_to_a_published_port() {
    published("-A INPUT -p tcp -m tcp --dport 22 -j DROP").healthy();
    published("-A INPUT -j DROP").healthy();
    published("-A INPUT -s 10.1.0.2/32 -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 80 -j DROP").healthy();
    published("-A INPUT -p tcp -m tcp --dport 80 -j DROP").state(CtState::Established).healthy();
}

#[test]
fn healthy_journeys_have_no_finding() {
    published("").healthy();
    // Still waiting for the reply.
    published("").answered(0).healthy();
    Lab::tcp(CLIENT, "10.1.0.1:22").comes_in("c0").accepted(Hook::Input).delivered().healthy();
    // A container's own connection, masqueraded, and its reply.
    Lab::tcp("10.2.0.2:40000", "203.0.113.9:443")
        .comes_in("v0")
        .comes_in("br0")
        .accepted(Hook::Forward)
        .masqueraded("192.0.2.1")
        .goes_out("u0")
        .after(9)
        .healthy();
    let mut reply = Lab::tcp("203.0.113.9:443", "192.0.2.1:40000")
        .flags("SA")
        .state(CtState::Established)
        .comes_in("u0")
        .dnat("10.2.0.2:40000", DecidedBy::Mapping)
        .ruleset(NAT)
        .goes_out("br0")
        .answered(1)
        .after(9);
    reply.journey.direction = Some(Direction::Reply);
    reply.healthy();
}
