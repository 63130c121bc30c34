//! Rule texts that are read in the background while the trace already runs, and trusted only when the ruleset was
//! seen unchanged after they had been read.

use std::sync::{
    OnceLock,
    atomic::{AtomicU8, Ordering},
};

use super::text::Texts;

const UNPROVEN: u8 = 0;
const PROVEN: u8 = 1;
const OVERTAKEN: u8 = 2;

/// The texts of one ruleset.
#[derive(Debug, Default)]
pub struct LateTexts {
    texts: OnceLock<Texts>,
    state: AtomicU8,
}

impl LateTexts {
    /// The tools have answered.
    pub fn fill(&self, texts: Texts) {
        // Filled once, by the one thread that reads them; a second filling would say the same.
        let _ = self.texts.set(texts);
    }

    /// The ruleset was seen unchanged just now.
    pub fn still_true(&self) {
        if self.texts.get().is_some() {
            let _ = self.state.compare_exchange(UNPROVEN, PROVEN, Ordering::Relaxed, Ordering::Relaxed);
        }
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
            self.texts.wait();
        }
    }

    /// The texts, once proven.
    #[must_use]
    pub fn get(&self) -> Option<&Texts> {
        if self.state.load(Ordering::Relaxed) == PROVEN { self.texts.get() } else { None }
    }
}
