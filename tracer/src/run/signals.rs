//! The signals that end a trace in good order.

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::Failure;

/// The signals that end a trace.
pub(super) struct Signals {
    interrupted: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupted: signal(SignalKind::interrupt()).context("watching for Ctrl-C")?,
            terminated: signal(SignalKind::terminate()).context("watching for SIGTERM")?,
            hung_up: signal(SignalKind::hangup()).context("watching for SIGHUP")?,
        })
    }

    /// Waits for the first of them.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupted.recv() => {}
            _ = self.terminated.recv() => {}
            _ = self.hung_up.recv() => {}
        }
    }
}
