//! The kernel side of pathtrace: programs that recognise the packets asked for, follow them by `sk_buff` and
//! hand what they see to user space. They judge nothing and change nothing.
//!
//! Rooms: `maps` (every map), `read` (the only home of kernel reads), `headers`, `glance` (a quick look), `wanted` (the filter and the
//! connections that matched), `follow` (which packets are in hand), `emit`, `conntrack`, `counters` (rule readings), `log` (diagnostics),
//! `older` (calls on older kernels), `probes`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(clippy::deref_addrof, reason = "a mutable static is read through a raw pointer, not a reference")]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key by value is one more copy on 512 bytes of stack"
)]
#![allow(clippy::needless_pass_by_value, reason = "aya's macros pass the context by value")]

mod conntrack;
mod counters;
mod emit;
mod follow;
mod glance;
mod headers;
mod log;
mod maps;
#[cfg(feature = "older")]
mod older;
mod probes;
mod read;
mod wanted;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
