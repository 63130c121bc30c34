//! Who watches while packets are sent.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};
use tests::{netns::Netns, pathtrace::Pathtrace, ruleset, wait};

use super::{PORT, UNUSED_PORT};
use crate::shell::{find_program, say};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Observer {
    Nobody,
    Pathtrace { matches: bool },
    Nftrace { matches: bool },
    Tcpdump { matches: bool },
}

/// What the observer saw.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    journeys: u64,
    /// KiB.
    peak_memory: u64,
}

impl Seen {
    pub(super) fn share(self, packets: u32) -> String {
        format!("{:.1} %", self.journeys as f64 * 100.0 / f64::from(packets))
    }

    /// The most memory that the observer had resident, in MiB.
    pub(super) fn peak_memory(self) -> f64 {
        self.peak_memory as f64 / 1024.0
    }
}

/// An observer at work. It ends, and its table goes, when dropped.
#[derive(Default)]
pub(super) struct Running {
    trace: Option<Pathtrace>,
    children: Vec<Child>,
    /// Takes its table away.
    remove: Option<Command>,
}

impl Observer {
    pub(super) const ALL: [Self; 7] = [
        Self::Nobody,
        Self::Pathtrace { matches: false },
        Self::Pathtrace { matches: true },
        Self::Nftrace { matches: false },
        Self::Nftrace { matches: true },
        Self::Tcpdump { matches: false },
        Self::Tcpdump { matches: true },
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody watches",
            Self::Pathtrace { matches: false } => "pathtrace, nothing matches",
            Self::Pathtrace { matches: true } => "pathtrace, all match",
            Self::Nftrace { matches: false } => "nftrace, nothing matches",
            Self::Nftrace { matches: true } => "nftrace, all match, listener",
            Self::Tcpdump { matches: false } => "tcpdump -i any, nothing matches",
            Self::Tcpdump { matches: true } => "tcpdump -i any, all match",
        }
    }

    pub(super) fn is_installed(&self) -> bool {
        !matches!(self, Self::Tcpdump { .. }) || find_program("tcpdump").is_some()
    }

    /// Starts it, and waits until it sees packets.
    pub(super) fn start(self, host: &Netns) -> Result<Running> {
        let port = |matches| if matches { PORT } else { UNUSED_PORT };
        let mut running = Running::default();
        match self {
            Self::Nobody => {}
            Self::Pathtrace { matches } => {
                let port = port(matches).to_string();
                let trace = Pathtrace::start(Some(host), &["--port", &port, "-v"])?;
                if let Err(error) = trace.wait_for_devices() {
                    say(&format!("measured with tracepoints on devices: {error:#}"));
                }
                running.trace = Some(trace);
            }
            Self::Nftrace { matches } => nftrace(&mut running, host, port(matches), matches)?,
            Self::Tcpdump { matches } => running.children.push(tcpdump(host, port(matches))?),
        }
        Ok(running)
    }
}

impl Running {
    /// Ends it; says what it saw, where it counts.
    pub(super) fn stop(mut self) -> Result<Option<Seen>> {
        let Some(trace) = self.trace.take() else { return Ok(None) };
        let peak_memory = trace.peak_memory()?;
        let report = trace.stop()?;
        Ok(report.summary()?["journeys"].as_u64().map(|journeys| Seen { journeys, peak_memory }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail only when it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
        if let Some(mut remove) = self.remove.take() {
            // A failure leaves the table to the namespace, which goes next.
            drop(remove.status());
        }
    }
}

fn nftrace(running: &mut Running, host: &Netns, port: u16, listen: bool) -> Result<()> {
    let script = format!(
        "table ip bench {{ chain trace {{ type filter hook prerouting priority -350; \
         udp dport {port} meta nftrace set 1; }}; }}"
    );
    ruleset::nft(host, &script)?;
    let mut remove = host.command("nft")?;
    remove.args(["delete", "table", "ip", "bench"]);
    running.remove = Some(remove);
    if listen {
        let mut monitor = host.command("nft")?;
        monitor.args(["monitor", "trace"]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = monitor.spawn().context("start nft monitor")?;
        let list = format!("/proc/{}/net/netlink", child.id());
        running.children.push(child);
        wait::until("nft monitor to listen", || fs::read_to_string(&list).is_ok_and(|list| listens(&list)))?;
    }
    Ok(())
}

/// Whether a socket of NETLINK_NETFILTER (12) has joined a group.
fn listens(list: &str) -> bool {
    list.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1) == Some(&"12") && fields.get(3).is_some_and(|groups| groups.contains(|c| c != '0'))
    })
}

fn tcpdump(host: &Netns, port: u16) -> Result<Child> {
    let mut command = host.command("tcpdump")?;
    command.args(["-n", "-i", "any", "-w", "/dev/null", "udp", "port", &port.to_string()]);
    let mut child = command.stderr(Stdio::piped()).spawn().context("start tcpdump")?;
    let stderr = child.stderr.take().context("no stderr of tcpdump")?;
    // Its first lines end with the one that says that it listens.
    BufReader::new(stderr).lines().map_while(Result::ok).find(|line| line.contains("listening on"));
    Ok(child)
}
