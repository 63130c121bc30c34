//! Facts of the running kernel: types (BTF), symbols, memory, per-CPU offsets, namespaces, hooked functions.
//! Everything here reads; nothing changes anything.

pub mod arguments;
mod block;
pub mod btf;
mod error;
pub mod hooks;
pub mod memory;
pub mod net;
pub mod peek;
pub mod percpu;
pub mod rtnetlink;
pub mod symbols;
pub mod tracepoints;

pub use block::Block;
pub use btf::KernelTypes;
pub use error::ReadError;
pub use memory::Memory;
pub use net::{current_net, in_netns};
pub use peek::Peek;
pub use symbols::Symbols;

/// CLOCK_MONOTONIC in nanoseconds, the clock of `bpf_ktime_get_ns`.
#[must_use]
pub fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(std::time::Duration::from)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
