//! Surroundings per namespace, read when asked for and again when they are older than the question allows.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Containers, NetnsPath, Owners, Reading, Roots, Surroundings, in_netns};

/// Names of containers change seldom, and cost most to read.
const NAMES_KEEP: Duration = Duration::from_secs(5);

/// Reads surroundings and keeps the last of each namespace.
#[derive(Debug)]
pub struct Reader {
    roots: Roots,
    owners: Owners,
    names: Option<(Instant, Reading<Arc<Containers>>)>,
    kept: HashMap<NetnsPath, (Instant, Arc<Surroundings>)>,
}

impl Reader {
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self { owners: Owners::new(&roots.proc), roots, names: None, kept: HashMap::new() }
    }

    /// The surroundings in a namespace, not older than `max_age` before `now`. A namespace that cannot be entered
    /// gives a result in which every part says why it is unknown.
    pub fn surroundings(
        &mut self,
        netns: u32,
        path: &NetnsPath,
        now: Instant,
        max_age: Duration,
    ) -> Arc<Surroundings> {
        if let Some((read, kept)) = self.kept.get(path)
            && kept.netns == netns
            && now.saturating_duration_since(*read) <= max_age
        {
            return Arc::clone(kept);
        }
        let names = self.names(now);
        let (proc, owners) = (&self.roots.proc, &mut self.owners);
        let fresh = in_netns(path, || Surroundings::read_here(netns, proc, owners, names))
            .unwrap_or_else(|error| Surroundings::unread(netns, &format!("{error:#}")));
        let fresh = Arc::new(fresh);
        self.kept.insert(path.clone(), (now, Arc::clone(&fresh)));
        fresh
    }

    fn names(&mut self, now: Instant) -> Reading<Arc<Containers>> {
        match &self.names {
            Some((read, names)) if now.saturating_duration_since(*read) <= NAMES_KEEP => names.clone(),
            _ => {
                let names = Reading::now(Ok(Arc::new(Containers::read(&self.roots))));
                self.names = Some((now, names.clone()));
                names
            }
        }
    }
}
