//! Waiting for a condition, with a deadline.

use std::{
    env,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Long enough for a loaded machine of two cores; reached only by failures.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| scaled(Duration::from_secs(20)));

const PAUSE: Duration = Duration::from_millis(5);

/// A deadline, as many times longer as `PATHTRACE_TEST_SLOWNESS` (a whole number) says: for emulated machines.
#[must_use]
pub fn scaled(deadline: Duration) -> Duration {
    let slowness = env::var("PATHTRACE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    deadline * slowness.unwrap_or(1)
}

/// Asks `condition` until it holds.
///
/// # Errors
/// When it does not within [`PATIENCE`]; names `what`.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, || condition().then_some(()))
}

/// Asks `attempt` until it has an answer.
///
/// # Errors
/// When it has none within [`PATIENCE`]; names `what`.
pub fn until_some<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + *PATIENCE;
    loop {
        if let Some(answer) = attempt() {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for: {what}", PATIENCE.as_secs());
        }
        thread::sleep(PAUSE);
    }
}
