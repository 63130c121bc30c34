//! Flow tables of nft: rules that hand connections to one, and packets that it takes past all hooks.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::{Value, json};
use tests::{
    expect, machine,
    pathtrace::Pathtrace,
    ruleset,
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, Server},
};

const TABLE: &str =
    "table inet f {\nflowtable ft {\nhook ingress priority 0\ndevices = { eth0, eth1 }\n}\n}\n";
const RULES: &str = "table inet f {\n\
    chain forward {\ntype filter hook forward priority 0; policy drop;\n\
    ct state established,related counter flow add @ft\n\
    ct state established,related counter accept\niifname \"eth0\" counter accept\n}\n}\n\
    table ip n {\nchain post {\ntype nat hook postrouting priority 100;\noifname \"eth1\" counter masquerade\n}\n}\n";

fn seen(trace: &Pathtrace, what: &str, wanted: &Value) -> Result<()> {
    trace
        .wait_for(what, |lines| expect::find(lines, wanted).is_some())
        .map_err(|error| anyhow::anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), wanted)))
}

#[test]
fn packets_of_a_flow_table_are_told_and_its_rule_matches() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    if let Err(why) = ruleset::nft(host, TABLE).and_then(|()| ruleset::nft(host, RULES)) {
        eprintln!("skipped, this kernel has no flow tables: {why:#}");
        return Ok(());
    }
    let (own, translated) = (lab.address("client", Family::Ipv4)?, lab.address("inner", Family::Ipv4)?);
    let to = SocketAddr::new(lab.address("server", Family::Ipv4)?, 553);
    let _server = Server::udp(lab.netns("server")?, to)?;
    let trace = Pathtrace::start(Some(host), &["--port", "553"])?;
    let ask = || -> Result<()> {
        let answer = traffic::udp(client, 40_000, to, *LONG)?;
        assert_eq!(answer, Answer::Answered { seen_as: Some(translated) });
        Ok(())
    };
    ask()?;
    if machine::has_nft_types() {
        let rules = json!([{"position": 1, "text": "ct state established,related counter flow add @ft"},
                           {"position": 2}]);
        let forward = json!({"hook": "forward", "verdict": "accept", "exact": true, "rules": rules});
        seen(&trace, "the first answer", &json!({"direction": "reply", "stages": [forward]}))?;
    }
    ask()?;
    let note = if machine::has_nft_types() {
        "passed no hook: a flowtable took it past FORWARD, whatever rules say there now"
    } else {
        "passed no hook: a flowtable, or a program of others on the device, took it past FORWARD"
    };
    let straight = |source: &Value, destination: &Value, left_as: &Value| {
        json!({"packet": {"source": source, "destination": destination}, "conntrack": null,
               "stages": [{"kind": "device", "direction": "in"}, {"kind": "device", "direction": "out"}],
               "no_stages": [{"kind": "netfilter"}], "notes": [note],
               "outcome": {"result": "forwarded", "left_as": left_as}})
    };
    let (client, server) = (json!(own), json!(to.ip()));
    let there = json!({"source": translated, "source_port": 40_000, "destination": server});
    let back = json!({"source": server, "source_port": 553, "destination": client});
    seen(&trace, "a packet past the hooks", &straight(&client, &server, &there))?;
    seen(&trace, "its answer", &straight(&server, &json!(translated), &back))?;
    assert!(trace.stop()?.status.success());
    Ok(())
}
