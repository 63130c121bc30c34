//! What a device's kind says of it.

use super::Link;

/// Kinds of devices that send what they are given inside other packets (`IFLA_INFO_KIND`; the names of `rtnl_link_ops` in
/// net/ipv4, net/ipv6, net/xfrm and drivers/net, 6.12).
const TUNNELS: [&str; 16] = [
    "amt",
    "bareudp",
    "erspan",
    "geneve",
    "gre",
    "gretap",
    "ip6erspan",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "sit",
    "vti",
    "vti6",
    "vxlan",
    "wireguard",
];

impl Link {
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    /// What becomes of a packet that it is given, where it is no wire.
    #[must_use]
    pub fn beyond(&self) -> Option<String> {
        let (name, kind) = (&self.name, self.kind.as_deref()?);
        match kind {
            "dummy" => Some(format!("{name} is a dummy device: it throws away what it is given")),
            "tun" => Some(format!("{name} is a tun device: a program takes it from there")),
            _ if TUNNELS.contains(&kind) => Some(format!(
                "{name} is a tunnel ({kind}): it goes on inside another packet, with other addresses"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrich::JudgingPrograms;

    #[test]
    fn only_what_is_no_wire_says_more() {
        let beyond = |name: &str, kind: Option<&str>| {
            let (name, kind) = (name.to_owned(), kind.map(str::to_owned));
            Link { index: 1, name, kind, master: None, up: true, programs: JudgingPrograms::default() }
                .beyond()
        };
        assert_eq!(beyond("eth0", None), None);
        assert_eq!(beyond("eth0", Some("veth")), None);
        assert!(beyond("d0", Some("dummy")).is_some_and(|note| note.contains("throws away")));
        assert!(beyond("wg0", Some("wireguard")).is_some_and(|note| note.contains("inside another packet")));
    }
}
