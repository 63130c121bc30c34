//! Where the arguments of the functions stand that kprobe programs look at.

use tracer_common::{
    kprobe::{Arguments, Evaluation, Position},
    layout::Offset,
};

use super::{
    KernelTypes,
    btf::{Parameter, position_of},
};

/// Resolves them from the types of the running kernel; what it does not describe is absent.
#[must_use]
pub fn resolve(types: &KernelTypes) -> Arguments {
    let of = |function| Signature(types.parameters(function, &[]).unwrap_or_default());
    let (slow, function) = (of("nf_hook_slow"), of("nf_hookfn"));
    let (output, input) = (of("__ip_local_out"), of("ip_local_deliver"));
    Arguments {
        slow_skb: slow.to("sk_buff"),
        slow_state: slow.to("nf_hook_state"),
        function_private: function.void(),
        function_skb: function.to("sk_buff"),
        function_state: function.to("nf_hook_state"),
        output_net: output.to("net"),
        output_skb: output.to("sk_buff"),
        input_skb: input.to("sk_buff"),
    }
}

/// Where evaluations of nft expressions say what they are of. To be asked when nf_tables is loaded.
///
/// # Errors
/// What this kernel does not describe.
pub fn evaluation(types: &KernelTypes) -> Result<Evaluation, String> {
    let eval = Signature(types.parameters_behind("nft_expr_ops", "eval").unwrap_or_default());
    let position = |structure: &str| match eval.to(structure) {
        Position::ABSENT => Err(format!("which argument of nft_expr_ops.eval is the {structure}")),
        position => Ok(position),
    };
    let offset = |structure: &str, path: &str| {
        let offset = types.offset_of(structure, path).and_then(Offset::new);
        offset.ok_or_else(|| format!("where {structure} has {path}"))
    };
    Ok(Evaluation {
        expression: position("nft_expr")?,
        registers: position("nft_regs")?,
        packet: position("nft_pktinfo")?,
        reserved: 0,
        packet_skb: offset("nft_pktinfo", "skb")?,
        verdict_code: offset("nft_regs", "verdict.code")?,
        verdict_chain: offset("nft_regs", "verdict.chain")?,
    })
}

/// The parameters of a function; none where nothing describes it.
struct Signature(Vec<Parameter>);

impl Signature {
    /// The pointer to a structure.
    fn to(&self, structure: &str) -> Position {
        self.at(&Parameter::To(structure.to_owned()))
    }

    fn void(&self) -> Position {
        self.at(&Parameter::Void)
    }

    fn at(&self, wanted: &Parameter) -> Position {
        position_of(&self.0, wanted).and_then(Position::new).unwrap_or(Position::ABSENT)
    }
}

/// How `ipt_do_table` and `ip6t_do_table` are given their table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableCall {
    /// They are hooked functions (`nf_hookfn`), the table their private pointer: from 5.16.
    Hooked,
    /// `(struct sk_buff *skb, const struct nf_hook_state *state, struct xt_table *table)`
    /// (include/linux/netfilter_ipv4/ip_tables.h).
    Apart,
}

/// How the running kernel calls them; `None` where it does not say. To be asked when they are there: their modules may
/// be loaded late.
#[must_use]
pub fn table_call(types: &KernelTypes) -> Option<TableCall> {
    let described = ["ipt_do_table", "ip6t_do_table"]
        .iter()
        .find_map(|function| types.parameters(function, &["ip_tables", "ip6_tables"]));
    let Some(parameters) = described else {
        // No BTF of modules. As long as `struct net` holds the tables (before 5.13), they are handed over apart.
        return types.offset_of("net", "ipv4.iptable_filter").map(|_| TableCall::Apart);
    };
    if Some(&parameters) == types.parameters("nf_hookfn", &[]).as_ref() {
        return Some(TableCall::Hooked);
    }
    let apart = ["sk_buff", "nf_hook_state", "xt_table"].map(|name| Parameter::To(name.to_owned()));
    (parameters == apart).then_some(TableCall::Apart)
}
