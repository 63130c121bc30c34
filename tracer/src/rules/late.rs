//! Rule texts that are read in the background while the trace already runs, and trusted only when the ruleset was
//! seen unchanged after they had been read.

use std::{
    cell::RefCell,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use super::{
    index::TableIndex,
    text::{Failure, Runner, Texts, Tool},
};

const UNPROVEN: u8 = 0;
const PROVEN: u8 = 1;
const OVERTAKEN: u8 = 2;

/// What the tools said.
#[derive(Clone, Debug, Default)]
pub struct Printed {
    pub texts: Texts,
    /// What each tool printed, as it was.
    pub raw: Vec<(Tool, String)>,
}

impl Printed {
    /// Asks the tools for the texts of `tables`, and `more` tools for those that could not be read; keeps what they print.
    #[must_use]
    pub fn read(runner: &dyn Runner, tables: &[TableIndex], more: &[Tool]) -> Self {
        let keeper = Keeper { runner, raw: RefCell::default() };
        let texts = Texts::read_with(&keeper, tables, more);
        Self { texts, raw: keeper.raw.into_inner() }
    }
}

/// Remembers what passes through.
struct Keeper<'a> {
    runner: &'a dyn Runner,
    raw: RefCell<Vec<(Tool, String)>>,
}

impl Runner for Keeper<'_> {
    fn run(&self, tool: Tool) -> Result<String, Failure> {
        let printed = self.runner.run(tool)?;
        self.raw.borrow_mut().push((tool, printed.clone()));
        Ok(printed)
    }
}

/// The texts of one ruleset.
#[derive(Debug, Default)]
pub struct LateTexts {
    printed: OnceLock<Printed>,
    state: AtomicU8,
    seen: AtomicU64,
}

impl LateTexts {
    /// The tools have answered.
    pub fn fill(&self, printed: Printed) {
        // Filled once, by the one thread that reads them; a second filling would say the same.
        let _ = self.printed.set(printed);
    }

    /// The ruleset was seen unchanged by a look that began at `since` (nanoseconds of CLOCK_MONOTONIC).
    pub fn still_true(&self, since: u64) {
        self.seen.fetch_max(since, Ordering::Relaxed);
        if self.printed.get().is_some() {
            let _ = self.state.compare_exchange(UNPROVEN, PROVEN, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Whether the ruleset was seen unchanged after `time` (nanoseconds of CLOCK_MONOTONIC), all of it: what the kernel
    /// side compares for a table of iptables-legacy can come back with other rules.
    #[must_use]
    pub fn stood_at(&self, time: u64) -> bool {
        self.seen.load(Ordering::Relaxed) > time
    }

    /// The ruleset has changed: texts not proven by now may be of either.
    pub fn overtaken(&self) {
        let _ = self.state.compare_exchange(UNPROVEN, OVERTAKEN, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Whether it is still open if there will be texts.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Relaxed) == UNPROVEN
    }

    /// Waits for the tools.
    pub fn wait(&self) {
        if self.is_pending() {
            self.printed.wait();
        }
    }

    /// The texts, once proven.
    #[must_use]
    pub fn get(&self) -> Option<&Texts> {
        self.printed().map(|printed| &printed.texts)
    }

    /// What the tools said, proven or not.
    #[must_use]
    pub fn unproven(&self) -> Option<&Printed> {
        self.printed.get()
    }

    /// All that the tools said, once proven.
    #[must_use]
    pub fn printed(&self) -> Option<&Printed> {
        if self.state.load(Ordering::Relaxed) == PROVEN { self.printed.get() } else { None }
    }
}
