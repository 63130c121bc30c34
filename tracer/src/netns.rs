//! Network namespaces: what the user named, which exist, and what to call them. Reads `/proc` and `/run` only.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use crate::{config::NetnsSpec, error::Failure};

/// Where a system's files are mounted; `/proc` and `/run` except in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    pub proc: PathBuf,
    pub run: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc"), run: PathBuf::from("/run") }
    }
}

/// A network namespace that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Inode number of its nsfs file, which identifies it.
    pub inode: u32,
    /// A file to open for `setns`.
    pub path: PathBuf,
    /// As `--netns` takes it.
    pub name: String,
}

/// The namespace that the user named.
///
/// # Errors
/// [`Failure::NoNamespace`] when there is none, or when it cannot be looked at.
pub fn resolve(spec: &NetnsSpec, roots: &Roots) -> Result<Namespace, Failure> {
    let (path, name) = match spec {
        NetnsSpec::Current => (roots.proc.join("self/ns/net"), "current".to_owned()),
        NetnsSpec::Name(name) => (roots.run.join("netns").join(name), name.clone()),
        NetnsSpec::Path(path) => (path.clone(), path.display().to_string()),
        NetnsSpec::Pid(pid) => (roots.proc.join(pid.to_string()).join("ns/net"), format!("pid:{pid}")),
    };
    match inode(&path) {
        Ok(inode) => Ok(Namespace { inode, path, name }),
        Err(error) => Err(Failure::NoNamespace { name, problem: problem(&path, &error) }),
    }
}

fn problem(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path} does not exist"),
        io::ErrorKind::PermissionDenied => format!("{path} is not accessible for this user"),
        io::ErrorKind::InvalidData => format!("{path} is {error}"),
        _ => format!("{path}: {error}"),
    }
}

/// Every namespace that has a process, a name (`ip netns`) or a Docker sandbox, by inode. One that is held only by
/// an open file or a socket is not found. What vanishes meanwhile, or may not be looked at, is left out.
///
/// # Errors
/// When the process list cannot be read.
pub fn list(roots: &Roots) -> io::Result<Vec<Namespace>> {
    let mut found = BTreeMap::new();
    for pid in process_ids(&roots.proc)? {
        let path = roots.proc.join(pid.to_string()).join("ns/net");
        // An nsfs file of a process needs no check of its kind, and this runs for every process.
        if let Some(inode) = fs::metadata(&path).ok().and_then(|meta| u32::try_from(meta.ino()).ok()) {
            found.entry(inode).or_insert(Namespace { inode, path, name: format!("pid:{pid}") });
        }
    }
    // The names that people chose come last, so that they win.
    for (folder, prefix) in [("docker/netns", "docker:"), ("netns", "")] {
        for (path, name) in files(&roots.run.join(folder)) {
            if let Ok(inode) = inode(&path) {
                found.insert(inode, Namespace { inode, path, name: format!("{prefix}{name}") });
            }
        }
    }
    Ok(found.into_values().collect())
}

/// In rising order, so that a namespace is named after its oldest process.
fn process_ids(proc: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> =
        fs::read_dir(proc)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| (entry.path(), entry.file_name().to_string_lossy().into_owned()))
        .collect();
    files.sort_unstable();
    files
}

/// Inode number of a network namespace's file. `InvalidData`: it is no such file.
fn inode(path: &Path) -> io::Result<u32> {
    let not_one = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what);
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !is_network_namespace(&file) {
        return Err(not_one("not a network namespace (a left-over file, or one of another kind)"));
    }
    u32::try_from(file.metadata()?.ino()).map_err(|_| not_one("numbered beyond what nsfs uses"))
}

fn is_network_namespace(file: &File) -> bool {
    // SAFETY: NS_GET_NSTYPE (include/uapi/linux/nsfs.h) takes no argument and only returns a number; on any other
    // kind of file the kernel answers ENOTTY.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

/// What to call a namespace, by inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetnsNames(BTreeMap<u32, String>);

impl NetnsNames {
    pub fn insert(&mut self, inode: u32, name: String) {
        self.0.insert(inode, name);
    }

    /// Its name, or `net:[INODE]` as `ls -l /proc/PID/ns` writes it.
    #[must_use]
    pub fn label(&self, inode: u32) -> String {
        self.0.get(&inode).cloned().unwrap_or_else(|| format!("net:[{inode}]"))
    }
}

impl FromIterator<Namespace> for NetnsNames {
    fn from_iter<I: IntoIterator<Item = Namespace>>(namespaces: I) -> Self {
        Self(namespaces.into_iter().map(|namespace| (namespace.inode, namespace.name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        process::{Child, Command, Stdio},
    };

    use tempfile::TempDir;

    use super::*;

    fn own_inode() -> u32 {
        u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap()
    }

    /// A `/proc` and a `/run` with this process's namespace under some names.
    fn made_up() -> (TempDir, Roots) {
        let dir = TempDir::new().unwrap();
        let roots = Roots { proc: dir.path().join("proc"), run: dir.path().join("run") };
        for folder in
            ["proc/self/ns", "proc/90/ns", "proc/812/ns", "proc/irq", "run/netns", "run/docker/netns"]
        {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for link in ["proc/self/ns/net", "proc/90/ns/net", "proc/812/ns/net"] {
            symlink("/proc/self/ns/net", dir.path().join(link)).unwrap();
        }
        (dir, roots)
    }

    fn refusal(spec: &NetnsSpec, roots: &Roots) -> String {
        match resolve(spec, roots) {
            Err(failure @ Failure::NoNamespace { .. }) => failure.what(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_spelling_leads_to_the_namespace() {
        let (dir, roots) = made_up();
        symlink("/proc/self/ns/net", dir.path().join("run/netns/web")).unwrap();
        let specs = [
            (NetnsSpec::Current, "current"),
            (NetnsSpec::Name("web".into()), "web"),
            (NetnsSpec::Path("/proc/self/ns/net".into()), "/proc/self/ns/net"),
            (NetnsSpec::Pid(812), "pid:812"),
        ];
        for (spec, name) in specs {
            let namespace = resolve(&spec, &roots).unwrap();
            assert_eq!((namespace.inode, namespace.name.as_str()), (own_inode(), name));
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let (dir, roots) = made_up();
        assert!(refusal(&NetnsSpec::Name("gone".into()), &roots).contains("gone"));
        assert!(refusal(&NetnsSpec::Pid(4), &roots).contains("pid:4"));
        fs::write(dir.path().join("run/netns/stale"), "").unwrap();
        assert!(refusal(&NetnsSpec::Name("stale".into()), &roots).contains("not a network namespace"));
        assert!(
            refusal(&NetnsSpec::Path("/proc/self/ns/mnt".into()), &roots).contains("not a network namespace")
        );
    }

    #[test]
    fn a_chosen_name_wins_over_a_process() {
        let (dir, roots) = made_up();
        let name = |roots: &Roots| list(roots).unwrap().pop().unwrap().name;
        assert_eq!(name(&roots), "pid:90");
        symlink("/proc/self/ns/net", dir.path().join("run/docker/netns/4f2a")).unwrap();
        assert_eq!(name(&roots), "docker:4f2a");
        fs::write(dir.path().join("run/netns/stale"), "").unwrap();
        symlink("/proc/self/ns/net", dir.path().join("run/netns/web")).unwrap();
        assert_eq!(name(&roots), "web");
        assert_eq!(list(&roots).unwrap().len(), 1);
    }

    #[test]
    fn an_unnamed_namespace_is_called_by_its_inode() {
        let mut names = NetnsNames::default();
        names.insert(7, "web".into());
        assert_eq!((names.label(7).as_str(), names.label(8).as_str()), ("web", "net:[8]"));
    }

    /// A process in a namespace of its own, which ends when this is dropped.
    struct Elsewhere(Child);

    impl Elsewhere {
        fn start() -> Self {
            // `cat` reads until its input closes; the echo tells that the namespace is there.
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", "echo ready; exec cat"]);
            Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
        }

        fn wait_until_ready(&mut self) {
            let mut ready = [0; 5];
            io::Read::read_exact(self.0.stdout.as_mut().unwrap(), &mut ready).unwrap();
        }
    }

    impl Drop for Elsewhere {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_real_namespace_of_another_process() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let mut child = Elsewhere::start();
        child.wait_until_ready();
        let (pid, roots) = (child.0.id(), Roots::default());
        let namespace = resolve(&NetnsSpec::Pid(pid), &roots).unwrap();
        assert_ne!(namespace.inode, own_inode());
        let listed = list(&roots).unwrap();
        assert!(listed.iter().any(|n| n.inode == namespace.inode && n.name == format!("pid:{pid}")));
        assert!(listed.iter().any(|n| n.inode == own_inode()));
    }
}
