//! TRACE lines of iptables-legacy: every packet with tracing on makes them, and they go to the namespace's packet
//! logger, by default the kernel log. While tracing, that logger is nfnetlink_log, which hands them to us; afterwards
//! the former one is put back, also after SIGKILL: a child process waits for our end and does it.

use std::{
    fmt, fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use super::netlink::{Fields, Message, Socket};

/// `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_CONFIG`, `enum nfulnl_attr_config`, `enum nfulnl_msg_config_cmds`
/// (include/uapi/linux/netfilter/nfnetlink_log.h).
pub(super) const ULOG: u8 = 4;
const CONFIG: u8 = 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_THRESHOLD: u16 = 5;
const BIND: u8 = 1;
const PF_BIND: u8 = 3;
const COPY_PACKET: u8 = 2;
/// Where the kernel sends packets that name no group, as TRACE does.
const GROUP: u16 = 0;
/// Bytes of each packet to receive: the network and the transport header.
const SNAP_LENGTH: u32 = 128;
const OURS: &str = "nfnetlink_log";

/// Why TRACE lines of iptables-legacy cannot be caught.
#[derive(Debug)]
pub enum LoggerError {
    /// Another program listens to nfnetlink_log's group 0.
    Taken,
    /// What was tried, and what the kernel said.
    Failed(&'static str, io::Error),
}

impl fmt::Display for LoggerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken => f.write_str(
                "another program holds nfnetlink_log group 0: rules of iptables-legacy are not traced, and their \
                 TRACE lines go to that program",
            ),
            Self::Failed(what, error) => write!(f, "rules of iptables-legacy are not traced: {what}: {error}"),
        }
    }
}

impl std::error::Error for LoggerError {}

/// The packet loggers of a namespace, ours until this is dropped.
#[derive(Debug)]
pub struct LegacyLog {
    socket: Socket,
    former: Vec<Former>,
}

/// A family's logger as it was: put back by a shell once its standard input ends, which it does with us.
#[derive(Debug)]
struct Former(Child);

impl Former {
    /// `setting` belongs to the namespace of the thread that opened it, whoever writes to it.
    fn remember(setting: fs::File, name: &str) -> io::Result<Self> {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"cat > /dev/null; printf %s "$0""#, name]);
        // In a process group of its own, since Ctrl-C goes to all of ours.
        shell.process_group(0).stdin(Stdio::piped()).stdout(setting).stderr(Stdio::null());
        shell.spawn().map(Self)
    }
}

impl Drop for Former {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // A logger whose module was unloaded meanwhile cannot come back, and there is nobody to tell.
        let _ = self.0.wait();
    }
}

impl LegacyLog {
    /// Takes over the packet loggers of the calling thread's namespace for IPv4 and IPv6.
    ///
    /// # Errors
    /// [`LoggerError`]; then nothing is changed.
    pub fn bind() -> Result<Self, LoggerError> {
        let failed = |what| move |error| LoggerError::Failed(what, error);
        let mut socket = Socket::open(0).map_err(failed("open a netlink socket"))?;
        let bind = command(0, BIND);
        socket.transact(vec![bind]).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY | libc::EPERM) => LoggerError::Taken,
            _ => LoggerError::Failed("bind nfnetlink_log group 0", error),
        })?;
        let [a, b, c, d] = SNAP_LENGTH.to_be_bytes();
        let mode = config(0).bytes(CONFIG_MODE, &[a, b, c, d, COPY_PACKET, 0]).number(CONFIG_THRESHOLD, 1);
        socket.transact(vec![mode]).map_err(failed("configure nfnetlink_log"))?;
        let mut log = Self { socket, former: Vec::new() };
        for family in [libc::NFPROTO_IPV4 as u8, libc::NFPROTO_IPV6 as u8] {
            log.take_over(family).map_err(failed("make nfnetlink_log the packet logger"))?;
        }
        Ok(log)
    }

    pub(super) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn take_over(&mut self, family: u8) -> io::Result<()> {
        let path = PathBuf::from(format!("/proc/sys/net/netfilter/nf_log/{family}"));
        let name = fs::read_to_string(&path)?.trim().to_owned();
        if name == OURS {
            return Ok(());
        }
        self.former.push(Former::remember(fs::File::options().write(true).open(&path)?, &name)?);
        self.socket.transact(vec![command(family, PF_BIND)])
    }
}

impl AsFd for LegacyLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn config(family: u8) -> Message {
    Message::new(ULOG, CONFIG, libc::NLM_F_ACK, family, GROUP)
}

fn command(family: u8, command: u8) -> Message {
    config(family).bytes(CONFIG_COMMAND, &[command])
}
