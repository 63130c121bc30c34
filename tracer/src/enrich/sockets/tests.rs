use std::{fs, num::NonZeroU64};

use super::*;

fn socket(local: &str, state: SocketState, inode: u64) -> SocketEntry {
    SocketEntry { protocol: Protocol::TCP, local: end(local), state, inode, limits: None, owner: None }
}

fn end(text: &str) -> Endpoint {
    endpoint(text.parse().unwrap())
}

fn lookup(local: &str, peer: &str) -> Lookup {
    Lookup { protocol: Protocol::TCP, local: end(local), peer: end(peer), arrival: None }
}

fn owned(local: &str, inode: u64, pid: u32) -> SocketEntry {
    let owner = Owner { pid, comm: "app".to_owned(), holds_tun: false };
    SocketEntry { owner: Some(Arc::new(owner)), ..socket(local, SocketState::Listening, inode) }
}

fn bound(entry: SocketEntry, device: Option<u32>, v6_only: Option<bool>) -> SocketEntry {
    SocketEntry { limits: Some(Limits { device, v6_only }), ..entry }
}

fn datagrams(entries: Vec<SocketEntry>) -> Sockets {
    Sockets::new(entries.into_iter().map(|entry| SocketEntry { protocol: Protocol::UDP, ..entry }).collect())
}

#[test]
fn of_sockets_that_share_a_port_the_one_that_the_kernel_named_received_it() {
    let sockets = datagrams(vec![owned("0.0.0.0:80", 1, 10), owned("0.0.0.0:80", 2, 11)]);
    let packet = Lookup { protocol: Protocol::UDP, ..lookup("10.0.0.1:80", "10.0.0.9:1") };
    let pid = |takers: Takers<'_>| takers.shown().and_then(|socket| socket.pid);
    let seen = sockets.receivers(&packet, NonZeroU64::new(2), None);
    assert_eq!((seen.note(), pid(seen)), (None, Some(11)));
    let unseen = sockets.receivers(&packet, None, None);
    assert_eq!(
        unseen.note().as_deref(),
        Some(
            "one of 2 sockets on udp port 80 received it (SO_REUSEPORT, SO_BINDTODEVICE); which one is not known"
        )
    );
    let shown = LocalSocket { local: "0.0.0.0:80".to_owned(), process: None, pid: None };
    assert_eq!(unseen.shown(), Some(shown));
    // It has been closed since: it was neither of these.
    assert_eq!(sockets.receivers(&packet, NonZeroU64::new(3), None), Takers::default());
    // One process has both.
    let workers = datagrams(vec![owned("0.0.0.0:80", 1, 10), owned("0.0.0.0:80", 2, 10)]);
    let either = workers.receivers(&packet, None, None);
    assert_eq!((either.note(), pid(either)), (None, Some(10)));
}

#[test]
fn who_accepted_a_connection_received_it_whoever_listens() {
    let connected = SocketState::Connected { peer: end("10.0.0.9:4000") };
    let accepted = SocketEntry { state: connected, ..owned("10.0.0.1:80", 7, 12) };
    let listeners = [owned("0.0.0.0:80", 1, 10), owned("0.0.0.0:80", 2, 11)];
    let packet = lookup("10.0.0.1:80", "10.0.0.9:4000");
    let pid = |sockets: &Sockets, inode| {
        sockets.receivers(&packet, NonZeroU64::new(inode), None).shown().and_then(|socket| socket.pid)
    };
    let nobody_yet = SocketEntry { owner: None, inode: 0, ..accepted.clone() };
    let waiting = Sockets::new(listeners.iter().cloned().chain([nobody_yet]).collect());
    assert_eq!((pid(&waiting, 0), pid(&waiting, 2)), (None, Some(11)));
    let sockets = Sockets::new(listeners.into_iter().chain([accepted]).collect());
    assert_eq!((pid(&sockets, 0), pid(&sockets, 2)), (Some(12), Some(12)));
}

#[test]
fn sockets_take_what_came_by_their_device() {
    let sockets = Sockets::new(vec![
        bound(owned("0.0.0.0:80", 1, 10), Some(4), None),
        bound(owned("0.0.0.0:80", 2, 11), Some(5), None),
        bound(owned("0.0.0.0:80", 3, 12), None, None),
        bound(owned("[::]:443", 4, 13), None, Some(true)),
        bound(owned("[::]:53", 5, 14), Some(5), Some(false)),
        bound(owned("0.0.0.0:53", 6, 15), None, None),
    ]);
    let taker = |local: &str, device, vrf, vrf_for_all| {
        let arrival = Some(Arrival { device, vrf, vrf_for_all });
        let takers = sockets.takers(&Lookup { arrival, ..lookup(local, "10.0.0.9:1") });
        takers.one().map(|socket| socket.inode)
    };
    let here = "10.0.0.1:80";
    assert_eq!(taker(here, 4, None, None), Some(1));
    assert_eq!(taker(here, 9, Some(5), Some(false)), Some(2));
    assert_eq!(taker(here, 9, None, Some(false)), Some(3));
    assert_eq!(taker(here, 9, Some(8), Some(false)), None);
    assert_eq!(taker(here, 9, Some(8), Some(true)), Some(3));
    assert_eq!(
        (taker("10.0.0.1:443", 4, None, None), taker("[fd00::1]:443", 4, None, None)),
        (None, Some(4))
    );
    // Kernels differ in which of these is the nearer one.
    assert_eq!(taker("10.0.0.1:53", 5, None, None), None);
}

#[test]
fn the_socket_nearest_to_the_packet_takes_it() {
    let connected = |peer: &str| SocketState::Connected { peer: end(peer) };
    let sockets = Sockets::new(vec![
        socket("[::]:80", SocketState::Listening, 1),
        socket("0.0.0.0:80", SocketState::Listening, 2),
        socket("10.0.0.1:80", SocketState::Listening, 3),
        socket("10.0.0.1:80", connected("10.0.0.9:4000"), 4),
        socket("[::ffff:10.0.0.1]:80", connected("[::ffff:10.0.0.9]:4001"), 5),
        socket("[::]:443", SocketState::Listening, 6),
        socket("127.0.0.1:22", SocketState::Listening, 7),
    ]);
    let taker =
        |local: &str, peer: &str| sockets.takers(&lookup(local, peer)).one().map(|socket| socket.inode);
    assert_eq!(taker("10.0.0.1:80", "10.0.0.9:4000"), Some(4));
    assert_eq!(taker("10.0.0.1:80", "10.0.0.9:4001"), Some(5));
    assert_eq!(taker("10.0.0.1:80", "10.0.0.9:4002"), Some(3));
    assert_eq!(taker("10.0.0.2:80", "10.0.0.9:4002"), Some(2));
    assert_eq!(taker("[fd00::1]:80", "[fd00::9]:4002"), Some(1));
    assert_eq!(taker("10.0.0.1:443", "10.0.0.9:4002"), Some(6));
    assert_eq!(taker("10.0.0.1:22", "10.0.0.9:4002"), None);
    let udp = Lookup { protocol: Protocol::UDP, ..lookup("10.0.0.1:80", "10.0.0.9:1") };
    assert_eq!(sockets.takers(&udp).one(), None);
}

#[test]
fn the_kernels_tables_are_read_and_a_missing_one_is_an_error() {
    let proc = tempfile::tempdir().unwrap();
    let mut owners = Owners::new(proc.path());
    assert!(Sockets::read(proc.path(), &mut owners).is_err());
    let net = proc.path().join("thread-self/net");
    fs::create_dir_all(&net).unwrap();
    let head =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
    let tail = "00000000:00000000 00:00000000 00000000     0        0";
    fs::write(net.join("tcp"), format!("{head}   0: 0100007F:1F90 00000000:0000 0A {tail} 77 1 0 100 0\n"))
        .unwrap();
    fs::write(net.join("udp"), format!("{head}   0: 00000000:0035 00000000:0000 07 {tail} 78 2 0 0\n"))
        .unwrap();
    let any = "00000000000000000000000000000000";
    fs::write(net.join("tcp6"), format!("{head}   0: {any}:0050 {any}:0000 0A {tail} 79 1 0 100 0\n"))
        .unwrap();
    let sockets = Sockets::read(proc.path(), &mut owners).unwrap();
    let found: Vec<_> = sockets.iter().map(|socket| (socket.local.to_string(), socket.inode)).collect();
    assert_eq!(found, [("127.0.0.1:8080".into(), 77), ("0.0.0.0:53".into(), 78), ("[::]:80".into(), 79)]);
    assert!(sockets.iter().all(|socket| socket.state == SocketState::Listening && socket.owner.is_none()));
    fs::write(net.join("tcp"), "header\nnonsense\n").unwrap();
    assert!(format!("{:#}", Sockets::read(proc.path(), &mut owners).unwrap_err()).contains("net/tcp"));
}
