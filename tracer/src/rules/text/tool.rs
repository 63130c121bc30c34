//! The programs that print rulesets, and how they are run.
//!
//! What each call changes was tried on kernel 6.18 with iptables 1.8.9 and nft 1.0.6, watching
//! `/proc/net/ip_tables_names`, the nft table list, `nft monitor` and the nft generation number:
//!
//! | call | in an empty namespace | beside native nft tables | beside legacy tables |
//! |---|---|---|---|
//! | `iptables-legacy-save` | nothing: it reads the tables named in `/proc/net/ip_tables_names` | nothing | nothing |
//! | `iptables-legacy-save -t nat` | creates the nat table and its hooks: never called | | |
//! | `iptables-nft-save` | nothing | nothing, generation unmoved | nothing, warns on stderr |
//! | `nft -s -a list ruleset` | nothing | nothing, generation unmoved | nothing |
//!
//! The nft tools load the module `nf_tables` where it is not loaded, so a tool is called only for tables that the
//! kernel is known to hold.

use std::{
    env, fmt, io,
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use crate::model::{Backend, TableFamily};

/// A program that prints rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    IptablesLegacySave,
    Ip6tablesLegacySave,
    IptablesNftSave,
    Ip6tablesNftSave,
    Nft,
}

impl Tool {
    /// All of them, in the order in which their text is preferred.
    pub const ALL: [Self; 5] = [
        Self::IptablesLegacySave,
        Self::Ip6tablesLegacySave,
        Self::IptablesNftSave,
        Self::Ip6tablesNftSave,
        Self::Nft,
    ];

    /// Those that know tables of nft.
    pub const OF_NFT: [Self; 3] = [Self::IptablesNftSave, Self::Ip6tablesNftSave, Self::Nft];

    /// The iptables-save program of a backend and family; `None` where iptables has none.
    #[must_use]
    pub fn iptables_save(backend: Backend, family: TableFamily) -> Option<Self> {
        Some(match (backend, family) {
            (Backend::IptablesLegacy, TableFamily::Ip) => Self::IptablesLegacySave,
            (Backend::IptablesLegacy, TableFamily::Ip6) => Self::Ip6tablesLegacySave,
            (Backend::IptablesNft, TableFamily::Ip) => Self::IptablesNftSave,
            (Backend::IptablesNft, TableFamily::Ip6) => Self::Ip6tablesNftSave,
            _ => return None,
        })
    }

    /// The backend and family whose rules an iptables tool prints; `None` for nft.
    #[must_use]
    pub fn iptables(self) -> Option<(Backend, TableFamily)> {
        Some(match self {
            Self::IptablesLegacySave => (Backend::IptablesLegacy, TableFamily::Ip),
            Self::Ip6tablesLegacySave => (Backend::IptablesLegacy, TableFamily::Ip6),
            Self::IptablesNftSave => (Backend::IptablesNft, TableFamily::Ip),
            Self::Ip6tablesNftSave => (Backend::IptablesNft, TableFamily::Ip6),
            Self::Nft => return None,
        })
    }

    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::IptablesLegacySave => "iptables-legacy-save",
            Self::Ip6tablesLegacySave => "ip6tables-legacy-save",
            Self::IptablesNftSave => "iptables-nft-save",
            Self::Ip6tablesNftSave => "ip6tables-nft-save",
            Self::Nft => "nft",
        }
    }

    /// Without packet counts, with handles.
    #[must_use]
    pub fn arguments(self) -> &'static [&'static str] {
        if self == Self::Nft { &["-s", "-a", "list", "ruleset"] } else { &[] }
    }

    /// The package that has it, by its name in Debian and Fedora alike.
    #[must_use]
    pub fn package(self) -> &'static str {
        if self == Self::Nft { "nftables" } else { "iptables" }
    }
}

/// Why a tool gave no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    NotInstalled,
    TimedOut(Duration),
    /// Could not be started, or ended badly: what the system or the program said.
    Failed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => f.write_str("is not installed"),
            Self::TimedOut(after) => write!(f, "gave no answer within {} s", after.as_secs()),
            Self::Failed(said) => write!(f, "failed: {}", said.escape_debug()),
        }
    }
}

/// Runs a tool and gives back what it printed.
pub trait Runner {
    /// # Errors
    /// The tool is missing, failed, or took too long.
    fn run(&self, tool: Tool) -> Result<String, Failure>;
}

/// Runs tools as child processes of the calling thread, and so in that thread's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Processes {
    /// After this a tool is killed.
    pub deadline: Duration,
}

impl Runner for Processes {
    fn run(&self, tool: Tool) -> Result<String, Failure> {
        run(Command::new(tool.program()).args(tool.arguments()), self.deadline)
    }
}

/// Superusers' programs are not on every user's path, and `su` keeps the user's.
fn path() -> String {
    format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default())
}

fn run(command: &mut Command, deadline: Duration) -> Result<String, Failure> {
    let end = Instant::now() + deadline;
    command.env("LC_ALL", "C").env("PATH", path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Failure::NotInstalled,
        _ => failed(&e),
    })?;
    let gathered = gather(&mut child, end);
    if matches!(gathered, Err(Failure::TimedOut(_))) {
        // It may have ended by itself in between; then there is nothing to kill.
        let _ = child.kill();
    }
    let status = child.wait().map_err(|e| failed(&e))?;
    match gathered {
        Err(Failure::TimedOut(_)) => Err(Failure::TimedOut(deadline)),
        Err(failure) => Err(failure),
        Ok((output, errors)) => judge(status, output, &errors),
    }
}

fn failed(error: &io::Error) -> Failure {
    Failure::Failed(error.to_string())
}

fn judge(status: ExitStatus, output: String, errors: &str) -> Result<String, Failure> {
    if status.success() {
        return Ok(output);
    }
    let said = errors.lines().find(|l| !l.starts_with("# Warning")).unwrap_or("no message");
    Err(Failure::Failed(format!("{said} ({status})")))
}

/// All that the child prints, on stdout and on stderr.
fn gather(child: &mut Child, end: Instant) -> Result<(String, String), Failure> {
    let output = child.stdout.take().map(read_aside);
    let errors = child.stderr.take().map(read_aside);
    Ok((receive(output, end)?, receive(errors, end)?))
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let result = pipe.read_to_end(&mut bytes).map(|_| bytes);
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(result);
    });
    receiver
}

fn receive(pipe: Option<Receiver<io::Result<Vec<u8>>>>, end: Instant) -> Result<String, Failure> {
    let Some(pipe) = pipe else { return Ok(String::new()) };
    let left = end.saturating_duration_since(Instant::now());
    let bytes = pipe.recv_timeout(left).map_err(|_| Failure::TimedOut(left))?.map_err(|e| failed(&e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_missing_program_is_not_an_error_of_its_own_kind() {
        let missing = run(&mut Command::new("pathtrace-no-such-program"), SOON);
        assert_eq!(missing, Err(Failure::NotInstalled));
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let hung = run(Command::new("cat").arg("/dev/zero"), Duration::from_millis(50));
        assert_eq!(hung, Err(Failure::TimedOut(Duration::from_millis(50))));
    }

    #[test]
    fn a_program_reads_no_input_and_speaks_english() {
        let said = run(Command::new("sh").args(["-c", "cat; echo $LC_ALL"]), SOON);
        assert_eq!(said, Ok("C\n".into()));
    }

    #[test]
    fn what_a_failing_program_says_is_kept_and_harmless() {
        let script = "echo '# Warning: x' >&2; printf 'bad \\033[31m\\n' >&2; exit 3";
        let failure = run(Command::new("sh").args(["-c", script]), SOON).unwrap_err();
        assert_eq!(failure.to_string(), "failed: bad \\u{1b}[31m (exit status: 3)");
    }
}
