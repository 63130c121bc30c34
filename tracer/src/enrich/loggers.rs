//! Who receives netfilter's log lines.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// The logger bound to a protocol family (`/proc/net/netfilter/nf_log`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logger {
    /// `NFPROTO_*` number.
    pub family: u8,
    /// `nf_log_ipv4`, `nf_log_syslog`, `nfnetlink_log`, ...; `None` when nothing is bound.
    pub bound: Option<String>,
}

/// The loggers of the calling thread's namespace.
///
/// # Errors
/// When the file cannot be read: netfilter logging is not in this kernel, or not root.
pub fn read_loggers(proc: &Path) -> Result<Vec<Logger>> {
    let path = proc.join("thread-self/net/netfilter/nf_log");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().filter_map(logger).collect())
}

/// ` 2 nf_log_syslog (nf_log_syslog,nfnetlink_log)`, or `NONE` for the bound one.
fn logger(line: &str) -> Option<Logger> {
    let mut words = line.split_whitespace();
    let family = words.next()?.parse().ok()?;
    let bound = words.next().filter(|name| *name != "NONE").map(str::to_owned);
    Some(Logger { family, bound })
}
