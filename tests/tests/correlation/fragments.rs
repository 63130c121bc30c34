//! Datagrams in fragments.

use super::*;

#[test]
fn a_datagram_that_conntrack_puts_together_is_one_journey() -> Result<()> {
    for (family, whole) in [(Family::Ipv4, 4028), (Family::Ipv6, 4048)] {
        let lab = Lab::new(Topology::Routed)?;
        let host = lab.netns("host")?;
        let to = SocketAddr::new(lab.address("server", family)?, PORT);
        let _server = Server::udp(lab.netns("server")?, to)?;
        let accept = "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT";
        ruleset::iptables(host, Backend::Nft, family, accept)?;
        ruleset::iptables(host, Backend::Nft, family, "-t nat -A POSTROUTING -o eth1 -j MASQUERADE")?;
        let trace = Pathtrace::start(Some(host), &["--port", "7777"])?;
        let answer = traffic::datagram(lab.netns("client")?, FROM, to, &LARGE, *LONG)?;
        let inner = lab.address("inner", family)?;
        assert_eq!(answer, Answer::Answered { seen_as: Some(inner) });

        let there = json!({"packet": {"source": lab.address("client", family)?.to_string()}});
        let report = stop_after(trace, &there, 1)?;
        let journey = all_of(&report, &there, 1)[0];
        fits(
            journey,
            &json!({
                "direction": "original",
                "packet": {"source_port": FROM, "destination_port": PORT, "fragment": "offset 0, more follow"},
                "stages": [
                    {"kind": "device", "device": "eth0", "direction": "in"},
                    {"hook": "forward", "verdict": "accept", "exact": true, "rules": [{"position": 1, "text": accept}]},
                    {"hook": "postrouting", "nat": "masquerade",
                     "before": {"source_port": FROM}, "after": {"source": inner.to_string()}},
                ],
                "outcome": {"result": "forwarded", "device": "eth1"},
                "findings": [],
            }),
        );
        let together = format!("put together from 3 fragments: {whole} bytes");
        assert_eq!(notes(journey), [together.as_str(), "sent on in fragments"]);
        assert_eq!(report.summary()?["complete"], true, "{:?}", report.summary());
    }
    Ok(())
}

#[test]
fn without_conntrack_each_fragment_is_judged_and_only_the_first_has_ports() -> Result<()> {
    for family in Family::BOTH {
        let lab = Lab::new(Topology::Routed)?;
        let host = lab.netns("host")?;
        let to = SocketAddr::new(lab.address("server", family)?, PORT);
        ruleset::iptables(host, Backend::Legacy, family, "-A FORWARD -p udp --dport 7777 -j DROP")?;
        let trace = Pathtrace::start(Some(host), &["--port", "7777"])?;
        let answer = traffic::datagram(lab.netns("client")?, FROM, to, &LARGE, SHORT)?;
        assert_eq!(answer, Answer::Silence);

        let there = json!({"packet": {"protocol": "udp", "destination": to.ip().to_string()}});
        let report = stop_after(trace, &there, 3)?;
        let offset = |journey: &&Value| journey["packet"]["fragment"].as_str().map(str::to_owned);
        let mut fragments = all_of(&report, &there, 3);
        fragments.sort_by_key(|journey| journey["time"].as_str().map(str::to_owned));
        let second = if family == Family::Ipv4 { 1480 } else { 1448 };
        assert_eq!(
            fragments.iter().filter_map(offset).collect::<Vec<_>>(),
            [
                "offset 0, more follow".to_owned(),
                format!("offset {second}, more follow"),
                format!("offset {}, last", 2 * second)
            ]
        );
        fits(
            fragments[0],
            &json!({"packet": {"destination_port": PORT}, "outcome": {"result": "dropped"},
                    "stages": [{"hook": "forward", "backend": "iptables-legacy", "verdict": "drop", "decided_by": "rule"}]}),
        );
        for later in &fragments[1..] {
            fits(
                later,
                &json!({"packet": {"source_port": "null", "destination_port": "null"},
                        "stages": [{"hook": "forward", "backend": "iptables-legacy", "verdict": "accept", "decided_by": "policy",
                                    "before": {"destination_port": "null"}}],
                        "outcome": {"result": "forwarded"}}),
            );
        }
    }
    Ok(())
}

#[test]
fn a_datagram_for_this_host_is_put_together_before_input() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, PORT);
    let _server = Server::udp(host, to)?;
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-t mangle -A PREROUTING -p udp --dport 7777")?;
    ruleset::iptables(host, Backend::Legacy, Family::Ipv4, "-A INPUT -p udp --dport 7777 -j ACCEPT")?;
    let trace = Pathtrace::start(Some(host), &["--dport", "7777"])?;
    let answer = traffic::datagram(lab.netns("client")?, FROM, to, &LARGE, *LONG)?;
    assert!(matches!(answer, Answer::Answered { .. }), "{answer:?}");

    let there = json!({"packet": {"protocol": "udp"}});
    let report = stop_after(trace, &there, 1)?;
    let journey = all_of(&report, &there, 1)[0];
    fits(
        journey,
        &json!({
            "packet": {"destination_port": PORT, "fragment": "offset 0, more follow"},
            "stages": [
                {"hook": "prerouting", "table": "mangle", "backend": "iptables-legacy", "rules": [{"position": 1}]},
                {"kind": "route", "route_type": "local"},
                {"hook": "input", "table": "filter", "backend": "iptables-legacy", "verdict": "accept", "decided_by": "rule", "exact": true},
            ],
            "outcome": {"result": "delivered", "socket": {"local": to.to_string()}},
        }),
    );
    assert_eq!(notes(journey), ["put together from 3 fragments: 4028 bytes"]);
    Ok(())
}
