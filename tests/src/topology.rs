//! Ready-made labs: namespaces joined by veth pairs and bridges, addressed and routed for both families.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    netns::{Netns, checked},
    wait,
};

/// Address family of a scenario's traffic and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// As a JSON packet names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// The address plan of a lab: a name's address in each family.
type Addresses = &'static [(&'static str, Ipv4Addr, Ipv6Addr)];

/// A lab that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// client `eth0` - `eth0` host `eth1` - `eth0` server, host `eth2` - `eth0` outside.
    Routed,
    /// client `eth0` - `eth0` host; host's `docker0` with web (`veth-web`) and app (`veth-app`).
    Docker,
    /// As `Docker`, and `br-other` with other (`veth-other`).
    DockerTwoNetworks,
}

const fn v6(network: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, host)
}

const ROUTED: Addresses = &[
    ("client", Ipv4Addr::new(10, 1, 0, 2), v6(1, 2)),
    ("host", Ipv4Addr::new(10, 1, 0, 1), v6(1, 1)),
    ("host2", Ipv4Addr::new(10, 1, 0, 9), v6(1, 9)),
    ("inner", Ipv4Addr::new(10, 2, 0, 1), v6(2, 1)),
    ("inner2", Ipv4Addr::new(10, 2, 0, 9), v6(2, 9)),
    ("server", Ipv4Addr::new(10, 2, 0, 2), v6(2, 2)),
    ("nowhere", Ipv4Addr::new(10, 2, 0, 77), v6(2, 77)),
    ("outer", Ipv4Addr::new(10, 3, 0, 1), v6(3, 1)),
    ("outside", Ipv4Addr::new(10, 3, 0, 2), v6(3, 2)),
    ("loopback", Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    ("any", Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
];

const DOCKER: Addresses = &[
    ("client", Ipv4Addr::new(10, 1, 0, 2), v6(1, 2)),
    ("host", Ipv4Addr::new(10, 1, 0, 1), v6(1, 1)),
    ("bridge", Ipv4Addr::new(172, 17, 0, 1), v6(17, 1)),
    ("web", Ipv4Addr::new(172, 17, 0, 2), v6(17, 2)),
    ("app", Ipv4Addr::new(172, 17, 0, 3), v6(17, 3)),
    ("gone", Ipv4Addr::new(172, 17, 0, 9), v6(17, 9)),
    ("bridge2", Ipv4Addr::new(172, 18, 0, 1), v6(18, 1)),
    ("other", Ipv4Addr::new(172, 18, 0, 2), v6(18, 2)),
    ("loopback", Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    ("any", Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
];

/// One end of a veth pair: namespace, device, and either its addresses' names or the bridge that it is a port of.
struct End {
    space: &'static str,
    device: &'static str,
    fit: Fit,
}

enum Fit {
    Addresses(&'static [&'static str]),
    Port(&'static str),
}

const fn end(space: &'static str, device: &'static str, names: &'static [&'static str]) -> End {
    End { space, device, fit: Fit::Addresses(names) }
}

const fn port(device: &'static str, bridge: &'static str) -> End {
    End { space: "host", device, fit: Fit::Port(bridge) }
}

/// What a lab is made of. Everything named `host` forwards.
struct Plan {
    spaces: &'static [&'static str],
    /// Bridges of the host, with the names of their addresses.
    bridges: &'static [(&'static str, &'static str)],
    wires: &'static [(End, End)],
    /// Default gateways: namespace and the name of the gateway's address.
    gateways: &'static [(&'static str, &'static str)],
    addresses: Addresses,
}

static ROUTED_PLAN: Plan = Plan {
    spaces: &["client", "host", "server", "outside"],
    bridges: &[],
    wires: &[
        (end("client", "eth0", &["client"]), end("host", "eth0", &["host", "host2"])),
        (end("server", "eth0", &["server"]), end("host", "eth1", &["inner", "inner2"])),
        (end("outside", "eth0", &["outside"]), end("host", "eth2", &["outer"])),
    ],
    gateways: &[("client", "host"), ("server", "inner"), ("outside", "outer")],
    addresses: ROUTED,
};

/// The client has no way to the container networks but through published ports, as on the Internet.
static DOCKER_PLAN: Plan = Plan {
    spaces: &["client", "host", "web", "app"],
    bridges: &[("docker0", "bridge")],
    wires: &[
        (end("client", "eth0", &["client"]), end("host", "eth0", &["host"])),
        (end("web", "eth0", &["web"]), port("veth-web", "docker0")),
        (end("app", "eth0", &["app"]), port("veth-app", "docker0")),
    ],
    gateways: &[("host", "client"), ("web", "bridge"), ("app", "bridge")],
    addresses: DOCKER,
};

static DOCKER_TWO_NETWORKS_PLAN: Plan = Plan {
    spaces: &["client", "host", "web", "app", "other"],
    bridges: &[("docker0", "bridge"), ("br-other", "bridge2")],
    wires: &[
        (end("client", "eth0", &["client"]), end("host", "eth0", &["host"])),
        (end("web", "eth0", &["web"]), port("veth-web", "docker0")),
        (end("app", "eth0", &["app"]), port("veth-app", "docker0")),
        (end("other", "eth0", &["other"]), port("veth-other", "br-other")),
    ],
    gateways: &[("host", "client"), ("web", "bridge"), ("app", "bridge"), ("other", "bridge2")],
    addresses: DOCKER,
};

impl Topology {
    fn plan(self) -> &'static Plan {
        match self {
            Self::Routed => &ROUTED_PLAN,
            Self::Docker => &DOCKER_PLAN,
            Self::DockerTwoNetworks => &DOCKER_TWO_NETWORKS_PLAN,
        }
    }

    /// Every name of the address plan with its address.
    pub fn addresses(self, family: Family) -> impl Iterator<Item = (&'static str, IpAddr)> {
        self.plan().addresses.iter().map(move |(name, v4, v6)| match family {
            Family::Ipv4 => (*name, IpAddr::V4(*v4)),
            Family::Ipv6 => (*name, IpAddr::V6(*v6)),
        })
    }

    /// The host's bridges, each with the name of its address.
    #[must_use]
    pub fn bridges(self) -> &'static [(&'static str, &'static str)] {
        self.plan().bridges
    }

    /// The network of a bridge's address, in prefix notation.
    ///
    /// # Errors
    /// When the plan has no such name.
    pub fn subnet(self, name: &str, family: Family) -> Result<String> {
        Ok(match self.address(name, family)? {
            IpAddr::V4(v4) => format!("{}/16", v4 & Ipv4Addr::new(255, 255, 0, 0)),
            IpAddr::V6(v6) => format!("{}/64", Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        })
    }

    /// The address that a name stands for.
    ///
    /// # Errors
    /// When the plan has no such name.
    pub fn address(self, name: &str, family: Family) -> Result<IpAddr> {
        let found = self.addresses(family).find(|(known, _)| *known == name);
        found
            .map(|(_, address)| address)
            .with_context(|| format!("the lab {self:?} has no address named {name}"))
    }
}

/// A lab that stands: its namespaces by role. Gone when dropped.
#[derive(Debug)]
pub struct Lab {
    topology: Topology,
    spaces: BTreeMap<&'static str, Netns>,
}

impl Lab {
    /// Builds a lab and waits until every device and address is usable.
    ///
    /// # Errors
    /// When this process is not root, or a tool refuses.
    pub fn new(topology: Topology) -> Result<Self> {
        let plan = topology.plan();
        let spaces = plan.spaces.iter().map(|role| Ok((*role, Netns::new()?))).collect::<Result<_>>()?;
        let lab = Self { topology, spaces };
        lab.quiet_defaults()?;
        let mut devices: BTreeMap<&str, String> = BTreeMap::new();
        for (bridge, address) in plan.bridges {
            let script = devices.entry("host").or_default();
            _ = writeln!(script, "link add {bridge} type bridge forward_delay 0 stp_state 0");
            lab.describe_addresses(script, bridge, &[address])?;
        }
        for (left, right) in plan.wires {
            let peer = lab.netns(right.space)?.name();
            let (one, two) = (left.device, right.device);
            lab.netns(left.space)?
                .exec(&format!("ip link add {one} type veth peer name {two} netns {peer}"))?;
            for end in [left, right] {
                lab.describe_end(devices.entry(end.space).or_default(), end)?;
            }
        }
        for (space, script) in &devices {
            lab.netns(space)?.feed("ip -batch -", script)?;
        }
        for (space, gateway) in plan.gateways {
            let [v4, v6] = Family::BOTH.map(|family| topology.address(gateway, family));
            lab.netns(space)?.feed(
                "ip -batch -",
                &format!("route add default via {}\nroute add default via {}\n", v4?, v6?),
            )?;
        }
        lab.wait_until_usable()?;
        Ok(lab)
    }

    fn quiet_defaults(&self) -> Result<()> {
        for netns in self.spaces.values() {
            for scope in ["all", "default"] {
                netns.set_sysctl(&format!("net.ipv4.conf.{scope}.rp_filter"), "0")?;
                netns.set_sysctl(&format!("net.ipv4.conf.{scope}.route_localnet"), "0")?;
            }
        }
        let host = self.netns("host")?;
        host.set_sysctl("net.ipv4.ip_forward", "1")?;
        host.set_sysctl("net.ipv6.conf.all.forwarding", "1")?;
        if !self.topology.plan().bridges.is_empty() {
            if !Path::new("/proc/sys/net/bridge").exists() {
                checked(Command::new("modprobe").arg("br_netfilter"))?;
            }
            host.set_sysctl("net.bridge.bridge-nf-call-iptables", "0")?;
            host.set_sysctl("net.bridge.bridge-nf-call-ip6tables", "0")?;
        }
        Ok(())
    }

    fn describe_end(&self, script: &mut String, end: &End) -> Result<()> {
        let device = end.device;
        match end.fit {
            Fit::Addresses(names) => self.describe_addresses(script, device, names),
            Fit::Port(bridge) => {
                _ = write!(script, "link set {device} master {bridge}\nlink set {device} up\n");
                Ok(())
            }
        }
    }

    /// The first name's address is to be the device's first: IPv6 puts the last that was added there.
    fn describe_addresses(&self, script: &mut String, device: &str, names: &[&str]) -> Result<()> {
        let v4_length = if device.starts_with("eth") { 24 } else { 16 };
        for name in names {
            let address = self.topology.address(name, Family::Ipv4)?;
            _ = writeln!(script, "address add {address}/{v4_length} dev {device}");
        }
        for name in names.iter().rev() {
            let address = self.topology.address(name, Family::Ipv6)?;
            _ = writeln!(script, "address add {address}/64 dev {device} nodad");
        }
        _ = writeln!(script, "link set {device} up");
        Ok(())
    }

    fn wait_until_usable(&self) -> Result<()> {
        for (role, netns) in &self.spaces {
            wait::until(&format!("the devices of {role} to be usable"), || usable(netns).unwrap_or(false))?;
        }
        Ok(())
    }

    /// What the lab was built as.
    #[must_use]
    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// The namespace of a role (`host`, `client`, ...).
    ///
    /// # Errors
    /// When the lab has no such role.
    pub fn netns(&self, role: &str) -> Result<&Netns> {
        self.spaces.get(role).with_context(|| format!("the lab {:?} has no namespace {role}", self.topology))
    }

    /// The address that a name of the plan stands for.
    ///
    /// # Errors
    /// When the plan has no such name.
    pub fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        self.topology.address(name, family)
    }
}

/// Whether every device but loopback runs and no address is tentative.
fn usable(netns: &Netns) -> Result<bool> {
    let devices: Vec<Value> = serde_json::from_str(&netns.exec("ip -j address show")?)?;
    Ok(devices.iter().all(|device| {
        let runs = device["operstate"] == "UP" || device["ifname"] == "lo";
        let settled =
            device["addr_info"].as_array().is_none_or(|all| all.iter().all(|a| a["tentative"] != true));
        runs && settled
    }))
}
