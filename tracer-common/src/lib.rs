//! What the kernel side and the user side of pathtrace share: event records, the packet filter, the layout of
//! kernel structures and the loss counters. `no_std`, no pointers, every size asserted.
#![no_std]

pub mod counters;
pub mod filter;
pub mod kprobe;
pub mod layout;
pub mod peek;
pub mod records;
pub mod settings;
pub mod tuple;

/// Types that user space puts into maps and globals.
#[cfg(feature = "user")]
mod pod {
    use crate::{
        kprobe::{Evaluation, Place, PlaceKey},
        settings::{Gap, GapKey, Settings},
    };
    // SAFETY: repr(C), integers and arrays of integers only, any bit pattern is valid.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GapKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Gap {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PlaceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Place {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Evaluation {}
}
