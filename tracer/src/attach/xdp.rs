//! The XDP observer on devices that the user named: one link each, in generic mode. It goes with its descriptor.
//!
//! Native mode would see a packet earlier, but it makes drivers reset their queues and drop what is in them, and on a
//! veth it takes segmentation from the peer. Kernel side: `bpf_xdp_link_attach` (net/core/dev.c), from 5.9.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya::{Ebpf, programs::Xdp};
use aya_obj::generated::bpf_cmd;

use super::{Kernel, syscall::bpf, verifier::refusal};

const PROGRAM: &str = "xdp_in";
/// `BPF_XDP` (enum bpf_attach_type, include/uapi/linux/bpf.h).
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_SKB_MODE` (include/uapi/linux/if_link.h).
const GENERIC: u32 = 1 << 1;

/// The observer and where it stands.
pub(super) struct Observer {
    program: OwnedFd,
    /// By namespace (inode number) and device index.
    links: BTreeMap<(u32, u32), OwnedFd>,
}

impl Observer {
    /// Loads the program; it stands nowhere yet.
    pub(super) fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let program: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .with_context(|| format!("kernel object: no program {PROGRAM}"))?
            .try_into()?;
        program.load().map_err(|error| refusal(&format!("program {PROGRAM}"), error))?;
        Ok(Self { program: program.fd()?.as_fd().try_clone_to_owned()?, links: BTreeMap::new() })
    }

    /// Whether it stands on a device; one that is gone is forgotten.
    pub(super) fn stands(&mut self, netns: u32, device: u32) -> bool {
        let stands = self.links.get(&(netns, device)).is_some_and(is_attached);
        if !stands {
            self.links.remove(&(netns, device));
        }
        stands
    }

    /// Puts it on a device of the calling thread's namespace, which has this inode number.
    pub(super) fn place(&mut self, netns: u32, device: u32) -> io::Result<()> {
        let link = link(&self.program, device)?;
        self.links.insert((netns, device), link);
        Ok(())
    }

    /// Lets go of a namespace's devices.
    pub(super) fn remove(&mut self, netns: u32) {
        self.links.retain(|(its, _), _| *its != netns);
    }
}

impl Kernel {
    /// Loads the XDP observer.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn load_xdp(&mut self) -> Result<()> {
        self.observer = Some(Observer::load(&mut self.ebpf)?);
        self.attached.push("xdp");
        Ok(())
    }

    /// Whether the XDP observer stands on a device (its index) of a namespace (its inode number).
    pub fn is_observed(&mut self, netns: u32, device: u32) -> bool {
        self.observer.as_mut().is_some_and(|observer| observer.stands(netns, device))
    }

    /// Puts the XDP observer on a device of the calling thread's namespace, which has this inode number.
    ///
    /// # Errors
    /// What the kernel refused; `Unsupported` without [`Self::load_xdp`].
    pub fn observe(&mut self, netns: u32, device: u32) -> io::Result<()> {
        self.observer.as_mut().ok_or(io::ErrorKind::Unsupported)?.place(netns, device)
    }
}

/// Whether the link's device is still there: the kernel takes the link off a device that goes
/// (`bpf_xdp_link_show_fdinfo`).
fn is_attached(link: &OwnedFd) -> bool {
    let said = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd())).unwrap_or_default();
    !said.lines().any(|line| line.split_whitespace().eq(["ifindex:", "0"]))
}

/// `union bpf_attr`'s `link_create`, as far as XDP needs it.
#[repr(C)]
struct LinkCreate {
    program: u32,
    device: u32,
    attach_type: u32,
    flags: u32,
}

fn link(program: &OwnedFd, device: u32) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd().cast_unsigned();
    let mut create = LinkCreate { program, device, attach_type: ATTACH_XDP, flags: GENERIC };
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut create)
}
