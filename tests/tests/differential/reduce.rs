//! Makes a failing case small.

use std::{fs, path::PathBuf};

use anyhow::Result;
use tests::random::{packets::Packet, rules};

use super::{bench::Bench, case::Case, written_to};

/// Rounds that reducing may take.
const ATTEMPTS: usize = 80;
/// How often a case that fails by chance is tried.
const TRIES: usize = 3;

/// The smallest case found that still fails.
pub(crate) fn reduce(bench: &mut Bench, case: &Case) -> Result<Case> {
    let mut smallest = case.clone();
    let mut attempts = ATTEMPTS;
    loop {
        let before = smallest.clone();
        for part in [Part::Packets, Part::V6, Part::V4] {
            smallest = shrink(bench, smallest, part, &mut attempts)?;
        }
        if smallest == before || attempts == 0 {
            return Ok(smallest);
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Packets,
    V4,
    V6,
}

fn count(case: &Case, part: Part) -> usize {
    match part {
        Part::Packets => case.packets.len(),
        Part::V4 => rules::count(&case.v4),
        Part::V6 => rules::count(&case.v6),
    }
}

/// The first rule of a base chain in iptables-legacy tells rulesets apart, and stays.
fn without(case: &Case, part: Part, range: std::ops::Range<usize>) -> Case {
    let mut less = case.clone();
    match part {
        Part::Packets => {
            let keep = |(number, _): &(usize, &Packet)| !range.contains(number);
            less.packets = case.packets.iter().enumerate().filter(keep).map(|(_, packet)| *packet).collect();
        }
        Part::V4 => less.v4 = rules::without(&case.v4, range),
        Part::V6 => less.v6 = rules::without(&case.v6, range),
    }
    less
}

fn shrink(bench: &mut Bench, mut case: Case, part: Part, attempts: &mut usize) -> Result<Case> {
    let mut step = count(&case, part).div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < count(&case, part) && *attempts > 0 {
            *attempts -= 1;
            let less = without(&case, part, at..at + step);
            if fails(bench, &less)? {
                case = less;
            } else {
                at += step;
            }
        }
        step /= 2;
    }
    Ok(case)
}

fn fails(bench: &mut Bench, case: &Case) -> Result<bool> {
    for _ in 0..TRIES {
        if !bench.round(case)?.wrong.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes a case to a file.
pub(crate) fn write(case: &Case) -> Result<PathBuf> {
    let path = written_to().join(format!("differential-{}.toml", std::process::id()));
    fs::write(&path, toml::to_string(case)?)?;
    Ok(path)
}
