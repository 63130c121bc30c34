//! Netfilter BPF programs and links, which aya does not know: a program's text is given its constants for one place, and
//! loaded and linked here.
//!
//! Kernel side: `bpf_nf_link_attach` (net/netfilter/nf_bpf_link.c), from 6.4 with CONFIG_NETFILTER_BPF_LINK.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    thread,
};

use anyhow::{Context, Result, anyhow};
use aya::maps::Map;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn};
use tracer_common::settings::{patch, role};

use super::{
    syscall::{bpf, call},
    text::{As, MOVE_IMMEDIATE, Object, Text, map_descriptor, set},
    verifier,
};

/// `BPF_PROG_TYPE_NETFILTER` and `BPF_NETFILTER` (enum bpf_attach_type), include/uapi/linux/bpf.h, 6.4.
const PROG_TYPE_NETFILTER: u32 = 32;
const ATTACH_NETFILTER: u32 = 45;
const NETFILTER: As<'_> =
    As { program_type: PROG_TYPE_NETFILTER, attach_type: ATTACH_NETFILTER, target: None };
/// A probe that only follows, what it hands over to, and a probe that decides about packets not followed yet.
const FOLLOW: &str = "netfilter_follow";
const JUDGE: &str = "netfilter_judge";
const GATE: &str = "netfilter_gate";
/// The program array that leads from the first to the second.
const JUDGE_MAP: &str = "JUDGE";
/// Opcode of `exit` (BPF_JMP | BPF_EXIT).
const EXIT: u8 = 0x95;

/// Where a probe stands at one hook of the calling thread's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub pf: u8,
    /// `enum nf_inet_hooks`.
    pub hook: u8,
    pub priority: i32,
    /// [`tracer_common::settings::role`] bits.
    pub role: u32,
}

/// Why a probe could not be placed.
#[derive(Debug)]
pub enum PlaceError {
    /// Another BPF program stands at this priority (`nf_hook_entries_grow` wants it to itself).
    Taken,
    Other(anyhow::Error),
}

/// The netfilter programs, ready to be loaded for any place.
pub struct Programs {
    follow: Text,
    gate: Text,
    types: Option<OwnedFd>,
    /// Kept open: the program array holds it only as long as somebody does.
    _judge: OwnedFd,
    loaded: HashMap<(i32, u32), OwnedFd>,
}

impl Programs {
    /// Takes the programs out of `object`, points them at the maps of `maps`, and loads what all probes share.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new<'a>(object: &[u8], maps: impl Iterator<Item = (&'a str, &'a Map)>) -> Result<Self> {
        let maps = maps
            .map(|(name, map)| Ok((name.to_owned(), map_descriptor(map)?)))
            .collect::<Result<Vec<_>>>()?;
        let object = Object::open(object, &maps)?;
        let judge = object.text(JUDGE)?;
        let judge = load(&judge, &judge.instructions, object.types.as_ref())?;
        let (_, array) = maps
            .iter()
            .find(|(name, _)| name == JUDGE_MAP)
            .with_context(|| format!("kernel object: no map {JUDGE_MAP}"))?;
        set_program(*array, judge.as_fd()).context("kernel object: joining the netfilter programs")?;
        Ok(Self {
            follow: object.text(FOLLOW)?,
            gate: object.text(GATE)?,
            types: object.types,
            _judge: judge,
            loaded: HashMap::new(),
        })
    }

    /// Loads what will be needed for these places, side by side: the verifier's work on a probe that decides takes as long as
    /// placing all. What is refused, [`Self::attach`] says.
    pub fn prepare(&mut self, places: &[Place]) {
        let is_missing = |key: &(i32, u32)| key.1 != role::FOLLOW && !self.loaded.contains_key(key);
        let missing: BTreeSet<_> =
            places.iter().map(|place| (place.priority, place.role)).filter(is_missing).collect();
        let this = &*self;
        let loaded: Vec<_> = thread::scope(|scope| {
            let jobs: Vec<_> =
                missing.into_iter().map(|key| (key, scope.spawn(move || this.load(key.0, key.1)))).collect();
            jobs.into_iter().filter_map(|(key, job)| Some((key, job.join().ok()?.ok()?))).collect()
        });
        self.loaded.extend(loaded);
    }

    /// Places a probe in the network namespace of the calling thread. It is gone when the descriptor is closed.
    pub fn attach(&mut self, place: Place) -> Result<OwnedFd, PlaceError> {
        let key = (place.priority, place.role);
        if !self.loaded.contains_key(&key) {
            let program = self.load(place.priority, place.role).map_err(PlaceError::Other)?;
            self.loaded.insert(key, program);
        }
        link(self.loaded[&key].as_fd(), place).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => PlaceError::Taken,
            _ => PlaceError::Other(anyhow!(error).context(format!(
                "netfilter probe at pf {} hook {} priority {} (BPF_LINK_CREATE)",
                place.pf, place.hook, place.priority
            ))),
        })
    }

    fn load(&self, priority: i32, role: u32) -> Result<OwnedFd> {
        let text = if role == role::FOLLOW { &self.follow } else { &self.gate };
        let mut instructions = text.instructions.clone();
        set(&mut instructions, patch::PRIORITY, priority)?;
        if role != role::FOLLOW {
            set(&mut instructions, patch::ROLE, role.cast_signed())?;
        }
        load(text, &instructions, self.types.as_ref())
    }
}

/// Whether this kernel knows netfilter programs at all. Any other refusal is left to show when they are loaded.
#[must_use]
pub fn is_known() -> bool {
    let text = Text {
        name: "pathtrace_try",
        instructions: vec![plain(MOVE_IMMEDIATE[0], 1), plain(EXIT, 0)],
        function_info: Vec::new(),
        function_info_count: 0,
        function_info_size: 0,
    };
    let refusal = || text.submit(&text.instructions, NETFILTER, None, &mut []).err()?.raw_os_error();
    let said = match refusal() {
        // Before 5.11 programs count as locked memory, of all processes of a user, and that is asked first.
        Some(libc::EPERM) => {
            lift_memory_limit();
            refusal()
        }
        said => said,
    };
    said != Some(libc::EINVAL)
}

/// Lets this process lock as much memory as it needs; what refuses that shows when something is loaded.
fn lift_memory_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the call reads the structure that it is given.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// An instruction on register 0.
fn plain(code: u8, imm: i32) -> bpf_insn {
    bpf_insn { code, _bitfield_align_1: [], _bitfield_1: bpf_insn::new_bitfield_1(0, 0), off: 0, imm }
}

/// Loads a program; on refusal says in one line why, and what the verifier said in those behind it.
fn load(text: &Text, instructions: &[bpf_insn], types: Option<&OwnedFd>) -> Result<OwnedFd> {
    // A log costs time and is only of use when the load fails.
    let first = match text.submit(instructions, NETFILTER, types, &mut []) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let (again, said) = text.log(instructions, NETFILTER, types).unwrap_or((first, String::new()));
    let reason = verifier::reason(&said);
    Err(anyhow!("program {} was refused (BPF_PROG_LOAD): {again}: {reason}\n{said}", text.name))
}

/// Puts a program into the first place of a program array.
fn set_program(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, program.as_raw_fd());
    // SAFETY: as in `submit`.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    // SAFETY: the member of BPF_MAP_UPDATE_ELEM.
    let update = unsafe { &mut attr.__bindgen_anon_2 };
    update.map_fd = array.as_raw_fd().cast_unsigned();
    update.key = (&raw const key) as u64;
    update.__bindgen_anon_1.value = (&raw const value) as u64;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

/// `union bpf_attr`'s `link_create` with its `netfilter` member; aya's bindings end before it.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    pf: u32,
    hook: u32,
    priority: i32,
    netfilter_flags: u32,
}

fn link(program: BorrowedFd<'_>, place: Place) -> io::Result<OwnedFd> {
    let mut create = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_NETFILTER,
        pf: place.pf.into(),
        hook: place.hook.into(),
        priority: place.priority,
        ..LinkCreate::default()
    };
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut create)
}
