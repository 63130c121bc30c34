//! Rule texts that come late: journeys wait for them, and what is told of time is told of the packets' time.

use std::{env, fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};
use serde_json::json;
use tests::{
    expect,
    pathtrace::{self, Pathtrace},
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Answer, LONG, Server},
};

/// Puts a program of this name into `folder` that takes two seconds longer than the real one.
fn slow(folder: &Path, name: &str) -> Result<()> {
    let search = env::var_os("PATH").context("PATH")?;
    let real = env::split_paths(&search).map(|folder| folder.join(name)).find(|program| program.exists());
    let real = real.with_context(|| format!("{name} is not installed"))?;
    let program = folder.join(name);
    fs::write(&program, format!("#!/bin/sh\nsleep 2\nexec '{}' \"$@\"\n", real.display()))?;
    Ok(fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?)
}

#[test]
fn a_reply_that_came_in_time_is_no_missing_reply() -> Result<()> {
    for (backend, tool) in [(Backend::Nft, "iptables-nft-save"), (Backend::Legacy, "iptables-legacy-save")] {
        let lab = Lab::new(Topology::Routed)?;
        let (client, host, server) = (lab.netns("client")?, lab.netns("host")?, lab.netns("server")?);
        let inner = SocketAddr::new(lab.address("server", Family::Ipv4)?, 8080);
        let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
        let dnat = format!("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {inner}");
        ruleset::iptables(host, backend, Family::Ipv4, &dnat)?;
        let _server = Server::tcp(server, inner)?;
        let folder = tempfile::tempdir()?;
        slow(folder.path(), tool)?;
        slow(folder.path(), "nft")?;

        let mut command = pathtrace::command(Some(host))?;
        let search = env::var_os("PATH").context("PATH")?;
        let folders = [folder.path().to_owned()].into_iter().chain(env::split_paths(&search));
        command.env("PATH", env::join_paths(folders)?);
        let trace = Pathtrace::start_as(command, &["--port", "80"])?;
        let (answer, _) = traffic::tcp(client, to, *LONG)?;
        assert!(matches!(answer, Answer::Answered { .. }), "{answer:?}");
        let first = json!({"packet": {"tcp_flags": "S"}});
        trace.wait_for("the first packet", |lines| expect::find(lines, &first).is_some())?;
        let report = trace.stop()?;
        let journey = expect::find(&report.lines, &first).context("the first packet")?;
        let whole = json!({
            "stages": [{"hook": "prerouting", "nat": "dnat", "rules": [{"text": format!("~--dport 80 -j DNAT --to-destination {inner}")}]}],
            "outcome": {"result": "forwarded"}, "findings": []
        });
        if let Err(wrong) = expect::matches(&whole, journey) {
            panic!("{backend:?}: {wrong}\n{}", expect::pretty(journey));
        }
    }
    Ok(())
}
