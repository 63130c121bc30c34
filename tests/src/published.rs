//! A published port: a client, a host that translates it, and the server behind.

use std::{net::SocketAddr, thread};

use anyhow::Result;

use crate::{
    netns::Netns,
    ruleset::{self, Backend},
    topology::{Family, Lab, Topology},
    traffic::{self, Server},
};

/// [`Topology::Routed`] with one rule: port 80 of the host is port 8080 of the server.
pub struct Published {
    lab: Lab,
    /// Where clients connect to.
    pub outer: SocketAddr,
    /// Where that leads.
    pub inner: SocketAddr,
    _server: Server,
}

impl Published {
    /// # Errors
    /// When a namespace, the server or the rule cannot be made.
    pub fn new() -> Result<Self> {
        let lab = Lab::new(Topology::Routed)?;
        let inner = SocketAddr::new(lab.address("server", Family::Ipv4)?, 8080);
        let server = Server::tcp(lab.netns("server")?, inner)?;
        let rule = format!("-t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to-destination {inner}");
        ruleset::iptables(lab.netns("host")?, Backend::Nft, Family::Ipv4, &rule)?;
        let outer = SocketAddr::new(lab.address("host", Family::Ipv4)?, 80);
        Ok(Self { lab, outer, inner, _server: server })
    }

    /// # Errors
    /// Never for this topology.
    pub fn client(&self) -> Result<&Netns> {
        self.lab.netns("client")
    }

    /// # Errors
    /// Never for this topology.
    pub fn host(&self) -> Result<&Netns> {
        self.lab.netns("host")
    }

    /// Short connections by several threads at once, `each` by every one; the client's ends of them.
    ///
    /// # Errors
    /// When a connection is not answered.
    ///
    /// # Panics
    /// When a thread does.
    pub fn burst(&self, senders: usize, each: usize) -> Result<Vec<SocketAddr>> {
        let client = self.client()?;
        let ends = thread::scope(|scope| {
            let senders: Vec<_> =
                (0..senders).map(|_| scope.spawn(|| traffic::tcp_burst(client, self.outer, each))).collect();
            senders
                .into_iter()
                .map(|sender| sender.join().expect("a sender panicked"))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(ends.concat())
    }
}
