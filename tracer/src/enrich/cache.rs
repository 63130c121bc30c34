//! Surroundings per namespace, read when asked for and again when they are older than the question allows.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Containers, NetnsPath, Network, Owners, Reading, Roots, Settings, Sockets, Surroundings, in_netns,
    rtnetlink,
};

/// Names of containers change seldom, and need a look at every process.
const NAMES_KEEP: Duration = Duration::from_secs(5);

/// How old an answer may be. Sockets have an age of their own because they cost most: the kernel walks its whole
/// table of connections, of all namespaces (about 13 ms with 262,144 buckets; all else takes 1 or 2 ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxAge {
    pub sockets: Duration,
    pub rest: Duration,
}

impl From<Duration> for MaxAge {
    fn from(age: Duration) -> Self {
        Self { sockets: age, rest: age }
    }
}

#[derive(Clone, Debug)]
struct Kept {
    sockets_read: Instant,
    rest_read: Instant,
    surroundings: Arc<Surroundings>,
}

/// Reads surroundings and keeps the last of each namespace.
#[derive(Debug)]
pub struct Reader {
    roots: Roots,
    owners: Owners,
    names: Option<(Instant, Reading<Arc<Containers>>)>,
    kept: HashMap<NetnsPath, Kept>,
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
        max_age: impl Into<MaxAge>,
    ) -> Arc<Surroundings> {
        let max_age = max_age.into();
        let is_fresh = |read: Instant, age| now.saturating_duration_since(read) <= age;
        let kept = self.kept.get(path).filter(|kept| kept.surroundings.netns == netns).cloned();
        let sockets = kept.as_ref().filter(|kept| is_fresh(kept.sockets_read, max_age.sockets));
        let rest = kept.as_ref().filter(|kept| is_fresh(kept.rest_read, max_age.rest));
        if let (Some(kept), Some(_)) = (sockets, rest) {
            return Arc::clone(&kept.surroundings);
        }
        let fresh = Kept {
            sockets_read: sockets.map_or(now, |kept| kept.sockets_read),
            rest_read: rest.map_or(now, |kept| kept.rest_read),
            surroundings: self.read(
                netns,
                path,
                now,
                sockets.map(|kept| &*kept.surroundings),
                rest.map(|kept| &*kept.surroundings),
            ),
        };
        self.kept.insert(path.clone(), fresh.clone());
        fresh.surroundings
    }

    /// Reads what the earlier answers cannot give.
    fn read(
        &mut self,
        netns: u32,
        path: &NetnsPath,
        now: Instant,
        sockets: Option<&Surroundings>,
        rest: Option<&Surroundings>,
    ) -> Arc<Surroundings> {
        let containers = self.names(now);
        let (proc, owners) = (&self.roots.proc, &mut self.owners);
        let read = in_netns(path, || Surroundings {
            netns,
            sockets: match sockets {
                Some(earlier) => earlier.sockets.clone(),
                None => Reading::now(Sockets::read(proc, owners).map(Arc::new)),
            },
            settings: match rest {
                Some(earlier) => earlier.settings.clone(),
                None => Reading::now(Settings::read(proc).map(Arc::new)),
            },
            network: match rest {
                Some(earlier) => earlier.network.clone(),
                None => Reading::now(rtnetlink::read().map(Arc::<Network>::new)),
            },
            containers,
        });
        Arc::new(read.unwrap_or_else(|error| Surroundings::unread(netns, &format!("{error:#}"))))
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
