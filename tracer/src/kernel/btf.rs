//! Layouts of the running kernel's structures, from its BTF: vmlinux first, and the modules' "split" BTF only for
//! what vmlinux does not have.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use btf_rs::{Backend, Btf, Struct, Type};
use nix::sys::memfd::{MFdFlags, memfd_create};
use regex::Regex;

use super::ReadError;

mod documented;
mod signature;
pub use signature::{Parameter, position_of};

/// Where the kernel shows its BTF.
pub const BTF_DIRECTORY: &str = "/sys/kernel/btf";

/// Modules are looked through in this order, others of netfilter after them.
const LIKELY_MODULES: &[&str] =
    &["nf_tables", "x_tables", "nf_conntrack", "nf_nat", "ip_tables", "ip6_tables", "nft_compat"];

/// How deep members are followed; C nests less.
const MAX_DEPTH: u32 = 16;

/// A member narrower than, or not on the border of, a byte; as little-endian machines lay it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitField {
    /// From the start of the structure, in bits.
    pub bit: u32,
    /// In bits, 1..=64.
    pub width: u32,
}

impl BitField {
    /// Takes the member out of the 8 bytes that start at [`Self::unit`].
    #[must_use]
    pub fn extract(self, unit: u64) -> u64 {
        let mask = if self.width >= 64 { u64::MAX } else { (1 << self.width) - 1 };
        (unit >> (self.bit - self.unit() * 8)) & mask
    }

    /// Byte offset of the aligned 8 bytes that hold the member.
    #[must_use]
    pub fn unit(self) -> u32 {
        self.bit / 64 * 8
    }
}

/// Types of the running kernel.
pub struct KernelTypes {
    vmlinux: Btf,
    modules: Mutex<Modules>,
    /// Names looked up before, in vmlinux and the modules read so far: the memory-mapped backend searches linearly.
    known: Mutex<HashMap<String, Vec<Found>>>,
}

struct Modules {
    directory: PathBuf,
    seen: HashSet<PathBuf>,
    read: Vec<Btf>,
}

impl Modules {
    /// Reads the next module not seen yet and returns its index; modules may be loaded while this program runs.
    fn read_next(&mut self, vmlinux: &Btf) -> Option<usize> {
        loop {
            let unseen = fs::read_dir(&self.directory).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
            let next =
                unseen.filter(|path| is_netfilter(path) && !self.seen.contains(path)).min_by_key(|path| {
                    LIKELY_MODULES.iter().position(|name| path.ends_with(name)).unwrap_or(usize::MAX)
                })?;
            self.seen.insert(next.clone());
            // A module without readable BTF has nothing to say.
            if let Ok(module) = Btf::from_split_file(next, vmlinux) {
                self.read.push(module);
                return Some(self.read.len() - 1);
            }
        }
    }
}

/// Whether a module can have what is looked for and the kernel proper has not. Reading all of a hundred takes long,
/// and that happens whenever something is not there.
fn is_netfilter(module: &Path) -> bool {
    const BEGINNINGS: &[&str] = &["nf", "x_tables", "xt_", "ip", "br_netfilter"];
    let name = module.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

#[derive(Clone, Copy)]
struct Found {
    /// `None`: vmlinux; else an index in `Modules::read`.
    module: Option<usize>,
    id: u32,
}

impl KernelTypes {
    /// Opens `vmlinux` in `directory` (on a live system [`BTF_DIRECTORY`]).
    ///
    /// # Errors
    /// [`ReadError::Bpf`] where the kernel was built without BTF or it cannot be parsed.
    pub fn open(directory: &Path) -> Result<Self, ReadError> {
        let vmlinux = mapped(&directory.join("vmlinux")).map_err(ReadError::bpf(
            "kernel types (/sys/kernel/btf/vmlinux; needs CONFIG_DEBUG_INFO_BTF=y)",
        ))?;
        let modules = Modules { directory: directory.to_owned(), seen: HashSet::new(), read: Vec::new() };
        Ok(Self { vmlinux, modules: Mutex::new(modules), known: Mutex::default() })
    }

    /// Finds many names of vmlinux in one go, so that look-ups of them later cost nothing: each search by name goes
    /// through all types.
    pub fn find_all<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let names: HashSet<&str> = names.into_iter().collect();
        let any: Vec<String> = names.iter().map(|name| regex::escape(name)).collect();
        // Without the pattern, or its answer, each is looked for when it is asked for.
        let Ok(any) = Regex::new(&format!("^(?-u:{})$", any.join("|"))) else { return };
        let Ok(ids) = self.vmlinux.base().resolve_ids_by_regex(&any) else { return };
        let mut found: HashMap<String, Vec<Found>> =
            names.into_iter().map(|name| (name.to_owned(), Vec::new())).collect();
        for id in ids {
            let Ok(kind) = self.vmlinux.resolve_type_by_id(id) else { return };
            let name = kind.as_btf_type().and_then(|kind| self.vmlinux.resolve_name(kind).ok());
            let Some(found) = name.and_then(|name| found.get_mut(&name)) else { return };
            found.push(Found { module: None, id });
        }
        // What was looked up before knows of modules, too.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, found) in found {
            known.entry(name).or_insert(found);
        }
    }

    /// Byte offset of a member, `path` dotted, found also inside anonymous structures and unions.
    /// `None` when this kernel has no such type or member, or the member does not start on a byte.
    #[must_use]
    pub fn offset_of(&self, structure: &str, path: &str) -> Option<u32> {
        let bit = self.member(structure, path)?.0;
        (bit % 8 == 0).then_some(bit / 8)
    }

    /// A bit-field member; for an ordinary integer member its whole width.
    #[must_use]
    pub fn bit_field(&self, structure: &str, path: &str) -> Option<BitField> {
        let (bit, width) = self.member(structure, path)?;
        width.filter(|width| (1..=64).contains(width)).map(|width| BitField { bit, width })
    }

    /// Bytes of a structure, union or enum.
    #[must_use]
    pub fn size_of(&self, name: &str) -> Option<u32> {
        self.search(name, |_, found| match found {
            Type::Struct(s) | Type::Union(s) => Some(s.size() as u32),
            Type::Enum(e) => Some(e.size() as u32),
            _ => None,
        })
    }

    /// The kernel's own number of a function of vmlinux, as calls of it in BPF programs want it.
    #[must_use]
    pub fn function_id(&self, name: &str) -> Option<u32> {
        self.vmlinux_id(name, |found| matches!(found, Type::Func(_)))
    }

    /// The kernel's own number of a structure of vmlinux.
    #[must_use]
    pub fn structure_id(&self, name: &str) -> Option<u32> {
        self.vmlinux_id(name, |found| matches!(found, Type::Struct(_)))
    }

    fn vmlinux_id(&self, name: &str, is_it: impl Fn(&Type) -> bool) -> Option<u32> {
        self.vmlinux_ids(name)
            .into_iter()
            .find(|id| self.vmlinux.resolve_type_by_id(*id).is_ok_and(|found| is_it(&found)))
    }

    /// All of that name in vmlinux.
    fn vmlinux_ids(&self, name: &str) -> Vec<u32> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(name).cloned().unwrap_or_else(|| ids(&self.vmlinux, None, name));
        found.into_iter().filter(|found| found.module.is_none()).map(|found| found.id).collect()
    }

    /// Names and values of an enum, in the order of its declaration. `None` when there is no such enum.
    #[must_use]
    pub fn enum_values(&self, name: &str) -> Option<Vec<(String, i64)>> {
        self.search(name, |btf, found| match found {
            Type::Enum(e) => e
                .members
                .iter()
                .map(|m| {
                    let value =
                        if e.is_signed() { i64::from(m.val().cast_signed()) } else { i64::from(m.val()) };
                    Some((btf.resolve_name(m).ok()?, value))
                })
                .collect(),
            Type::Enum64(e) => {
                e.members.iter().map(|m| Some((btf.resolve_name(m).ok()?, m.val().cast_signed()))).collect()
            }
            _ => None,
        })
    }

    /// As [`Self::offset_of`].
    ///
    /// # Errors
    /// [`ReadError::NoMember`].
    pub fn require(&self, structure: &'static str, path: &'static str) -> Result<u32, ReadError> {
        // Documented only where nothing says otherwise.
        self.offset_of(structure, path)
            .or_else(|| documented::offset(structure, path))
            .ok_or(ReadError::NoMember { structure, path })
    }

    /// As [`Self::bit_field`].
    ///
    /// # Errors
    /// [`ReadError::NoMember`].
    pub fn require_bits(&self, structure: &'static str, path: &'static str) -> Result<BitField, ReadError> {
        self.bit_field(structure, path).ok_or(ReadError::NoMember { structure, path })
    }

    /// As [`Self::size_of`].
    ///
    /// # Errors
    /// [`ReadError::NoType`].
    pub fn require_size(&self, name: &'static str) -> Result<u32, ReadError> {
        self.size_of(name).or_else(|| documented::size(name)).ok_or(ReadError::NoType { name })
    }

    /// Bit offset and, where it is an integer or enum, bit width.
    fn member(&self, structure: &str, path: &str) -> Option<(u32, Option<u32>)> {
        self.search(structure, |btf, found| {
            let (mut owner, mut bit) = (found.clone(), 0);
            let mut width = None;
            for name in path.split('.') {
                let (Type::Struct(s) | Type::Union(s)) = &owner else { return None };
                let member = find_member(btf, s, name, MAX_DEPTH)?;
                bit += member.bit;
                width = member.width;
                owner = member.kind;
            }
            Some((bit, width))
        })
    }

    /// Asks each type of that name, vmlinux's first, until `ask` has an answer. Modules are read only for a type that
    /// is not defined so far.
    fn search<T>(&self, name: &str, ask: impl Fn(&Btf, &Type) -> Option<T>) -> Option<T> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.entry(name.to_owned()).or_insert_with(|| {
            let mut found = ids(&self.vmlinux, None, name);
            for (index, module) in modules.read.iter().enumerate() {
                found.extend(ids(module, Some(index), name));
            }
            found
        });
        let (mut tried, mut defined) = (0, false);
        loop {
            for candidate in &found[tried..] {
                let btf = candidate.module.map_or(&self.vmlinux, |index| &modules.read[index]);
                let Ok(kind) = btf.resolve_type_by_id(candidate.id) else { continue };
                if let Some(answer) = ask(btf, &kind) {
                    return Some(answer);
                }
                defined |= matches!(kind, Type::Struct(_) | Type::Union(_) | Type::Enum(_) | Type::Enum64(_));
            }
            if defined {
                return None;
            }
            tried = found.len();
            let index = modules.read_next(&self.vmlinux)?;
            found.extend(ids(&modules.read[index], Some(index), name));
        }
    }
}

/// Parsing all of it up front takes ten times as long as every look-up that this program does, so it is mapped; where
/// the kernel's file cannot be (before 6.16), a copy in memory is.
fn mapped(file: &Path) -> Result<Btf, btf_rs::Error> {
    Btf::from_file_with_backend(file, Backend::Mmap).or_else(|_| {
        let copy = memfd_create(c"btf", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
        let copy = File::from(copy);
        io::copy(&mut File::open(file)?, &mut &copy)?;
        Btf::from_file_with_backend(format!("/proc/self/fd/{}", copy.as_raw_fd()), Backend::Mmap)
    })
}

struct FoundMember {
    bit: u32,
    width: Option<u32>,
    kind: Type,
}

/// The ids of that name which `btf` itself defines.
fn ids(btf: &Btf, module: Option<usize>, name: &str) -> Vec<Found> {
    let section = if module.is_some() { btf.split() } else { Some(btf.base()) };
    let ids = section.and_then(|section| section.resolve_ids_by_name(name).ok()).unwrap_or_default();
    ids.into_iter().map(|id| Found { module, id }).collect()
}

fn find_member(btf: &Btf, owner: &Struct, name: &str, depth: u32) -> Option<FoundMember> {
    for member in &owner.members {
        let member_name = btf.resolve_name(member).ok()?;
        if member_name != name && !member_name.is_empty() {
            continue;
        }
        let kind = behind_names(btf, btf.resolve_chained_type(member).ok()?)?;
        if member_name == name {
            let width = member.bitfield_size().filter(|width| *width != 0).or(match &kind {
                Type::Int(int) => Some(int.size() as u32 * 8),
                Type::Enum(e) => Some(e.size() as u32 * 8),
                _ => None,
            });
            return Some(FoundMember { bit: member.bit_offset(), width, kind });
        }
        if let (Type::Struct(inner) | Type::Union(inner), Some(depth)) = (&kind, depth.checked_sub(1))
            && let Some(found) = find_member(btf, inner, name, depth)
        {
            return Some(FoundMember { bit: member.bit_offset() + found.bit, ..found });
        }
    }
    None
}

/// Strips typedefs, qualifiers and arrays.
fn behind_names(btf: &Btf, mut kind: Type) -> Option<Type> {
    for _ in 0..MAX_DEPTH {
        match &kind {
            Type::Typedef(_)
            | Type::Const(_)
            | Type::Volatile(_)
            | Type::Restrict(_)
            | Type::TypeTag(_)
            | Type::Array(_) => kind = btf.resolve_chained_type(kind.as_btf_type()?).ok()?,
            _ => return Some(kind),
        }
    }
    None
}

/// Declares a set of offsets and sizes that a reader needs, resolved all at once.
macro_rules! kernel_layout {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $what:ident($type:literal $(, $path:literal)?),)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Debug)]
        pub(crate) struct $name { $(pub(crate) $field: $crate::kernel::btf::kernel_layout!(@type $what),)+ }

        impl $name {
            #[allow(dead_code, reason = "not every layout is looked for in advance")]
            /// The types that this is of, each as often as it is needed.
            pub(crate) const TYPES: &[&str] = &[$($type),+];

            /// # Errors
            /// The first member or type that this kernel does not have.
            pub(crate) fn resolve(
                types: &$crate::kernel::KernelTypes,
            ) -> Result<Self, $crate::kernel::ReadError> {
                Ok(Self { $($field: $crate::kernel::btf::kernel_layout!(@get types $what $type $(, $path)?),)+ })
            }
        }
    };
    (@type bits) => { $crate::kernel::btf::BitField };
    (@type maybe) => { Option<u32> };
    (@type maybe_bits) => { Option<$crate::kernel::btf::BitField> };
    (@type $other:ident) => { u32 };
    (@get $types:ident offset $structure:literal, $path:literal) => { $types.require($structure, $path)? };
    (@get $types:ident bits $structure:literal, $path:literal) => { $types.require_bits($structure, $path)? };
    (@get $types:ident maybe $structure:literal, $path:literal) => { $types.offset_of($structure, $path) };
    (@get $types:ident maybe_bits $structure:literal, $path:literal) => { $types.bit_field($structure, $path) };
    (@get $types:ident size $structure:literal) => { $types.require_size($structure)? };
}
pub(crate) use kernel_layout;

#[cfg(test)]
pub(crate) mod tests;
