//! The packet filter of the command line, in the one form that both sides evaluate.
//!
//! The kernel decides with it which packets to follow; user space decides with it which tentatively followed
//! packets (first packets of a connection, which may match only after translation) are shown.

use crate::tuple::{IPV4, Tuple};

/// How many ranges one port option takes.
pub const MAX_PORT_RANGES: usize = 16;

/// An address prefix; matches everything while `mask` is all 0.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// As in [`Tuple`], already masked.
    pub address: [u32; 4],
    pub mask: [u32; 4],
    /// 0: not set, matches everything. 4 or 6: matches packets of this family only.
    pub family: u8,
    pub reserved: [u8; 3],
}

impl Prefix {
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, address: &[u32; 4], family: u8) -> bool {
        if self.family == 0 {
            return true;
        }
        if self.family != family {
            return false;
        }
        // The other words of such an address are 0.
        if family == IPV4 {
            return (address[3] & self.mask[3]) ^ self.address[3] == 0;
        }
        let difference = ((address[0] & self.mask[0]) ^ self.address[0])
            | ((address[1] & self.mask[1]) ^ self.address[1])
            | ((address[2] & self.mask[2]) ^ self.address[2])
            | ((address[3] & self.mask[3]) ^ self.address[3]);
        difference == 0
    }
}

/// Port ranges, both ends included; matches everything while `count` is 0.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Ports {
    pub ranges: [[u16; 2]; MAX_PORT_RANGES],
    pub count: u32,
}

impl Ports {
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        if self.count == 0 {
            return true;
        }
        let mut i = 0;
        while i < MAX_PORT_RANGES && (i as u32) < self.count {
            let [low, high] = self.ranges[i];
            if port >= low && port <= high {
                return true;
            }
            i += 1;
        }
        false
    }
}

/// All conditions of the command line; all must hold.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Filter {
    pub host: Prefix,
    pub source: Prefix,
    pub destination: Prefix,
    pub port: Ports,
    pub source_port: Ports,
    pub destination_port: Ports,
    /// IANA number, or [`Filter::ANY_PROTOCOL`].
    pub protocol: u16,
    /// 0 any, else [`crate::tuple::IPV4`] or [`crate::tuple::IPV6`].
    pub family: u8,
    /// Not 0 when some condition can fail: an empty filter is decided without looking.
    pub active: u8,
}

const _: () = assert!(size_of::<Filter>() == 36 * 3 + 68 * 3 + 4);

impl Filter {
    pub const ANY_PROTOCOL: u16 = u16::MAX;

    /// Whether a packet with this tuple is asked for.
    #[inline(always)]
    #[must_use]
    pub fn matches(&self, t: &Tuple) -> bool {
        if self.active == 0 {
            return true;
        }
        if self.family != 0 && self.family != t.family {
            return false;
        }
        if self.protocol != Self::ANY_PROTOCOL && self.protocol != t.protocol as u16 {
            return false;
        }
        if !self.port.contains(t.source_port) && !self.port.contains(t.destination_port) {
            return false;
        }
        if !self.source_port.contains(t.source_port) || !self.destination_port.contains(t.destination_port) {
            return false;
        }
        if !self.host.contains(&t.source, t.family) && !self.host.contains(&t.destination, t.family) {
            return false;
        }
        self.source.contains(&t.source, t.family) && self.destination.contains(&t.destination, t.family)
    }
}
