//! `bench`: what tracing costs each forwarded packet, beside nftrace and tcpdump on the same lab.

mod observer;
mod rules;

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use tests::{
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
};

use self::observer::{Observer, Seen};
use crate::{
    build,
    shell::{find_program, say},
    vm,
};

/// Published and inner port; [`UNUSED_PORT`] never carries a packet.
const PORT: u16 = 18_443;
const UNUSED_PORT: u16 = 9;
const PACKETS: u32 = 20_000;
const ROUNDS: usize = 5;
/// MiB, with every packet matching.
const MEMORY_GOAL: u32 = 64;

/// Sends UDP packets as fast as it can, and prints the nanoseconds that took.
pub(crate) fn send(to: SocketAddr, count: u32) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind a socket to send from")?;
    socket.connect(to).with_context(|| format!("connect to {to}"))?;
    let started = Instant::now();
    for _ in 0..count {
        socket.send(&[0; 64]).with_context(|| format!("send to {to}"))?;
    }
    println!("{}", started.elapsed().as_nanos());
    Ok(())
}

/// Cost of one packet.
#[derive(Clone, Copy)]
struct Cost {
    /// `None` where the machine counts none.
    instructions: Option<f64>,
    nanoseconds: f64,
}

/// Who counts instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// The processor, asked by `perf`, where it does.
    Processor,
    /// The clock of an emulated machine: one instruction, one nanosecond.
    Clock,
}

/// Runs [`bench`] in a machine whose clock counts instructions.
pub(crate) fn in_emulation() -> Result<()> {
    build::command(true)?;
    let own = std::env::current_exe().context("find this program")?;
    let built = std::env::current_dir().context("find the current folder")?.join("target/release/pathtrace");
    let word = |path: &Path| vm::quoted(&path.display().to_string());
    vm::by_instructions(&format!("PATHTRACE_BIN={} {} bench --emulated", word(&built), word(&own)))
}

/// Measures what the number of rules does, and prints a table.
pub(crate) fn by_rules() -> Result<()> {
    build_if_not_given()?;
    rules::bench()
}

fn build_if_not_given() -> Result<()> {
    if std::env::var_os("PATHTRACE_BIN").is_none() { build::command(true) } else { Ok(()) }
}

/// Measures and prints a table.
pub(crate) fn bench(count: Count) -> Result<()> {
    build_if_not_given()?;
    let lab = Lab::new(Topology::Routed)?;
    let server = SocketAddr::new(lab.address("server", Family::Ipv4)?, PORT);
    let dnat = format!("-t nat -A PREROUTING -p udp --dport {PORT} -j DNAT --to-destination {server}");
    ruleset::iptables(lab.netns("host")?, Backend::Nft, Family::Ipv4, &dnat)?;
    let filter = "-A FORWARD -p udp -j ACCEPT";
    ruleset::iptables(lab.netns("host")?, Backend::Nft, Family::Ipv4, filter)?;
    // Its queue fills up, and then every packet dies there: the same for all.
    let _sink = lab.netns("server")?.run(|| UdpSocket::bind(server)).context("bind the receiver")?;
    measure(&lab, count)?;

    let observers: Vec<Observer> = Observer::ALL.into_iter().filter(Observer::is_installed).collect();
    let mut costs = vec![Vec::new(); observers.len()];
    let mut seen = vec![None; observers.len()];
    for round in 1..=ROUNDS {
        say(&format!("round {round} of {ROUNDS}, {PACKETS} packets each"));
        for (number, observer) in observers.iter().enumerate() {
            let running = observer.start(lab.netns("host")?)?;
            costs[number].push(measure(&lab, count)?);
            seen[number] = running.stop()?.or(seen[number]);
        }
    }
    print(&observers, &costs, &seen);
    Ok(())
}

/// Sends the packets once, under `perf` where there is one.
fn measure(lab: &Lab, count: Count) -> Result<Cost> {
    let client = lab.netns("client")?;
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, PORT);
    let own = std::env::current_exe().context("find this program")?;
    let perf = find_program("perf").filter(|_| count == Count::Processor);
    let mut command: Command = client.command(perf.as_ref().unwrap_or(&own))?;
    if perf.is_some() {
        command.args(["stat", "-x", ",", "-e", "instructions", "--"]).arg(&own);
    }
    command.arg("bench-send").arg(to.to_string()).arg(PACKETS.to_string());
    let output = command.output().context("start the sender")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the sender ended with {}: {said}", output.status);
    let elapsed =
        String::from_utf8_lossy(&output.stdout).trim().parse::<f64>().context("read the time taken")?;
    let packets = f64::from(PACKETS);
    Ok(Cost {
        instructions: match count {
            Count::Processor => instructions(&said).map(|count| count / packets),
            Count::Clock => Some(elapsed / packets),
        },
        nanoseconds: elapsed / packets,
    })
}

/// The count in a line of `perf stat -x,`; none where perf says `<not supported>`.
fn instructions(said: &str) -> Option<f64> {
    said.lines().find(|line| line.contains(",instructions"))?.split(',').next()?.parse().ok()
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print(observers: &[Observer], costs: &[Vec<Cost>], seen: &[Option<Seen>]) {
    println!("{:<32} {:>14} {:>7} {:>10} {:>7}  seen", "", "instr./packet", "ratio", "ns/packet", "ratio");
    let instructions = |costs: &[Cost]| median(costs.iter().filter_map(|cost| cost.instructions));
    let time = |costs: &[Cost]| median(costs.iter().map(|cost| cost.nanoseconds));
    let base = costs.first().map(|costs| (instructions(costs), time(costs)));
    for ((observer, costs), seen) in observers.iter().zip(costs).zip(seen) {
        let (counted, took) = (instructions(costs), time(costs));
        let ratio = |value: Option<f64>, base: Option<f64>| Some(value? / base?);
        println!(
            "{:<32} {:>14} {:>7} {:>10} {:>7}  {}",
            observer.name(),
            shown(counted, 0),
            shown(ratio(counted, base.and_then(|base| base.0)), 3),
            shown(took, 0),
            shown(ratio(took, base.and_then(|base| base.1)), 3),
            seen.map_or("-".to_owned(), |seen| seen.share(PACKETS)),
        );
    }
    if let Some(most) = seen.iter().flatten().map(|seen| seen.peak_memory()).max_by(f64::total_cmp) {
        println!("pathtrace had at most {most:.1} MiB resident (the goal is {MEMORY_GOAL})");
    }
    println!("medians of {ROUNDS} rounds; seen: of {PACKETS} packets in the last round");
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod units {
    use super::{instructions, median};

    #[test]
    fn perf_s_count_is_read_or_none() {
        assert_eq!(instructions("123456,,instructions,1000,100.00,,\n"), Some(123_456.0));
        assert_eq!(instructions("9,,instructions:u,1,100.00,,\n"), Some(9.0));
        assert_eq!(instructions("<not supported>,,instructions,0,100.00,,\n"), None);
        assert_eq!(instructions(""), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([].into_iter()), None);
    }
}
