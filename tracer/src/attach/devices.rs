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
    sync::mpsc::{Receiver, Sender, channel},
    thread,
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

/// Programs, with `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` (enum bpf_attach_type), include/uapi/linux/bpf.h, 6.6.
const DIRECTIONS: [(&str, u32); 2] = [("tcx_in", 46), ("tcx_out", 47)];
/// `BPF_F_BEFORE`: without a program to stand before, before all.
const BEFORE: u32 = 1 << 3;
/// More devices would hold RTNL for too long.
const MOST_DEVICES: usize = 32;
/// Milliseconds that the thread may take to notice that a namespace is traced no longer.
const LOOK: u16 = 250;

/// What the thread that places links says.
#[derive(Debug)]
pub enum News {
    /// Links stand on every device.
    Placed,
    /// They will not, and why: the tracepoints stay.
    Refused(String),
    /// A device on which packets will not be seen, and why.
    Problem(String),
}

/// The thread that places links; it and its links end with the process.
pub(super) struct Devices {
    news: Receiver<News>,
    /// Namespaces that are traced no longer.
    gone: Sender<u32>,
}

impl Devices {
    /// Starts to place links on the devices of these namespaces (inode numbers and paths).
    ///
    /// # Errors
    /// When the programs are refused, or no thread can be started.
    pub(super) fn start(ebpf: &mut Ebpf, namespaces: BTreeMap<u32, PathBuf>) -> Result<Self> {
        let programs = [load(ebpf, DIRECTIONS[0].0)?, load(ebpf, DIRECTIONS[1].0)?];
        let (say, news) = channel();
        let (gone, hear) = channel();
        let job = move || {
            if let Err(error) = run(programs, namespaces, &say, &hear) {
                // Nobody listens any more when the trace is over.
                let _ = say.send(News::Refused(format!("{error:#}")));
            }
        };
        thread::Builder::new().name("devices".to_owned()).spawn(job).context("starting a thread")?;
        Ok(Self { news, gone })
    }

    /// What has happened since the last call.
    pub(super) fn news(&self) -> Vec<News> {
        self.news.try_iter().collect()
    }

    /// Lets go of a namespace.
    pub(super) fn remove(&self, inode: u32) {
        // The thread may have ended.
        let _ = self.gone.send(inode);
    }
}

fn load(ebpf: &mut Ebpf, name: &str) -> Result<OwnedFd> {
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).with_context(|| format!("kernel object: no program {name}"))?.try_into()?;
    program.load().with_context(|| format!("program {name} was refused"))?;
    Ok(program.fd()?.as_fd().try_clone_to_owned()?)
}

/// Places links on `lo`, the first device of every namespace, and takes them away.
pub(super) fn try_out(ebpf: &mut Ebpf, path: &Path) -> Result<()> {
    let programs = [load(ebpf, DIRECTIONS[0].0)?, load(ebpf, DIRECTIONS[1].0)?];
    in_netns(path, || link(&programs, 1))?.context("no link on lo (BPF_LINK_CREATE; from 6.6)")?;
    Ok(())
}

/// A namespace, its links by device index, and the socket that tells when devices come and go.
struct Space {
    path: PathBuf,
    links: BTreeMap<u32, [OwnedFd; 2]>,
    socket: LinkSocket,
}

fn run(
    programs: [OwnedFd; 2],
    namespaces: BTreeMap<u32, PathBuf>,
    say: &Sender<News>,
    gone: &Receiver<u32>,
) -> Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("watching devices")?;
    let mut spaces = BTreeMap::new();
    let mut devices = 0;
    for (inode, path) in namespaces {
        let (socket, present) =
            in_netns(&path, || Ok::<_, anyhow::Error>((LinkSocket::open()?, present()?)))??;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, inode.into())).context("watching devices")?;
        devices += present.len();
        spaces.insert(inode, Space { path, links: BTreeMap::new(), socket });
    }
    if devices > MOST_DEVICES {
        anyhow::bail!("{devices} devices, more than {MOST_DEVICES}");
    }
    for space in spaces.values_mut() {
        if let Some(problem) = space.place(&programs)?.into_iter().next() {
            anyhow::bail!(problem);
        }
    }
    if say.send(News::Placed).is_err() {
        return Ok(());
    }
    follow(&programs, &mut spaces, &epoll, say, gone)
}

/// Places links on devices that come, until nobody listens any more.
fn follow(
    programs: &[OwnedFd; 2],
    spaces: &mut BTreeMap<u32, Space>,
    epoll: &Epoll,
    say: &Sender<News>,
    gone: &Receiver<u32>,
) -> Result<()> {
    loop {
        let mut events = [EpollEvent::empty(); 16];
        let ready = match epoll.wait(&mut events, EpollTimeout::from(LOOK)) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error).context("watching devices"),
        };
        for inode in gone.try_iter() {
            spaces.remove(&inode);
        }
        for event in &events[..ready] {
            let Some(space) = u32::try_from(event.data()).ok().and_then(|inode| spaces.get_mut(&inode))
            else {
                continue;
            };
            for index in space.socket.gone() {
                // An index may be given to another device at once.
                space.links.remove(&index);
            }
            // A namespace may vanish at any moment: the next look at the scope says so.
            for problem in space.place(programs).unwrap_or_default() {
                if say.send(News::Problem(problem)).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Indices and names of the devices of the calling thread's namespace.
fn present() -> Result<BTreeMap<u32, String>> {
    let devices = if_nameindex().context("listing devices")?;
    Ok(devices.iter().map(|one| (one.index(), one.name().to_string_lossy().into_owned())).collect())
}

impl Space {
    /// Places links on devices that have none. Gives devices that got none, and why.
    fn place(&mut self, programs: &[OwnedFd; 2]) -> Result<Vec<String>> {
        let links = &mut self.links;
        in_netns(&self.path, || {
            let present = present()?;
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
                    Err(error) => problems
                        .push(format!("packets on {name} are not seen: {error} (BPF_LINK_CREATE, tcx)")),
                }
            }
            Ok(problems)
        })?
    }
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

fn link(programs: &[OwnedFd; 2], device: u32) -> io::Result<[OwnedFd; 2]> {
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
