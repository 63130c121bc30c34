//! `bench --rules`: what a packet costs as the rules of a chain grow, traced and not.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use tests::{
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
};

use super::{Count, PACKETS, PORT, ROUNDS, measure, median, observer::Observer};
use crate::shell::say;

const SIZES: [usize; 4] = [10, 100, 1_000, 5_000];
const OBSERVERS: [Observer; 3] =
    [Observer::Nobody, Observer::Pathtrace { matches: false }, Observer::Pathtrace { matches: true }];

/// Measures each backend with each number of rules, and prints a table.
pub(super) fn bench() -> Result<()> {
    println!(
        "{:<16} {:>6} {:>12} {:>18} {:>7} {:>18} {:>7}",
        "ns/packet", "rules", "nobody", "nothing matches", "ratio", "all match", "ratio"
    );
    for backend in Backend::BOTH {
        for size in SIZES {
            row(backend, size)?;
        }
    }
    println!("medians of {ROUNDS} rounds of {PACKETS} packets; ratios to nobody watching the same rules");
    Ok(())
}

fn row(backend: Backend, size: usize) -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let server = std::net::SocketAddr::new(lab.address("server", Family::Ipv4)?, PORT);
    ruleset::restore(host, backend, Family::Ipv4, &rules(size, server))?;
    let _sink =
        lab.netns("server")?.run(|| std::net::UdpSocket::bind(server)).context("bind the receiver")?;
    measure(&lab, Count::Processor)?;
    let mut times = [const { Vec::new() }; OBSERVERS.len()];
    for round in 1..=ROUNDS {
        say(&format!("{} with {size} rules, round {round} of {ROUNDS}", backend.name()));
        for (observer, times) in OBSERVERS.into_iter().zip(&mut times) {
            let running = observer.start(host)?;
            times.push(measure(&lab, Count::Processor)?.nanoseconds);
            running.stop()?;
        }
    }
    let [nobody, idle, all] = times.map(|times| median(times.into_iter()).unwrap_or(f64::NAN));
    println!(
        "{:<16} {size:>6} {nobody:>12.0} {idle:>18.0} {:>7.3} {all:>18.0} {:>7.3}",
        backend.name(),
        idle / nobody,
        all / nobody,
    );
    Ok(())
}

/// A chain of rules that do not match, entered only by a packet for the unused port: so that rules cost nothing but
/// what reading their counters does.
fn rules(size: usize, server: std::net::SocketAddr) -> String {
    let mut filter = String::from("*filter\n:FORWARD ACCEPT [0:0]\n:LONG - [0:0]\n");
    for number in 2..size {
        _ = writeln!(filter, "-A LONG -s 10.9.{}.{} -j DROP", number / 250, number % 250);
    }
    let enter =
        format!("-A FORWARD -p udp --dport {} -j LONG\n-A FORWARD -p udp -j ACCEPT\n", super::UNUSED_PORT);
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p udp --dport {PORT} -j DNAT --to-destination {server}\n\
         COMMIT\n{filter}{enter}COMMIT\n"
    )
}
