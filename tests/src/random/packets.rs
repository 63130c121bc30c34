//! Random packets through a routed lab.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Dice;
use crate::{
    topology::{Family, Lab},
    traffic::{self, Kept},
};

/// From where to where, seen from the lab's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Client to server, or server to client.
    Forth,
    Back,
    In,
    Out,
    Loopback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// A datagram from a port of its own.
    Udp,
    /// A segment of no connection, with these flags.
    Tcp {
        flags: u8,
    },
    /// The beginning of a real connection.
    Connect,
    Echo,
}

/// One packet that is sent, and what it sets off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub family: Family,
    pub way: Way,
    pub load: Load,
    /// Destination port, or for an echo its number.
    pub port: u16,
    /// Source port of a segment.
    pub source_port: u16,
}

const WAYS: [Way; 7] = [Way::Forth, Way::Forth, Way::Forth, Way::Back, Way::In, Way::Out, Way::Loopback];
const FLAGS: [u8; 6] = [0x02, 0x10, 0x04, 0x12, 0x11, 0x18];
const UDP: [u16; 5] = [5001, 5001, 5002, 5003, 7];
const TCP: [u16; 3] = [80, 80, 81];

/// A packet; `number` tells it from others of the same round.
pub fn packet(dice: &mut Dice, number: u16) -> Packet {
    let family = *dice.pick(&Family::BOTH);
    let way = *dice.pick(&WAYS);
    let load = match dice.below(6) {
        0..3 => Load::Udp,
        3 => Load::Tcp { flags: *dice.pick(&FLAGS) },
        4 => Load::Connect,
        _ => Load::Echo,
    };
    let port = match load {
        Load::Udp => *dice.pick(&UDP),
        Load::Tcp { .. } | Load::Connect => *dice.pick(&TCP),
        Load::Echo => number,
    };
    Packet { family, way, load, port, source_port: 20_000 + number }
}

impl Packet {
    /// Namespace, own address and destination.
    fn ends(&self, lab: &Lab) -> Result<(&'static str, IpAddr, IpAddr)> {
        let (space, from, to) = match self.way {
            Way::Forth => ("client", "client", "server"),
            Way::Back => ("server", "server", "client"),
            Way::In => ("client", "client", "host"),
            Way::Out => ("host", "host", "client"),
            Way::Loopback => ("host", "loopback", "loopback"),
        };
        Ok((space, lab.address(from, self.family)?, lab.address(to, self.family)?))
    }

    /// Sends it. What is returned keeps its socket open, so that an answer finds it.
    ///
    /// # Errors
    /// When the lab is broken; what rules do to the packet is no error.
    pub fn send(&self, lab: &Lab) -> Result<Option<Kept>> {
        let (space, from, to) = self.ends(lab)?;
        let netns = lab.netns(space)?;
        let target = SocketAddr::new(to, self.port);
        match self.load {
            Load::Udp => traffic::lone_datagram(netns, target).map(Some),
            Load::Connect => traffic::begin_connection(netns, target).map(Some),
            Load::Tcp { flags } => {
                let source = SocketAddr::new(from, self.source_port);
                traffic::segment(netns, source, target, flags, u32::from(self.source_port)).map(|()| None)
            }
            Load::Echo => traffic::echo_request(netns, to, self.port).map(|()| None),
        }
    }
}
