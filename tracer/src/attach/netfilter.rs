//! Netfilter BPF programs and links, which aya does not know: the program text is taken from the same object,
//! relocated against the maps that aya made, given its constants for one place, and loaded and linked here.
//!
//! Kernel side: `bpf_nf_link_attach` (net/netfilter/nf_bpf_link.c), from 6.4 with CONFIG_NETFILTER_BPF_LINK.

use std::{
    collections::{HashMap, HashSet},
    ffi::c_char,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::Map;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn};
use tracer_common::settings::{patch, role};

use super::syscall::{bpf, call};

/// `BPF_PROG_TYPE_NETFILTER` and `BPF_NETFILTER` (enum bpf_attach_type), include/uapi/linux/bpf.h, 6.4.
const PROG_TYPE_NETFILTER: u32 = 32;
const ATTACH_NETFILTER: u32 = 45;
/// A probe that only follows, what it hands over to, and a probe that decides about packets not followed yet.
const FOLLOW: &str = "netfilter_follow";
const JUDGE: &str = "netfilter_judge";
const GATE: &str = "netfilter_gate";
/// The program array that leads from the first to the second.
const JUDGE_MAP: &str = "JUDGE";
const LICENSE: &[u8] = b"Dual MIT/GPL\0";
/// Opcode of `dst = imm` (BPF_ALU64 | BPF_MOV | BPF_K) and of its 32-bit form.
const MOVE_IMMEDIATE: [u8; 2] = [0xb7, 0xb4];
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

/// One program of the object, relocated.
struct Text {
    name: &'static str,
    instructions: Vec<bpf_insn>,
    function_info: Vec<u8>,
    function_info_count: u32,
    function_info_size: u32,
}

impl Text {
    fn take(object: &aya_obj::Object, name: &'static str) -> Result<Self> {
        let program =
            object.programs.get(name).with_context(|| format!("kernel object: no program {name}"))?;
        let function =
            object.functions.get(&program.function_key()).context("kernel object: program without code")?;
        Ok(Self {
            name,
            instructions: function.instructions.clone(),
            function_info: function.func_info.func_info_bytes(),
            function_info_count: u32::try_from(function.func_info.len())?,
            function_info_size: u32::try_from(function.func_info_rec_size)?,
        })
    }
}

/// The netfilter programs, ready to be loaded for any place.
pub struct Programs {
    follow: Text,
    gate: Text,
    types: Option<OwnedFd>,
    /// Kept open: the program array holds it only as long as somebody does.
    _judge: OwnedFd,
    loaded: HashMap<(i32, u32), OwnedFd>,
    verbose: bool,
}

impl Programs {
    /// Takes the programs out of `object`, points them at the maps of `maps`, and loads what all probes share.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn new<'a>(
        object: &[u8],
        maps: impl Iterator<Item = (&'a str, &'a Map)>,
        verbose: bool,
    ) -> Result<Self> {
        let mut parsed = aya_obj::Object::parse(object).context("kernel object: not readable")?;
        let types = match aya::features().btf() {
            Some(features) => parsed
                .fixup_and_sanitize_btf(features)
                .context("kernel object: type information")?
                .map(|btf| load_types(&btf.to_bytes()))
                .transpose()
                .context("kernel object: its type information was refused (BPF_BTF_LOAD)")?,
            None => None,
        };
        let mut descriptors: Vec<(String, BorrowedFd<'a>, aya_obj::Map)> = Vec::new();
        for (name, map) in maps {
            let Some(definition) = parsed.maps.get(name).cloned() else { continue };
            descriptors.push((name.to_owned(), map_descriptor(map)?, definition));
        }
        relocate(&mut parsed, &descriptors)?;
        let judge = Text::take(&parsed, JUDGE)?;
        let judge = load(&judge, &judge.instructions, types.as_ref(), verbose)?;
        let (_, array, _) = descriptors
            .iter()
            .find(|(name, ..)| name == JUDGE_MAP)
            .with_context(|| format!("kernel object: no map {JUDGE_MAP}"))?;
        set_program(*array, judge.as_fd()).context("kernel object: joining the netfilter programs")?;
        Ok(Self {
            follow: Text::take(&parsed, FOLLOW)?,
            gate: Text::take(&parsed, GATE)?,
            types,
            _judge: judge,
            loaded: HashMap::new(),
            verbose,
        })
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
        load(text, &instructions, self.types.as_ref(), self.verbose)
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
    let refusal = || submit(&text, &text.instructions, None, &mut []).err()?.raw_os_error();
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

/// Points the object's code at live maps, and its calls at its functions.
fn relocate(object: &mut aya_obj::Object, maps: &[(String, BorrowedFd<'_>, aya_obj::Map)]) -> Result<()> {
    let text_sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let maps = maps.iter().map(|(name, fd, map)| (name.as_str(), fd.as_raw_fd(), map));
    object.relocate_maps(maps, &text_sections).map_err(|e| anyhow!("kernel object: maps: {e}"))?;
    object.relocate_calls(&text_sections).map_err(|e| anyhow!("kernel object: calls: {e}"))
}

/// Loads a program; on refusal says what the verifier said, its last line unless `verbose`.
fn load(text: &Text, instructions: &[bpf_insn], types: Option<&OwnedFd>, verbose: bool) -> Result<OwnedFd> {
    // A log costs time and is only of use when the load fails.
    let first = match submit(text, instructions, types, &mut []) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0u8; 1 << 20];
    let again = submit(text, instructions, types, &mut log).err().unwrap_or(first);
    let said = String::from_utf8_lossy(&log);
    let said = said.trim_end_matches('\0').trim_end();
    let said = if verbose { said } else { said.lines().last().unwrap_or_default() };
    Err(anyhow!(again).context(format!("program {} was refused (BPF_PROG_LOAD): {said}", text.name)))
}

fn submit(
    text: &Text,
    instructions: &[bpf_insn],
    types: Option<&OwnedFd>,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    // SAFETY: bpf_attr is plain data, and zero is valid for each member.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    // SAFETY: the member of BPF_PROG_LOAD.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = PROG_TYPE_NETFILTER;
    load.expected_attach_type = ATTACH_NETFILTER;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = LICENSE.as_ptr() as u64;
    for (to, from) in load.prog_name.iter_mut().zip(text.name.bytes().take(15)) {
        *to = c_char::from_ne_bytes([from]);
    }
    if let Some(types) = types {
        load.prog_btf_fd = types.as_raw_fd().cast_unsigned();
        load.func_info = text.function_info.as_ptr() as u64;
        load.func_info_cnt = text.function_info_count;
        load.func_info_rec_size = text.function_info_size;
    }
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = log.len() as u32;
    }
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
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

/// Replaces an immediate in the program.
fn set(text: &mut [bpf_insn], magic: u32, value: i32) -> Result<()> {
    let mut found = false;
    for instruction in text {
        if MOVE_IMMEDIATE.contains(&instruction.code) && instruction.imm == magic.cast_signed() {
            instruction.imm = value;
            found = true;
        }
    }
    if found { Ok(()) } else { bail!("kernel object: constant {magic:#x} is not in the program") }
}

fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: as in `submit`.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    // SAFETY: the member of BPF_BTF_LOAD.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = bytes.len() as u32;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)
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

/// The descriptor of a map of any kind that the kernel object has.
pub fn map_descriptor(map: &Map) -> Result<BorrowedFd<'_>> {
    Ok(match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data) => data.fd().as_fd(),
        other => bail!("kernel object: a map of unexpected kind {other:?}"),
    })
}
