//! Queues to user space, and who reads them.

use std::{fs, io::ErrorKind, path::Path};

/// One line of `net/netfilter/nfnetlink_queue` (`seq_show`, net/netfilter/nfnetlink_queue.c, 6.18): a queue is there while a
/// program reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NfQueue {
    pub number: u16,
    /// Netlink port of the program that reads it: its pid, usually.
    pub reader: u32,
    /// Packets that wait for a verdict.
    pub waiting: u32,
    /// Packets dropped because as many waited as may, or the program's socket took no more.
    pub overflowed: u64,
}

impl NfQueue {
    /// Those of the calling thread's namespace; `None` where they cannot be read.
    pub(super) fn read(proc: &Path) -> Option<Vec<Self>> {
        let dir = proc.join("thread-self/net/netfilter");
        match fs::read_to_string(dir.join("nfnetlink_queue")) {
            Ok(text) => text.lines().map(Self::of).collect(),
            // The module that makes queues also makes the list of them: nobody has asked for one since boot.
            Err(error) if error.kind() == ErrorKind::NotFound && dir.is_dir() => Some(Vec::new()),
            Err(_) => None,
        }
    }

    fn of(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut next = || words.next()?.parse::<u64>().ok();
        let (number, reader, waiting) = (next()?, next()?, next()?);
        let (_copy_mode, _copy_range, full, unsent) = (next()?, next()?, next()?, next()?);
        Some(Self {
            number: number.try_into().ok()?,
            reader: reader.try_into().ok()?,
            waiting: waiting.try_into().ok()?,
            overflowed: full.saturating_add(unsent),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_queue_with_a_reader() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(NfQueue::read(proc.path()), None);
        let dir = proc.path().join("thread-self/net/netfilter");
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(NfQueue::read(proc.path()), Some(Vec::new()), "nfnetlink_queue is not loaded");
        let list = dir.join("nfnetlink_queue");
        fs::write(&list, "    3  31354     2 2 65535     4     1       17  1\n").unwrap();
        let known = NfQueue { number: 3, reader: 31354, waiting: 2, overflowed: 5 };
        assert_eq!(NfQueue::read(proc.path()), Some(vec![known]));
        // What has another form is not known, not empty.
        fs::write(&list, "    3  31354\n").unwrap();
        assert_eq!(NfQueue::read(proc.path()), None);
    }
}
