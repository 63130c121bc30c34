//! What user space tells the programs once, before they are loaded.

use crate::{
    filter::Filter,
    kprobe::Arguments,
    layout::{Bit, KernelLayout, Sizes},
};

/// Constants of one trace.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Settings {
    pub layout: KernelLayout,
    pub sizes: Sizes,
    /// `sk_buff.tc_at_ingress`: a tc program sees the packet on its way in.
    pub tc_at_ingress: Bit,
    pub arguments: Arguments,
    pub freed: FreedArguments,
    pub filter: Filter,
    /// Not 0: every namespace is traced; 0: those in the scope map.
    pub all_namespaces: u32,
    /// Not 0: rule counters are read.
    pub read_rules: u32,
    /// Not 0: first packets of a connection are followed tentatively, since NAT may make them match.
    pub tentative: u32,
    /// Not 0: programs log through aya-log.
    pub verbose: u32,
    /// Not 0: XDP looks at packets first on some devices.
    pub xdp: u32,
    /// Not 0: programs look on when XDP and tc programs of others return.
    pub verdicts: u32,
    /// BTF id of the structure that kernel addresses are cast to for reading (16 bytes of integers); 0: reads call a
    /// helper.
    pub cast_type: u32,
}

impl Settings {
    /// What the programs are built with; user space replaces it before loading.
    // SAFETY: integers only, and 0 is a valid value of each.
    pub const ZERO: Self = unsafe { core::mem::zeroed() };
}

/// What the tracepoints of freed packets say besides the packet; 1 where they do.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct FreedArguments {
    /// `kfree_skb`: the caller, as its second argument.
    pub drop_location: u8,
    /// `kfree_skb`: the reason, as its third (from 5.17).
    pub drop_reason: u8,
    /// `consume_skb`: the caller, as its second argument (from 6.3).
    pub consume_location: u8,
    pub reserved: u8,
}

/// What a netfilter probe does with a packet that is not followed yet; a bit each.
pub mod role {
    /// Nothing.
    pub const FOLLOW: u32 = 0;
    /// Reads its headers and asks the filter (the first probe of the OUTPUT hook).
    pub const GATE: u32 = 1;
    /// Asks conntrack whether its connection matches (the first probe behind conntrack).
    pub const LATE: u32 = 2;
    /// Takes a copy of the packet in hand for that packet (the first probe of PREROUTING): where a packet socket has
    /// the packet itself, IP goes on with a copy (`skb_share_check` in `ip_rcv_core`).
    pub const ENTRY: u32 = 4;
}

/// Numbers in the programs that the loader replaces.
pub mod patch {
    /// In a call: becomes the kernel function `bpf_rdonly_cast`, where there is one.
    pub const CAST: u32 = 0x7041_746a;
    /// In a netfilter program, so that one text serves every place: becomes the priority at which the probe stands.
    pub const PRIORITY: u32 = 0x7041_7468;
    /// Becomes [`super::role`] bits.
    pub const ROLE: u32 = 0x7041_7469;
    /// In a program that looks on when another returns: becomes that one's number.
    pub const PROGRAM: u32 = 0x7041_746b;
}

/// Tables that one gap between two probes can hold (two backends at the same priority, neighbours without room).
pub const MAX_TABLES: usize = 4;

/// Key of a gap: the probe after which it lies.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash)]
pub struct GapKey {
    /// Inode number of the namespace.
    pub netns: u32,
    /// Priority of the probe that opens the gap.
    pub priority: i32,
    /// `enum nf_inet_hooks`.
    pub hook: u32,
    /// `NFPROTO_*`.
    pub pf: u32,
}

/// The counters of one table, as a run of addresses in the counter list.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Table {
    /// Kernel address whose content tells whether the index still describes the ruleset; 0 for none.
    pub check_address: u64,
    /// What must stand there (its low `check_length` bytes).
    pub check_value: u64,
    /// 1, 4 or 8.
    pub check_length: u32,
    /// Comes back in [`crate::records::RuleHits::table`].
    pub id: u32,
    /// First entry in the counter list.
    pub first: u32,
    pub count: u32,
}

/// The tables between a probe and the next.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Gap {
    pub tables: [Table; MAX_TABLES],
    pub count: u32,
    /// Changes whenever user space writes the gap anew: a reading that began before is worthless. Gaps with the same
    /// number were written together, and all tables that are read in one of them are read in all that hold them.
    pub generation: u32,
}

const _: () = assert!(size_of::<Gap>() == 32 * MAX_TABLES + 8);

/// Entries of the counter list: rules of all tables, of two generations.
pub const MAX_COUNTERS: u32 = 131_072;
/// Rules read in one gap.
pub const MAX_SNAPSHOT: u32 = 16_384;
/// Each CPU has three readings: while a packet is between two probes of PREROUTING, INPUT or FORWARD, its REJECT or
/// TEE sends another one through OUTPUT and POSTROUTING; so does that of a packet that is itself at OUTPUT; and
/// packets on their way out can be interrupted by packets that come in.
pub const READING_SLOTS: u32 = 3;
/// Values of first readings that each CPU has room for.
pub const SNAPSHOT_PER_CPU: u32 = MAX_SNAPSHOT * READING_SLOTS;
