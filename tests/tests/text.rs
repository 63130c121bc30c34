//! The text that a person sees, of real labs, as reviewed snapshots. The lab fixes what it can: addresses, devices and
//! the client's port. What no lab can fix is replaced, and nothing else: times, process ids, and the name of the
//! namespace, since labs run beside each other. The summary is left out:
//! how many packets come behind the first one is the kernel's business.
//!
//! After a change that is meant: `INSTA_UPDATE=always cargo test -p tests --test text`, and read the difference.

use std::{io::Read, process::Stdio};

use anyhow::{Context, Result};
use tests::{pathtrace, scenario, wait};

/// The only port from which the client may connect.
const PORT: &str = "40000 40000";

/// What a trace of a scenario's first packet shows.
fn first_journey(case: &str) -> Result<String> {
    let case = scenario::named(case)?.swap_remove(0);
    let stage = case.build()?;
    stage.lab().netns("client")?.set_sysctl("net.ipv4.ip_local_port_range", PORT)?;
    let host = stage.lab().netns(&case.scenario.trace.space)?;
    let mut command = pathtrace::command(Some(host))?;
    command.args(stage.arguments()?).args(["--count", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stderr = child.stderr.take().context("no stderr")?;
    let mut ready = Vec::new();
    // Its first line, on stderr, says that traffic is seen from now on.
    while !ready.ends_with(b"\n") {
        let mut byte = [0];
        anyhow::ensure!(stderr.read(&mut byte)? == 1, "{}", String::from_utf8_lossy(&ready));
        ready.push(byte[0]);
    }
    stage.check_traffic()?;
    wait::until("the first journey", || matches!(child.try_wait(), Ok(Some(_))))?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let journey = text.split("\nSummary:").next().unwrap_or_default();
    let lines: Vec<String> = journey.lines().map(settled).collect();
    Ok(in_one_line(&lines).join("\n").replace(host.name(), "NETNS"))
}

/// With each cause in one line: where it is broken depends on the length of the namespace's name.
fn in_one_line(lines: &[String]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for line in lines {
        match (line.strip_prefix("            "), all.last_mut()) {
            (Some(rest), Some(last)) if last.starts_with("  cause ") => *last += &format!(" {rest}"),
            _ => all.push(line.clone()),
        }
    }
    all
}

/// With neither times nor process ids.
fn settled(line: &str) -> String {
    let timed = line.get(..15).is_some_and(|start| {
        start
            .bytes()
            .zip("00:00:00.000000".bytes())
            .all(|(is, form)| if form == b'0' { is.is_ascii_digit() } else { is == form })
    });
    let line = if timed { format!("hh:mm:ss.micros{}", &line[15..]) } else { line.to_owned() };
    let mut parts = line.split('[');
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(']') {
            Some((inside, rest)) if !inside.is_empty() && inside.bytes().all(|b| b.is_ascii_digit()) => {
                all += "[pid]";
                all += rest;
            }
            _ => {
                all += "[";
                all += part;
            }
        }
    }
    all
}

macro_rules! snapshot {
    ($test:ident, $case:literal) => {
        #[test]
        fn $test() -> Result<()> {
            insta::assert_snapshot!(stringify!($test), first_journey($case)?);
            Ok(())
        }
    };
}

snapshot!(a_published_port_works, "publish-ok/nft/ipv4");
snapshot!(its_filter_rules_were_wiped, "publish-filter-flushed/legacy/ipv4");
snapshot!(nobody_listens, "no-listener/nft/ipv4");
snapshot!(rejected_by_a_rule, "forward-reject/nft/ipv4");
snapshot!(translated_to_loopback, "dnat-loopback-off/nft/ipv4");
snapshot!(no_way_back, "rp-filter/nft/ipv4");
snapshot!(no_route_behind_the_translation, "no-route/nft/ipv4");

#[test]
fn only_times_and_process_ids_are_replaced() {
    assert_eq!(
        settled("05:18:50.419057  #1  tcp [fd00::1]:1 -> x[12]"),
        "hh:mm:ss.micros  #1  tcp [fd00::1]:1 -> x[pid]"
    );
    assert_eq!(settled("│ in           eth0"), "│ in           eth0");
}
