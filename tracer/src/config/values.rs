//! How single values of the command line are read. Each message says what would have been right; clap puts the
//! flag in front of it.

use std::{net::IpAddr, path::PathBuf, str::FromStr};

use ipnet::IpNet;
use jiff::SignedDuration;

use crate::model::{CtState, Protocol};

/// Port ranges of one option, both ends included, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortList(pub Vec<[u16; 2]>);

/// Name of a network device: 1 to 15 bytes, as `dev_valid_name` (net/core/dev.c) accepts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let longest = libc::IFNAMSIZ - 1;
        let forbidden = |c: char| c == '/' || c == ':' || c.is_ascii_whitespace();
        if name.is_empty() || name.len() > longest || matches!(name, "." | "..") || name.contains(forbidden) {
            return Err(format!(
                "a device name has 1 to {longest} characters, none of them space, `/` or `:`"
            ));
        }
        Ok(Self(name.to_owned()))
    }
}

/// A network namespace as the user names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetnsSpec {
    /// The one that pathtrace was started in.
    Current,
    /// As `ip netns` lists it.
    Name(String),
    /// An nsfs file, such as `/proc/812/ns/net`.
    Path(PathBuf),
    /// That of a process.
    Pid(u32),
}

impl FromStr for NetnsSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(pid) = text.strip_prefix("pid:") {
            return match pid.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(pid)),
                _ => Err("after `pid:` comes the number of a process, such as pid:812".to_owned()),
            };
        }
        match text {
            "" | "." | ".." => Err("expected a name, a path or pid:N".to_owned()),
            path if path.contains('/') => Ok(Self::Path(PathBuf::from(path))),
            name => Ok(Self::Name(name.to_owned())),
        }
    }
}

/// An address (a prefix of full length) or a prefix; host bits are cleared.
pub(crate) fn prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    text.parse::<IpNet>()
        .map(|prefix| prefix.trunc())
        .map_err(|_| "expected an address or a prefix, such as 10.0.0.2, 10.0.0.0/8 or fd00::/64".to_owned())
}

/// `80`, `80,443`, `8000-8100` and any mix of them.
pub(crate) fn ports(text: &str) -> Result<PortList, String> {
    text.split(',').map(port_range).collect::<Result<_, _>>().map(PortList)
}

fn port_range(text: &str) -> Result<[u16; 2], String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (port(low)?, port(high)?);
    if low > high {
        return Err(format!("the range {low}-{high} is empty: the lower port comes first"));
    }
    Ok([low, high])
}

fn port(text: &str) -> Result<u16, String> {
    match text.trim().parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("`{text}` is not a port (1 to 65535), a list (80,443) or a range (8000-8100)")),
    }
}

/// A protocol by name or by IANA number.
pub(crate) fn protocol(text: &str) -> Result<Protocol, String> {
    Protocol::from_name(text).ok_or_else(|| {
        "expected tcp, udp, icmp, icmp6, esp, gre, sctp or a protocol number from 0 to 255".to_owned()
    })
}

/// A state as iptables `--ctstate` names it, in any case.
pub(crate) fn ct_state(text: &str) -> Result<CtState, String> {
    CtState::from_name(text)
        .ok_or_else(|| "expected new, established, related, invalid or untracked".to_owned())
}

/// A time span above 0: `500ms`, `30s`, `2m`, `1h`, `1h30m`.
pub(crate) fn duration(text: &str) -> Result<SignedDuration, String> {
    match text.parse::<SignedDuration>() {
        Ok(duration) if duration.is_positive() => Ok(duration),
        Ok(_) => Err("must be longer than 0".to_owned()),
        Err(_) => Err("expected a number with a unit, such as 500ms, 30s, 2m or 1h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_lose_their_host_bits() {
        assert_eq!(prefix("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(prefix("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(prefix("fd00::1/64").unwrap().to_string(), "fd00::/64");
        for bad in ["", "10.0.0", "10.0.0.0/33", "fd00::/129", "example.org", "10.0.0.1/"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_take_lists_and_ranges() {
        assert_eq!(ports("80,443,8000-8100").unwrap().0, [[80, 80], [443, 443], [8000, 8100]]);
        for bad in ["", "0", "65536", "http", "80,", "-80", "80-", "1-2-3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
        assert!(ports("90-80").unwrap_err().contains("empty"));
    }

    #[test]
    fn protocols_by_name_and_number() {
        assert_eq!(protocol("TCP"), Ok(Protocol::TCP));
        assert_eq!(protocol("icmpv6"), Ok(Protocol::ICMP6));
        assert_eq!(protocol("253"), Ok(Protocol(253)));
        assert!(protocol("256").is_err());
        assert!(protocol("http").is_err());
    }

    #[test]
    fn durations_need_a_unit_and_a_length() {
        assert_eq!(duration("500ms"), Ok(SignedDuration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(SignedDuration::from_mins(2)));
        assert_eq!(duration("1h30m"), Ok(SignedDuration::from_mins(90)));
        for bad in ["30", "", "0s", "-3s", "3 s ago", "soon"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn namespaces_by_name_path_and_process() {
        assert_eq!("web".parse(), Ok(NetnsSpec::Name("web".into())));
        assert_eq!("/proc/8/ns/net".parse(), Ok(NetnsSpec::Path("/proc/8/ns/net".into())));
        assert_eq!("pid:8".parse(), Ok(NetnsSpec::Pid(8)));
        for bad in ["", "..", "pid:", "pid:0", "pid:x"] {
            assert!(bad.parse::<NetnsSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn device_names_as_the_kernel_takes_them() {
        assert!("eth0.100".parse::<InterfaceName>().is_ok());
        for bad in ["", "sixteen-letters-", "a b", "eth0:1", "../x", ".."] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad}");
        }
    }
}
