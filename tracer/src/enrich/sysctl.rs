//! Settings below `/proc/sys/net`, which shows the reading thread's namespace, and what fills up beside them.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::{ipvs::IpvsService, queues::NfQueue};

/// The settings of one device, or of `all`. `None`: this kernel has no such file (IPv6 off), or it is unreadable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSettings {
    pub forwarding_v4: Option<bool>,
    pub forwarding_v6: Option<bool>,
    /// 0 off, 1 strict, 2 loose.
    pub rp_filter: Option<u8>,
    pub route_localnet: Option<bool>,
    pub accept_local: Option<bool>,
}

/// How full the connection table of a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackUse {
    pub count: u64,
    /// `nf_conntrack_max`: each namespace may hold this many; 0 is no limit.
    pub max: u64,
    /// Packets dropped because no entry could be made, since boot (`drop` in `/proc/net/stat/nf_conntrack`).
    pub dropped: Option<u64>,
}

/// What the kernel's decisions about a packet depend on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `net.ipv4.ip_forward`
    pub ip_forward: Option<bool>,
    pub all: DeviceSettings,
    pub devices: BTreeMap<String, DeviceSettings>,
    /// `net.bridge.bridge-nf-call-iptables`; `None` when br_netfilter is not there.
    pub bridge_calls_iptables: Option<bool>,
    pub bridge_calls_ip6tables: Option<bool>,
    /// Whether sockets that are bound to no device take packets of a VRF (`net.ipv4.tcp_l3mdev_accept`); `None` where the
    /// kernel knows no VRFs.
    pub tcp_l3mdev_accept: Option<bool>,
    pub udp_l3mdev_accept: Option<bool>,
    /// `None` when conntrack is not there.
    pub conntrack: Option<ConntrackUse>,
    /// Queues that a program reads; `None` where they cannot be read.
    pub queues: Option<Vec<NfQueue>>,
    /// Virtual services of IPVS; `None` where they cannot be read.
    pub ipvs: Option<Vec<IpvsService>>,
}

impl Settings {
    /// # Errors
    /// When `/proc/sys/net/ipv4` cannot be read at all.
    pub fn read(proc: &Path) -> Result<Self> {
        let net = proc.join("sys/net");
        let devices_dir = net.join("ipv4/conf");
        let names = fs::read_dir(&devices_dir).with_context(|| format!("list {}", devices_dir.display()))?;
        let mut devices: BTreeMap<_, _> = names
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| (name.clone(), device(&net, &name)))
            .collect();
        devices.remove("default");
        Ok(Self {
            ip_forward: flag(&net.join("ipv4/ip_forward")),
            all: devices.remove("all").unwrap_or_default(),
            devices,
            bridge_calls_iptables: flag(&net.join("bridge/bridge-nf-call-iptables")),
            bridge_calls_ip6tables: flag(&net.join("bridge/bridge-nf-call-ip6tables")),
            tcp_l3mdev_accept: flag(&net.join("ipv4/tcp_l3mdev_accept")),
            udp_l3mdev_accept: flag(&net.join("ipv4/udp_l3mdev_accept")),
            conntrack: conntrack(proc, &net),
            queues: NfQueue::read(proc),
            ipvs: IpvsService::read(proc),
        })
    }

    /// The mode that applies: the larger of `all` and the device's own (`IN_DEV_RPFILTER`, linux/inetdevice.h).
    #[must_use]
    pub fn rp_filter(&self, device: &str) -> Option<u8> {
        self.all.rp_filter.max(self.devices.get(device)?.rp_filter)
    }

    /// Either `all` or the device's own suffices (`IN_DEV_ROUTE_LOCALNET`).
    #[must_use]
    pub fn route_localnet(&self, device: &str) -> Option<bool> {
        Some(self.all.route_localnet? || self.devices.get(device)?.route_localnet?)
    }

    /// Whether a packet that came in through `device` may be forwarded. IPv4 asks the device
    /// (`ip_route_input_slow`), IPv6 asks `all` (`ip6_forward`).
    #[must_use]
    pub fn forwarding(&self, device: &str, ipv6: bool) -> Option<bool> {
        if ipv6 {
            self.all.forwarding_v6
        } else {
            self.devices.get(device).and_then(|settings| settings.forwarding_v4).or(self.ip_forward)
        }
    }
}

fn device(net: &Path, name: &str) -> DeviceSettings {
    let (v4, v6) = (net.join("ipv4/conf").join(name), net.join("ipv6/conf").join(name));
    DeviceSettings {
        forwarding_v4: flag(&v4.join("forwarding")),
        forwarding_v6: flag(&v6.join("forwarding")),
        rp_filter: number(&v4.join("rp_filter")).and_then(|mode| mode.try_into().ok()),
        route_localnet: flag(&v4.join("route_localnet")),
        accept_local: flag(&v4.join("accept_local")),
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn flag(path: &Path) -> Option<bool> {
    number(path).map(|value| value != 0)
}

fn conntrack(proc: &Path, net: &Path) -> Option<ConntrackUse> {
    Some(ConntrackUse {
        count: number(&net.join("netfilter/nf_conntrack_count"))?,
        max: number(&net.join("netfilter/nf_conntrack_max"))?,
        dropped: fs::read_to_string(proc.join("thread-self/net/stat/nf_conntrack"))
            .ok()
            .and_then(|text| conntrack_drops(&text)),
    })
}

/// The `drop` column, summed over the CPUs (one line each, hexadecimal).
fn conntrack_drops(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let column = lines.next()?.split_whitespace().position(|name| name == "drop")?;
    lines.map(|line| u64::from_str_radix(line.split_whitespace().nth(column)?, 16).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn effective_values_follow_the_kernels_rules() {
        let proc = tempfile::tempdir().unwrap();
        for (path, value) in [
            ("ip_forward", "1"),
            ("conf/all/rp_filter", "1"),
            ("conf/all/route_localnet", "0"),
            ("conf/default/rp_filter", "0"),
            ("conf/eth0/rp_filter", "2"),
            ("conf/eth0/route_localnet", "1"),
            ("conf/eth0/forwarding", "0"),
            ("conf/eth1/rp_filter", "0"),
            ("conf/eth1/route_localnet", "0"),
        ] {
            write(proc.path(), &format!("sys/net/ipv4/{path}"), &format!("{value}\n"));
        }
        let settings = Settings::read(proc.path()).unwrap();
        assert_eq!((settings.rp_filter("eth0"), settings.rp_filter("eth1")), (Some(2), Some(1)));
        assert_eq!(
            (settings.route_localnet("eth0"), settings.route_localnet("eth1")),
            (Some(true), Some(false))
        );
        assert_eq!(
            (settings.forwarding("eth0", false), settings.forwarding("eth1", false)),
            (Some(false), Some(true))
        );
        // What is not there is unknown.
        assert_eq!(settings.forwarding("eth0", true), None);
        assert_eq!(settings.rp_filter("eth2"), None);
        assert_eq!((settings.bridge_calls_iptables, settings.conntrack), (None, None));
        assert!(!settings.devices.contains_key("default") && !settings.devices.contains_key("all"));
    }

    #[test]
    fn conntrack_use_sums_the_drops_of_all_cpus() {
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir_all(proc.path().join("sys/net/ipv4/conf")).unwrap();
        write(proc.path(), "sys/net/netfilter/nf_conntrack_count", "9\n");
        write(proc.path(), "sys/net/netfilter/nf_conntrack_max", "10\n");
        let stat = "entries found insert drop early_drop\n00000009 0 0 0000000a 0\n00000009 0 0 00000001 0\n";
        write(proc.path(), "thread-self/net/stat/nf_conntrack", stat);
        let settings = Settings::read(proc.path()).unwrap();
        assert_eq!(settings.conntrack, Some(ConntrackUse { count: 9, max: 10, dropped: Some(11) }));
    }

    #[test]
    fn no_proc_at_all_is_an_error_and_not_an_empty_answer() {
        let proc = tempfile::tempdir().unwrap();
        assert!(Settings::read(proc.path()).unwrap_err().to_string().contains("conf"));
    }
}
