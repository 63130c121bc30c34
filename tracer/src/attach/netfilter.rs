//! Netfilter BPF programs and links, which aya does not know: the program text is taken from the same object,
//! relocated against the maps that aya made, given its constants for one place, and loaded and linked here.
//!
//! Kernel side: `bpf_nf_link_attach` (net/netfilter/nf_bpf_link.c), from 6.4 with CONFIG_NETFILTER_BPF_LINK.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::Map;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn};
use tracer_common::settings::patch;

/// `BPF_PROG_TYPE_NETFILTER` and `BPF_NETFILTER` (enum bpf_attach_type), include/uapi/linux/bpf.h, 6.4.
const PROG_TYPE_NETFILTER: u32 = 32;
const ATTACH_NETFILTER: u32 = 45;
const PROGRAM: &str = "netfilter_probe";
const LICENSE: &[u8] = b"Dual MIT/GPL\0";
/// Opcode of `dst = imm` (BPF_ALU64 | BPF_MOV | BPF_K) and of its 32-bit form.
const MOVE_IMMEDIATE: [u8; 2] = [0xb7, 0xb4];

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

/// The netfilter program, ready to be loaded for any place.
pub struct Programs {
    text: Vec<bpf_insn>,
    function_info: Vec<u8>,
    function_info_count: u32,
    function_info_size: u32,
    types: Option<OwnedFd>,
    loaded: HashMap<(i32, u32), OwnedFd>,
    verbose: bool,
}

impl Programs {
    /// Takes the program out of `object` and points it at the maps of `maps`.
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
        let text_sections: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
        let mut descriptors: Vec<(String, RawFd, aya_obj::Map)> = Vec::new();
        for (name, map) in maps {
            let Some(definition) = parsed.maps.get(name).cloned() else { continue };
            descriptors.push((name.to_owned(), map_descriptor(map)?.as_raw_fd(), definition));
        }
        parsed
            .relocate_maps(
                descriptors.iter().map(|(name, fd, map)| (name.as_str(), *fd, map)),
                &text_sections,
            )
            .map_err(|e| anyhow!("kernel object: maps: {e}"))?;
        parsed.relocate_calls(&text_sections).map_err(|e| anyhow!("kernel object: calls: {e}"))?;
        let key = parsed
            .programs
            .get(PROGRAM)
            .with_context(|| format!("kernel object: no program {PROGRAM}"))?
            .function_key();
        let function = parsed.functions.get(&key).context("kernel object: program without code")?;
        Ok(Self {
            text: function.instructions.clone(),
            function_info: function.func_info.func_info_bytes(),
            function_info_count: u32::try_from(function.func_info.len())?,
            function_info_size: u32::try_from(function.func_info_rec_size)?,
            types,
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
        let mut text = self.text.clone();
        set(&mut text, patch::PRIORITY, priority)?;
        set(&mut text, patch::ROLE, role.cast_signed())?;
        // A log costs time and is only of use when the load fails.
        match self.submit(&text, &mut []) {
            Ok(program) => Ok(program),
            Err(error) => {
                let mut log = vec![0u8; 1 << 20];
                let again = self.submit(&text, &mut log).err().unwrap_or(error);
                let text = String::from_utf8_lossy(&log);
                let text = text.trim_end_matches('\0').trim_end();
                let shown = if self.verbose { text } else { text.lines().last().unwrap_or_default() };
                Err(anyhow!(again).context(format!("netfilter program was refused (BPF_PROG_LOAD): {shown}")))
            }
        }
    }

    fn submit(&self, text: &[bpf_insn], log: &mut [u8]) -> io::Result<OwnedFd> {
        // SAFETY: bpf_attr is plain data, and zero is valid for each member.
        let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
        // SAFETY: the member of BPF_PROG_LOAD.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = PROG_TYPE_NETFILTER;
        load.expected_attach_type = ATTACH_NETFILTER;
        load.insns = text.as_ptr() as u64;
        load.insn_cnt = text.len() as u32;
        load.license = LICENSE.as_ptr() as u64;
        for (to, from) in load.prog_name.iter_mut().zip(PROGRAM.bytes().take(15)) {
            *to = from.cast_signed();
        }
        if let Some(types) = &self.types {
            load.prog_btf_fd = types.as_raw_fd().cast_unsigned();
            load.func_info = self.function_info.as_ptr() as u64;
            load.func_info_cnt = self.function_info_count;
            load.func_info_rec_size = self.function_info_size;
        }
        if !log.is_empty() {
            load.log_level = 1;
            load.log_buf = log.as_mut_ptr() as u64;
            load.log_size = log.len() as u32;
        }
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
    }
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
    if found { Ok(()) } else { bail!("kernel object: constant {magic:#x} is not in {PROGRAM}") }
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

/// The bpf system call for commands that return a descriptor.
fn bpf<T>(command: bpf_cmd, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: attr is a live structure of the given size, as the command expects.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attr), size_of::<T>())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(io::Error::other)?) })
}

/// The descriptor of a map of any kind that the kernel object has.
pub fn map_descriptor(map: &Map) -> Result<BorrowedFd<'_>> {
    Ok(match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuHashMap(data)
        | Map::RingBuf(data) => data.fd().as_fd(),
        other => bail!("kernel object: a map of unexpected kind {other:?}"),
    })
}
