//! Which expressions of nft rules are evaluated for a followed packet: rules without counters match unseen otherwise.
//! User space knows each expression's address, and so the rule.

use aya_ebpf::{
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use tracer_common::{
    kprobe::Evaluation,
    layout::Offset,
    records::{Kind, PART_REACHED, PART_RETURNED, RulePart, SIGHT_GAP},
};

use super::{Registers, stack};
use crate::{
    emit::{head, record},
    follow,
    maps::{EVALUATION, EVALUATIONS, Evaluated},
    read::Reader,
};

/// The lowest byte of `NFT_BREAK` (-2, include/uapi/linux/netfilter/nf_tables.h): the rule does not match. No other verdict
/// has it. (LLVM compares a whole i32 with a negative number in 64 bits, of which the load has cleared the upper.)
const NFT_BREAK: u8 = 0xfe;

#[inline(always)]
fn known() -> Option<Evaluation> {
    // SAFETY: a valid map value, written before the programs here are attached.
    EVALUATION.get_ptr(0).map(|known| unsafe { *known })
}

/// What stands at an offset; 0 at one that this kernel does not have.
#[inline(always)]
fn at<T: Copy + Default>(base: u64, offset: Offset) -> T {
    offset.get().map_or(T::default(), |offset| Reader::new().read(base + offset))
}

/// The evaluation that begins, if it is for a followed packet.
#[inline(always)]
fn begun(ctx: &ProbeContext) -> Option<Evaluated> {
    let registers = Registers::read(ctx);
    let known = known()?;
    let skb: u64 = at(registers.at(known.packet), known.packet_skb);
    follow::find(skb)?;
    Some(Evaluated {
        expression: registers.at(known.expression),
        registers: registers.at(known.registers),
        skb,
    })
}

#[inline(always)]
fn send(of: &Evaluated, when: u32, verdict: i32, chain: u64) {
    let Some(track) = follow::find(of.skb) else { return };
    let journey = track.journey;
    let sent = record::<RulePart>(|part| {
        part.head = head(Kind::RulePart, journey);
        part.expression = of.expression;
        part.chain = chain;
        part.verdict = verdict;
        part.when = when;
    });
    if !sent {
        track.flags |= SIGHT_GAP;
    }
}

/// `void eval(const struct nft_expr *expr, struct nft_regs *regs, const struct nft_pktinfo *pkt)` of an expression behind
/// which nothing of its rule can fail.
#[kprobe]
pub(crate) fn rule_reached(ctx: ProbeContext) -> u32 {
    if let Some(evaluated) = begun(&ctx) {
        send(&evaluated, PART_REACHED, 0, 0);
    }
    0
}

/// The same of an expression that gives any verdict or none (a verdict map): remembers it for [`rule_returned`].
#[kprobe]
pub(crate) fn rule_begin(ctx: ProbeContext) -> u32 {
    if let Some(evaluated) = begun(&ctx)
        && EVALUATIONS.insert(stack::at_entry(ctx.regs), evaluated, 0).is_err()
        && let Some(track) = follow::find(evaluated.skb)
    {
        track.flags |= SIGHT_GAP;
    }
    0
}

/// What came of it.
#[kretprobe]
pub(crate) fn rule_returned(ctx: RetProbeContext) -> u32 {
    let key = stack::at_return(ctx.regs);
    let Some(evaluated) = EVALUATIONS.get_ptr(key) else { return 0 };
    // SAFETY: a valid map value; only the program that handles this call writes it.
    let evaluated = unsafe { *evaluated };
    let _ = EVALUATIONS.remove(key);
    let Some(known) = known() else { return 0 };
    let verdict: i32 = at(evaluated.registers, known.verdict_code);
    if verdict as u8 != NFT_BREAK {
        send(&evaluated, PART_RETURNED, verdict, at(evaluated.registers, known.verdict_chain));
    }
    0
}
