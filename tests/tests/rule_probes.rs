//! nft rules without counters, told by probes: the walk that the counters of the same rules tell, and the kernel's own trace.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tests::{
    expect, machine,
    pathtrace::{Pathtrace, binary},
    ruleset,
    topology::{Family, Lab, Topology},
    traffic::{self, LONG, SHORT, Server},
    wait,
};

/// `@` is where a rule's counter would stand, `SERVER` is its address.
const RULES: &str = r#"
table ip nat {
  chain pre {
    type nat hook prerouting priority -100;
    tcp dport 80 @ dnat to SERVER:8080
    tcp dport 90 @ dnat to SERVER:8081
  }
  chain post {
    type nat hook postrouting priority 100;
    oifname "none" @ masquerade
    oifname "eth1" @ masquerade
  }
}
table inet fw {
  chain web {
    tcp dport 8081 @ drop
    tcp dport 8080 @ meta mark set 0x7
    tcp dport 8080 @ accept
  }
  chain low {
    tcp dport 8083 @ reject with tcp reset
  }
  chain aside {
    @ return
  }
  chain forwarding {
    type filter hook forward priority 0; policy accept;
    ct state established,related @ accept
    udp dport 9 @ accept
    tcp dport 8084 @ goto aside
    @ tcp dport vmap { 8080 : jump web, 8081 : goto web, 8082 : drop, 8083 : jump low }
  }
}
table inet late {
  chain strict {
    type filter hook forward priority 10; policy drop;
    ct state established,related @ accept
    tcp dport 8080 @ accept
  }
}
"#;

/// What becomes of a first packet, by the port that it is sent to: hook, table, verdict, what decided, rules.
const STORIES: &Stories = &[
    (
        80,
        &[
            "prerouting nat accept rule pre#1",
            "forward fw accept rule forwarding#4 web#2 web#3",
            "forward late accept rule strict#2",
            "postrouting nat accept rule post#2",
        ],
    ),
    (90, &["prerouting nat accept rule pre#2", "forward fw drop rule forwarding#4 web#1"]),
    (
        8080,
        &[
            "prerouting nat accept policy",
            "forward fw accept rule forwarding#4 web#2 web#3",
            "forward late accept rule strict#2",
            "postrouting nat accept rule post#2",
        ],
    ),
    (8081, &["prerouting nat accept policy", "forward fw drop rule forwarding#4 web#1"]),
    (8082, &["prerouting nat accept policy", "forward fw drop rule forwarding#4"]),
    (8083, &["prerouting nat accept policy", "forward fw reject rule forwarding#4 low#1"]),
    (
        8084,
        &[
            "prerouting nat accept policy",
            "forward fw accept policy forwarding#3 aside#1",
            "forward late drop policy",
        ],
    ),
];

/// A packet that the verdict map has nothing for. Counters alone cannot tell that from one that it sent through `low`.
const IN_NO_MAP: (u16, &[&str]) =
    (8085, &["prerouting nat accept policy", "forward fw accept policy", "forward late drop policy"]);

/// Its first packets and what becomes of them.
type Stories = [(u16, &'static [&'static str])];

/// client - host - server, and a server on port 8080.
struct Routed {
    lab: Lab,
    server: IpAddr,
    _listening: Server,
}

/// What was told of first packets, by port; and who told it, by table.
type Told = (BTreeMap<u64, Vec<String>>, BTreeMap<String, Vec<Value>>);

impl Routed {
    fn new() -> Result<Self> {
        let lab = Lab::new(Topology::Routed)?;
        let server = lab.address("server", Family::Ipv4)?;
        let listening = Server::tcp(lab.netns("server")?, SocketAddr::new(server, 8080))?;
        Ok(Self { lab, server, _listening: listening })
    }

    fn load(&self, counter: &str) -> Result<()> {
        let rules = RULES.replace('@', counter).replace("SERVER", &self.server.to_string());
        ruleset::nft(self.lab.netns("host")?, &format!("flush ruleset\n{rules}"))
    }

    fn trace(&self, rules: &str) -> Result<Pathtrace> {
        Pathtrace::start(Some(self.lab.netns("host")?), &["--proto", "tcp", "--rules", rules])
    }

    /// Sends a first packet to every port, with these rules and told in this way.
    fn told(&self, counter: &str, rules: &str, wanted: &Stories) -> Result<Told> {
        self.load(counter)?;
        let trace = self.trace(rules)?;
        let client = self.lab.netns("client")?;
        let host = self.lab.address("host", Family::Ipv4)?;
        for &(port, story) in wanted {
            let to = SocketAddr::new(if port < 1000 { host } else { self.server }, port);
            let silent = story.last().is_some_and(|last| last.contains(" drop "));
            traffic::tcp(client, to, if silent { SHORT } else { *LONG })?;
        }
        wait::until("a journey to each port", || stories(&trace.lines()).0.len() == wanted.len())
            .with_context(|| format!("{:#?}", stories(&trace.lines())))?;
        Ok(stories(&trace.stop()?.lines))
    }
}

/// Of each port's first attempt.
fn stories(lines: &[Value]) -> Told {
    let (mut told, mut sources) = (BTreeMap::new(), BTreeMap::<String, Vec<Value>>::new());
    for journey in expect::journeys(lines).filter(|journey| journey["packet"]["tcp_flags"] == "S") {
        let port = journey["packet"]["destination_port"].as_u64().unwrap_or_default();
        if told.contains_key(&port) {
            continue;
        }
        let mut story = Vec::new();
        for stage in journey["stages"].as_array().into_iter().flatten() {
            if stage["kind"] == "netfilter" {
                story.push(sentence(stage));
                let table = stage["table"].as_str().unwrap_or_default().to_owned();
                sources.entry(table).or_default().push(stage["rules_source"].clone());
            }
        }
        told.insert(port, story);
    }
    (told, sources)
}

fn sentence(stage: &Value) -> String {
    let word = |key: &str| stage[key].as_str().unwrap_or("?").to_owned();
    let mut words = vec![word("hook"), word("table"), word("verdict"), word("decided_by")];
    for rule in stage["rules"].as_array().into_iter().flatten() {
        words.push(format!("{}#{}", rule["chain"].as_str().unwrap_or("?"), rule["position"]));
    }
    if stage["exact"] != true {
        words.push(format!("(not exact: {})", stage["inexact_because"]));
    }
    words.join(" ")
}

fn expected(stories: &Stories) -> BTreeMap<u64, Vec<String>> {
    let story = |(port, story): &(u16, &[&str])| {
        (u64::from(*port), story.iter().map(|line| (*line).to_owned()).collect())
    };
    stories.iter().map(story).collect()
}

/// Why this kernel does not tell; `None` where it does.
fn refusal() -> Result<Option<String>> {
    let output = std::process::Command::new(binary()?).args(["doctor", "--json"]).output()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("doctor --json")?;
    let items = report["items"].as_array().context("doctor's items")?;
    let probes = items
        .iter()
        .find(|item| item["summary"].as_str().is_some_and(|said| said.starts_with("rule probes")));
    Ok(match probes {
        Some(probes) if probes["level"] == "ok" => None,
        Some(probes) => Some(probes["evidence"].to_string()),
        None => Some("doctor says nothing of rule probes".to_owned()),
    })
}

/// Says so and ends a test where this kernel cannot run it.
macro_rules! needs_probes {
    () => {
        if let Some(why) = refusal()? {
            eprintln!("skipped, this kernel allows no rule probes: {why}");
            return Ok(());
        }
    };
}

/// What the probes are held against: of the same rules, counters where there are any, and the kernel's own trace.
#[test]
fn counters_and_the_kernels_trace_tell_the_stories() -> Result<()> {
    let routed = Routed::new()?;
    routed.load("")?;
    let trace = routed.trace("counters")?;
    let start = trace.lines().into_iter().find(|line| line["type"] == "start").context("a start line")?;
    if let Some(why) =
        start["missing"].as_array().into_iter().flatten().find(|line| {
            line.as_str().is_some_and(|line| line.starts_with("rules of nftables are not shown"))
        })
    {
        eprintln!("skipped: {why}");
        return Ok(());
    }
    trace.stop()?;
    let (told, sources) = routed.told("counter", "counters", STORIES)?;
    assert_eq!(told, expected(STORIES), "counters");
    let all = [STORIES, &[IN_NO_MAP]].concat();
    assert!(sources.values().flatten().all(|source| source == "counters"), "{sources:#?}");
    assert_eq!(routed.told("", "nftrace", &all)?.0, expected(&all), "the kernel's own trace");
    Ok(())
}

#[test]
fn probes_alone_and_beside_counters_tell_the_stories() -> Result<()> {
    let routed = Routed::new()?;
    // So that nf_tables is there.
    routed.load("")?;
    needs_probes!();
    let all = [STORIES, &[IN_NO_MAP]].concat();
    let (told, sources) = routed.told("", "auto", &all)?;
    assert_eq!(told, expected(&all), "probes");
    assert!(sources.values().flatten().all(|source| source == "probes"), "{sources:#?}");
    // Only the verdict map is not counted by what it does; in its table both are asked, and must agree.
    let (told, sources) = routed.told("counter", "auto", &all)?;
    assert_eq!(told, expected(&all), "counters and probes together");
    assert!(sources["fw"].iter().all(|source| source == "probes"), "{sources:#?}");
    assert!(sources["late"].iter().all(|source| source == "counters"), "{sources:#?}");
    Ok(())
}

/// Rules that come under a running trace are looked at, too, by functions that no rule needed before.
#[test]
fn rules_that_come_later_are_told() -> Result<()> {
    let routed = Routed::new()?;
    let host = routed.lab.netns("host")?;
    let rules = |inside: &str| {
        format!(
            "flush ruleset\ntable inet fw {{\n chain forwarding {{\n type filter hook forward priority 0; policy accept;\n \
             {inside}\n }}\n}}"
        )
    };
    ruleset::nft(host, &rules("counter"))?;
    needs_probes!();
    let trace = routed.trace("auto")?;
    let to = SocketAddr::new(routed.server, 8080);
    for (inside, position) in
        [("udp dport 1 accept\n tcp dport 8080 accept", 2), ("tcp dport 8080 reject with tcp reset", 1)]
    {
        ruleset::nft(host, &rules(inside))?;
        let named = json!({
            "packet": {"tcp_flags": "S"},
            "stages": [{"table": "fw", "exact": true, "rules_source": "probes", "rules": [{"position": position}]}],
        });
        let known = trace.lines().len();
        wait::until("the new rule", || {
            let client = routed.lab.netns("client");
            client.is_ok_and(|client| traffic::tcp(client, to, *LONG).is_ok())
                && expect::find(&trace.lines_after(known), &named).is_some()
        })
        .with_context(|| expect::explain(&trace.lines(), &named))?;
    }
    trace.stop().map(drop)
}

/// Where probes are refused, what is said of such rules is what it was.
#[test]
fn without_probes_the_rules_are_not_guessed() -> Result<()> {
    let routed = Routed::new()?;
    routed.load("")?;
    if refusal()?.is_none() {
        eprintln!("skipped: this kernel allows rule probes");
        return Ok(());
    }
    if !machine::has_nft_types() {
        eprintln!("skipped: this kernel does not describe rules of nft at all");
        return Ok(());
    }
    let trace = routed.trace("auto")?;
    let start = trace.lines().into_iter().find(|line| line["type"] == "start").context("a start line")?;
    let missing = start["missing"].as_array().context("what is missing")?.iter();
    let said: Vec<_> = missing.filter(|line| line.to_string().contains("without counters")).collect();
    assert_eq!(said.len(), 1, "{start:#}");
    traffic::tcp(routed.lab.netns("client")?, SocketAddr::new(routed.server, 8080), *LONG)?;
    let unsure = json!({
        "packet": {"tcp_flags": "S"},
        "stages": [{"table": "fw", "exact": false, "rules_source": "counters"}],
    });
    trace.wait_for("an unsure stage", |lines| expect::find(lines, &unsure).is_some())?;
    trace.stop().map(drop)
}
