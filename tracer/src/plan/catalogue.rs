//! The tracepoint programs, as data: attach, `start`, doctor and the documentation read this list.

/// One tracepoint program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracepoint {
    /// Program in the kernel object.
    pub program: &'static str,
    /// The kernel's name.
    pub tracepoint: &'static str,
    /// The structures that its arguments must point to, in order; empty for numbers.
    pub takes: &'static [&'static str],
    /// What a user gets from it.
    pub gives: &'static str,
    /// Without it there are no journeys to show.
    pub required: bool,
    /// tcx programs on devices take its place when a trace lasts, where the kernel has them.
    pub instead_of_tcx: bool,
}

/// Every tracepoint, in the order in which they are attached: ends before beginnings, so that no packet is followed
/// whose end would be missed.
pub const TRACEPOINTS: &[Tracepoint] = &[
    tracepoint("packet_drop", "kfree_skb", &["sk_buff"], "drops, with reason and place", true),
    tracepoint("packet_consume", "consume_skb", &["sk_buff"], "the end of delivered and sent packets", true),
    tracepoint(
        "route_lookup",
        "fib_table_lookup",
        &["", "flowi4", "fib_nh_common", ""],
        "IPv4 routing decisions with their table",
        false,
    ),
    tracepoint(
        "route_lookup6",
        "fib6_table_lookup",
        &["", "fib6_result", "fib6_table", "flowi6"],
        "IPv6 routing decisions with their table",
        false,
    ),
    tracepoint(
        "socket_data",
        "sk_data_ready",
        &["sock"],
        "delivery to a socket, at once, and to how many",
        false,
    ),
    tracepoint(
        "socket_state",
        "inet_sock_set_state",
        &["sock"],
        "delivery to a TCP socket that changes state",
        false,
    ),
    tracepoint(
        "socket_segment",
        "tcp_probe",
        &["sock", "sk_buff"],
        "delivery to an established TCP socket",
        false,
    ),
    tracepoint(
        "reset_sent",
        "tcp_send_reset",
        &["sock", "sk_buff"],
        "resets that the host's TCP answered with",
        false,
    ),
    tracepoint(
        "icmp_sent",
        "icmp_send",
        &["sk_buff", "", ""],
        "ICMP errors that the host answered with",
        false,
    ),
    Tracepoint {
        instead_of_tcx: true,
        ..tracepoint(
            "device_out",
            "net_dev_start_xmit",
            &["sk_buff", "net_device"],
            "devices a packet leaves by",
            true,
        )
    },
    Tracepoint {
        instead_of_tcx: true,
        ..tracepoint("device_in", "netif_receive_skb", &["sk_buff"], "devices a packet comes in by", true)
    },
];

const fn tracepoint(
    program: &'static str,
    tracepoint: &'static str,
    takes: &'static [&'static str],
    gives: &'static str,
    required: bool,
) -> Tracepoint {
    Tracepoint { program, tracepoint, takes, gives, required, instead_of_tcx: false }
}
