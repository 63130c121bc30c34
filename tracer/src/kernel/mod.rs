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
pub mod symbols;
pub mod tracepoints;

pub use block::Block;
pub use btf::KernelTypes;
pub use error::ReadError;
pub use memory::Memory;
pub use net::{current_net, in_netns};
pub use peek::Peek;
pub use symbols::Symbols;
