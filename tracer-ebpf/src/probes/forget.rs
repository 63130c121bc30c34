//! User space tells which packets need not be followed any longer (delivered without being freed under our eyes).

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::follow;

/// Never attached: run with pairs of `sk_buff` address and journey as arguments, 0 for none.
#[raw_tracepoint]
pub(crate) fn forget(ctx: RawTracePointContext) -> i32 {
    follow::forget(ctx.arg(0), ctx.arg(1));
    follow::forget(ctx.arg(2), ctx.arg(3));
    follow::forget(ctx.arg(4), ctx.arg(5));
    follow::forget(ctx.arg(6), ctx.arg(7));
    follow::forget(ctx.arg(8), ctx.arg(9));
    follow::forget(ctx.arg(10), ctx.arg(11));
    0
}
