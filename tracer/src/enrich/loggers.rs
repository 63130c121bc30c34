//! Who receives netfilter's log lines.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// The logger bound to a protocol family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logger {
    /// `NFPROTO_*` number.
    pub family: u8,
    /// `nf_log_ipv4`, `nf_log_syslog`, `nfnetlink_log`, ...; `None` when nothing is bound.
    pub bound: Option<String>,
}

/// The loggers of a namespace, and the nfnetlink_log groups that a program listens to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loggers {
    pub by_family: Vec<Logger>,
    /// `None` when this kernel does not list them.
    pub groups: Option<Vec<u16>>,
}

impl Loggers {
    /// Reads `net/netfilter/{nf_log,nfnetlink_log}` of the calling thread's namespace.
    ///
    /// # Errors
    /// When the first cannot be read: netfilter logging is not in this kernel.
    pub fn read(proc: &Path) -> Result<Self> {
        let dir = proc.join("thread-self/net/netfilter");
        let path = dir.join("nf_log");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let groups = fs::read_to_string(dir.join("nfnetlink_log")).ok();
        Ok(Self {
            by_family: text.lines().filter_map(logger).collect(),
            groups: groups.map(|text| text.lines().filter_map(group).collect()),
        })
    }
}

/// ` 2 nf_log_syslog (nf_log_syslog,nfnetlink_log)`, or `NONE` for the bound one.
fn logger(line: &str) -> Option<Logger> {
    let mut words = line.split_whitespace();
    let family = words.next()?.parse().ok()?;
    let bound = words.next().filter(|name| *name != "NONE").map(str::to_owned);
    Some(Logger { family, bound })
}

/// The group's number comes first (`seq_show`, net/netfilter/nfnetlink_log.c).
fn group(line: &str) -> Option<u16> {
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_bound_is_not_a_name() {
        let proc = tempfile::tempdir().unwrap();
        assert!(Loggers::read(proc.path()).is_err());
        let dir = proc.path().join("thread-self/net/netfilter");
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("nf_log"),
            " 0 NONE (nfnetlink_log)\n 2 nfnetlink_log (nf_log_ipv4,nfnetlink_log)\n",
        )
        .unwrap();
        let loggers = Loggers::read(proc.path()).unwrap();
        assert_eq!(loggers.by_family[0], Logger { family: 0, bound: None });
        assert_eq!(loggers.by_family[1], Logger { family: 2, bound: Some("nfnetlink_log".to_owned()) });
        assert_eq!(loggers.groups, None);
        fs::write(dir.join("nfnetlink_log"), "    5  12345     0 2 65535    100  1\n").unwrap();
        assert_eq!(Loggers::read(proc.path()).unwrap().groups, Some(vec![5]));
    }
}
