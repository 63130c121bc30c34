//! Reads of kernel memory: nothing else in this crate dereferences a kernel address.
//!
//! Where the kernel has `bpf_rdonly_cast` (6.2) a read is a load that yields zero when it faults, five times as fast as
//! a call of `bpf_probe_read_kernel`, which serves elsewhere.
//!
//! A read does not branch: what cannot be read is zero, and failures are added up in [`Reader::failed`], to be
//! reported with the record. (A branch a read would double the verifier's paths with each.) Of a load it is known
//! only whether the address was one of the kernel's. An offset that this kernel does not have yields zero too; user
//! space knows which are absent.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use tracer_common::settings::patch;

use crate::maps::SETTINGS;

/// The offset of a member in this kernel, or `None`. Constants for the verifier: it drops the dead branch.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: written before the program was loaded, read-only since.
        unsafe { (*(&raw const $crate::maps::SETTINGS)).layout.$field.get() }
    }};
}

/// A member of a kernel structure.
macro_rules! member {
    ($reader:expr, $base:expr, $field:ident) => {
        match $crate::read::offset!($field) {
            Some(offset) => $reader.read($base + offset),
            // SAFETY: integers and arrays of them, for which zero is a value.
            None => unsafe { core::mem::zeroed() },
        }
    };
}

pub(crate) use {member, offset};

/// Reads, and remembers whether one failed.
pub(crate) struct Reader {
    failed: i64,
}

impl Reader {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { failed: 0 }
    }

    /// Whether a read failed since [`Self::new`].
    #[inline(always)]
    pub(crate) fn failed(&self) -> bool {
        self.failed != 0
    }

    /// Reads an address; zero when it cannot be read. `T` is an integer or an array of them.
    #[inline(always)]
    pub(crate) fn read<T: Copy>(&mut self, address: u64) -> T {
        // SAFETY: written before the program was loaded, read-only since.
        let kind = unsafe { (*(&raw const SETTINGS)).cast_type };
        if kind != 0 { self.load(address, kind) } else { self.probe(address) }
    }

    #[inline(always)]
    fn probe<T: Copy>(&mut self, address: u64) -> T {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper checks the address and writes all of `value`, zeroes on failure.
        unsafe {
            self.failed |= bpf_probe_read_kernel(
                value.as_mut_ptr().cast::<c_void>(),
                size_of::<T>() as u32,
                address as *const c_void,
            ) as i64;
            value.assume_init()
        }
    }

    /// Loads in the units that `T` is aligned to.
    #[inline(always)]
    fn load<T: Copy>(&mut self, address: u64, kind: u32) -> T {
        // Addresses of the kernel have the highest bit set.
        self.failed |= (!address >> 63) as i64;
        let mut value = MaybeUninit::<T>::uninit();
        let to = value.as_mut_ptr();
        let mut at = 0;
        while at < size_of::<T>() {
            // SAFETY: a fault in the load yields zero; `at` stays inside `value`, whose bytes may be any.
            unsafe {
                match align_of::<T>() {
                    8 => copy::<u64, T>(cast(address, at, kind), to, at),
                    4 => copy::<u32, T>(cast(address, at, kind), to, at),
                    2 => copy::<u16, T>(cast(address, at, kind), to, at),
                    _ => copy::<u8, T>(cast(address, at, kind), to, at),
                }
            }
            at += align_of::<T>();
        }
        // SAFETY: every byte was written.
        unsafe { value.assume_init() }
    }
}

#[inline(always)]
unsafe fn copy<U: Copy, T>(from: u64, to: *mut T, at: usize) {
    // SAFETY: the caller's.
    unsafe { to.cast::<u8>().add(at).cast::<U>().write(*(from as *const U)) }
}

/// The address as a pointer of a kind that the verifier lets programs load from (`bpf_rdonly_cast`, kernel/bpf/
/// helpers.c). The loader replaces the number called; it is none where `kind` is 0, and the branch dead.
#[inline(always)]
fn cast(address: u64, at: usize, kind: u32) -> u64 {
    let pointer;
    // SAFETY: a kernel function with two arguments and no effect.
    unsafe {
        asm!("call {function}", function = const patch::CAST,
            inlateout("r1") address + at as u64 => _, inlateout("r2") kind as u64 => _, lateout("r0") pointer,
            lateout("r3") _, lateout("r4") _, lateout("r5") _, options(pure, nomem, nostack));
    }
    pointer
}

/// A pointer that the verifier knows, as a plain number, which a global function takes.
#[inline(always)]
pub(crate) fn plain(pointer: u64) -> u64 {
    Reader::new().read((&raw const pointer) as u64)
}

/// A member behind a pointer that the verifier knows (argument of a netfilter program): one load, no call.
macro_rules! trusted {
    ($base:expr, $field:ident, $kind:ty) => {
        match $crate::read::offset!($field) {
            // SAFETY: the verifier checks the access against the kernel's own types.
            Some(offset) => unsafe { *(($base + offset) as *const $kind) },
            None => 0,
        }
    };
}
pub(crate) use trusted;
