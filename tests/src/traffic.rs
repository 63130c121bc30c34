//! Real traffic: servers that answer until dropped, and clients that say what became of their attempt.

mod crafted;
mod flood;

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::LazyLock,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

pub use self::{
    crafted::{Kept, begin_connection, echo_request, lone_datagram, raw, segment, stray_ack},
    flood::{Flood, amid},
};
use crate::{netns::Netns, wait};

/// How long an attempt that should be answered may take.
pub static LONG: LazyLock<Duration> = LazyLock::new(|| wait::scaled(Duration::from_secs(15)));
/// How long one waits before calling an attempt unanswered that should be: under TCP's first repetition.
pub const SHORT: Duration = Duration::from_millis(600);

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The other side answered, and this is the address that it saw us under (none for ping).
    Answered { seen_as: Option<IpAddr> },
    /// Reset, or port unreachable.
    Refused,
    /// Any other ICMP error, or no route here.
    Unreachable,
    /// Nothing came back.
    Silence,
}

impl Answer {
    fn from_error(error: &io::Error) -> Result<Self> {
        Ok(match (error.kind(), error.raw_os_error()) {
            (ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset, _) => Self::Refused,
            (ErrorKind::TimedOut | ErrorKind::WouldBlock, _) => Self::Silence,
            (ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied, _)
            | (_, Some(libc::EPROTO | libc::EHOSTDOWN | libc::ENETDOWN | libc::EINVAL)) => Self::Unreachable,
            _ => bail!("unexpected socket error: {error}"),
        })
    }
}

/// A server thread; stops and closes its socket when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    address: SocketAddr,
}

impl Server {
    /// Answers every TCP request with the address that it came from.
    ///
    /// # Errors
    /// When the address cannot be bound in there.
    pub fn tcp(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener =
            netns.run(|| TcpListener::bind(address)).with_context(|| format!("listen on tcp {address}"))?;
        Self::accept(listener)
    }

    /// As [`Self::tcp`], for connections to addresses that are not ours (TPROXY).
    ///
    /// # Errors
    /// When the address cannot be bound in there.
    pub fn transparent_tcp(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let open = || -> io::Result<TcpListener> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            match address {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
            socket.bind(&address.into())?;
            socket.listen(128)?;
            Ok(socket.into())
        };
        Self::accept(netns.run(open).with_context(|| format!("listen transparently on tcp {address}"))?)
    }

    fn accept(listener: TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Self::spawn(address, move |stop| {
            while readable(&listener, stop) {
                if let Ok((connection, peer)) = listener.accept() {
                    thread::spawn(move || drop(answer_tcp(connection, peer)));
                }
            }
        })
    }

    /// Answers every datagram with the address that it came from.
    ///
    /// # Errors
    /// When the address cannot be bound in there.
    pub fn udp(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind(address)).with_context(|| format!("bind udp {address}"))?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        Self::spawn(address, move |stop| {
            let mut room = [0; 2048];
            while readable(&socket, stop) {
                if let Ok((_, peer)) = socket.recv_from(&mut room) {
                    drop(socket.send_to(peer.ip().to_string().as_bytes(), peer));
                }
            }
        })
    }

    /// Passes every TCP connection on to `to` over a new connection, as Docker's userland proxy does.
    ///
    /// # Errors
    /// When the address cannot be bound in there.
    pub fn proxy(netns: &Netns, address: SocketAddr, to: SocketAddr) -> Result<Self> {
        let listener =
            netns.run(|| TcpListener::bind(address)).with_context(|| format!("listen on tcp {address}"))?;
        listener.set_nonblocking(true)?;
        let inside = netns.door()?;
        Self::spawn(address, move |stop| {
            while readable(&listener, stop) {
                if let Ok((front, _)) = listener.accept()
                    && let Ok(back) = inside.run(|| TcpStream::connect_timeout(&to, *LONG))
                {
                    thread::spawn(move || drop(relay(&front, &back)));
                }
            }
        })
    }

    fn spawn(address: SocketAddr, work: impl FnOnce(&UnixStream) + Send + 'static) -> Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let thread = thread::spawn(move || work(&stopped));
        Ok(Self { stop: Some(stop), thread: Some(thread), address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Closing our end makes the thread's end readable.
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Waits until `socket` can be read; false once the server is to stop.
fn readable(socket: &impl AsFd, stop: &UnixStream) -> bool {
    let mut waiting =
        [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    let woken = poll(&mut waiting, PollTimeout::NONE);
    woken != Err(nix::Error::EBADF) && waiting[1].revents().is_none_or(|events| events.is_empty())
}

fn answer_tcp(mut connection: TcpStream, peer: SocketAddr) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(*LONG))?;
    let mut request = String::new();
    BufReader::new(&connection).read_line(&mut request)?;
    let body = peer.ip().to_string();
    write!(connection, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn relay(mut front: &TcpStream, mut back: &TcpStream) -> io::Result<()> {
    front.set_nonblocking(false)?;
    let mut request = String::new();
    BufReader::new(front).read_line(&mut request)?;
    back.write_all(request.as_bytes())?;
    io::copy(&mut back, &mut front)?;
    Ok(())
}

/// Sends from a thread that no ordinary one preempts. Kernel 7 preempts a sender also while a table judges its packet, and
/// then counters may not tell which rules matched. An emulated machine is so slow that this is no exception there.
fn undisturbed<T: Send>(netns: &Netns, send: impl FnOnce() -> T + Send) -> T {
    netns.run(|| {
        let lowest = libc::sched_param { sched_priority: 1 };
        // SAFETY: a live structure, and the calling thread, which ends with `send`. Where it is refused, nothing is different.
        unsafe {
            libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest)
        };
        send()
    })
}

/// One TCP connection with a request and its answer; returns our own address too, when there was a connection.
///
/// # Errors
/// When the attempt fails in a way that no packet explains.
pub fn tcp(netns: &Netns, to: SocketAddr, patience: Duration) -> Result<(Answer, Option<SocketAddr>)> {
    undisturbed(netns, || tcp_here(to, patience))
}

fn tcp_here(to: SocketAddr, patience: Duration) -> Result<(Answer, Option<SocketAddr>)> {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(connection) => {
            let ours = connection.local_addr()?;
            Ok((exchange(connection, patience)?, Some(ours)))
        }
        Err(error) => Ok((Answer::from_error(&error)?, None)),
    }
}

/// A connection that stays open until [`exchange`]; an answer where there was none.
///
/// # Errors
/// When the attempt fails in a way that no packet explains.
pub fn open(
    netns: &Netns,
    to: SocketAddr,
    patience: Duration,
) -> Result<std::result::Result<TcpStream, Answer>> {
    match undisturbed(netns, || TcpStream::connect_timeout(&to, patience)) {
        Ok(connection) => Ok(Ok(connection)),
        Err(error) => Ok(Err(Answer::from_error(&error)?)),
    }
}

/// The request and its answer over a connection, which is closed then.
///
/// # Errors
/// When it fails in a way that no packet explains.
pub fn exchange(mut connection: TcpStream, patience: Duration) -> Result<Answer> {
    connection.set_read_timeout(Some(patience))?;
    let mut answer = String::new();
    let done =
        connection.write_all(b"GET / HTTP/1.0\r\n").and_then(|()| connection.read_to_string(&mut answer));
    match done {
        Ok(_) => Ok(Answer::Answered { seen_as: answer.lines().last().and_then(|line| line.parse().ok()) }),
        Err(error) => Answer::from_error(&error),
    }
}

/// `count` connections one after the other from one thread; the local address of each that was answered.
///
/// # Errors
/// When one is not answered.
pub fn tcp_burst(netns: &Netns, to: SocketAddr, count: usize) -> Result<Vec<SocketAddr>> {
    netns.run(|| {
        (0..count)
            .map(|number| match tcp_here(to, *LONG)? {
                (Answer::Answered { .. }, Some(ours)) => Ok(ours),
                (other, _) => bail!("connection {number} to {to}: {other:?}"),
            })
            .collect()
    })
}

/// One datagram and its answer; `source_port` 0 takes any.
///
/// # Errors
/// When the attempt fails in a way that no packet explains.
pub fn udp(netns: &Netns, source_port: u16, to: SocketAddr, patience: Duration) -> Result<Answer> {
    datagram(netns, source_port, to, b"request", patience)
}

/// As [`udp`], with this payload.
///
/// # Errors
/// As [`udp`].
pub fn datagram(
    netns: &Netns,
    source_port: u16,
    to: SocketAddr,
    payload: &[u8],
    patience: Duration,
) -> Result<Answer> {
    let exchange = || -> io::Result<IpAddr> {
        let from: SocketAddr =
            if to.is_ipv4() { ([0; 4], source_port).into() } else { ([0_u16; 8], source_port).into() };
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(payload)?;
        let mut room = [0; 64];
        let length = socket.recv(&mut room)?;
        String::from_utf8_lossy(&room[..length]).parse().map_err(io::Error::other)
    };
    match undisturbed(netns, exchange) {
        Ok(seen_as) => Ok(Answer::Answered { seen_as: Some(seen_as) }),
        Err(error) => Answer::from_error(&error),
    }
}

/// One ICMP echo.
///
/// # Errors
/// When `ping` cannot be started.
pub fn ping(netns: &Netns, to: IpAddr, patience: Duration) -> Result<Answer> {
    let wait = patience.as_secs_f32().to_string();
    let output = netns.command("ping")?.args(["-n", "-c", "1", "-W", &wait, &to.to_string()]).output()?;
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok(if output.status.success() {
        Answer::Answered { seen_as: None }
    } else if ["nreachable", "rohibited", "filtered", "not permitted"].iter().any(|word| said.contains(word))
    {
        Answer::Unreachable
    } else {
        Answer::Silence
    })
}
