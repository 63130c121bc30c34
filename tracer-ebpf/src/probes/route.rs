//! Routing decisions about the packet in hand on this CPU: the tracepoints have no packet.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::{
    records::{Kind, Route},
    tuple::{IPV4, IPV6},
};

use crate::{
    emit::{device, head, record},
    follow,
    read::{Reader, member, offset},
};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `TRACE_EVENT(fib_table_lookup, TP_PROTO(u32 tb_id, const struct flowi4 *flp, const struct fib_nh_common *nhc,
/// int err))`, include/trace/events/fib.h.
#[raw_tracepoint(tracepoint = "fib_table_lookup")]
pub(crate) fn route_lookup(ctx: RawTracePointContext) -> i32 {
    if follow::in_hand().is_some() {
        lookup4(
            ctx.arg::<u64>(0) as u32,
            ctx.arg::<*const u8>(1) as u64,
            ctx.arg::<*const u8>(2) as u64,
            ctx.arg::<u64>(3) as i32,
        );
    }
    0
}

#[inline(never)]
fn lookup4(table: u32, flow: u64, next_hop: u64, error: i32) -> i32 {
    let Some(hand) = follow::in_hand() else { return 0 };
    let mut reader = Reader::new();
    let destination: u32 = member!(reader, flow, fl4_daddr);
    // The reverse-path check looks up the packet's source.
    if hand.tuple.family != IPV4 || hand.tuple.destination[3] != destination {
        return 0;
    }
    let journey = hand.journey;
    record::<Route>(|route| {
        route.head = head(Kind::Route, journey);
        route.source[3] = member!(reader, flow, fl4_saddr);
        route.destination[3] = destination;
        route.table = table;
        route.error = error;
        route.mark = member!(reader, flow, fl4_mark);
        route.family = IPV4;
        if error == 0 && next_hop != 0 {
            next_hop_of(&mut reader, next_hop, route);
        }
    });
    0
}

#[inline(always)]
fn next_hop_of(reader: &mut Reader, next_hop: u64, route: &mut Route) {
    let device_address: u64 = member!(reader, next_hop, nhc_dev);
    device(reader, device_address, &mut route.ifindex, &mut route.name);
    route.gateway_family = member!(reader, next_hop, nhc_gw_family);
    match route.gateway_family {
        AF_INET => route.gateway[3] = member!(reader, next_hop, nhc_gw),
        AF_INET6 => route.gateway = member!(reader, next_hop, nhc_gw),
        _ => {}
    }
}

/// `TRACE_EVENT(fib6_table_lookup, TP_PROTO(const struct net *net, const struct fib6_result *res,
/// struct fib6_table *table, const struct flowi6 *flp))`, include/trace/events/fib6.h.
#[raw_tracepoint(tracepoint = "fib6_table_lookup")]
pub(crate) fn route_lookup6(ctx: RawTracePointContext) -> i32 {
    if follow::in_hand().is_some() {
        lookup6(
            ctx.arg::<*const u8>(1) as u64,
            ctx.arg::<*const u8>(2) as u64,
            ctx.arg::<*const u8>(3) as u64,
        );
    }
    0
}

#[inline(never)]
fn lookup6(result: u64, table: u64, flow: u64) -> i32 {
    let Some(hand) = follow::in_hand() else { return 0 };
    let mut reader = Reader::new();
    let destination: [u32; 4] = member!(reader, flow, fl6_daddr);
    let same = hand.tuple.destination;
    if hand.tuple.family != IPV6
        || (same[0] ^ destination[0])
            | (same[1] ^ destination[1])
            | (same[2] ^ destination[2])
            | (same[3] ^ destination[3])
            != 0
    {
        return 0;
    }
    let journey = hand.journey;
    record::<Route>(|route| {
        route.head = head(Kind::Route, journey);
        route.source = member!(reader, flow, fl6_saddr);
        route.destination = destination;
        route.table = member!(reader, table, tb6_id);
        route.mark = member!(reader, flow, fl6_mark);
        route.family = IPV6;
        let kind: u32 = member!(reader, result, fib6_result_type);
        route.route_type = kind as u8;
        let next_hop: u64 = member!(reader, result, fib6_result_nh);
        if next_hop != 0
            && let Some(offset) = offset!(fib6_nh_common)
        {
            next_hop_of(&mut reader, next_hop + offset, route);
        }
    });
    0
}
