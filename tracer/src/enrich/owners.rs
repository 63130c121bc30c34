//! Which process holds a socket: a scan of `/proc/*/fd`.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    /// `/proc/PID/comm`, control characters replaced.
    pub comm: String,
    /// The process has `/dev/net/tun` open: it carries packets between a device and itself.
    pub holds_tun: bool,
}

/// Owners by socket inode, as of the last scan. Socket inodes are unique over all network namespaces.
#[derive(Clone, Debug)]
pub struct Owners {
    proc: PathBuf,
    by_inode: HashMap<u64, Arc<Owner>>,
}

impl Owners {
    /// No scan yet.
    #[must_use]
    pub fn new(proc: impl Into<PathBuf>) -> Self {
        Self { proc: proc.into(), by_inode: HashMap::new() }
    }

    #[must_use]
    pub fn get(&self, inode: u64) -> Option<&Arc<Owner>> {
        self.by_inode.get(&inode)
    }

    /// Scans anew. A process that may not be read, or ends meanwhile, is left out.
    pub fn refresh(&mut self) {
        self.by_inode.clear();
        let Ok(entries) = fs::read_dir(&self.proc) else { return };
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some((owner, inodes)) = owner_and_sockets(&entry.path(), pid) {
                let owner = Arc::new(owner);
                // A socket that was inherited belongs to the process that made it: the lowest pid.
                for inode in inodes {
                    let held = self.by_inode.entry(inode).or_insert_with(|| Arc::clone(&owner));
                    if owner.pid < held.pid {
                        *held = Arc::clone(&owner);
                    }
                }
            }
        }
    }
}

fn owner_and_sockets(process: &Path, pid: u32) -> Option<(Owner, Vec<u64>)> {
    let mut inodes = Vec::new();
    let mut holds_tun = false;
    for fd in fs::read_dir(process.join("fd")).ok()?.flatten() {
        let Ok(link) = fs::read_link(fd.path()) else { continue };
        let Some(link) = link.to_str() else { continue };
        if let Some(inode) = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            inodes.extend(inode.parse::<u64>());
        }
        holds_tun |= link == "/dev/net/tun";
    }
    if inodes.is_empty() {
        return None;
    }
    let comm = fs::read(process.join("comm")).ok()?;
    let comm = String::from_utf8_lossy(&comm).trim_end_matches('\n').replace(char::is_control, "?");
    Some((Owner { pid, comm, holds_tun }, inodes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn process(proc: &Path, pid: u32, comm: &str, links: &[&str]) {
        let fd = proc.join(pid.to_string()).join("fd");
        fs::create_dir_all(&fd).unwrap();
        fs::write(proc.join(pid.to_string()).join("comm"), format!("{comm}\n")).unwrap();
        for (number, link) in links.iter().enumerate() {
            symlink(link, fd.join(number.to_string())).unwrap();
        }
    }

    #[test]
    fn the_process_that_made_a_socket_owns_it_and_odd_names_are_harmless() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 20, "worker", &["socket:[7]"]);
        process(proc.path(), 10, "ma\u{1b}[2Jster", &["pipe:[1]", "socket:[7]", "/dev/net/tun"]);
        fs::create_dir_all(proc.path().join("sys")).unwrap();
        let mut owners = Owners::new(proc.path());
        assert_eq!(owners.get(7), None);
        owners.refresh();
        let owner = owners.get(7).unwrap();
        assert_eq!((owner.pid, owner.comm.as_str(), owner.holds_tun), (10, "ma?[2Jster", true));
        assert_eq!(owners.get(8), None);
    }
}
