//! One machine under qemu's software emulation: boots, runs one command, says how it ended.

use std::{
    env,
    fmt::{self, Display, Formatter},
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{initramfs, kernels::Kernel};
use crate::shell::{printed, say};

/// A sign of life where nothing is printed.
const QUIET: Duration = Duration::from_secs(30);

/// How much of the console is shown when a machine dies or hangs.
const TAIL: usize = 25;

/// Variables that a command inside sees as they are outside.
const PASSED_ON: &[&str] = &["PATHTRACE_", "RUST_"];

/// A shell command, and how long it may take, boot included.
#[derive(Clone, Debug)]
pub(super) struct Job {
    script: String,
    deadline: Duration,
    clock: Clock,
    /// Where that goes which the command leaves in [`LEFT`]; what was there before is removed.
    keep: Option<PathBuf>,
}

/// What time is, inside a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// Our time.
    Real,
    /// Each instruction takes one nanosecond, on one processor; idle time is skipped.
    Instructions,
}

/// The folder inside whose files are kept, where somebody wants them.
pub(super) const LEFT: &str = "/run/vm/left";

impl Job {
    /// Runs with our variables; the deadline in seconds.
    pub(super) fn new(script: &str, deadline: u64) -> Self {
        let mut text = String::new();
        for (name, value) in env::vars().filter(|(name, _)| PASSED_ON.iter().any(|p| name.starts_with(p))) {
            text += &format!("export {name}={}\n", quoted(&value));
        }
        let deadline = Duration::from_secs(deadline);
        Self { script: format!("{text}{script}\n"), deadline, clock: Clock::Real, keep: None }
    }

    /// In a machine whose clock counts instructions: the same work takes the same time, whatever this machine does.
    pub(super) fn by_instructions(self) -> Self {
        Self { clock: Clock::Instructions, ..self }
    }

    /// Keeps what the command leaves in [`LEFT`].
    pub(super) fn keeping(self, folder: PathBuf) -> Self {
        Self { keep: Some(folder), ..self }
    }

    /// As [`Self::new`], in the current folder.
    pub(super) fn here(command: &str, deadline: u64) -> Result<Self> {
        Ok(Self::new(
            &format!("cd {}\n{command}", quoted(&env::current_dir()?.display().to_string())),
            deadline,
        ))
    }
}

/// `text` as one word of the shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The command's exit status.
    Status(i32),
    /// The machine went down before the command ended: a panic, or no boot. The console's tail.
    Died(String),
    /// Not done at the deadline. The console's tail.
    Hung(Duration, String),
}

impl Ended {
    pub(super) fn success(&self) -> bool {
        *self == Self::Status(0)
    }
}

impl Display for Ended {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(0) => f.write_str("the command succeeded"),
            Self::Status(status) => write!(f, "the command exited with {status}"),
            Self::Died(tail) => write!(f, "the machine died; its console's end:\n{tail}"),
            Self::Hung(deadline, tail) => {
                write!(f, "not done after {} s; its console's end:\n{tail}", deadline.as_secs())
            }
        }
    }
}

/// Boots the kernel, runs the job, gives each line that it prints to `show`.
pub(super) fn run(kernel: &Kernel, job: &Job, show: &mut dyn FnMut(&str)) -> Result<Ended> {
    let room = Room::new(kernel)?;
    let initramfs = initramfs::write(kernel, &room.0)?;
    fs::write(room.shared().join("start"), start_script(kernel))?;
    fs::write(room.shared().join("command"), &job.script)?;
    say(&format!("Booting {}", kernel.version));
    let mut emulator = emulator(kernel, job.clock, &room, &initramfs);
    let mut machine = Running(emulator.spawn().with_context(|| format!("start {emulator:?}"))?);
    let lines = lines_of(machine.0.stdout.take().context("qemu has no stdout")?);
    let in_time = follow(&lines, kernel, job.deadline, show);
    if in_time {
        machine.0.wait()?;
    }
    drop(machine);
    if let Some(folder) = &job.keep {
        room.keep(folder)?;
    }
    if !in_time {
        return Ok(Ended::Hung(job.deadline, room.console_tail()));
    }
    Ok(
        match fs::read_to_string(room.shared().join("status")).ok().and_then(|text| text.trim().parse().ok())
        {
            Some(status) => Ended::Status(status),
            None => Ended::Died(room.console_tail()),
        },
    )
}

/// Shows what comes until the machine is off; false when that takes longer than `deadline`.
fn follow(lines: &Receiver<String>, kernel: &Kernel, deadline: Duration, show: &mut dyn FnMut(&str)) -> bool {
    let started = Instant::now();
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        match lines.recv_timeout(left.min(QUIET)) {
            Ok(line) => show(&line),
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) if started.elapsed() >= deadline => return false,
            Err(RecvTimeoutError::Timeout) => {
                say(&format!("{}: {} s, still running", kernel.release, started.elapsed().as_secs()));
            }
        }
    }
}

fn lines_of(stdout: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
            line.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    lines
}

fn start_script(kernel: &Kernel) -> String {
    let modules = kernel.base.join("lib/modules").join(&kernel.version).display().to_string();
    let version = &kernel.version;
    format!("MODULES={}\nVERSION={}\n{}", quoted(&modules), quoted(version), include_str!("start.sh"))
}

fn emulator(kernel: &Kernel, clock: Clock, room: &Room, initramfs: &Path) -> Command {
    // A machine does not outlive us, however we end.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"])
        // Five levels of page tables cost emulation time and show nothing.
        .args(["-cpu", "max,la57=off", "-m", "3G"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off rdinit=/init"])
        .args(["-serial", &format!("file:{}", escaped(&room.console()))])
        .args(["-serial", "stdio"]);
    match clock {
        Clock::Real => {
            // One thread for all processors: with one for each, a processor may run instructions that another has just replaced,
            // and Linux, which patches its text whenever a tracepoint or tcx comes into use, dies of it (seen with 6.12 and 7.2).
            qemu.args(["-accel", "tcg,thread=single", "-smp", "2"]);
        }
        Clock::Instructions => {
            qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"]);
        }
    }
    for (tag, path, more) in [("host", PathBuf::from("/"), ",readonly=on"), ("out", room.shared(), "")] {
        let path = escaped(&path);
        qemu.args([
            "-fsdev",
            &format!("local,id={tag},path={path},security_model=none,multidevs=remap{more}"),
        ]);
        qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
    }
    qemu.stdin(Stdio::null()).stdout(Stdio::piped());
    qemu
}

/// A comma ends an option of qemu, unless doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A machine that is off when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A run's own folder; gone when dropped.
struct Room(PathBuf);

/// What the names of rooms begin with; then come our process id and the kernel.
const ROOM: &str = "pathtrace-vm-";

impl Room {
    fn new(kernel: &Kernel) -> Result<Self> {
        sweep();
        let path = env::temp_dir().join(format!("{ROOM}{}-{}", process::id(), kernel.release));
        fs::create_dir_all(path.join("shared")).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    /// What both sides see and write.
    fn shared(&self) -> PathBuf {
        self.0.join("shared")
    }

    /// Moves what the machine left to a folder, in place of what is there.
    fn keep(&self, folder: &Path) -> Result<()> {
        drop(fs::remove_dir_all(folder));
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let left = self.shared().join(LEFT.rsplit('/').next().unwrap_or_default());
        if !left.is_dir() {
            return Ok(());
        }
        // The room may lie on another file system.
        let mut copy = Command::new("cp");
        printed(copy.arg("-r").arg(left.join(".")).arg(folder))
            .with_context(|| format!("copy what the machine left to {}", folder.display()))?;
        Ok(())
    }

    fn console(&self) -> PathBuf {
        self.0.join("console")
    }

    fn console_tail(&self) -> String {
        let text = fs::read(self.console()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// Removes what killed runs have left.
fn sweep() {
    for entry in fs::read_dir(env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(ROOM)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be doing the same.
            drop(fs::remove_dir_all(entry.path()));
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}
