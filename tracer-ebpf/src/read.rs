//! Reads of kernel memory: nothing else in this crate dereferences a kernel address.
//!
//! A read does not branch: the kernel zeroes what it cannot read, and failures are added up in
//! [`Reader::failed`], to be reported with the record. (A branch a read would double the verifier's
//! paths with each.) An offset that this kernel does not have yields zero too; user space knows which are absent.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;

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
