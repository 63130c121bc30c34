//! `--rules nftrace`: the kernel's own account of which rules a packet met. It changes the ruleset for as long as it
//! runs, by one table of our own, and so needs the user's leave; whoever calls this says so to the user first.
//!
//! It needs nothing but a socket, and shares nothing with the rule counters: tests use it as an independent witness.

mod condition;
mod event;
mod logger;
mod netlink;
mod passage;
mod story;
mod table;

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracer_common::filter::Filter;

pub use self::{
    event::{Headers, LegacyStep, LegacyStepKind, NftStep, NftStepKind, NftVerdict, TraceEvent},
    logger::{LegacyLog, LoggerError},
    passage::{Passage, Passages, Place},
    story::told,
};
use self::{
    event::{legacy_step, nft_step},
    logger::ULOG,
    netlink::{Received, Socket, received},
};

/// `1 << (NFNLGRP_NFTRACE - 1)`; `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_TRACE`; `NFULNL_MSG_PACKET`.
const TRACE_GROUP: u32 = 1 << 8;
const NFTABLES: u8 = 10;
const NFT_TRACE: u8 = 17;
const ULOG_PACKET: u8 = 0;

/// Traces packets of one network namespace until it is dropped.
///
/// The table that switches tracing on goes with it, also when the process is killed. The packet logger for
/// iptables-legacy is put back when it is dropped, and only then.
#[derive(Debug)]
pub struct Witness {
    trace: Socket,
    /// Owns the table; dropped before the logger is put back.
    _table: Socket,
    legacy: Option<LegacyLog>,
    name: String,
}

/// Name of the table that [`Witness::start`] creates, of family inet.
#[must_use]
pub fn table_name() -> String {
    format!("pathtrace_{}", std::process::id())
}

impl Witness {
    /// Traces packets of `filter` and their replies in the calling thread's namespace: in nft tables, and in those of
    /// iptables-legacy given its log. Without that, the TRACE lines that iptables-legacy makes of traced packets go to
    /// the kernel log, so call [`LegacyLog::bind`] first where there are such tables.
    ///
    /// A packet that matches only after destination NAT is traced from there on. Where the filter would take too many
    /// rules, more packets are traced than it asks for.
    ///
    /// # Errors
    /// No netlink socket, not root (`EPERM`), a table of our name (`EEXIST`), or a kernel that does not know tables
    /// with an owner (`EOPNOTSUPP`, before 5.12).
    pub fn start(filter: &Filter, legacy: Option<LegacyLog>) -> io::Result<Self> {
        let trace = Socket::open(TRACE_GROUP)?;
        let mut owner = Socket::open(0)?;
        let name = table_name();
        table::create(&mut owner, &name, filter)?;
        Ok(Self { trace, _table: owner, legacy, name })
    }

    /// Name of the table, of family inet.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.name
    }

    /// Has the TRACE lines of iptables-legacy told as well, when tables of it have appeared.
    pub fn catch_legacy(&mut self, log: LegacyLog) {
        self.legacy = Some(log);
    }

    /// Whether TRACE lines of iptables-legacy come here.
    #[must_use]
    pub fn catches_legacy(&self) -> bool {
        self.legacy.is_some()
    }

    /// Waits up to `patience` for steps, and gives all that are there. Steps in our own table are told as
    /// [`TraceEvent::Begun`].
    ///
    /// # Errors
    /// The socket failed; steps that were lost are no error but [`TraceEvent::Lost`].
    pub fn wait(&mut self, patience: Duration) -> io::Result<Vec<TraceEvent>> {
        let end = Instant::now() + patience;
        loop {
            let events = self.waiting()?;
            let left = end.saturating_duration_since(Instant::now());
            if !events.is_empty() || left.is_zero() {
                return Ok(events);
            }
            let sockets = [Some(self.trace.as_fd()), self.legacy.as_ref().map(AsFd::as_fd)];
            let mut sources: Vec<PollFd<'_>> =
                sockets.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            let milliseconds = left.as_millis() + 1;
            match poll(&mut sources, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn sockets(&mut self) -> impl Iterator<Item = &mut Socket> {
        std::iter::once(&mut self.trace).chain(self.legacy.as_mut().map(LegacyLog::socket))
    }

    /// The steps that are there.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn waiting(&mut self) -> io::Result<Vec<TraceEvent>> {
        let name = self.name.clone();
        let mut events = Vec::new();
        for socket in self.sockets() {
            loop {
                match socket.receive() {
                    Ok(Some(datagram)) => {
                        events.extend(received(datagram).filter_map(|message| event(message, &name)));
                    }
                    Ok(None) => break,
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        events.push(TraceEvent::Lost);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(events)
    }
}

/// What a message tells; `own` is the table that switches tracing on.
fn event(message: Received<'_>, own: &str) -> Option<TraceEvent> {
    match (message.subsystem, message.kind) {
        (NFTABLES, NFT_TRACE) => nft_step(message).map(|step| match step.table == own {
            true => TraceEvent::Begun { id: step.id },
            false => TraceEvent::Nft(step),
        }),
        (ULOG, ULOG_PACKET) => legacy_step(message).map(TraceEvent::Legacy),
        _ => None,
    }
}
