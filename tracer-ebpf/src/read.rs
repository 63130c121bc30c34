//! Reads of kernel memory: offsets from the layout, absent ones are `None`, nothing else in this crate
//! dereferences a kernel address.

use aya_ebpf::helpers::{bpf_probe_read_kernel, bpf_probe_read_kernel_buf};
use tracer_common::counters::Counter;

use crate::maps::count;

/// The offset of a member in this kernel, or `None`.
macro_rules! offset {
    ($field:ident) => {{
        // SAFETY: written before the program was loaded, read-only since.
        unsafe { (*(&raw const $crate::maps::SETTINGS)).layout.$field.get() }
    }};
}

/// A member of a kernel structure, or `None` where it is absent or unreadable.
macro_rules! member {
    ($base:expr, $field:ident) => {
        $crate::read::at($base, $crate::read::offset!($field))
    };
}

pub(crate) use {member, offset};

/// Reads `base + offset`.
#[inline(always)]
pub(crate) fn at<T: Copy>(base: u64, offset: Option<u64>) -> Option<T> {
    let offset = offset?;
    if base == 0 {
        return None;
    }
    read(base + offset)
}

/// Reads an address.
#[inline(always)]
pub(crate) fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: bpf_probe_read_kernel checks the address.
    match unsafe { bpf_probe_read_kernel(address as *const T) } {
        Ok(value) => Some(value),
        Err(_) => {
            count(Counter::ReadFailed);
            None
        }
    }
}

/// Fills `into` from an address; false, with `into` zeroed by the kernel, when it cannot be read.
#[inline(always)]
pub(crate) fn read_into(address: u64, into: &mut [u8]) -> bool {
    // SAFETY: as above.
    unsafe { bpf_probe_read_kernel_buf(address as *const u8, into) }.is_ok()
}

/// A member behind a pointer that the verifier knows (argument of a netfilter program): one load, no call.
macro_rules! trusted {
    ($base:expr, $field:ident, $kind:ty) => {
        match $crate::read::offset!($field) {
            // SAFETY: the verifier checks the access against the kernel's own types.
            Some(offset) => Some(unsafe { *(($base + offset) as *const $kind) }),
            None => None,
        }
    };
}
pub(crate) use trusted;
