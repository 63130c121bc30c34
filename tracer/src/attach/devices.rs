//! First and last sight of packets on devices, by tcx: a link at each end of every device of the traced namespaces,
//! first in line, while devices come and go. The links go with their descriptors.
//!
//! Each link waits for an RCU grace period with RTNL held (`tcx_entry_sync`, include/net/tcx.h): milliseconds, and more
//! on a busy machine. So tracepoints serve first, a thread of its own places the links when a trace turns out to last,
//! and only when all stand the tracepoints go. Where there are many devices, or all namespaces are traced and the
//! tracepoints see no packet too many, they stay.
//!
//! Kernel side: `tcx_link_attach` (kernel/bpf/tcx.c), from 6.6.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use aya::{Ebpf, programs::SchedClassifier};
use aya_obj::generated::bpf_cmd;
use nix::{
    net::if_::if_nameindex,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        eventfd::EventFd,
    },
};

use super::{clsact::Clsact, links::LinkSocket, syscall::bpf, verifier::refusal};
use crate::{error::one_line, kernel::in_netns};

/// Programs, with `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (enum bpf_attach_type), include/uapi/linux/bpf.h, 6.6.
const DIRECTIONS: [(&str, u32); 2] = [("tcx_in", 46), ("tcx_out", 47)];
/// `BPF_F_BEFORE`: without a program to stand before, before all.
const BEFORE: u32 = 1 << 3;
/// More devices would hold RTNL for too long.
const MOST_DEVICES: usize = 32;
/// Milliseconds that the thread may take to notice that a namespace is traced no longer.
const LOOK: u16 = 250;
/// The wake-up call in the thread's epoll; everything else there is a namespace's inode number.
const WAKE: u64 = u64::MAX;

/// How programs are put on devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Tcx,
    /// Filters, where the user allows a change to the machine.
    Clsact,
}

/// What the thread that places links says.
#[derive(Debug)]
pub enum News {
    /// Links stand on every device.
    Placed,
    /// They will not, and why: the tracepoints stay.
    Refused(String),
    /// A device on which packets will not be seen, and why.
    Problem(String),
    /// What was changed on devices of a namespace (its inode number), in words.
    Changed { netns: u32, what: String },
}

/// The thread that places links; it and its links end with the process. Filters it takes away when this is dropped.
pub(super) struct Devices {
    news: Receiver<News>,
    /// Namespaces that are traced no longer. `None` when the trace is over.
    gone: Option<Sender<u32>>,
    wake: Arc<EventFd>,
    /// `None` where nobody waits for its end.
    thread: Option<JoinHandle<()>>,
}

impl Drop for Devices {
    fn drop(&mut self) {
        self.gone = None;
        if let Some(thread) = self.thread.take() {
            // Where it cannot be woken it looks by itself soon.
            let _ = self.wake.write(1);
            let _ = thread.join();
        }
    }
}

impl Devices {
    /// Starts to place links on the devices of these namespaces (inode numbers and paths).
    ///
    /// # Errors
    /// When the programs are refused, or no thread can be started.
    pub(super) fn start(ebpf: &mut Ebpf, way: Way, namespaces: BTreeMap<u32, PathBuf>) -> Result<Self> {
        let programs = [load(ebpf, DIRECTIONS[0].0)?, load(ebpf, DIRECTIONS[1].0)?];
        let (say, news) = channel();
        let (gone, hear) = channel();
        let wake = Arc::new(EventFd::new().context("starting a thread")?);
        let watch = Watch { programs, way, say, gone: hear, wake: wake.clone() };
        let job = move || {
            if let Err(error) = watch.run(namespaces) {
                // Nobody listens any more when the trace is over.
                let _ = watch.say.send(News::Refused(one_line(&format!("{error:#}"))));
            }
        };
        let thread = thread::Builder::new().name("devices".to_owned());
        let thread = thread.spawn(job).context("starting a thread")?;
        Ok(Self { news, gone: Some(gone), wake, thread: (way == Way::Clsact).then_some(thread) })
    }

    /// What has happened since the last call.
    pub(super) fn news(&self) -> Vec<News> {
        self.news.try_iter().collect()
    }

    /// Lets go of a namespace.
    pub(super) fn remove(&self, inode: u32) {
        if let Some(gone) = &self.gone {
            // The thread may have ended.
            let _ = gone.send(inode);
        }
    }
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd> {
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).with_context(|| format!("kernel object: no program {name}"))?.try_into()?;
    program.load().map_err(|error| refusal(&format!("program {name}"), error))?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Places links on `lo`, the first device of every namespace, and takes them away.
pub(super) fn try_out(ebpf: &mut Ebpf, path: &Path) -> Result<()> {
    let programs = [load(ebpf, DIRECTIONS[0].0)?, load(ebpf, DIRECTIONS[1].0)?];
    in_netns(path, || link(&programs, 1))?.context("no link on lo (BPF_LINK_CREATE; from 6.6)")?;
    Ok(())
}

/// What stands on a device.
pub(super) enum Placed {
    Tcx {
        _links: [OwnedFd; 2],
    },
    /// `added`: the qdisc came with filters of traces.
    Clsact {
        added: bool,
    },
}

/// A namespace, what stands on its devices by their index, and the socket that tells when devices come and go.
struct Space {
    path: PathBuf,
    placed: BTreeMap<u32, Placed>,
    socket: LinkSocket,
    /// With [`Way::Clsact`].
    clsact: Option<Clsact>,
}

impl Drop for Space {
    fn drop(&mut self) {
        let Some(clsact) = &self.clsact else { return };
        for (device, placed) in &self.placed {
            if let Placed::Clsact { added } = placed {
                clsact.remove(*device, *added);
            }
        }
    }
}

/// What the thread works with.
struct Watch {
    programs: [OwnedFd; 2],
    way: Way,
    say: Sender<News>,
    gone: Receiver<u32>,
    wake: Arc<EventFd>,
}

impl Watch {
    fn run(&self, namespaces: BTreeMap<u32, PathBuf>) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("watching devices")?;
        epoll.add(&*self.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE)).context("watching devices")?;
        let mut spaces = BTreeMap::new();
        let mut devices = 0;
        for (inode, path) in namespaces {
            let way = self.way;
            let (space, present) = in_netns(&path, || Space::open(path.clone(), way))??;
            epoll
                .add(&space.socket, EpollEvent::new(EpollFlags::EPOLLIN, inode.into()))
                .context("watching devices")?;
            devices += present;
            spaces.insert(inode, space);
        }
        if devices > MOST_DEVICES {
            anyhow::bail!("{devices} devices, more than {MOST_DEVICES}");
        }
        for (inode, space) in &mut spaces {
            if let Some(problem) = self.place(*inode, space)?.into_iter().next() {
                anyhow::bail!(problem);
            }
        }
        if self.say.send(News::Placed).is_err() {
            return Ok(());
        }
        self.follow(&mut spaces, &epoll)
    }

    /// Places links on devices that come, until nobody listens any more.
    fn follow(&self, spaces: &mut BTreeMap<u32, Space>, epoll: &Epoll) -> Result<()> {
        loop {
            let mut events = [EpollEvent::empty(); 16];
            let ready = match epoll.wait(&mut events, EpollTimeout::from(LOOK)) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("watching devices"),
            };
            loop {
                match self.gone.try_recv() {
                    Ok(inode) => drop(spaces.remove(&inode)),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            for event in &events[..ready] {
                let Ok(inode) = u32::try_from(event.data()) else { continue };
                let Some(space) = spaces.get_mut(&inode) else { continue };
                for index in space.socket.gone() {
                    // An index may be given to another device at once.
                    space.placed.remove(&index);
                }
                // A namespace may vanish at any moment: the next look at the scope says so.
                for problem in self.place(inode, space).unwrap_or_default() {
                    if self.say.send(News::Problem(problem)).is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Puts the programs on devices that lack them. Gives devices that got none, and why.
    fn place(&self, netns: u32, space: &mut Space) -> Result<Vec<String>> {
        let Space { path, placed, clsact, .. } = space;
        let programs = &self.programs;
        let mut changes = Changes::default();
        let problems = in_netns(path, || {
            let present = present()?;
            placed.retain(|index, _| present.contains_key(index));
            let mut problems = Vec::new();
            for (index, name) in present {
                if placed.contains_key(&index) {
                    continue;
                }
                let (result, how) = match clsact.as_ref() {
                    None => (link(programs, index), "BPF_LINK_CREATE, tcx"),
                    Some(clsact) => (changes.place(clsact, index, &name, programs), "tc filter, clsact"),
                };
                match result {
                    Ok(both) => drop(placed.insert(index, both)),
                    // It went while we looked.
                    Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                    Err(error) => problems.push(format!("packets on {name} are not seen: {error} ({how})")),
                }
            }
            anyhow::Ok(problems)
        })?;
        if let Some(what) = clsact.as_ref().and_then(|clsact| changes.in_words(clsact.name())) {
            // Nobody listens any more when the trace is over.
            let _ = self.say.send(News::Changed { netns, what });
        }
        problems
    }
}

impl Space {
    /// Of the calling thread's namespace, with the number of its devices.
    fn open(path: PathBuf, way: Way) -> Result<(Self, usize)> {
        let clsact = (way == Way::Clsact).then(Clsact::open).transpose()?;
        let space = Self { path, placed: BTreeMap::new(), socket: LinkSocket::open()?, clsact };
        Ok((space, present()?.len()))
    }
}

/// What was done to a namespace's devices.
#[derive(Default)]
struct Changes {
    filtered: Vec<String>,
    added: Vec<String>,
    /// Left by a trace that was killed.
    swept: Vec<String>,
}

impl Changes {
    fn place(
        &mut self,
        clsact: &Clsact,
        index: u32,
        name: &str,
        programs: &[OwnedFd; 2],
    ) -> io::Result<Placed> {
        if !clsact.sweep(index)?.is_empty() {
            self.swept.push(name.to_owned());
        }
        let placed = clsact.place(index, programs)?;
        self.filtered.push(name.to_owned());
        if matches!(placed, Placed::Clsact { added: true }) {
            self.added.push(name.to_owned());
        }
        Ok(placed)
    }

    /// `None` where nothing was changed.
    fn in_words(&self, name: &str) -> Option<String> {
        let mut said = Vec::new();
        if !self.swept.is_empty() {
            said.push(format!("what a killed trace had left was removed from {}", self.swept.join(", ")));
        }
        if !self.filtered.is_empty() {
            said.push(format!("until the trace ends, filters {name} stand on {}", self.filtered.join(", ")));
        }
        if !self.added.is_empty() {
            said.push(format!("with them, a clsact qdisc comes to {} and goes", self.added.join(", ")));
        }
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// Indices and names of the devices of the calling thread's namespace.
fn present() -> Result<BTreeMap<u32, String>> {
    let devices = if_nameindex().context("listing devices")?;
    Ok(devices.iter().map(|one| (one.index(), one.name().to_string_lossy().into_owned())).collect())
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

fn link(programs: &[OwnedFd; 2], device: u32) -> io::Result<Placed> {
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
    Ok(Placed::Tcx { _links: [one(0)?, one(1)?] })
}
