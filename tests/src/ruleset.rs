//! Rules for a lab: both iptables backends, nft, and the chains that Docker itself makes.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use serde::Deserialize;

use crate::{netns::Netns, topology::Family};

/// The implementation behind the iptables commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    Legacy,
    Nft,
}

impl Backend {
    pub const BOTH: [Self; 2] = [Self::Legacy, Self::Nft];

    /// `iptables-nft`, `ip6tables-legacy`, ...
    #[must_use]
    pub fn program(self, family: Family) -> String {
        let tool = match family {
            Family::Ipv4 => "iptables",
            Family::Ipv6 => "ip6tables",
        };
        format!("{tool}-{}", self.suffix())
    }

    /// As a JSON stage names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        }
    }

    /// The word that tells the backends apart.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Nft => "nft",
        }
    }

    /// The backend that this one is not.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Legacy => Self::Nft,
            Self::Nft => Self::Legacy,
        }
    }
}

/// Gives `iptables-restore` a file in iptables-save syntax; tables that it names are replaced whole.
///
/// # Errors
/// When the tool refuses it.
pub fn restore(netns: &Netns, backend: Backend, family: Family, file: &str) -> Result<()> {
    netns.feed(&format!("{}-restore -w 20", backend.program(family)), file)?;
    Ok(())
}

/// Runs one iptables command, given without the program's name (`-A INPUT -j DROP`).
///
/// # Errors
/// When the tool refuses it.
pub fn iptables(netns: &Netns, backend: Backend, family: Family, arguments: &str) -> Result<()> {
    netns.exec(&format!("{} -w 20 {arguments}", backend.program(family)))?;
    Ok(())
}

/// Loads an nft script.
///
/// # Errors
/// When nft refuses it.
pub fn nft(netns: &Netns, script: &str) -> Result<()> {
    netns.feed("nft -f -", script)?;
    Ok(())
}

/// A port that Docker publishes (`-p port:to_port`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    pub port: u16,
    pub container: SocketAddr,
}

/// One Docker bridge network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerNetwork {
    pub bridge: String,
    /// In prefix notation.
    pub subnet: String,
    pub published: Vec<Published>,
}

/// Which release's chains Docker makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DockerLayout {
    /// `DOCKER-USER`, `DOCKER-ISOLATION-STAGE-1` and `-2`, `DOCKER`.
    #[serde(rename = "before-28")]
    Before28,
    /// `DOCKER-USER`, `DOCKER-FORWARD`, `DOCKER-CT`, `DOCKER-INTERNAL`, `DOCKER-BRIDGE`, `DOCKER`; `raw` too.
    #[serde(rename = "from-28")]
    From28,
}

/// Docker's rules for these networks, as a file for [`restore`].
#[must_use]
pub fn docker(layout: DockerLayout, networks: &[DockerNetwork]) -> String {
    let filter = match layout {
        DockerLayout::Before28 => filter_before_28(networks),
        DockerLayout::From28 => filter_from_28(networks),
    };
    let raw = match layout {
        DockerLayout::Before28 => String::new(),
        DockerLayout::From28 => raw_from_28(networks),
    };
    format!("{raw}{filter}{}", nat(layout, networks))
}

fn filter_before_28(networks: &[DockerNetwork]) -> String {
    let mut rules = String::new();
    for network in networks {
        let bridge = &network.bridge;
        _ = write!(
            rules,
            "-A FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -o {bridge} -j DOCKER\n\
             -A FORWARD -i {bridge} ! -o {bridge} -j ACCEPT\n\
             -A FORWARD -i {bridge} -o {bridge} -j ACCEPT\n"
        );
    }
    for network in networks {
        rules.push_str(&published_accepted(network));
    }
    for DockerNetwork { bridge, .. } in networks {
        _ = writeln!(
            rules,
            "-A DOCKER-ISOLATION-STAGE-1 -i {bridge} ! -o {bridge} -j DOCKER-ISOLATION-STAGE-2"
        );
    }
    for DockerNetwork { bridge, .. } in networks {
        _ = writeln!(rules, "-A DOCKER-ISOLATION-STAGE-2 -o {bridge} -j DROP");
    }
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         :DOCKER-ISOLATION-STAGE-1 - [0:0]\n:DOCKER-ISOLATION-STAGE-2 - [0:0]\n:DOCKER-USER - [0:0]\n\
         -A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n{rules}\
         -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n-A DOCKER-ISOLATION-STAGE-2 -j RETURN\n\
         -A DOCKER-USER -j RETURN\nCOMMIT\n"
    )
}

fn filter_from_28(networks: &[DockerNetwork]) -> String {
    let mut rules = String::new();
    for network in networks {
        let bridge = &network.bridge;
        rules.push_str(&published_accepted(network));
        _ = write!(
            rules,
            "-A DOCKER ! -i {bridge} -o {bridge} -j DROP\n\
             -A DOCKER-BRIDGE -o {bridge} -j DOCKER\n\
             -A DOCKER-CT -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        );
    }
    rules.push_str(
        "-A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER-FORWARD -j DOCKER-INTERNAL\n\
         -A DOCKER-FORWARD -j DOCKER-BRIDGE\n",
    );
    for DockerNetwork { bridge, .. } in networks {
        _ = writeln!(rules, "-A DOCKER-FORWARD -i {bridge} -j ACCEPT");
    }
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         :DOCKER-BRIDGE - [0:0]\n:DOCKER-CT - [0:0]\n:DOCKER-FORWARD - [0:0]\n:DOCKER-INTERNAL - [0:0]\n\
         :DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD\n{rules}COMMIT\n"
    )
}

fn published_accepted(network: &DockerNetwork) -> String {
    network.published.iter().fold(String::new(), |mut rules, Published { container, .. }| {
        let (bridge, port) = (&network.bridge, container.port());
        _ = writeln!(
            rules,
            "-A DOCKER -d {} ! -i {bridge} -o {bridge} -p tcp -m tcp --dport {port} -j ACCEPT",
            alone(container.ip())
        );
        rules
    })
}

fn raw_from_28(networks: &[DockerNetwork]) -> String {
    let mut rules = String::new();
    for network in networks {
        for Published { container, .. } in &network.published {
            _ = writeln!(rules, "-A PREROUTING -d {} ! -i {} -j DROP", alone(container.ip()), network.bridge);
        }
    }
    format!("*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n")
}

fn nat(layout: DockerLayout, networks: &[DockerNetwork]) -> String {
    let mut rules = String::new();
    let mut loopback = "127.0.0.0/8";
    for DockerNetwork { bridge, subnet, published } in networks {
        if subnet.contains(':') {
            loopback = "::1/128";
        }
        _ = writeln!(rules, "-A POSTROUTING -s {subnet} ! -o {bridge} -j MASQUERADE");
        if layout == DockerLayout::Before28 {
            _ = writeln!(rules, "-A DOCKER -i {bridge} -j RETURN");
        }
        for Published { port, container } in published {
            if layout == DockerLayout::Before28 {
                let (alone, to_port) = (alone(container.ip()), container.port());
                _ = writeln!(
                    rules,
                    "-A POSTROUTING -s {alone} -d {alone} -p tcp -m tcp --dport {to_port} -j MASQUERADE"
                );
            }
            _ = writeln!(
                rules,
                "-A DOCKER ! -i {bridge} -p tcp -m tcp --dport {port} -j DNAT --to-destination {container}"
            );
        }
    }
    format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d {loopback} -m addrtype --dst-type LOCAL -j DOCKER\n{rules}COMMIT\n"
    )
}

fn alone(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}
