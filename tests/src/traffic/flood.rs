//! Other traffic, which keeps a machine's CPUs busy.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{netns::Door, wait};

/// Datagrams between two pauses: some ten thousand a second.
const BURST: u64 = 32;
/// Others want to work on this machine, too.
const PAUSE: Duration = Duration::from_millis(1);

/// Datagrams from a namespace to an address, as long as they are wanted.
pub struct Flood {
    from: Door,
    to: SocketAddr,
    sent: AtomicU64,
}

/// Stops floods when dropped.
struct Flowing<'a>(&'a AtomicBool);

impl Drop for Flowing<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Flood {
    #[must_use]
    pub fn new(from: Door, to: SocketAddr) -> Self {
        Self { from, to, sent: AtomicU64::new(0) }
    }

    /// Datagrams sent up to now.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn flow(&self, stop: &AtomicBool) {
        let Ok(socket) = UdpSocket::bind(("0.0.0.0", 0)) else { return };
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..BURST {
                // Nobody listens, or rules drop it: that is what it is for.
                drop(socket.send_to(b"load", self.to));
            }
            self.sent.fetch_add(BURST, Ordering::Relaxed);
            thread::sleep(PAUSE);
        }
    }
}

/// Does `work` while all of `floods` flow.
///
/// # Errors
/// When one does not begin to, and what `work` returns.
pub fn amid<T>(floods: &[Flood], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _flowing = Flowing(&stop);
        let before: Vec<u64> = floods.iter().map(Flood::sent).collect();
        for flood in floods {
            scope.spawn(|| flood.from.run(|| flood.flow(&stop)));
        }
        wait::until("floods to begin", || {
            floods.iter().zip(&before).all(|(flood, sent)| flood.sent() > *sent)
        })?;
        work()
    })
}
