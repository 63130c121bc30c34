//! First and last sight of packets on devices: a tcx link at each end of every device of the traced namespaces, first
//! in line, while devices come and go. The links go with their descriptors.
//!
//! Kernel side: `tcx_link_attach` (kernel/bpf/tcx.c), from 6.6.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};
use aya::{Ebpf, programs::SchedClassifier};
use aya_obj::generated::bpf_cmd;
use nix::{
    net::if_::if_nameindex,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::{links::LinkSocket, syscall::bpf};
use crate::kernel::in_netns;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (enum bpf_attach_type), include/uapi/linux/bpf.h, 6.6.
const DIRECTIONS: [(&str, u32); 2] = [("tcx_in", 46), ("tcx_out", 47)];
/// `BPF_F_BEFORE`: without a program to stand before, before all.
const BEFORE: u32 = 1 << 3;

/// The two links of a device.
type Links = [OwnedFd; 2];

/// Devices of traced namespaces, and who watches them come and go.
pub(super) struct Devices {
    links: BTreeMap<u32, BTreeMap<u32, Links>>,
    watch: BTreeMap<u32, LinkSocket>,
    epoll: Epoll,
}

impl Devices {
    pub(super) fn new() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("watching devices")?;
        Ok(Self { links: BTreeMap::new(), watch: BTreeMap::new(), epoll })
    }

    /// Readable while [`Self::changed`] has something to say.
    pub(super) fn watch(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Places links on the devices of a namespace, and watches it. Gives devices that got none, and why.
    ///
    /// # Errors
    /// When the namespace cannot be entered or watched.
    pub(super) fn add(&mut self, ebpf: &Ebpf, inode: u32, path: &Path) -> Result<Vec<String>> {
        let socket = in_netns(path, LinkSocket::open)??;
        self.epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, inode.into())).context("watching devices")?;
        self.watch.insert(inode, socket);
        self.place(ebpf, inode, path)
    }

    /// Lets go of a namespace.
    pub(super) fn remove(&mut self, inode: u32) {
        self.links.remove(&inode);
        self.watch.remove(&inode);
    }

    /// The namespaces whose devices have changed since the last call. Links of devices that went are closed.
    pub(super) fn changed(&mut self) -> Vec<u32> {
        let mut events = [EpollEvent::empty(); 64];
        let ready = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let mut changed = Vec::new();
        for event in &events[..ready] {
            let Some((inode, socket)) =
                u32::try_from(event.data()).ok().and_then(|inode| Some((inode, self.watch.get(&inode)?)))
            else {
                continue;
            };
            let gone = socket.gone();
            if let Some(links) = self.links.get_mut(&inode) {
                // An index may be given to another device at once.
                links.retain(|device, _| !gone.contains(device));
            }
            changed.push(inode);
        }
        changed
    }

    /// Places links on the devices of a namespace that have none, as [`Self::add`].
    ///
    /// # Errors
    /// When the namespace cannot be entered, or its devices not be listed.
    pub(super) fn place(&mut self, ebpf: &Ebpf, inode: u32, path: &Path) -> Result<Vec<String>> {
        let links = self.links.entry(inode).or_default();
        let programs = programs(ebpf)?;
        in_netns(path, || -> Result<Vec<String>> {
            let present: BTreeMap<u32, String> = if_nameindex()
                .context("listing devices")?
                .iter()
                .map(|device| (device.index(), device.name().to_string_lossy().into_owned()))
                .collect();
            links.retain(|index, _| present.contains_key(index));
            let mut problems = Vec::new();
            for (index, name) in present {
                if links.contains_key(&index) {
                    continue;
                }
                match link(programs, index) {
                    Ok(both) => drop(links.insert(index, both)),
                    // It went while we looked.
                    Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                    Err(error) => problems.push(format!("packets on {name} are not seen: {error} (BPF_LINK_CREATE, tcx)")),
                }
            }
            Ok(problems)
        })?
    }
}

/// Whether this kernel lets tcx programs stand on devices; loads them.
pub(super) fn are_possible(ebpf: &mut Ebpf, path: &Path) -> Result<()> {
    for (name, _) in DIRECTIONS {
        let program: &mut SchedClassifier =
            ebpf.program_mut(name).with_context(|| format!("kernel object: no program {name}"))?.try_into()?;
        program.load().with_context(|| format!("program {name} was refused"))?;
    }
    let programs = programs(ebpf)?;
    // Every namespace has `lo`, as its first device.
    in_netns(path, || link(programs, 1))?.context("tcx link on lo (BPF_LINK_CREATE; from 6.6)")?;
    Ok(())
}

fn programs(ebpf: &Ebpf) -> Result<[BorrowedFd<'_>; 2]> {
    let descriptor = |name: &str| -> Result<BorrowedFd<'_>> {
        let program: &SchedClassifier =
            ebpf.program(name).with_context(|| format!("kernel object: no program {name}"))?.try_into()?;
        Ok(program.fd().with_context(|| format!("program {name} is not loaded"))?.as_fd())
    };
    Ok([descriptor(DIRECTIONS[0].0)?, descriptor(DIRECTIONS[1].0)?])
}

/// `union bpf_attr`'s `link_create` with its `tcx` member; aya's bindings end before it.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    device: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    revision: u64,
}

fn link(programs: [BorrowedFd<'_>; 2], device: u32) -> io::Result<Links> {
    let one = |number: usize| {
        let mut create = LinkCreate {
            program: programs[number].as_raw_fd().cast_unsigned(),
            device,
            attach_type: DIRECTIONS[number].1,
            flags: BEFORE,
            ..LinkCreate::default()
        };
        bpf(bpf_cmd::BPF_LINK_CREATE, &mut create)
    };
    Ok([one(0)?, one(1)?])
}
