//! Addresses and ports of a packet in the form that both sides compare.

/// `AF_INET`'s and `AF_INET6`'s short names as stored in [`Tuple::family`]; 0 is "no tuple".
pub const IPV4: u8 = 4;
pub const IPV6: u8 = 6;

/// Source and destination. IPv4 addresses stand in the last word of the array, the others are 0.
/// Addresses are kept in network byte order, ports in host byte order (0 for protocols without ports).
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub struct Tuple {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub source_port: u16,
    pub destination_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// [`IPV4`], [`IPV6`], or 0 when there is no tuple.
    pub family: u8,
    pub reserved: u16,
}

const _: () = assert!(size_of::<Tuple>() == 40);

impl Tuple {
    /// The tuple of a packet that goes the other way.
    #[inline(always)]
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        }
    }

    #[inline(always)]
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.family != 0
    }
}
