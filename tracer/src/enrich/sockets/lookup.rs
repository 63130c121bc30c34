//! Which socket takes a packet, as the kernel looks it up (`__inet_lookup_listener`, `__udp4_lib_lookup`, and IPv6's).

use std::{net::IpAddr, num::NonZeroU64};

use super::{Endpoint, SocketEntry, SocketState, Sockets, shown};
use crate::{
    enrich::Surroundings,
    model::{LocalSocket, Protocol},
};

/// How a packet came in: sockets can be bound to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Index of the device.
    pub device: u32,
    /// Index of the VRF that it belongs to.
    pub vrf: Option<u32>,
    /// Whether sockets that are bound to no device take packets of a VRF.
    pub vrf_for_all: Option<bool>,
}

impl Arrival {
    /// `None` where nothing is known of that device.
    #[must_use]
    pub fn by(device: &str, protocol: Protocol, around: &Surroundings) -> Option<Self> {
        let network = around.network.known()?;
        let link = network.link_named(device)?;
        let master = link.master.and_then(|index| network.link(index));
        let vrf = master.filter(|master| master.kind.as_deref() == Some("vrf"));
        let settings = around.settings.known();
        Some(Self {
            device: link.index,
            vrf: vrf.map(|vrf| vrf.index),
            vrf_for_all: settings.and_then(|settings| match protocol {
                Protocol::TCP => settings.tcp_l3mdev_accept,
                _ => settings.udp_l3mdev_accept,
            }),
        })
    }
}

/// Whose socket is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    pub protocol: Protocol,
    pub local: Endpoint,
    pub peer: Endpoint,
    /// `None`: not known, so no socket is left out for its device.
    pub arrival: Option<Arrival>,
}

impl SocketEntry {
    /// Whether the address that it is bound to admits packets for `address`; `None` where that is not known.
    #[must_use]
    pub fn admits(&self, address: IpAddr) -> Option<bool> {
        let local = self.local.address.to_canonical();
        match (local, address) {
            (IpAddr::V6(local), IpAddr::V4(_)) if local.is_unspecified() => {
                Some(!self.limits.and_then(|limits| limits.v6_only)?)
            }
            _ => Some(local == address || (local.is_unspecified() && local.is_ipv4() == address.is_ipv4())),
        }
    }

    /// Whether it takes packets that came in like that (`inet_sk_bound_dev_eq`); `None` where that is not known.
    #[must_use]
    pub fn admits_from(&self, arrival: Option<Arrival>) -> Option<bool> {
        let (limits, arrival) = (self.limits?, arrival?);
        match (limits.device, arrival.vrf) {
            (Some(device), vrf) => Some(device == arrival.device || Some(device) == vrf),
            (None, Some(_)) => arrival.vrf_for_all,
            (None, None) => Some(true),
        }
    }

    /// Higher is nearer to the packet: a socket of that very address is looked for first, then `compute_score` decides.
    /// Kernels differ in whether a device or the family counts for more.
    fn closeness(&self) -> (bool, u8) {
        let is_bound = self.limits.is_some_and(|limits| limits.device.is_some());
        let score = match self.protocol {
            Protocol::TCP => u8::from(is_bound) + u8::from(self.local.address.is_ipv4()),
            _ => 2 * u8::from(is_bound) + u8::from(self.local.address.is_ipv4()),
        };
        (!self.local.address.to_canonical().is_unspecified(), score)
    }

    fn is_listener(&self) -> bool {
        self.state == SocketState::Listening
    }
}

/// The sockets of which one takes a packet, as far as that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Takers<'a>(Vec<&'a SocketEntry>);

impl<'a> Takers<'a> {
    /// Any of them, where they belong to the same process, and so the only one.
    #[must_use]
    pub fn one(&self) -> Option<&'a SocketEntry> {
        let (first, rest) = self.0.split_first()?;
        let pid = |socket: &SocketEntry| socket.owner.as_ref().map(|owner| owner.pid);
        let same = |other: &&SocketEntry| pid(first).is_some() && pid(other) == pid(first);
        rest.iter().all(same).then_some(*first)
    }

    /// The form that journeys show: what is true of all of them.
    #[must_use]
    pub fn shown(&self) -> Option<LocalSocket> {
        let (first, rest) = self.0.split_first()?;
        let socket = shown(first);
        match self.one() {
            Some(_) => Some(socket),
            None if rest.iter().all(|other| other.local == first.local) => {
                Some(LocalSocket { process: None, pid: None, ..socket })
            }
            None => None,
        }
    }

    /// A note where it is not known which of several processes received it.
    #[must_use]
    pub fn note(&self) -> Option<String> {
        let first = self.0.first().filter(|_| self.one().is_none())?;
        let (count, port) = (self.0.len(), first.local.port);
        Some(format!(
            "one of {count} sockets on {} port {port} received it (SO_REUSEPORT, SO_BINDTODEVICE); which one is not known",
            first.protocol
        ))
    }

    fn is_owned(&self) -> bool {
        self.one().is_some_and(|socket| socket.owner.is_some())
    }
}

impl Sockets {
    /// The socket that takes a packet: the connected one, else the nearest listener. Several where what is known fits
    /// several.
    #[must_use]
    pub fn takers(&self, packet: &Lookup) -> Takers<'_> {
        let connected = self.connected_to(packet);
        if connected.0.is_empty() { self.nearest(packet) } else { connected }
    }

    /// Who received a packet that was delivered. A connection that is not accepted yet has no owner, and one that is over
    /// has none any more: the listener's process is who takes it. `inode` is that of the socket that the kernel was seen to
    /// give it to, and `port` that socket's where it is not the packet's.
    #[must_use]
    pub fn receivers(&self, packet: &Lookup, inode: Option<NonZeroU64>, port: Option<u16>) -> Takers<'_> {
        let seen = inode.and_then(|inode| {
            self.iter().find(|socket| socket.protocol == packet.protocol && socket.inode == inode.get())
        });
        match seen {
            Some(socket) if packet.protocol != Protocol::TCP || !socket.is_listener() => {
                return Takers(vec![socket]);
            }
            // It has gone, or is newer than this list: none of the others received it.
            None if inode.is_some() && packet.protocol != Protocol::TCP => return Takers::default(),
            _ => {}
        }
        let connected = self.connected_to(packet);
        if connected.is_owned() {
            return connected;
        }
        let local = Endpoint { port: port.unwrap_or(packet.local.port), ..packet.local };
        let listening = match seen {
            Some(listener) => Takers(vec![listener]),
            None => self.nearest(&Lookup { local, ..*packet }),
        };
        if listening.is_owned() || listening.0.len() > 1 || connected.0.is_empty() {
            listening
        } else {
            connected
        }
    }

    /// Sockets that take packets of this peer only.
    fn connected_to(&self, packet: &Lookup) -> Takers<'_> {
        let connected = self.connected(packet.protocol, packet.local.port);
        Takers(
            connected
                .filter(|(socket, held)| {
                    same(*held, packet.peer)
                        && socket.admits(packet.local.address) != Some(false)
                        && socket.admits_from(packet.arrival) != Some(false)
                })
                .map(|(socket, _)| socket)
                .collect(),
        )
    }

    /// The listeners that are nearest to it.
    fn nearest(&self, packet: &Lookup) -> Takers<'_> {
        let fitting: Vec<_> = self
            .listeners(packet.protocol, packet.local.port)
            .filter(|socket| {
                socket.admits(packet.local.address) != Some(false)
                    && socket.admits_from(packet.arrival) != Some(false)
            })
            .collect();
        let nearest = fitting.iter().map(|socket| socket.closeness()).max();
        Takers(fitting.into_iter().filter(|socket| Some(socket.closeness()) == nearest).collect())
    }
}

/// Equal, an IPv4-mapped IPv6 address counting as the IPv4 address.
fn same(a: Endpoint, b: Endpoint) -> bool {
    a.port == b.port && a.address.to_canonical() == b.address.to_canonical()
}
