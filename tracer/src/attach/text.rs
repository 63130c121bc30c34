//! Programs that aya cannot load: their text is taken from the same object and relocated against the maps that aya made.

use std::{
    collections::HashSet,
    ffi::c_char,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::Map;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn};

use super::syscall::bpf;

const LICENSE: &[u8] = b"Dual MIT/GPL\0";
/// Opcode of `dst = imm` (BPF_ALU64 | BPF_MOV | BPF_K) and of its 32-bit form.
pub(super) const MOVE_IMMEDIATE: [u8; 2] = [0xb7, 0xb4];

/// The kernel object, pointed at live maps.
pub(super) struct Object {
    parsed: aya_obj::Object,
    pub(super) types: Option<OwnedFd>,
}

impl Object {
    /// Parses the object and points its code at these maps, and its calls at its functions.
    ///
    /// # Errors
    /// When it is not readable, or the kernel refuses its type information.
    pub(super) fn open(bytes: &[u8], maps: &[(String, BorrowedFd<'_>)]) -> Result<Self> {
        let mut parsed = aya_obj::Object::parse(bytes).context("kernel object: not readable")?;
        let types = match aya::features().btf() {
            Some(features) => parsed
                .fixup_and_sanitize_btf(features)
                .context("kernel object: type information")?
                .map(|btf| load_types(&btf.to_bytes()))
                .transpose()
                .context("kernel object: its type information was refused (BPF_BTF_LOAD)")?,
            None => None,
        };
        let used: Vec<_> = maps
            .iter()
            .filter_map(|(name, fd)| Some((name.as_str(), fd.as_raw_fd(), parsed.maps.get(name)?.clone())))
            .collect();
        let text_sections: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
        let maps = used.iter().map(|(name, fd, map)| (*name, *fd, map));
        parsed.relocate_maps(maps, &text_sections).map_err(|e| anyhow!("kernel object: maps: {e}"))?;
        parsed.relocate_calls(&text_sections).map_err(|e| anyhow!("kernel object: calls: {e}"))?;
        Ok(Self { parsed, types })
    }

    /// One program.
    pub(super) fn text(&self, name: &'static str) -> Result<Text> {
        let programs = &self.parsed.programs;
        let program = programs.get(name).with_context(|| format!("kernel object: no program {name}"))?;
        let function = self.parsed.functions.get(&program.function_key());
        let function = function.context("kernel object: program without code")?;
        Ok(Text {
            name,
            instructions: function.instructions.clone(),
            function_info: function.func_info.func_info_bytes(),
            function_info_count: u32::try_from(function.func_info.len())?,
            function_info_size: u32::try_from(function.func_info_rec_size)?,
        })
    }
}

/// One program of the object, relocated.
pub(super) struct Text {
    pub(super) name: &'static str,
    pub(super) instructions: Vec<bpf_insn>,
    pub(super) function_info: Vec<u8>,
    pub(super) function_info_count: u32,
    pub(super) function_info_size: u32,
}

/// What a program is loaded as.
#[derive(Clone, Copy)]
pub(super) struct As<'a> {
    /// `enum bpf_prog_type` and `enum bpf_attach_type`, include/uapi/linux/bpf.h.
    pub(super) program_type: u32,
    pub(super) attach_type: u32,
    /// The program that it looks on, and the number of its function in its own BTF.
    pub(super) target: Option<(BorrowedFd<'a>, u32)>,
}

impl Text {
    /// Loads `instructions`, which are this text's with its constants set.
    pub(super) fn submit(
        &self,
        instructions: &[bpf_insn],
        loaded_as: As<'_>,
        types: Option<&OwnedFd>,
        log: &mut [u8],
    ) -> io::Result<OwnedFd> {
        // SAFETY: bpf_attr is plain data, and zero is valid for each member.
        let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
        // SAFETY: the member of BPF_PROG_LOAD.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = loaded_as.program_type;
        load.expected_attach_type = loaded_as.attach_type;
        if let Some((program, function)) = loaded_as.target {
            load.__bindgen_anon_1.attach_prog_fd = program.as_raw_fd().cast_unsigned();
            load.attach_btf_id = function;
        }
        load.insns = instructions.as_ptr() as u64;
        load.insn_cnt = instructions.len() as u32;
        load.license = LICENSE.as_ptr() as u64;
        for (to, from) in load.prog_name.iter_mut().zip(self.name.bytes().take(15)) {
            *to = c_char::from_ne_bytes([from]);
        }
        if let Some(types) = types {
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

    /// What the verifier says of a program that it refuses; nothing where it does not refuse it now.
    pub(super) fn log(
        &self,
        instructions: &[bpf_insn],
        loaded_as: As<'_>,
        types: Option<&OwnedFd>,
    ) -> Option<(io::Error, String)> {
        let mut log = vec![0u8; 1 << 20];
        let error = self.submit(instructions, loaded_as, types, &mut log).err()?;
        let said = String::from_utf8_lossy(&log);
        Some((error, said.trim_end_matches('\0').trim_end().to_owned()))
    }
}

/// Replaces an immediate in the program.
pub(super) fn set(text: &mut [bpf_insn], magic: u32, value: i32) -> Result<()> {
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
    // SAFETY: as in `Text::submit`.
    let mut attr = unsafe { std::mem::zeroed::<bpf_attr>() };
    // SAFETY: the member of BPF_BTF_LOAD.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = bytes.len() as u32;
    bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)
}

/// The descriptor of a map of any kind that the kernel object has.
pub(super) fn map_descriptor(map: &Map) -> Result<BorrowedFd<'_>> {
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
