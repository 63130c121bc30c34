//! Network namespaces that exist as long as their owner.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    unistd::geteuid,
};

const NAMED: &str = "/run/netns";
const PREFIX: &str = "pt";

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A named network namespace (`pt<pid>-<n>`), removed when dropped. Its loopback is up.
#[derive(Debug)]
pub struct Netns {
    name: String,
    door: Door,
}

/// A way into a namespace; keeps it alive.
#[derive(Debug)]
pub struct Door(File);

impl Door {
    /// The way into the namespace of a process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of_process(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        Ok(Self(File::open(&path).with_context(|| path)?))
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it returns stay in there.
    ///
    /// # Panics
    /// When the namespace cannot be entered, or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter a network namespace as root");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside the namespace.
    ///
    /// # Errors
    /// When this process is out of file descriptors.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let handle: OwnedFd = self.0.try_clone()?.into();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || match libc::setns(handle.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Ok(command)
    }

    /// Runs a command line inside with `input` as its standard input.
    ///
    /// # Errors
    /// When it cannot be started or does not succeed; names the command and its complaint.
    pub fn feed(&self, line: &str, input: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        let mut command = self.command(program)?;
        command.args(words).stdin(stdin_of(input)?);
        checked(&mut command).with_context(|| format!("its input was:\n{input}"))
    }
}

impl Netns {
    /// Makes a namespace; the first call of a process also removes those that dead processes left.
    ///
    /// # Errors
    /// When this process is not root, or the machine refuses network namespaces.
    pub fn new() -> Result<Self> {
        ensure!(geteuid().is_root(), "labs need root for network namespaces: run the command under sudo");
        SWEEP.call_once(sweep);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        checked(Command::new("ip").args(["netns", "add", &name]))?;
        let path = Path::new(NAMED).join(&name);
        let door = Door(File::open(&path).with_context(|| format!("open {}", path.display()))?);
        let netns = Self { name, door };
        // Addresses are usable at once: no duplicate address detection.
        netns.set_sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        netns.set_sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        netns.exec("ip link set lo up")?;
        Ok(netns)
    }

    /// The name that `ip netns` and `--netns` take.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }

    /// Inode of the nsfs file: the `netns` of a JSON stage.
    ///
    /// # Errors
    /// When the namespace's file cannot be read.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.door.0.metadata()?.ino())
    }

    /// As [`Door::run`].
    ///
    /// # Panics
    /// As [`Door::run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.door.run(work)
    }

    /// A way in for a thread that may outlive this value.
    ///
    /// # Errors
    /// When this process is out of file descriptors.
    pub fn door(&self) -> Result<Door> {
        Ok(Door(self.door.0.try_clone()?))
    }

    /// A command that will run inside the namespace.
    ///
    /// # Errors
    /// As [`Door::command`].
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.door.command(program)
    }

    /// Runs a command line (words parted by blanks, no quoting) inside and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started or does not succeed; names the command and its complaint.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        let mut command = self.command(program)?;
        command.args(words);
        checked(&mut command)
    }

    /// As [`Door::feed`].
    ///
    /// # Errors
    /// As [`Door::feed`].
    pub fn feed(&self, line: &str, input: &str) -> Result<String> {
        self.door.feed(line, input)
    }

    /// Sets a sysctl by its dotted name (`net.ipv4.ip_forward`); `/` stands for a dot inside a device name.
    ///
    /// # Errors
    /// When the kernel has no such setting or refuses the value.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        self.run(|| fs::write(&path, value)).with_context(|| format!("set {name} to {value}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A failure leaves a namespace that the next run sweeps.
        drop(Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status());
    }
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or does not succeed; names the command and its complaint.
pub fn checked(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } = command
        .output()
        .with_context(|| format!("start {shown}; `cargo xtask setup` installs what labs need"))?;
    if !status.success() {
        bail!("{shown} failed ({status}): {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// A file already filled and rewound, so that no thread has to write into a pipe.
fn stdin_of(input: &str) -> Result<Stdio> {
    use std::io::{Seek, Write};
    let memory = nix::sys::memfd::memfd_create(c"input", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

fn sweep() {
    let Ok(entries) = fs::read_dir(NAMED) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            drop(Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status());
        }
    }
}

fn owner(name: &str) -> Option<u32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner("pt4711-3"), Some(4711));
        assert_eq!(owner("ptolemy-3"), None);
        assert_eq!(owner("web"), None);
    }
}
