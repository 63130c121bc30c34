//! A trace in text, for people to read on this process's own stdout.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Netns, pathtrace, wait};

/// What the status line has in it with which pathtrace says, on stderr, that traffic is seen from now on.
const READY: &str = "tracing";

/// A running trace in text. Killed when dropped.
#[derive(Debug)]
pub struct Shown {
    child: Child,
    stderr: Option<JoinHandle<()>>,
}

impl Shown {
    /// Starts a trace and waits until it is ready. Its stdout is ours, and so is its stderr.
    ///
    /// # Errors
    /// When it ends or does not get ready within [`wait::PATIENCE`].
    pub fn start(netns: &Netns, arguments: &[&str]) -> Result<Self> {
        let mut command = pathtrace::command(Some(netns))?;
        command.args(arguments).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let stderr = child.stderr.take().context("no stderr")?;
        let (tell, told) = mpsc::channel();
        let stderr = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("{line}");
                if line.contains(READY) {
                    // Nobody listens any more once the trace is under way.
                    _ = tell.send(());
                }
            }
        });
        let shown = Self { child, stderr: Some(stderr) };
        wait_until_ready(&told)?;
        Ok(shown)
    }

    /// Sends Ctrl-C, as a user would, and waits for the end.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn stop(self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT).context("stop pathtrace")?;
        self.wait()
    }

    /// Waits for the end that `--count` or `--duration` brings.
    ///
    /// # Errors
    /// When it does not end within [`wait::PATIENCE`], or fails.
    pub fn wait(mut self) -> Result<()> {
        let status: ExitStatus =
            wait::until_some("pathtrace to end", || self.child.try_wait().ok().flatten())?;
        if let Some(stderr) = self.stderr.take() {
            drop(stderr.join());
        }
        ensure!(status.success(), "pathtrace ended with {status}");
        Ok(())
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn wait_until_ready(told: &Receiver<()>) -> Result<()> {
    match told.recv_timeout(*wait::PATIENCE) {
        Ok(()) => Ok(()),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            bail!("pathtrace ended before it was ready; see its lines above")
        }
        Err(mpsc::RecvTimeoutError::Timeout) => {
            bail!("pathtrace did not say within {:?} that it is {READY}", *wait::PATIENCE)
        }
    }
}
