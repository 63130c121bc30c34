//! Why a run ended early: what is missing, and what to do about it. Two lines on stderr, exit code 1.

use std::{fmt, io, process::ExitCode};

/// A run that could not go on.
#[derive(Debug)]
pub enum Failure {
    /// The kernel refuses to load programs for this user.
    NotRoot,
    /// Root, but of a user namespace.
    OnlyRootInside,
    /// No `/sys/kernel/btf/vmlinux`.
    NoBtf,
    /// No mechanism to look at the tables; what was tried, in words.
    NoProbe {
        tried: String,
    },
    NoNamespace {
        name: String,
        problem: String,
    },
    NoDevice {
        name: String,
        netns: Option<String>,
    },
    /// Another XDP program stands where `--xdp` would.
    XdpTaken {
        device: String,
        program: String,
    },
    /// Standard output, or a writer that stands for it.
    Output(io::Error),
    /// Anything else; the context names what failed and on what.
    Other(anyhow::Error),
}

impl Failure {
    /// What is missing or broken, in one line.
    #[must_use]
    pub fn what(&self) -> String {
        match self {
            Self::NotRoot => "loading programs into the kernel needs root".to_owned(),
            Self::OnlyRootInside => {
                "root of a user namespace (a rootless container, say) may not load programs into the kernel"
                    .to_owned()
            }
            Self::NoBtf => {
                "this kernel does not describe its types: /sys/kernel/btf/vmlinux is missing".to_owned()
            }
            Self::NoProbe { tried } => format!("this kernel offers no way to look at its tables: {tried}"),
            Self::NoNamespace { name, problem } => format!("no network namespace {name}: {problem}"),
            Self::NoDevice { name, netns: Some(netns) } => format!("no device {name} in namespace {netns}"),
            Self::NoDevice { name, netns: None } => format!("no device {name}"),
            Self::XdpTaken { device, program } => {
                format!("--xdp: device {device} has an XDP program already: {program}")
            }
            Self::Output(error) => format!("cannot write the results: {error}"),
            Self::Other(error) => format!("{error:#}"),
        }
    }

    /// What the user can do, in one line.
    #[must_use]
    pub fn todo(&self) -> &'static str {
        match self {
            Self::NotRoot => "run it with sudo",
            Self::OnlyRootInside => "run it on the host, with sudo; `--netns pid:N` looks into a container",
            Self::NoBtf => {
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's is)"
            }
            Self::NoProbe { .. } => {
                "boot Linux 6.4 or newer with CONFIG_NETFILTER_BPF_LINK=y; `pathtrace doctor` lists what is here"
            }
            Self::NoNamespace { .. } => {
                "`ip netns` lists the named ones, `lsns -t net` all with a process (then --netns pid:N)"
            }
            Self::NoDevice { .. } => "`ip link` lists the devices of a namespace",
            Self::XdpTaken { .. } => "leave --xdp out: what comes past that program is seen without it, too",
            Self::Output(_) => "check where standard output goes",
            Self::Other(_) => "run it again with -vv, and `pathtrace doctor`, for details",
        }
    }

    /// Whether the reader of our output has gone, which is a normal end (`pathtrace | head`).
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what())
    }
}

impl std::error::Error for Failure {}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Says on `stderr` why a run failed, if it did, and gives the exit code of the contract: 0 or 1. One line says what failed,
/// unless `in_detail`: then the kernel's own words follow it.
pub fn report(result: Result<(), Failure>, in_detail: bool, stderr: &mut impl io::Write) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            let what = failure.what();
            let lines = what.lines().take(if in_detail { usize::MAX } else { 1 });
            for line in lines.map(crate::render::printable).chain([failure.todo().to_owned()]) {
                // With stderr gone there is nobody left to tell; the exit code still says it.
                let _ = writeln!(stderr, "pathtrace: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The kernel's and the verifier's messages have many lines; the first says what failed.
pub(crate) fn one_line(text: &str) -> String {
    crate::render::printable(text.lines().next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(failure: Failure) -> (ExitCode, String) {
        said_in_detail(failure, false)
    }

    fn said_in_detail(failure: Failure, in_detail: bool) -> (ExitCode, String) {
        let mut stderr = Vec::new();
        let code = report(Err(failure), in_detail, &mut stderr);
        (code, String::from_utf8(stderr).unwrap())
    }

    #[test]
    fn a_closed_pipe_is_success_and_silent() {
        let (code, text) = said(Failure::Output(io::Error::from(io::ErrorKind::BrokenPipe)));
        assert_eq!((code, text.as_str()), (ExitCode::SUCCESS, ""));
    }

    #[test]
    fn a_full_disk_is_not_a_closed_pipe() {
        let (code, text) = said(Failure::Output(io::Error::from(io::ErrorKind::StorageFull)));
        assert_eq!(code, ExitCode::FAILURE);
        assert!(text.contains("cannot write"));
    }

    #[test]
    fn one_line_what_and_one_line_what_to_do() {
        let failures = [
            Failure::NotRoot,
            Failure::OnlyRootInside,
            Failure::NoBtf,
            Failure::NoProbe { tried: "netfilter: EPERM\nkprobe: EPERM".into() },
            Failure::NoNamespace { name: "a\u{1b}[31m\nb".into(), problem: "none".into() },
            Failure::NoDevice { name: "eth9".into(), netns: None },
            Failure::XdpTaken { device: "eth0".into(), program: "XDP theirs (program 7, generic)".into() },
            Failure::Other(anyhow::anyhow!("verifier said\nline 1\nline 2").context("load program x")),
        ];
        for failure in failures {
            let (code, text) = said(failure);
            assert_eq!(code, ExitCode::FAILURE);
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }

    #[test]
    fn the_verifiers_log_is_for_vv() {
        let log = || Failure::Other(anyhow::anyhow!("program x was refused: reason\nline 1\nline \u{1b}2"));
        assert!(!said(log()).1.contains("line 1"));
        let (_, text) = said_in_detail(log(), true);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["pathtrace: program x was refused: reason", "pathtrace: line 1"]);
        assert!(lines.len() == 4 && !text.contains('\u{1b}'), "{text}");
    }
}
