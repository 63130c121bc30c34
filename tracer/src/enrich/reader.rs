//! Reads what surrounds a packet in a namespace; what is the whole machine's and costs much is kept for a while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Containers, NetnsPath, Network, Owners, Reading, Roots, Settings, Sockets, Surroundings, docker::Docker,
    in_netns, rtnetlink,
};

/// Names of containers change seldom, and need a look at every process.
const NAMES_KEEP: Duration = Duration::from_secs(5);

/// Reads surroundings. Sockets cost most: the kernel walks its whole table of connections, of all namespaces (about 13 ms with
/// 262,144 buckets; all else takes 1 or 2 ms).
#[derive(Debug)]
pub struct Reader {
    roots: Roots,
    owners: Owners,
    docker: Docker,
    names: Option<(Instant, Reading<Arc<Containers>>)>,
}

impl Reader {
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self { owners: Owners::new(&roots.proc), roots, docker: Docker::default(), names: None }
    }

    /// The surroundings in a namespace as they are now; `now` tells how old the names of containers are. A namespace that
    /// cannot be entered gives a result in which every part says why it is unknown.
    pub fn surroundings(&mut self, netns: u32, path: &NetnsPath, now: Instant) -> Arc<Surroundings> {
        let containers = self.names(now);
        let (proc, owners) = (&self.roots.proc, &mut self.owners);
        let read = in_netns(path, || Surroundings {
            netns,
            sockets: Reading::now(Sockets::read(proc, owners).map(Arc::new)),
            settings: Reading::now(Settings::read(proc).map(Arc::new)),
            network: Reading::now(rtnetlink::read().map(Arc::<Network>::new)),
            containers,
        });
        Arc::new(read.unwrap_or_else(|error| Surroundings::unread(netns, &format!("{error:#}"))))
    }

    fn names(&mut self, now: Instant) -> Reading<Arc<Containers>> {
        match &self.names {
            Some((read, names)) if now.saturating_duration_since(*read) <= NAMES_KEEP => names.clone(),
            _ => {
                let docker = self.docker.containers(&self.roots.run.join("docker.sock"), now);
                let names = Reading::now(Ok(Arc::new(Containers::read(&self.roots, docker))));
                self.names = Some((now, names.clone()));
                names
            }
        }
    }
}
