//! Network namespaces: the kernel's structure behind one, and running code inside one.

use std::{fs::File, io, panic, path::Path, thread};

use nix::sched::{CloneFlags, setns};

use super::{Peek, ReadError};

/// Address of the `struct net` of the calling thread's network namespace.
///
/// # Errors
/// [`ReadError::Bpf`] when the program cannot run.
pub fn current_net(peek: &Peek) -> Result<u64, ReadError> {
    match peek.context(None)?.net {
        0 => Err(ReadError::impossible(
            "task_struct.nsproxy",
            0,
            "the calling thread has no network namespace",
        )),
        net => Ok(net),
    }
}

/// Runs `job` on a thread of its own that has entered the network namespace at `path` (`/run/netns/NAME`,
/// `/proc/PID/ns/net`), so that no other thread changes its namespace. Processes that `job` starts live in it too.
///
/// # Errors
/// When the namespace cannot be opened or entered (CAP_SYS_ADMIN), or no thread can be started.
pub fn in_netns<T: Send>(path: &Path, job: impl FnOnce() -> T + Send) -> Result<T, ReadError> {
    let system = |doing: &str, source| ReadError::System {
        what: format!("{doing} network namespace {}", path.display()),
        source,
    };
    let namespace = File::open(path).map_err(|error| system("opening", error))?;
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                Ok(job())
            })
            .map_err(|error| system("starting a thread for", error))?;
        match worker.join() {
            Ok(result) => result.map_err(|error| system("entering", error)),
            Err(payload) => panic::resume_unwind(payload),
        }
    })
}
