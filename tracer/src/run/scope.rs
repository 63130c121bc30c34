//! The traced namespaces, while they come and go.

use std::collections::{BTreeMap, BTreeSet};

use nix::net::if_::if_nametoindex;

use crate::{
    attach::Kernel,
    config::{Config, Scope},
    error::{Failure, one_line},
    kernel::in_netns,
    netns::{self, Namespace, Roots},
    plan::View,
};

/// Which namespaces are traced, and what they are called.
pub(super) struct Scoped {
    all: bool,
    roots: Roots,
    present: BTreeMap<u32, Namespace>,
}

/// What changed in the scope.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) appeared: Vec<Namespace>,
    pub(super) vanished: Vec<Namespace>,
}

impl Scoped {
    /// Resolves what the user named.
    pub(super) fn new(config: &Config) -> Result<Self, Failure> {
        let roots = Roots::default();
        let namespaces = match &config.scope {
            Scope::All => netns::list(&roots).map_err(|error| Failure::Other(error.into()))?,
            Scope::These(specs) => {
                specs.iter().map(|spec| netns::resolve(spec, &roots)).collect::<Result<Vec<_>, _>>()?
            }
        };
        let present = namespaces.into_iter().map(|namespace| (namespace.inode, namespace)).collect();
        Ok(Self { all: config.scope == Scope::All, roots, present })
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.present.values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Whether no namespace will come to be traced later.
    pub(super) fn is_fixed(&self) -> bool {
        !self.all
    }

    pub(super) fn several(&self) -> bool {
        self.all || self.present.len() > 1
    }

    pub(super) fn get(&self, inode: u32) -> Option<&Namespace> {
        self.present.get(&inode)
    }

    /// Devices that the user named must be there, in one of the namespaces.
    pub(super) fn check_devices(&self, config: &Config) -> Result<(), Failure> {
        for device in &config.interfaces {
            let name = device.as_str();
            let is_there = |namespace: &Namespace| {
                in_netns(&namespace.path, || if_nametoindex(name).is_ok()).unwrap_or(false)
            };
            if !self.present.values().any(is_there) {
                let netns = self.present.values().next().map(|namespace| namespace.name.clone());
                let netns = netns.filter(|_| self.present.len() == 1);
                return Err(Failure::NoDevice { name: name.to_owned(), netns });
            }
        }
        Ok(())
    }

    /// Places probes in every namespace. One that vanishes meanwhile is left out, unless it is the last.
    pub(super) fn attach(&mut self, kernel: &mut Kernel, view: &mut View) -> Result<Vec<String>, Failure> {
        let mut problems = Vec::new();
        let mut failed = Vec::new();
        let mut first = None;
        for namespace in self.present.values() {
            if let Err(error) = kernel.add_namespace(namespace.inode, namespace.path.clone(), view) {
                problems.push(one_line(&format!("namespace {} is not traced: {error:#}", namespace.name)));
                failed.push(namespace.inode);
                first = first.or(Some(error));
            }
        }
        self.present.retain(|inode, _| !failed.contains(inode));
        match first {
            Some(error) if self.present.is_empty() => Err(Failure::NoProbe { tried: format!("{error:#}") }),
            _ => Ok(problems),
        }
    }

    /// Looks which namespaces have come and gone. Our probes keep a namespace alive that has lost its name and its
    /// last process: without this it would never go.
    pub(super) fn look(&mut self) -> Change {
        let Ok(listed) = netns::list(&self.roots) else { return Change::default() };
        let alive: BTreeSet<u32> = listed.iter().map(|namespace| namespace.inode).collect();
        let gone: Vec<u32> =
            self.present.keys().copied().filter(|inode| !self.is_alive(*inode, &alive)).collect();
        let vanished = gone.iter().filter_map(|inode| self.present.remove(inode)).collect();
        let appeared: Vec<Namespace> = if self.all {
            listed.into_iter().filter(|namespace| !self.present.contains_key(&namespace.inode)).collect()
        } else {
            Vec::new()
        };
        Change { appeared, vanished }
    }

    fn is_alive(&self, inode: u32, alive: &BTreeSet<u32>) -> bool {
        use std::os::unix::fs::MetadataExt;
        alive.contains(&inode)
            || self.present.get(&inode).is_some_and(|namespace| {
                std::fs::metadata(&namespace.path).is_ok_and(|file| file.ino() == u64::from(inode))
            })
    }

    pub(super) fn add(&mut self, namespace: Namespace) {
        self.present.insert(namespace.inode, namespace);
    }
}
