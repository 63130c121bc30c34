//! How far a walk has come.

use super::{Step, search::Candidate};
use crate::rules::index::ChainRef;

/// A chain being walked, and the chains it was entered through by goto.
#[derive(Clone)]
pub(super) struct Frame {
    pub(super) chain: ChainRef,
    pub(super) next: usize,
    /// Length of the trail before this frame's first chain.
    pub(super) trail: usize,
}

#[derive(Clone)]
pub(super) struct State {
    pub(super) base: ChainRef,
    pub(super) frames: Vec<Frame>,
    /// Chains entered and not yet left; the kernel refuses rulesets in which one could repeat.
    pub(super) trail: Vec<ChainRef>,
    /// What of each hit is not yet explained.
    pub(super) left: Vec<u32>,
    pub(super) steps: Vec<Step>,
    pub(super) traceless: Option<Step>,
    /// How many of the matches that were seen it has come by.
    pub(super) matches: usize,
    /// While another packet's walk is tried: the finished walk of ours, and what was left when the other began.
    pub(super) own: Option<(Candidate, u64)>,
}

impl State {
    pub(super) fn total_left(&self) -> u64 {
        self.left.iter().map(|n| u64::from(*n)).sum()
    }

    /// Starts walking a base chain.
    pub(super) fn start(&mut self, base: ChainRef) {
        self.base = base;
        self.frames = vec![Frame { chain: base, next: 0, trail: 0 }];
        self.trail = vec![base];
        self.steps.clear();
        self.traceless = None;
    }

    /// Enters `chain` as jump does; `None` when it is already being walked.
    pub(super) fn jump(mut self, chain: ChainRef) -> Option<Self> {
        if self.trail.contains(&chain) {
            return None;
        }
        self.frames.push(Frame { chain, next: 0, trail: self.trail.len() });
        self.trail.push(chain);
        Some(self)
    }

    /// Enters `chain` as goto does: its end returns to where this chain's would have.
    pub(super) fn goto(mut self, chain: ChainRef) -> Option<Self> {
        if self.trail.contains(&chain) {
            return None;
        }
        self.trail.push(chain);
        let frame = self.frames.last_mut()?;
        frame.chain = chain;
        frame.next = 0;
        Some(self)
    }

    /// Leaves the current chain; true when its caller goes on, false when the policy decides.
    pub(super) fn leave(&mut self) -> bool {
        if let Some(frame) = self.frames.pop() {
            self.trail.truncate(frame.trail);
        }
        !self.frames.is_empty()
    }
}
