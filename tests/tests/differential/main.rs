//! Random rulesets, random packets, the real binary, and the kernel's own trace beside it as a witness. Where
//! pathtrace says that a walk is exact, it is the one that the kernel tells.
//!
//! `PATHTRACE_DIFFERENTIAL_SEED` and `PATHTRACE_DIFFERENTIAL_ROUNDS` choose other rulesets and more of them. What fails
//! is reduced and written to `target/tmp`; put into `tests/differential/`, it is kept as a test.

mod bench;
mod case;
mod reduce;
mod score;
mod shown;
mod story;
mod witness;

use std::{
    env, fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bench::Bench;
use case::{Case, Kind};
use score::Score;
use tests::{netns::Netns, random::Dice, traffic::Flood};

/// Rounds that fit into a minute with those of the other tests beside them.
const ROUNDS: u64 = 8;
const PACKETS: u16 = 30;
/// Between two replacements: none, about as long as pathtrace takes to read rules, and longer.
const PAUSES: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(30), Duration::from_millis(300), Duration::from_millis(700)];
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/differential");

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    number("PATHTRACE_DIFFERENTIAL_SEED", 1)
}

fn rounds() -> u64 {
    number("PATHTRACE_DIFFERENTIAL_ROUNDS", ROUNDS)
}

/// Runs a case; a walk that is wrong and called exact is reduced and written out.
fn check(bench: &mut Bench, case: &Case, score: &mut Score) -> Result<()> {
    let round = bench.round(case)?;
    score.add(&round);
    if round.wrong.is_empty() {
        return Ok(());
    }
    let written = reduce::write(&reduce::reduce(bench, case)?)?;
    bail!("called exact and wrong; reduced to {}:\n{}", written.display(), round.wrong.join("\n"));
}

/// Percent of forwarded packets that must be exact in a quiet lab.
const FORWARDED: f64 = 99.0;
/// So of those that the host sends itself.
const LOCAL: f64 = 95.0;

fn quiet(kind: Kind) -> Result<()> {
    let first = seed();
    let mut score = Score::new(&format!("{kind:?}, quiet, seed {first}"));
    let mut bench = Bench::new(kind, &[])?;
    for seed in first..first + rounds() {
        let case = Case::random(kind, &mut Dice::new(seed), PACKETS);
        check(&mut bench, &case, &mut score).with_context(|| format!("{kind:?}, seed {seed}"))?;
    }
    score.print();
    let lost = bench.end()?;
    ensure!(lost == 0, "{lost} events were lost");
    score.demand(FORWARDED, LOCAL)
}

#[test]
fn iptables_legacy() -> Result<()> {
    quiet(Kind::Legacy)
}

#[test]
fn iptables_nft() -> Result<()> {
    quiet(Kind::Nft)
}

#[test]
fn native_nft_with_counters() -> Result<()> {
    quiet(Kind::Native)
}

/// Much cannot be told from counters here; what is told must be right.
#[test]
fn native_nft_with_maps_and_without_counters() -> Result<()> {
    let mut score = Score::new(&format!("uncertain, quiet, seed {}", seed()));
    let mut bench = Bench::new(Kind::Uncertain, &[])?;
    for seed in seed()..seed() + rounds().div_ceil(2) {
        let case = Case::random(Kind::Uncertain, &mut Dice::new(seed), PACKETS);
        check(&mut bench, &case, &mut score).with_context(|| format!("seed {seed}"))?;
    }
    score.print();
    Ok(())
}

#[test]
fn kept_cases() -> Result<()> {
    for entry in fs::read_dir(KEPT)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let case: Case = toml::from_str(&fs::read_to_string(&path)?)?;
        let round = Bench::new(case.kind, &[])?.round(&case)?;
        ensure!(round.wrong.is_empty(), "{}: {}", path.display(), round.wrong.join("\n"));
    }
    Ok(())
}

/// Keeps threads busy until dropped.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn under_load_legacy() -> Result<()> {
    under_load(Kind::Legacy)
}

#[test]
fn under_load_nft() -> Result<()> {
    under_load(Kind::Nft)
}

fn under_load(kind: Kind) -> Result<()> {
    let mut score = Score::new(&format!("{kind:?}, under load, seed {}", seed()));
    let mut bench = Bench::new(kind, &["--host", "10.1.0.2"])?;
    let elsewhere = Netns::new()?;
    bench.flood(vec![
        Flood::new(elsewhere.door()?, ([127, 0, 0, 1], 9).into()),
        Flood::new(elsewhere.door()?, ([127, 0, 0, 1], 9).into()),
        // Through the traced namespace, and from within it.
        Flood::new(bench.netns("server")?.door()?, ([10, 3, 0, 2], 9).into()),
        Flood::new(bench.netns("host")?.door()?, ([127, 0, 0, 1], 9).into()),
    ]);
    for seed in seed()..seed() + rounds().div_ceil(4) {
        let case = Case::random(kind, &mut Dice::new(seed), 2 * PACKETS);
        check(&mut bench, &case, &mut score).with_context(|| format!("{kind:?}, seed {seed}"))?;
    }
    score.print();
    ensure!(score.journeys() > 0, "no packet was seen");
    // Under load that is nobody's fault; how much is lost is said.
    eprintln!("    {} datagrams of others; {} events were lost", bench.flooded(), bench.end()?);
    Ok(())
}

/// One chain of 5,000 rules, the last of which decides.
#[test]
fn five_thousand_rules() -> Result<()> {
    for kind in [Kind::Legacy, Kind::Nft] {
        let mut case = Case::random(kind, &mut Dice::new(seed()), 12);
        case.fill("FORWARD", 5_000);
        let mut score = Score::new(&format!("{kind:?}, 5,000 rules"));
        let mut bench = Bench::new(kind, &[])?;
        let round = bench.round(&case)?;
        score.add(&round);
        ensure!(round.wrong.is_empty(), "{}", round.wrong.join("\n"));
        score.print();
        ensure!(score.forwarded() > 0, "nothing was forwarded through them");
    }
    Ok(())
}

#[test]
fn while_rules_are_replaced() -> Result<()> {
    for kind in [Kind::Legacy, Kind::Nft, Kind::Native] {
        let mut score = Score::new(&format!("{kind:?}, rules replaced, seed {}", seed()));
        let mut bench = Bench::new(kind, &[])?;
        let dice = &mut Dice::new(seed());
        let cases: Vec<Case> = (0..4).map(|_| Case::random(kind, dice, PACKETS)).collect();
        let scripts: Vec<_> = cases.iter().map(|case| bench.prepare(case)).collect();
        bench.expect_replacements();
        let host = bench.netns("host")?.door()?;
        let stop = AtomicBool::new(false);
        let replaced = thread::scope(|scope| {
            let busy = Busy(&stop);
            let replacing = scope.spawn(|| {
                let mut times = 0;
                while !stop.load(Ordering::Relaxed) {
                    for (script, pause) in scripts.iter().zip(PAUSES) {
                        script.load(&host)?;
                        times += 1;
                        thread::sleep(pause);
                    }
                }
                Ok::<u64, anyhow::Error>(times)
            });
            for _ in 0..rounds().div_ceil(4) {
                for case in &cases {
                    let round = bench.send(&case.packets)?;
                    score.add(&round);
                    ensure!(round.wrong.is_empty(), "{kind:?}: {}", round.wrong.join("\n"));
                }
            }
            drop(busy);
            replacing.join().map_err(|_| anyhow::anyhow!("replacing rules panicked"))?
        })?;
        score.print();
        ensure!(replaced > 0, "no ruleset was replaced");
        ensure!(score.journeys() > 0, "no packet was seen");
    }
    Ok(())
}

/// Where reduced cases go.
fn written_to() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
