//! Which of several sockets on one port received a packet: the server's own word against what is shown.

use std::{
    collections::BTreeMap,
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::{
    expect, machine,
    netns::Netns,
    pathtrace::Pathtrace,
    topology::{Family, Lab, Topology},
    traffic::LONG,
};

/// Tells this binary that it is a server: `tcp` or `udp`.
const SERVE: &str = "PATHTRACE_TEST_SERVE";

/// A process of its own that has a socket as its standard input.
struct Server(Child);

impl Server {
    fn start(kind: &str, socket: Socket) -> Result<Self> {
        let child = Command::new(env::current_exe()?)
            .args(["--exact", "a_server_answers_with_its_pid", "--nocapture"])
            .env(SERVE, kind)
            .stdin(OwnedFd::from(socket))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The servers' side; passes at once where it is not asked to be one.
#[test]
fn a_server_answers_with_its_pid() -> Result<()> {
    let Ok(kind) = env::var(SERVE) else { return Ok(()) };
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let pid = std::process::id().to_string();
    if kind == "udp" {
        let socket = UdpSocket::from(socket);
        loop {
            let (_, peer) = socket.recv_from(&mut [0; 64])?;
            socket.send_to(pid.as_bytes(), peer)?;
        }
    }
    let listener = TcpListener::from(socket);
    let mut kept = Vec::new();
    loop {
        let (mut connection, _) = listener.accept()?;
        connection.read_exact(&mut [0; 1])?;
        connection.write_all(pid.as_bytes())?;
        kept.push(connection);
    }
}

/// A socket on port 80 that others may share.
fn shared(host: &Netns, kind: Type, device: Option<&str>) -> Result<Socket> {
    let any: SocketAddr = ([0; 4], 80).into();
    host.run(|| {
        let socket = Socket::new(Domain::IPV4, kind, None)?;
        socket.set_reuse_port(true)?;
        socket.bind_device(device.map(str::as_bytes))?;
        socket.bind(&any.into())?;
        if kind == Type::STREAM {
            socket.listen(16)?;
        }
        Ok(socket)
    })
}

/// Asks once from a new port: that port, and the pid in the answer.
fn asked_by_udp(client: &Netns, to: SocketAddr) -> Result<(u16, u64)> {
    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(*LONG))?;
        socket.send(b"x")?;
        let mut room = [0; 16];
        let length = socket.recv(&mut room)?;
        Ok((socket.local_addr()?.port(), String::from_utf8_lossy(&room[..length]).parse()?))
    })
}

/// As [`asked_by_udp`]; the connection stays open.
fn asked_by_tcp(client: &Netns, to: SocketAddr) -> Result<(u16, u64, TcpStream)> {
    client.run(|| {
        let mut connection = TcpStream::connect_timeout(&to, *LONG)?;
        connection.set_read_timeout(Some(*LONG))?;
        connection.write_all(b"x")?;
        let mut room = [0; 16];
        let length = connection.read(&mut room)?;
        let pid = String::from_utf8_lossy(&room[..length]).parse()?;
        Ok((connection.local_addr()?.port(), pid, connection))
    })
}

/// What is shown of the packets from that port, once `enough` of it is.
fn receivers(trace: &Pathtrace, port: u16, enough: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let pattern =
        json!({"packet": {"source_port": port, "destination_port": 80}, "outcome": {"result": "delivered"}});
    let shown = |lines: &[Value]| -> Vec<Value> {
        let fitting = expect::journeys(lines).filter(|journey| expect::matches(&pattern, journey).is_ok());
        fitting.map(|journey| journey["outcome"]["socket"].clone()).collect()
    };
    trace
        .wait_for("the receiver", |lines| enough(&shown(lines)))
        .with_context(|| expect::explain(&trace.lines(), &pattern))?;
    Ok(shown(&trace.lines()))
}

/// Each packet's receiver is the process that answered it; none is named where the kernel does not say which.
fn assert_answered_by(trace: &Pathtrace, answers: &BTreeMap<u16, u64>) -> Result<()> {
    let is_told = machine::has_tracepoint("sk_data_ready");
    for (port, pid) in answers {
        for socket in receivers(trace, *port, |shown| !shown.is_empty())? {
            let shown = &socket["pid"];
            ensure!(
                shown == pid || (shown.is_null() && !is_told),
                "port {port}: {pid} answered, not {socket}"
            );
        }
    }
    Ok(())
}

#[test]
fn of_processes_that_share_a_udp_port_the_one_that_answers_is_named() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
    let start = || Server::start("udp", shared(host, Type::DGRAM, None)?);
    let _servers = [start()?, start()?, start()?];
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    let mut answers = BTreeMap::new();
    for _ in 0..12 {
        answers.extend([asked_by_udp(client, to)?]);
    }
    assert_answered_by(&trace, &answers)
}

#[test]
fn of_sockets_bound_to_devices_the_one_that_answers_is_named() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let host = lab.netns("host")?;
    let start = |device| Server::start("udp", shared(host, Type::DGRAM, Some(device))?);
    let _servers = [start("eth0")?, start("eth1")?];
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    let mut answers = BTreeMap::new();
    for (from, to) in [("client", "host"), ("server", "inner")] {
        let to = SocketAddr::new(lab.address(to, Family::Ipv4)?, 80);
        answers.extend([asked_by_udp(lab.netns(from)?, to)?]);
    }
    ensure!(answers.len() == 2, "each client has a port of its own: {answers:?}");
    assert_answered_by(&trace, &answers)
}

#[test]
fn of_processes_that_share_a_tcp_port_none_is_named_that_did_not_accept() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
    let start = || Server::start("tcp", shared(host, Type::STREAM, None)?);
    let _servers = [start()?, start()?, start()?];
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    let asked: Vec<_> = (0..6).map(|_| asked_by_tcp(client, to)).collect::<Result<_>>()?;
    for (port, pid, _open) in &asked {
        let named = |shown: &[Value]| shown.iter().any(|socket| socket["pid"] == *pid);
        for socket in receivers(&trace, *port, named)? {
            let shown = &socket["pid"];
            ensure!(shown.is_null() || shown == pid, "port {port}: {pid} answered, not {socket}");
        }
    }
    Ok(())
}

#[test]
fn a_socket_of_another_device_explains_a_refusal() -> Result<()> {
    let lab = Lab::new(Topology::Routed)?;
    let (client, host) = (lab.netns("client")?, lab.netns("host")?);
    let to = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
    let _server = Server::start("tcp", shared(host, Type::STREAM, Some("eth1"))?)?;
    let trace = Pathtrace::start(Some(host), &["--port", "80"])?;
    ensure!(asked_by_tcp(client, to).is_err(), "it is for eth1 only");
    let known = json!({"outcome": {"result": "rejected"}, "findings": [
        {"code": "listener-on-other-device", "summary": "~is bound to eth1, and the packet came in by eth0"}]});
    let unknown = json!({"outcome": {"result": "rejected"}, "findings": [
        {"code": "no-listener", "evidence": ["~or is bound to a device"]}]});
    // Where sock_diag is a module it may not be loaded.
    let may_be_unknown = Path::new("/proc/modules").exists();
    trace
        .wait_for("the finding", |lines| {
            expect::find(lines, &known).is_some()
                || (may_be_unknown && expect::find(lines, &unknown).is_some())
        })
        .with_context(|| expect::explain(&trace.lines(), &known))
}
