//! Layouts that kernels without BTF of their modules (before 5.11) do not describe, and that need no description: the
//! interface of ip_tables with user space cannot change, and one member of the kernel's own has never moved.

/// Structure, member, byte offset on 64-bit machines.
const MEMBERS: &[(&str, &str, u32)] = &[
    // include/uapi/linux/netfilter_ipv4/ip_tables.h
    ("ipt_entry", "ip.flags", 82),
    ("ipt_entry", "target_offset", 88),
    ("ipt_entry", "next_offset", 90),
    ("ipt_entry", "counters", 96),
    ("ipt_entry", "elems", 112),
    // include/uapi/linux/netfilter_ipv6/ip6_tables.h
    ("ip6t_entry", "ipv6.flags", 131),
    ("ip6t_entry", "target_offset", 140),
    ("ip6t_entry", "next_offset", 142),
    ("ip6t_entry", "counters", 152),
    ("ip6t_entry", "elems", 168),
    // include/uapi/linux/netfilter/x_tables.h
    ("xt_entry_target", "u.kernel.target", 8),
    ("xt_entry_target", "data", 32),
    ("xt_standard_target", "verdict", 32),
    ("xt_counters", "pcnt", 0),
    // include/linux/netfilter/x_tables.h: behind its list_head. Names that are none show that it is not so.
    ("xt_target", "name", 16),
];

/// Structure, bytes.
const SIZES: &[(&str, u32)] = &[("xt_counters", 16)];

pub(super) fn offset(structure: &str, path: &str) -> Option<u32> {
    if cfg!(not(target_pointer_width = "64")) {
        return None;
    }
    MEMBERS.iter().find(|(of, member, _)| (*of, *member) == (structure, path)).map(|(_, _, offset)| *offset)
}

pub(super) fn size(structure: &str) -> Option<u32> {
    SIZES.iter().find(|(of, _)| *of == structure).map(|(_, size)| *size)
}
