//! `--xdp`: our observer on the devices that `--iface` names, in every traced namespace, while devices come and go.

use std::{collections::BTreeSet, io};

use anyhow::{Context, anyhow};
use nix::net::if_::if_nametoindex;

use super::scope::Scoped;
use crate::{
    attach::Kernel, config::Config, enrich::xdp_on, error::Failure, kernel::in_netns, netns::Namespace,
};

/// The devices to observe. Empty without `--xdp`.
pub(super) struct Observed {
    names: Vec<String>,
    /// Devices where the observer cannot stand, of which that was said: namespace and index.
    told: BTreeSet<(u32, u32)>,
}

/// A device without observer.
struct Unobserved {
    device: String,
    index: u32,
    why: Why,
}

enum Why {
    /// This XDP program stands there.
    Taken(String),
    Refused(io::Error),
}

impl Observed {
    /// Puts the observer on the devices that are there.
    ///
    /// # Errors
    /// [`Failure::XdpTaken`] where another XDP program stands on one, or what the kernel refused.
    pub(super) fn start(config: &Config, scoped: &Scoped, kernel: &mut Kernel) -> Result<Self, Failure> {
        let names = config.interfaces.iter().map(|name| name.as_str().to_owned());
        let observed = Self { names: names.filter(|_| config.xdp).collect(), told: BTreeSet::new() };
        if observed.is_empty() {
            return Ok(observed);
        }
        kernel.load_xdp()?;
        for namespace in scoped.namespaces() {
            if let Some(Unobserved { device, why, .. }) =
                observed.place(namespace, kernel)?.into_iter().next()
            {
                return Err(match why {
                    Why::Taken(program) => Failure::XdpTaken { device, program },
                    Why::Refused(error) => {
                        Failure::Other(anyhow!(error).context(format!("XDP on {device} (BPF_LINK_CREATE)")))
                    }
                });
            }
        }
        Ok(observed)
    }

    /// Whether nothing is to be observed.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Puts the observer on devices that have come; gives what the user is to be told.
    pub(super) fn look(&mut self, scoped: &Scoped, kernel: &mut Kernel) -> Vec<String> {
        let mut said = Vec::new();
        if self.is_empty() {
            return said;
        }
        for namespace in scoped.namespaces() {
            // A namespace that is gone is found by the next look at the scope.
            for Unobserved { device, index, why } in self.place(namespace, kernel).unwrap_or_default() {
                if !self.told.insert((namespace.inode, index)) {
                    continue;
                }
                said.push(match why {
                    Why::Taken(program) => {
                        format!(
                            "no XDP observer on {device} of namespace {}: {program} is there",
                            namespace.name
                        )
                    }
                    Why::Refused(error) => {
                        format!("no XDP observer on {device} of namespace {}: {error}", namespace.name)
                    }
                });
            }
        }
        said
    }

    /// Puts the observer on the devices of a namespace that lack it; gives those that go on lacking it.
    fn place(&self, namespace: &Namespace, kernel: &mut Kernel) -> anyhow::Result<Vec<Unobserved>> {
        in_netns(&namespace.path, || {
            let mut without = Vec::new();
            for device in &self.names {
                let Ok(index) = if_nametoindex(device.as_str()) else { continue };
                if let Some(why) = place_on(namespace.inode, index, kernel)? {
                    without.push(Unobserved { device: device.clone(), index, why });
                }
            }
            Ok(without)
        })?
    }
}

/// Puts the observer on a device of the calling thread's namespace; gives why it does not stand there.
fn place_on(netns: u32, index: u32, kernel: &mut Kernel) -> anyhow::Result<Option<Why>> {
    if kernel.is_observed(netns, index) {
        return Ok(None);
    }
    if let Some(program) = xdp_on(index).context("asking for XDP programs")? {
        return Ok(Some(Why::Taken(program)));
    }
    match kernel.observe(netns, index) {
        Ok(()) => Ok(None),
        // It went while we looked.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Ok(Some(Why::Refused(error))),
    }
}
