//! Work inside another network namespace.

use std::{fs::File, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

/// An nsfs file of a network namespace: `/run/netns/NAME`, `/proc/PID/ns/net`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsPath(PathBuf);

impl NetnsPath {
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The namespace of this process.
    #[must_use]
    pub fn current() -> Self {
        Self::new("/proc/self/ns/net")
    }

    /// The namespace's inode number.
    ///
    /// # Errors
    /// When the file is gone or unreadable.
    pub fn inode(&self) -> Result<u32> {
        let metadata = std::fs::metadata(&self.0).with_context(|| format!("stat {}", self.0.display()))?;
        u32::try_from(metadata.ino()).with_context(|| format!("{} is no network namespace", self.0.display()))
    }
}

/// Runs `work` on a fresh thread that has entered the namespace; the calling thread stays where it is.
///
/// # Errors
/// When the namespace cannot be opened or entered (it is gone, or CAP_SYS_ADMIN is missing), or `work` panics.
pub fn in_netns<T: Send>(path: &NetnsPath, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(&path.0).with_context(|| format!("open network namespace {}", path.0.display()))?;
    std::thread::scope(|scope| {
        let entered = scope.spawn(move || -> Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter network namespace {} (needs root)", path.0.display()))?;
            Ok(work())
        });
        entered.join().map_err(|_| anyhow!("the reader of {} panicked", path.0.display()))?
    })
}
