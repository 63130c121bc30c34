//! A packet before the functions of a netfilter hook and behind the last, by kprobes: for kernels without netfilter
//! BPF links. Every namespace passes here; the map of places says which functions of which are of interest.

mod judge;
mod rule;
mod stack;

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_common::{
    kprobe::{END, PlaceKey, Position},
    settings::role,
};

use crate::{
    follow,
    maps::{CALLS, Call, HandedOver, PLACES},
    probes::netfilter::{may_match, pass},
    read::{Reader, member},
};

/// What `nf_hook_slow` returns for a packet that every function let pass.
const PASSED: i32 = 1;

/// The first arguments of a probed function. Each register is read on its own: the verifier allows no pointer into
/// the context that depends on a setting, which is what a choice before the reading may be compiled to.
struct Registers([u64; Position::COUNT]);

impl Registers {
    #[inline(always)]
    fn read(ctx: &ProbeContext) -> Self {
        let mut registers = [0; Position::COUNT];
        let first = registers.as_mut_ptr();
        // SAFETY: four places of the array above.
        unsafe {
            first.write_volatile(ctx.arg(0).unwrap_or(0));
            first.add(1).write_volatile(ctx.arg(1).unwrap_or(0));
            first.add(2).write_volatile(ctx.arg(2).unwrap_or(0));
            first.add(3).write_volatile(ctx.arg(3).unwrap_or(0));
        }
        Self(registers)
    }

    /// The argument at a position, 0 for an absent one.
    #[inline(always)]
    fn at(&self, position: Position) -> u64 {
        match position.get() {
            Some(0) => self.0[0],
            Some(1) => self.0[1],
            Some(2) => self.0[2],
            Some(3) => self.0[3],
            _ => 0,
        }
    }
}

/// The position of an argument in this kernel.
macro_rules! position {
    ($field:ident) => {{
        // SAFETY: written before the program was loaded, read-only since.
        unsafe { (*(&raw const $crate::maps::SETTINGS)).arguments.$field }
    }};
}

/// Whether a packet is followed; it may be a copy of one that was, until here.
#[inline(always)]
fn is_followed(skb: u64) -> bool {
    !follow::nobody() && follow::is_followed(skb) != 0
}

/// The place at a function of the hook that `state` describes.
#[inline(always)]
fn place_of(skb: u64, state: u64, function: u64) -> Option<HandedOver> {
    let mut reader = Reader::new();
    let hook: u8 = member!(reader, state, state_hook);
    let pf: u8 = member!(reader, state, state_pf);
    let net: u64 = member!(reader, state, state_net);
    let key = PlaceKey { net, function, hook: hook as u32, pf: pf as u32 };
    // SAFETY: a valid map value; user space replaces it whole.
    let place = unsafe { *PLACES.get_ptr(&key)? };
    Some(HandedOver { skb, net, state, place, hook, pf, reserved: 0 })
}

/// `int nf_hook_slow(struct sk_buff *skb, struct nf_hook_state *state, const struct nf_hook_entries *e, unsigned int
/// i)`, net/netfilter/core.c: remembers the call, for its end.
#[kprobe]
pub(crate) fn hook_begin(ctx: ProbeContext) -> u32 {
    let registers = Registers::read(&ctx);
    let (skb, state) = (registers.at(position!(slow_skb)), registers.at(position!(slow_state)));
    if !is_followed(skb) && place_of(skb, state, END).is_none_or(|found| found.place.begins == 0) {
        return 0;
    }
    // Without room the end of this hook is not seen: the next sight shows that the packet passed.
    let _ = CALLS.insert(stack::at_entry(ctx.regs), Call { skb, state }, 0);
    0
}

/// The return of `nf_hook_slow`: the packet stands behind the last function of the hook.
#[kretprobe]
pub(crate) fn hook_end(ctx: RetProbeContext) -> u32 {
    let key = stack::at_return(ctx.regs);
    let Some(call) = CALLS.get_ptr(key) else { return 0 };
    // SAFETY: a valid map value; only the program that handles this call writes it.
    let Call { skb, state } = unsafe { *call };
    let _ = CALLS.remove(key);
    if ctx.ret::<i32>() == PASSED
        && let Some(found) = place_of(skb, state, END)
    {
        enter(ctx.as_ptr(), &found);
    }
    0
}

/// `nf_hookfn`, include/linux/netfilter.h: base chains and the NAT engine.
#[kprobe]
pub(crate) fn hook_function(ctx: ProbeContext) -> u32 {
    let registers = Registers::read(&ctx);
    let state = registers.at(position!(function_state));
    let private = registers.at(position!(function_private));
    if let Some(found) = place_of(registers.at(position!(function_skb)), state, private) {
        enter(ctx.as_ptr(), &found);
    }
    0
}

/// `unsigned int ipt_do_table(struct sk_buff *skb, const struct nf_hook_state *state, struct xt_table *table)` and
/// `ip6t_do_table`, before 5.16 (later ones are hooked functions).
#[kprobe]
pub(crate) fn table_function(ctx: ProbeContext) -> u32 {
    let registers = Registers::read(&ctx);
    let [skb, state, table, _] = registers.0;
    if let Some(found) = place_of(skb, state, table) {
        enter(ctx.as_ptr(), &found);
    }
    0
}

/// A packet stands at a place of the plan.
#[inline(always)]
fn enter(ctx: *mut c_void, found: &HandedOver) {
    pass();
    if !is_followed(found.skb) {
        let role = found.place.role;
        if role == role::FOLLOW {
            return;
        }
        let nfct: u64 = member!(Reader::new(), found.skb, skb_nfct);
        if role & role::GATE == 0 && (nfct == 0 || !may_match(nfct)) {
            return;
        }
    }
    judge::hand_over(ctx, found);
}

/// `int __ip_local_out(struct net *net, struct sock *sk, struct sk_buff *skb)` and `__ip6_local_out`: an OUTPUT hook
/// that nobody is hooked to.
#[kprobe]
pub(crate) fn local_out(ctx: ProbeContext) -> u32 {
    let registers = Registers::read(&ctx);
    let (net, skb) = (registers.at(position!(output_net)), registers.at(position!(output_skb)));
    judge::bare(ctx.as_ptr(), skb, net, LOCAL_OUT);
    0
}

/// `int ip_local_deliver(struct sk_buff *skb)` and `ip6_input`: an INPUT hook that nobody is hooked to.
#[kprobe]
pub(crate) fn local_in(ctx: ProbeContext) -> u32 {
    let skb = Registers::read(&ctx).at(position!(input_skb));
    if is_followed(skb) {
        let mut reader = Reader::new();
        let device: u64 = member!(reader, skb, skb_dev);
        judge::bare(ctx.as_ptr(), skb, member!(reader, device, dev_net), LOCAL_IN);
    }
    0
}

/// `int ip_output(struct net *net, struct sock *sk, struct sk_buff *skb)` and `ip6_output`: behind a FORWARD hook, or
/// for a local packet before a POSTROUTING hook, that nobody is hooked to. (At the beginning of `ip_forward` the packet may still die
/// of its hop limit.)
#[kprobe]
pub(crate) fn output(ctx: ProbeContext) -> u32 {
    let registers = Registers::read(&ctx);
    let (net, skb) = (registers.at(position!(output_net)), registers.at(position!(output_skb)));
    if is_followed(skb) {
        let came_in: u32 = member!(Reader::new(), skb, skb_iif);
        let hook = if came_in == 0 { POST_ROUTING } else { FORWARD };
        judge::bare(ctx.as_ptr(), skb, net, hook);
    }
    0
}

/// `enum nf_inet_hooks`
const LOCAL_IN: u32 = 1;
const FORWARD: u32 = 2;
const LOCAL_OUT: u32 = 3;
const POST_ROUTING: u32 = 4;
