//! Verdicts of XDP and tc programs of others, where the kernel lets programs look on when others return (fexit): one of
//! ours for each of theirs that stands on a device of a traced namespace. A thread follows as theirs come and go: a program
//! that is looked on stays loaded, so one that has left its devices is let go of.

mod look_on;
mod placed;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::Map,
    programs::{ProgramInfo, SchedClassifier, Xdp, loaded_programs},
};
use aya_obj::generated::bpf_prog_type;

pub(super) use self::look_on::Shelf;
use self::{
    look_on::{Refused, Texts},
    placed::{Placed, Stands},
};
use super::{
    Kernel,
    object::{Cast, Edition},
    text::map_descriptor,
};
use crate::{
    kernel::{KernelTypes, in_netns},
    model::ProgramType,
};

/// Our own, of whichever trace: they judge nothing.
const OWN: [&str; 3] = ["xdp_in", "tcx_in", "tcx_out"];
/// How often programs are looked for. (The kernel tells nobody when they come.)
const LOOK: Duration = Duration::from_millis(250);
/// A look may take this part of the time at most: one twentieth.
const SHARE: u32 = 20;
/// How long the start waits for the first look where there are programs.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// Whether the running kernel has programs that look on when others return.
#[must_use]
pub fn is_known(types: &KernelTypes) -> bool {
    let known = types.enum_values("bpf_attach_type").unwrap_or_default();
    known.iter().any(|(name, _)| name == "BPF_TRACE_FEXIT")
}

/// What the thread says.
#[derive(Debug)]
pub enum VerdictNews {
    /// The verdicts of this program are seen from now on.
    Watched(String),
    /// They are not, and why.
    Unseen(String),
}

/// Names of programs by number, of those too that have gone.
#[derive(Clone, Debug, Default)]
pub struct ProgramNames(Arc<Mutex<BTreeMap<u32, String>>>);

impl ProgramNames {
    #[must_use]
    pub fn get(&self, id: u32) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn insert(&self, id: u32, name: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, name);
    }
}

impl Shelf {
    /// Takes what will be needed, before anybody takes maps for himself.
    pub(super) fn new<'a>(
        maps: impl Iterator<Item = (&'a str, &'a Map)>,
        edition: Edition,
        cast: Option<Cast>,
        verbose: bool,
    ) -> Result<Self> {
        let own = |(name, map)| anyhow::Ok((str::to_owned(name), map_descriptor(map)?.try_clone_to_owned()?));
        Ok(Self { maps: maps.map(own).collect::<Result<_>>()?, edition, cast, verbose })
    }
}

/// The thread that looks for programs. It ends with this.
pub(super) struct Verdicts {
    news: Receiver<VerdictNews>,
    namespaces: Sender<BTreeMap<u32, PathBuf>>,
}

impl Verdicts {
    fn start(shelf: Shelf, names: ProgramNames, namespaces: BTreeMap<u32, PathBuf>) -> Result<Self> {
        let (say, news) = channel();
        let (tell, hear) = channel();
        let (done, looked) = channel();
        let mut watch = Watch {
            shelf,
            names,
            say,
            namespaces,
            texts: None,
            links: BTreeMap::new(),
            refused: BTreeSet::new(),
        };
        let any = others().next().is_some();
        let job = move || {
            let mut done = Some(done);
            loop {
                let Some(took) = watch.look() else { return };
                // Nobody waits any more after the first time.
                drop(done.take());
                match hear.recv_timeout(LOOK.max(took * SHARE)) {
                    Ok(namespaces) => watch.namespaces = hear.try_iter().last().unwrap_or(namespaces),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new().name("verdicts".to_owned()).spawn(job).context("starting a thread")?;
        if any {
            // It ends with the first look, without a word.
            let _: Result<(), _> = looked.recv_timeout(FIRST_LOOK);
        }
        Ok(Self { news, namespaces: tell })
    }
}

/// XDP and tc programs of others, wherever they stand.
fn others() -> impl Iterator<Item = ProgramInfo> {
    loaded_programs().flatten().filter(|program| {
        let judges = matches!(
            program.program_type(),
            bpf_prog_type::BPF_PROG_TYPE_XDP | bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS
        );
        judges && !OWN.map(Some).contains(&program.name_as_str())
    })
}

/// What the thread works with.
struct Watch {
    shelf: Shelf,
    names: ProgramNames,
    say: Sender<VerdictNews>,
    namespaces: BTreeMap<u32, PathBuf>,
    texts: Option<Texts>,
    links: BTreeMap<u32, OwnedFd>,
    /// Tried once.
    refused: BTreeSet<u32>,
}

impl Watch {
    /// Looks on programs that have come, and lets go of those that left. Gives how long it took to find them, which every
    /// look takes; `None` where it is of no use to look again.
    fn look(&mut self) -> Option<Duration> {
        let began = Instant::now();
        let programs: BTreeMap<u32, ProgramInfo> = others().map(|program| (program.id(), program)).collect();
        let placed = self.placed(programs.is_empty());
        let took = began.elapsed();
        let Some(placed) = placed else { return Some(took) };
        self.links.retain(|id, _| placed.contains_key(id));
        self.refused.retain(|id| placed.contains_key(id));
        for (id, stands) in placed {
            let Some(program) = programs.get(&id) else { continue };
            if self.links.contains_key(&id) || self.refused.contains(&id) {
                continue;
            }
            let name = program.name_as_str().filter(|name| !name.is_empty());
            if let Some(name) = name {
                self.names.insert(id, name.to_owned());
            }
            let label = label(name, id, &stands);
            let news = match self.look_on(program, stands.program_type) {
                Ok(link) => {
                    self.links.insert(id, link);
                    VerdictNews::Watched(label)
                }
                Err(why) if why.is_general() => {
                    let _ = self.say.send(VerdictNews::Unseen(format!("{label} and others: {why}")));
                    return None;
                }
                Err(why) => {
                    self.refused.insert(id);
                    VerdictNews::Unseen(format!("{label}: {why}"))
                }
            };
            // Nobody listens any more when the trace is over.
            if self.say.send(news).is_err() {
                return None;
            }
        }
        Some(took)
    }

    /// What stands on the devices of the traced namespaces; `None` where one could not be looked at.
    fn placed(&self, none: bool) -> Option<Placed> {
        let mut placed = Placed::new();
        for path in self.namespaces.values().filter(|_| !none) {
            for (id, stands) in in_netns(path, placed::read).ok()?.ok()? {
                match placed.get_mut(&id) {
                    Some(known) => known.devices.extend(stands.devices),
                    None => drop(placed.insert(id, stands)),
                }
            }
        }
        Some(placed)
    }

    fn look_on(&mut self, program: &ProgramInfo, program_type: ProgramType) -> Result<OwnedFd, Refused> {
        let texts = match &mut self.texts {
            Some(texts) => texts,
            none => none.insert(self.shelf.open()?),
        };
        let target = program.fd().context("asking for the program")?;
        texts.look_on(target.as_fd(), program.id(), program_type)
    }
}

/// `XDP drop_port (program 12) on eth0`
fn label(name: Option<&str>, id: u32, stands: &Stands) -> String {
    let name = name.map(|name| format!(" {name}")).unwrap_or_default();
    let devices: Vec<&str> = stands.devices.iter().map(String::as_str).collect();
    format!("{}{name} (program {id}) on {}", stands.program_type.name(), devices.join(", "))
}

impl Kernel {
    /// Names of the programs of others that were looked on.
    #[must_use]
    pub fn program_names(&self) -> ProgramNames {
        self.program_names.clone()
    }

    /// Starts to look on XDP and tc programs of others on the devices of the traced namespaces; those that are there by now
    /// are looked on when this returns.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start_verdicts(&mut self) -> Result<()> {
        if let Some(shelf) = self.shelf.take_if(|_| is_known(&self.types)) {
            let verdicts = Verdicts::start(shelf, self.program_names.clone(), self.paths())?;
            self.verdicts = Some(verdicts);
        }
        Ok(())
    }

    /// What has come of it since the last call.
    pub fn verdict_news(&self) -> Vec<VerdictNews> {
        self.verdicts.iter().flat_map(|verdicts| verdicts.news.try_iter()).collect()
    }

    /// Says to the thread which namespaces are traced by now.
    pub(super) fn verdicts_follow(&self) {
        if let Some(verdicts) = &self.verdicts {
            // It has ended where looking on is refused.
            let _ = verdicts.namespaces.send(self.paths());
        }
    }

    fn paths(&self) -> BTreeMap<u32, PathBuf> {
        self.namespaces.values().map(|space| (space.inode(), space.path().to_owned())).collect()
    }

    /// Whether other programs can be looked on; tried out on two of our own.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn try_verdicts(&mut self) -> Result<()> {
        anyhow::ensure!(is_known(&self.types), "this kernel has no fexit programs (from 5.5)");
        let texts = self.shelf.as_ref().context("they are in use")?.open()?;
        let xdp: &mut Xdp = program(&mut self.ebpf, OWN[0])?.try_into()?;
        if xdp.fd().is_err() {
            xdp.load()?;
        }
        texts.look_on(xdp.fd()?.as_fd(), 0, ProgramType::Xdp)?;
        let tc: &mut SchedClassifier = program(&mut self.ebpf, OWN[1])?.try_into()?;
        if tc.fd().is_err() {
            tc.load()?;
        }
        texts.look_on(tc.fd()?.as_fd(), 0, ProgramType::Tc)?;
        Ok(())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::programs::Program> {
    ebpf.program_mut(name).with_context(|| format!("kernel object: no program {name}"))
}
