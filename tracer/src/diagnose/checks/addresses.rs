//! What an address is by its number.

use std::net::IpAddr;

/// Private, shared (RFC 6598) or unique local: no answer finds its way to it over the internet.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_private() || (a.octets()[0] == 100 && a.octets()[1] & 0xc0 == 64),
        IpAddr::V6(a) => a.is_unique_local(),
    }
}

/// Loopback, link-local, multicast, broadcast: never routed.
pub(super) fn stays_here(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_loopback() || a.is_unicast_link_local() || a.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_means_no_way_back_over_the_internet() {
        let private = |text: &str| is_private(text.parse().unwrap());
        assert!(private("10.0.0.1") && private("172.17.0.2") && private("100.64.0.1") && private("fd00::1"));
        assert!(!private("172.32.0.1") && !private("100.128.0.1") && !private("2001:db8::1"));
    }
}
