//! What the programs `peek` and `context` (tracer-ebpf/src/probes/peek.rs) are asked and what they answer.
//! Both are run by `BPF_PROG_TEST_RUN` and never attached.

/// Most bytes that one run of `peek` copies.
pub const PEEK_BYTES: usize = 32 * 1024;

/// Arguments of `peek`, as indices of the raw tracepoint's arguments.
pub mod peek_argument {
    /// Kernel address.
    pub const ADDRESS: usize = 0;
    /// Bytes, at most [`super::PEEK_BYTES`].
    pub const LENGTH: usize = 1;
}

/// Arguments of `context`.
pub mod context_argument {
    /// Offset of `task_struct.nsproxy`.
    pub const TASK_NSPROXY: usize = 0;
    /// Offset of `nsproxy.net_ns`.
    pub const NSPROXY_NET: usize = 1;
}

/// What `context` finds where it runs; written to the start of the peek buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Address of the current task's `struct net`; 0 while the task has none (it is exiting).
    pub net: u64,
    /// Address of this CPU's value 0 of the map `PER_CPU_PROBE`.
    pub per_cpu_value: u64,
    /// Address of that map's `struct bpf_map`.
    pub per_cpu_map: u64,
}
