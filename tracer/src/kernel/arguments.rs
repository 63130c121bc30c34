//! Where the arguments of the functions stand that kprobe programs look at.

use tracer_common::kprobe::{Arguments, Position};

use super::{KernelTypes, btf::Parameter};

/// What they are called where they stand in a list of parameters.
const SKB: &str = "sk_buff";
const STATE: &str = "nf_hook_state";
const TABLE: &str = "xt_table";
const NET: &str = "net";

/// Resolves them from the types of the running kernel; what it does not describe is absent.
#[must_use]
pub fn resolve(types: &KernelTypes) -> Arguments {
    let at = |function: &str, structure: &str| position(types.position_of(function, structure));
    let (table_table, table_skb, table_state) = table_function(types);
    Arguments {
        slow_skb: at("nf_hook_slow", SKB),
        slow_state: at("nf_hook_slow", STATE),
        function_private: void(types, "nf_hookfn"),
        function_skb: at("nf_hookfn", SKB),
        function_state: at("nf_hookfn", STATE),
        table_table,
        table_skb,
        table_state,
        output_net: at("__ip_local_out", NET),
        output_skb: at("__ip_local_out", SKB),
        input_skb: at("ip_local_deliver", SKB),
        reserved: 0,
    }
}

/// `ipt_do_table`, with its table as the private pointer of an `nf_hookfn` or as an argument of its own.
fn table_function(types: &KernelTypes) -> (Position, Position, Position) {
    let of = |function: &str| {
        let table = match position(types.position_of(function, TABLE)) {
            Position::ABSENT => void(types, function),
            known => known,
        };
        let at = |structure| position(types.position_of(function, structure));
        (table, at(SKB), at(STATE))
    };
    let found = of("ipt_do_table");
    if found.1 != Position::ABSENT {
        return found;
    }
    let found = of("ip6t_do_table");
    if found.1 != Position::ABSENT {
        return found;
    }
    // No BTF of the module. As long as `struct net` holds the tables (before 5.13), they were handed over as
    // `(struct sk_buff *skb, const struct nf_hook_state *state, struct xt_table *table)`,
    // include/linux/netfilter_ipv4/ip_tables.h.
    if types.offset_of(NET, "ipv4.iptable_filter").is_some() {
        return (position(Some(2)), position(Some(0)), position(Some(1)));
    }
    found
}

/// The only `void *`.
fn void(types: &KernelTypes, function: &str) -> Position {
    let parameters = types.parameters(function).unwrap_or_default();
    let mut found = parameters.iter().enumerate().filter(|(_, parameter)| **parameter == Parameter::Void);
    let first = found.next().map(|(position, _)| position);
    if found.next().is_some() { Position::ABSENT } else { position(first) }
}

fn position(found: Option<usize>) -> Position {
    found.and_then(Position::new).unwrap_or(Position::ABSENT)
}
