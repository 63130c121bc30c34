//! What both sides tell of one packet in one base chain, in the same terms.

use std::collections::{HashMap, HashSet};

/// A packet in a base chain. Packets that look alike share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// `ip`, `ip6`, `inet`.
    pub(crate) family: String,
    pub(crate) table: String,
    pub(crate) chain: String,
    pub(crate) protocol: String,
    /// Source and destination as they were before the chain.
    pub(crate) ends: [(String, Option<u16>); 2],
    pub(crate) ip_id: Option<u16>,
    /// `SAFRPUEC`, those that are set.
    pub(crate) flags: Option<String>,
}

/// A walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Story {
    /// Chain, and the rule's handle (nft) or position (iptables-legacy).
    pub(crate) steps: Vec<(String, u64)>,
    pub(crate) by_rule: bool,
    /// `accept`, `drop` and the like; `None` where the witness does not say.
    pub(crate) verdict: Option<String>,
}

impl Story {
    pub(crate) fn is(&self, other: &Self) -> bool {
        let same = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        (&self.steps, self.by_rule) == (&other.steps, other.by_rule) && same(&self.verdict, &other.verdict)
    }
}

/// What one side told and the other has not matched yet.
#[derive(Debug, Default)]
pub(crate) struct Stories {
    open: HashMap<Key, Vec<Story>>,
    /// While a ruleset is replaced, the kernel has a new base chain judge before its rules are there, and the old one
    /// when they have gone (`nf_tables_addchain` registers its hook before the transaction is committed): a packet is
    /// judged twice, once by no rule at all. One of the two stories is shown.
    pub(crate) may_be_twice: bool,
    /// Packets that a chain without rules let pass.
    by_no_rule: HashSet<Key>,
    taken: HashSet<Key>,
}

impl Stories {
    pub(crate) fn add(&mut self, key: Key, story: Story) {
        if story.steps.is_empty() {
            self.by_no_rule.insert(key.clone());
        }
        self.open.entry(key).or_default().push(story);
    }

    /// Takes a story that is the same; false when there is none.
    pub(crate) fn take(&mut self, key: &Key, story: &Story) -> bool {
        let Some(all) = self.open.get_mut(key) else { return false };
        let found = all.iter().position(|known| known.is(story));
        found.is_some_and(|at| {
            all.remove(at);
            self.taken.insert(key.clone());
            true
        })
    }

    /// Takes any story of this packet, unless it may be another's.
    pub(crate) fn take_any(&mut self, key: &Key) -> Option<Story> {
        if alike(key) {
            return None;
        }
        let all = self.open.get_mut(key)?;
        let story = (!all.is_empty()).then(|| all.remove(0))?;
        self.taken.insert(key.clone());
        Some(story)
    }

    pub(crate) fn of(&self, key: &Key) -> &[Story] {
        self.open.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether something is left of a packet that is told from all others.
    pub(crate) fn is_open(&self) -> bool {
        self.left() > 0
    }

    pub(crate) fn left(&self) -> usize {
        self.told_apart().map(|(_, all)| all.len()).sum()
    }

    /// What is left, in words.
    pub(crate) fn told(&self) -> Vec<String> {
        self.told_apart().map(|(key, all)| format!("{key:?}: {all:?}")).collect()
    }

    /// Without packets that all look alike, such as those of neighbour discovery.
    fn told_apart(&self) -> impl Iterator<Item = (&Key, &Vec<Story>)> {
        self.open.iter().filter(|(key, all)| !all.is_empty() && !alike(key) && !self.is_second(key, all))
    }

    /// Whether what is left was told of a packet that was judged twice.
    fn is_second(&self, key: &Key, left: &[Story]) -> bool {
        self.may_be_twice && left.len() == 1 && self.by_no_rule.contains(key) && self.taken.contains(key)
    }

    /// Forgets what was not shown. Of packets that look alike, all is kept: their journeys are not waited for, and one
    /// that is shown late must not be compared with what was told of the next.
    pub(crate) fn clear(&mut self) {
        self.open.retain(|key, _| alike(key));
        self.by_no_rule.clear();
        self.taken.clear();
    }
}

/// Whether packets share the key because nothing in it tells them apart.
fn alike(key: &Key) -> bool {
    key.protocol == "icmp6" || key.ends[1].0.starts_with("ff02:")
}
