//! The real binary, running beside a lab.

use std::{
    env,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{netns::Netns, wait::PATIENCE};

/// The binary under test: `PATHTRACE_BIN`, or the newest build of this workspace.
///
/// # Errors
/// When there is none; says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PATHTRACE_BIN") {
        return Ok(path.into());
    }
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    ["release", "debug"]
        .iter()
        .map(|profile| target.join(profile).join("pathtrace"))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .context("no pathtrace binary found: run `cargo xtask build --release`, or set PATHTRACE_BIN")
}

/// A command that runs the binary in a namespace (or here) and dies with the thread that starts it.
///
/// # Errors
/// When there is no binary.
pub fn command(netns: Option<&Netns>) -> Result<Command> {
    let binary = binary()?;
    let mut command = match netns {
        Some(netns) => netns.command(binary)?,
        None => Command::new(binary),
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.stdin(Stdio::null());
    Ok(command)
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<Value>,
    /// What stood on stdout and was no JSON object.
    rubbish: Vec<String>,
    stderr: String,
    /// How many of stdout and stderr have ended.
    ended: u8,
}

impl Said {
    fn take_json(&mut self, line: String) {
        match serde_json::from_str::<Value>(&line) {
            Ok(value) if value.is_object() => self.lines.push(value),
            _ => self.rubbish.push(line),
        }
    }

    fn over(&self) -> bool {
        self.ended == 2
    }
}

type Shared = Arc<(Mutex<Said>, Condvar)>;

/// A running trace with `--json`. Killed when dropped.
#[derive(Debug)]
pub struct Pathtrace {
    child: Child,
    said: Shared,
    readers: Vec<JoinHandle<()>>,
}

/// What a trace said from start to end.
#[derive(Debug)]
pub struct Report {
    pub lines: Vec<Value>,
    pub status: ExitStatus,
    pub stderr: String,
}

impl Report {
    /// The lines of one type.
    #[must_use]
    pub fn of_type(&self, kind: &str) -> Vec<&Value> {
        self.lines.iter().filter(|line| line["type"] == kind).collect()
    }

    /// Every journey.
    #[must_use]
    pub fn journeys(&self) -> Vec<&Value> {
        self.of_type("journey")
    }

    /// The summary.
    ///
    /// # Errors
    /// When there is not exactly one, as the last line.
    pub fn summary(&self) -> Result<&Value> {
        match (self.of_type("summary").as_slice(), self.lines.last()) {
            ([only], Some(last)) if *only == last => Ok(last),
            (all, last) => {
                bail!("{} summaries; the last line is {last:?}; stderr: {}", all.len(), self.stderr)
            }
        }
    }
}

impl Pathtrace {
    /// Starts a trace and waits for its `start` line: traffic from then on is seen.
    ///
    /// # Errors
    /// When it ends, or does not start within [`PATIENCE`]; tells what it wrote to stderr.
    pub fn start(netns: Option<&Netns>, arguments: &[&str]) -> Result<Self> {
        Self::start_as(command(netns)?, arguments)
    }

    /// As [`Pathtrace::start`], of a [`command`] that something was changed in.
    ///
    /// # Errors
    /// As there.
    pub fn start_as(mut command: Command, arguments: &[&str]) -> Result<Self> {
        command.arg("--json").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let said = Shared::default();
        let (out, err) =
            (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
        let (from_stdout, from_stderr) = (Arc::clone(&said), Arc::clone(&said));
        let readers = vec![
            thread::spawn(move || collect(out, &from_stdout, Said::take_json)),
            thread::spawn(move || collect(err, &from_stderr, |said, line| said.stderr += &(line + "\n"))),
        ];
        let trace = Self { child, said, readers };
        trace.wait_for("the start line", |lines| lines.iter().any(|line| line["type"] == "start"))?;
        Ok(trace)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it has had resident so far, in KiB (`VmHWM`, proc_pid_status(5)).
    ///
    /// # Errors
    /// When the process is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let number = line.trim().strip_suffix(" kB").context("VmHWM in kB")?;
        Ok(number.parse()?)
    }

    /// Waits until the lines so far satisfy `predicate`.
    ///
    /// # Errors
    /// When they do not within [`PATIENCE`], or the trace ends before.
    pub fn wait_for(&self, what: &str, mut predicate: impl FnMut(&[Value]) -> bool) -> Result<()> {
        self.wait_for_some(what, *PATIENCE, |lines| predicate(lines).then_some(()))
    }

    /// Waits until the programs that are to watch devices in the long run do so. The trace must have been started with `-v`,
    /// which lets it say so.
    ///
    /// # Errors
    /// As [`Pathtrace::wait_for`]; on a kernel without such programs (tcx: 6.6) the time is over.
    pub fn wait_for_devices(&self) -> Result<()> {
        self.wait_for("programs on devices", |lines| {
            let said = |line: &Value| {
                line["message"].as_str().is_some_and(|said| said.contains(" watch devices from"))
            };
            lines.iter().any(|line| line["type"] == "notice" && said(line))
        })
    }

    /// Waits until the lines so far yield an answer.
    ///
    /// # Errors
    /// When they do not within `patience`, or the trace ends before.
    pub fn wait_for_some<T>(
        &self,
        what: &str,
        patience: Duration,
        mut attempt: impl FnMut(&[Value]) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut said = lock(&self.said.0);
        loop {
            if let Some(answer) = attempt(&said.lines) {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if said.over() || left.is_zero() {
                let why = if said.over() { "pathtrace ended" } else { "the time is over" };
                bail!(
                    "{why} while waiting for {what}, after {} lines; stderr:\n{}",
                    said.lines.len(),
                    said.stderr
                );
            }
            said = self.said.1.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lines so far, without the first `known`.
    #[must_use]
    pub fn lines_after(&self, known: usize) -> Vec<Value> {
        lock(&self.said.0).lines.get(known..).unwrap_or_default().to_vec()
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Value> {
        lock(&self.said.0).lines.clone()
    }

    /// Sends Ctrl-C and waits for the end.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn stop(self) -> Result<Report> {
        self.signal(Signal::SIGINT)?;
        self.wait()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("send {signal}"))
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// When it does not end within [`PATIENCE`], or wrote to stdout what is no JSON object.
    pub fn wait(mut self) -> Result<Report> {
        let mut exited = None;
        crate::wait::until("pathtrace to end", || {
            exited = self.child.try_wait().ok().flatten();
            exited.is_some()
        })?;
        for reader in self.readers.drain(..) {
            reader.join().map_err(|_| anyhow::anyhow!("a reader thread panicked"))?;
        }
        let said = std::mem::take(&mut *lock(&self.said.0));
        if let Some(line) = said.rubbish.first() {
            bail!("stdout holds a line that is no JSON object: {line:?}");
        }
        let status = exited.context("no exit status")?;
        Ok(Report { lines: said.lines, status, stderr: said.stderr })
    }
}

impl Drop for Pathtrace {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands every line of a stream to `take`, and notes its end.
fn collect(stream: impl Read, said: &Shared, take: impl Fn(&mut Said, String)) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        take(&mut lock(&said.0), line);
        said.1.notify_all();
    }
    lock(&said.0).ended += 1;
    said.1.notify_all();
}
