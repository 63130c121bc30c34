//! Journeys through the rules of a real Docker daemon, on a machine of their own:
//! `cargo xtask vm-test --group docker`.

use std::{
    io::{self, Write},
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use tests::{
    docker::{self, DockerHost, IMAGE, docker},
    expect, machine,
    pathtrace::Pathtrace,
    ruleset::Backend,
    scenario::told_here,
    traffic::{LONG, SHORT},
    wait,
};

const PORT: u16 = 18443;
const INNER: u16 = 8443;

/// A rule file of somebody's own, as `iptables-restore` takes it: it knows nothing of Docker.
const OWN_RULES: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
    -A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n";

fn run_web() -> Result<()> {
    docker(&format!(
        "run -d --restart always --name web -p {PORT}:{INNER} {IMAGE} httpd -f -p {INNER} -h /www"
    ))
    .map(drop)
}

fn published() -> SocketAddr {
    SocketAddr::from((DockerHost::ADDRESS, PORT))
}

fn text(address: [u8; 4]) -> String {
    std::net::Ipv4Addr::from(address).to_string()
}

/// Waits for a journey that fits, as far as this kernel can tell; explains what there was instead.
fn expect_journey(trace: &Pathtrace, pattern: &Value, backend: Backend) -> Result<Value> {
    let pattern = told_here(pattern.clone(), backend);
    trace
        .wait_for("the expected journey", |lines| expect::find(lines, &pattern).is_some())
        .map_err(|error| anyhow!("{error:#}\n{}", expect::explain(&trace.lines(), &pattern)))?;
    expect::find(&trace.lines(), &pattern).cloned().ok_or_else(|| anyhow!("it vanished"))
}

/// Whether this kernel lets the backend's rules be read: what follows from them is told only then.
fn tells_rules(backend: Backend) -> bool {
    backend == Backend::Legacy || machine::has_nft_types()
}

fn served(host: &DockerHost) -> Result<()> {
    wait::until("the container to answer", || host.client_reaches(published(), *LONG))
}

/// The journeys of a request to the published port and of its answer, in both directions healthy.
fn expect_published(host: &DockerHost, trace: &Pathtrace) -> Result<()> {
    let (web, backend) = (text(docker::address_of("web")?), host.backend().name());
    let dnat =
        format!("-A DOCKER ! -i docker0 -p tcp -m tcp --dport {PORT} -j DNAT --to-destination {web}:{INNER}");
    let accept =
        format!("-A DOCKER -d {web}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport {INNER} -j ACCEPT");
    let there = json!({
        "direction": "original",
        "packet": {"source": text(DockerHost::CLIENT), "destination": text(DockerHost::ADDRESS), "destination_port": PORT, "tcp_flags": "S"},
        "stages": [
            {"kind": "device", "device": "ext0", "direction": "in"},
            {"hook": "prerouting", "table": "nat", "backend": backend, "nat": "dnat", "exact": true, "rules": [
                {"chain": "PREROUTING", "position": 1, "action": "jump DOCKER"},
                {"chain": "DOCKER", "position": 2, "text": dnat, "action": "DNAT"},
            ], "after": {"destination": web, "destination_port": INNER}},
            {"kind": "route", "destination": web, "device": "docker0"},
            {"hook": "forward", "table": "filter", "chain": "FORWARD", "backend": backend, "verdict": "accept",
             "decided_by": "rule", "exact": true, "rules": [
                {"chain": "FORWARD", "position": 1, "action": "jump DOCKER-USER"},
                {"chain": "DOCKER-USER", "position": 1, "action": "RETURN"},
                {"chain": "FORWARD", "position": 2, "action": "jump DOCKER-ISOLATION-STAGE-1"},
                {"chain": "DOCKER-ISOLATION-STAGE-1", "position": 2, "action": "RETURN"},
                {"chain": "FORWARD", "position": 4, "action": "jump DOCKER"},
                {"chain": "DOCKER", "position": 1, "text": accept, "action": "ACCEPT"},
            ]},
            {"hook": "postrouting", "table": "nat"},
            {"kind": "device", "device": "docker0", "direction": "out"},
        ],
        "outcome": {"result": "forwarded", "device": "~veth"},
        "findings": [],
    });
    expect_journey(trace, &there, host.backend())?;
    let back = json!({
        "direction": "reply",
        "packet": {"source": web, "source_port": INNER, "destination": text(DockerHost::CLIENT), "tcp_flags": "SA"},
        "stages": [
            {"hook": "forward", "table": "filter", "verdict": "accept", "exact": true},
            {"hook": "postrouting", "decided_by": "mapping",
             "after": {"source": text(DockerHost::ADDRESS), "source_port": PORT}},
            {"kind": "device", "device": "ext0", "direction": "out"},
        ],
        "outcome": {"result": "forwarded", "device": "ext0"},
        "findings": [],
    });
    expect_journey(trace, &back, host.backend()).map(drop)
}

/// A request from a container of one network to a container of another.
fn expect_isolation(host: &DockerHost) -> Result<()> {
    for (network, name) in [("blue", "app"), ("green", "store")] {
        docker(&format!("network create {network}"))?;
        docker(&format!(
            "run -d --name {name} --network {network} --network-alias {name}-alias {IMAGE} httpd -f -p 80 -h /www"
        ))?;
    }
    docker(&format!("run -d --name peer --network blue {IMAGE} sleep 3600"))?;
    progress("a name of Docker's own");
    // Its nslookup asks the server itself; what resolves by libc, if only a number, dies in a static busybox.
    let (app, store) = (text(docker::address_of("app")?), text(docker::address_of("store")?));
    let said = docker("exec peer nslookup -type=a app-alias 127.0.0.11")?;
    ensure!(said.contains(&app), "the alias is not {app}:\n{said}");
    let reaches = |from: &str, address: &str, patience| -> Result<bool> {
        let to = SocketAddr::new(address.parse()?, 80);
        Ok(docker::door_of(from)?.run(|| docker::http(to, patience)))
    };
    ensure!(reaches("peer", &app, *LONG)?, "containers of one network do not reach each other");
    progress("from one network to the other, traced");
    let green = docker::bridge_of("green")?;
    let trace = Pathtrace::start(None, &["--host", &store])?;
    ensure!(!reaches("app", &store, SHORT)?, "the networks are not isolated");
    let journey = expect_journey(
        &trace,
        &json!({
            "packet": {"source": app, "destination": store, "destination_port": 80, "tcp_flags": "S"},
            "stages": [
                {"kind": "device", "device": "~veth", "direction": "in"},
                {"hook": "forward", "table": "filter", "backend": host.backend().name(), "verdict": "drop",
                 "decided_by": "rule", "exact": true, "rules": "any"},
            ],
            "outcome": {"result": "dropped", "reason": "NETFILTER_DROP"},
            "findings": ["dropped-by-rule"],
        }),
        host.backend(),
    )?;
    if tells_rules(host.backend()) {
        expect_isolating_rule(&journey, &green)?;
    }
    ensure!(trace.stop()?.status.success());
    Ok(())
}

fn expect_isolating_rule(journey: &Value, green: &str) -> Result<()> {
    let stages = journey["stages"].as_array().cloned().unwrap_or_default();
    let decisive = stages.last().and_then(|stage| stage["rules"].as_array()?.last().cloned());
    let rule = format!("-A DOCKER-ISOLATION-STAGE-2 -o {green} -j DROP");
    ensure!(decisive.is_some_and(|last| last["text"] == rule.as_str()), "{}", expect::pretty(journey));
    let finding = journey["findings"][0].to_string();
    ensure!(finding.contains("(store)") && finding.contains("(app)"), "containers are not named: {finding}");
    Ok(())
}

/// A container with the host's own network: nothing is translated, a process of the container takes it.
fn expect_host_network(host: &DockerHost) -> Result<()> {
    docker(&format!("run -d --name bare --network host {IMAGE} httpd -f -p 9090 -h /www"))?;
    let to = SocketAddr::from((DockerHost::ADDRESS, 9090));
    wait::until("the container to answer", || host.client_reaches(to, *LONG))?;
    let trace = Pathtrace::start(None, &["--port", "9090"])?;
    ensure!(host.client_reaches(to, *LONG));
    expect_journey(
        &trace,
        &json!({
            "packet": {"destination": text(DockerHost::ADDRESS), "destination_port": 9090, "tcp_flags": "S"},
            "stages": [{"kind": "device", "device": "ext0", "direction": "in"}],
            "outcome": {"result": "delivered", "socket": {"local": "~:9090", "process": "httpd"}},
            "findings": [],
        }),
        host.backend(),
    )?;
    ensure!(trace.stop()?.status.success());
    Ok(())
}

/// There is one machine, and so one daemon at a time.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says at once what comes next: on an emulated machine a step takes a minute.
fn progress(what: &str) {
    // Nobody reads it: no harm.
    drop(writeln!(io::stderr(), "docker: {what}"));
}

fn everyday(backend: Backend) -> Result<()> {
    let _alone = alone();
    progress(&format!("a daemon with {}", backend.name()));
    let host = DockerHost::new(backend)?;
    progress("a container with a published port");
    run_web()?;
    served(&host)?;
    progress("a request to it, traced");
    let trace = Pathtrace::start(None, &["--port", &PORT.to_string()])?;
    served(&host)?;
    expect_published(&host, &trace)?;
    ensure!(trace.stop()?.status.success());
    progress("two networks");
    expect_isolation(&host)?;
    progress("the host's network");
    expect_host_network(&host)
}

/// The rules are restored over Docker's under a running trace; then the daemon is restarted.
fn accident(backend: Backend) -> Result<()> {
    let _alone = alone();
    progress(&format!("a daemon with {}, then the accident", backend.name()));
    let mut host = DockerHost::new(backend)?;
    progress("a container with a published port");
    run_web()?;
    served(&host)?;
    progress("rules restored over Docker's");
    host.restore(OWN_RULES)?;
    let trace = Pathtrace::start(None, &["--port", &PORT.to_string()])?;
    ensure!(!host.client_reaches(published(), SHORT), "the accident did no harm");
    ensure!(docker::http(([127, 0, 0, 1], PORT).into(), *LONG), "Docker's proxy does not answer on loopback");
    let web = text(docker::address_of("web")?);
    let journey = expect_journey(
        &trace,
        &json!({
            "packet": {"destination": text(DockerHost::ADDRESS), "destination_port": PORT, "tcp_flags": "S"},
            "stages": [
                {"hook": "prerouting", "table": "nat", "nat": "dnat", "after": {"destination": web}},
                {"hook": "forward", "table": "filter", "backend": backend.name(), "verdict": "drop",
                 "decided_by": "policy", "rules": [], "exact": true},
            ],
            "no_stages": [{"hook": "postrouting"}],
            "outcome": {"result": "dropped", "reason": "NETFILTER_DROP"},
            "findings": ["forward-drop-after-dnat"],
        }),
        backend,
    )?;
    if tells_rules(backend) {
        let finding = &journey["findings"][0];
        let fix = finding["fix"].as_str().unwrap_or_default();
        ensure!(fix.starts_with("systemctl restart docker"), "{finding}");
        ensure!(finding.to_string().contains("(web)"), "the container is not named: {finding}");
    }
    progress("the daemon restarted");
    host.stop_daemon()?;
    host.start_daemon()?;
    served(&host)?;
    expect_published(&host, &trace)?;
    ensure!(trace.stop()?.status.success());
    Ok(())
}

#[test]
#[ignore = "changes the machine's ruleset: cargo xtask vm-test --group docker"]
fn published_ports_networks_and_host_network_with_iptables_nft() -> Result<()> {
    everyday(Backend::Nft)
}

#[test]
#[ignore = "changes the machine's ruleset: cargo xtask vm-test --group docker"]
fn published_ports_networks_and_host_network_with_iptables_legacy() -> Result<()> {
    everyday(Backend::Legacy)
}

#[test]
#[ignore = "changes the machine's ruleset: cargo xtask vm-test --group docker"]
fn rules_restored_over_dockers_and_the_daemon_restarted_with_iptables_nft() -> Result<()> {
    accident(Backend::Nft)
}

#[test]
#[ignore = "changes the machine's ruleset: cargo xtask vm-test --group docker"]
fn rules_restored_over_dockers_and_the_daemon_restarted_with_iptables_legacy() -> Result<()> {
    accident(Backend::Legacy)
}
