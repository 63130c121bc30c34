//! The readers against a real network namespace, which lives as long as a thread of this test: nothing to clean
//! up. Without root there is none, and the tests say so and pass.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    net::{TcpListener, UdpSocket},
    process::Command,
    sync::mpsc::{Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use tracer::{
    enrich::{Endpoint, Lookup, NetnsPath, Question, Reader, Roots, RouteKind, Surroundings},
    model::Protocol,
};

/// A namespace with `lo` up, a dead next hop behind `eth0`, and two sockets of this process.
struct Space {
    path: NetnsPath,
    tcp: u16,
    udp: u16,
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Space {
    /// `None` without root.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let (ready, is_ready) = channel();
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for command in [
                "link set lo up",
                "link add br7 type bridge",
                "link add eth0 type veth peer name eth1",
                "link set eth1 master br7",
                "addr add 10.7.0.1/24 dev eth0",
                "link set eth0 up",
                "link set eth1 up",
                "route add default via 10.7.0.254",
                "route add blackhole 10.8.0.0/16",
                "rule add fwmark 5 lookup 77",
                "route add 192.0.2.0/24 dev lo table 77",
                "neigh add 10.7.0.9 dev eth0 nud failed",
            ] {
                let done = Command::new("ip").args(command.split(' ')).status().unwrap();
                assert!(done.success(), "ip {command}");
            }
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let udp = UdpSocket::bind("[::]:0").unwrap();
            let tid = nix::unistd::gettid();
            let ports = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
            ready.send((format!("/proc/self/task/{tid}/ns/net"), ports)).unwrap();
            // Until the test is over, which drops the sender.
            let _ = stopped.recv();
        });
        let (path, (tcp, udp)) = is_ready.recv().unwrap();
        Some(Self { path: NetnsPath::new(path), tcp, udp, stop, thread: Some(thread) })
    }

    fn read(&self) -> std::sync::Arc<Surroundings> {
        let netns = self.path.inode().unwrap();
        Reader::new(Roots::default()).surroundings(netns, &self.path, Instant::now())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(std::mem::replace(&mut self.stop, channel().0));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn end(address: &str, port: u16) -> Endpoint {
    Endpoint { address: address.parse().unwrap(), port }
}

#[test]
fn listeners_of_another_namespace_are_found_with_their_process() {
    let Some(space) = Space::new() else { return eprintln!("skipped: needs root") };
    let surroundings = space.read();
    let sockets = surroundings.sockets.known().expect("sockets are readable");
    let peer = end("127.0.0.1", 40000);
    let find =
        |protocol, local, peer| sockets.takers(&Lookup { protocol, local, peer, arrival: None }).shown();
    let found = find(Protocol::TCP, end("127.0.0.1", space.tcp), peer).expect("the listener is found");
    assert_eq!(found.local, format!("127.0.0.1:{}", space.tcp));
    assert_eq!(found.pid, Some(std::process::id()));
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(found.process.as_deref(), Some(comm.trim_end()));
    // A wildcard IPv6 socket takes IPv4 too.
    let udp = find(Protocol::UDP, end("10.7.0.1", space.udp), end("10.7.0.9", 1)).unwrap();
    assert_eq!((udp.local, udp.pid), (format!("[::]:{}", space.udp), Some(std::process::id())));
    assert_eq!(find(Protocol::TCP, end("10.7.0.1", space.tcp), peer), None);
    // The namespace of the test itself has no such socket.
    let here = NetnsPath::current();
    let own = Reader::new(Roots::default()).surroundings(here.inode().unwrap(), &here, Instant::now());
    assert_eq!(own.sockets.known().unwrap().listeners(Protocol::TCP, space.tcp).count(), 0);
}

#[test]
fn network_and_settings_are_those_of_the_namespace() {
    let Some(space) = Space::new() else { return eprintln!("skipped: needs root") };
    let surroundings = space.read();
    let network = surroundings.network.known().expect("the network is readable");
    let way = |to: &str, mark| {
        let question = Question { mark, ..Question::to(to.parse().unwrap()) };
        network.route(question).map(|route| network.route_text(route))
    };
    assert_eq!(way("203.0.113.1", 0).as_deref(), Some("default via 10.7.0.254 dev eth0"));
    assert_eq!(way("10.7.0.9", 0).as_deref(), Some("10.7.0.0/24 dev eth0"));
    assert_eq!(way("192.0.2.1", 5).as_deref(), Some("192.0.2.0/24 dev lo table 77"));
    assert_eq!(way("10.8.1.1", 0).as_deref(), Some("blackhole 10.8.0.0/16"));
    let own = network.route(Question::to("10.7.0.1".parse().unwrap())).unwrap();
    assert_eq!(own.kind, RouteKind::Local);
    assert_eq!(network.bridge_of("eth1").map(|bridge| bridge.name.as_str()), Some("br7"));
    assert_eq!(network.bridge_of("eth0"), None);
    assert!(network.is_own_address("10.7.0.1".parse().unwrap()));
    let (device, prefix) = network.on_link("10.7.0.200".parse().unwrap()).unwrap();
    assert_eq!((device.name.as_str(), prefix.to_string().as_str()), ("eth0", "10.7.0.0/24"));
    assert!(network.neighbour("eth0", "10.7.0.9".parse().unwrap()).unwrap().is_dead());
    let settings = surroundings.settings.known().expect("the settings are readable");
    assert!(settings.devices.contains_key("eth0"));
    assert_eq!(settings.forwarding("eth0", false), settings.ip_forward);
}

#[test]
fn a_namespace_that_is_gone_is_unknown_and_not_empty() {
    let path = NetnsPath::new("/proc/self/ns/there-is-no-such-namespace");
    let read = Reader::new(Roots::default()).surroundings(1, &path, Instant::now());
    assert!(read.sockets.known().is_none() && read.network.known().is_none());
    assert!(format!("{:?}", read.settings).contains("there-is-no-such-namespace"));
}

#[test]
fn names_of_containers_are_kept_and_all_else_is_read_anew() {
    let path = NetnsPath::current();
    let netns = path.inode().unwrap();
    let mut reader = Reader::new(Roots::default());
    let start = Instant::now();
    let first = reader.surroundings(netns, &path, start);
    let again = reader.surroundings(netns, &path, start + Duration::from_secs(5));
    assert_eq!(again.containers.at(), first.containers.at());
    assert!(again.sockets.at() > first.sockets.at() && again.settings.at() > first.settings.at());
    let later = reader.surroundings(netns, &path, start + Duration::from_secs(6));
    assert!(later.containers.at() > first.containers.at());
}
