//! Sockets: who took the packet, and what the kernel answered.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use tracer_common::{
    records::{Answer, AnswerKind, Kind, SocketEvent},
    tuple::{IPV4, IPV6},
};

use crate::{
    emit::{head, record},
    follow,
    read::{Reader, member},
};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[inline(never)]
fn took(journey: u64, sock: u64) -> i32 {
    record::<SocketEvent>(|event| {
        let mut reader = Reader::new();
        event.head = head(Kind::Socket, journey);
        event.sock = sock;
        event.inode = inode(&mut reader, sock);
        event.tuple.source_port = member!(reader, sock, sock_num);
        let peer: u16 = member!(reader, sock, sock_dport);
        event.tuple.destination_port = u16::from_be(peer);
        let family: u16 = member!(reader, sock, sock_family);
        if family == AF_INET {
            event.tuple.family = IPV4;
            event.tuple.source[3] = member!(reader, sock, sock_rcv_saddr);
            event.tuple.destination[3] = member!(reader, sock, sock_daddr);
        } else if family == AF_INET6 {
            event.tuple.family = IPV6;
            event.tuple.source = member!(reader, sock, sock_v6_rcv_saddr);
            event.tuple.destination = member!(reader, sock, sock_v6_daddr);
        }
    });
    0
}

/// `SOCK_INODE(sk->sk_socket)->i_ino` (include/net/sock.h): a `struct socket` begins its `struct socket_alloc`.
#[inline(always)]
fn inode(reader: &mut Reader, sock: u64) -> u64 {
    let socket: u64 = member!(reader, sock, sock_socket);
    if socket == 0 { 0 } else { member!(reader, socket, socket_inode) }
}

#[inline(always)]
fn in_hand_took(sock: u64) {
    if let Some(hand) = follow::in_hand() {
        // Only the socket whose port the packet names; other sockets wake up on this CPU as well.
        let port: u16 = member!(Reader::new(), sock, sock_num);
        if port != 0 && port == hand.tuple.destination_port {
            took(hand.journey, sock);
        }
    }
}

/// `TRACE_EVENT(sk_data_ready, TP_PROTO(const struct sock *sk))`, include/trace/events/sock.h (6.3).
#[raw_tracepoint(tracepoint = "sk_data_ready")]
pub(crate) fn socket_data(ctx: RawTracePointContext) -> i32 {
    in_hand_took(ctx.arg::<*const u8>(0) as u64);
    0
}

/// `TRACE_EVENT(inet_sock_set_state, TP_PROTO(const struct sock *sk, const int oldstate, const int newstate))`.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn socket_state(ctx: RawTracePointContext) -> i32 {
    in_hand_took(ctx.arg::<*const u8>(0) as u64);
    0
}

/// `TRACE_EVENT(tcp_probe, TP_PROTO(struct sock *sk, const struct sk_buff *skb))`, include/trace/events/tcp.h.
#[raw_tracepoint(tracepoint = "tcp_probe")]
pub(crate) fn socket_segment(ctx: RawTracePointContext) -> i32 {
    let skb = ctx.arg::<*const u8>(1) as u64;
    if let Some(track) = follow::find(skb) {
        took(track.journey, ctx.arg::<*const u8>(0) as u64);
    }
    0
}

/// `TRACE_EVENT(tcp_send_reset, TP_PROTO(const struct sock *sk, const struct sk_buff *skb, ...))`.
#[raw_tracepoint(tracepoint = "tcp_send_reset")]
pub(crate) fn reset_sent(ctx: RawTracePointContext) -> i32 {
    answered(ctx.arg::<*const u8>(1) as u64, AnswerKind::TcpReset, 0, 0);
    0
}

/// `TRACE_EVENT(icmp_send, TP_PROTO(const struct sk_buff *skb, int type, int code))`, include/trace/events/icmp.h
/// (6.11).
#[raw_tracepoint(tracepoint = "icmp_send")]
pub(crate) fn icmp_sent(ctx: RawTracePointContext) -> i32 {
    answered(
        ctx.arg::<*const u8>(0) as u64,
        AnswerKind::Icmp,
        ctx.arg::<u64>(1) as u32,
        ctx.arg::<u64>(2) as u32,
    );
    0
}

#[inline(always)]
fn answered(skb: u64, kind: AnswerKind, icmp_type: u32, icmp_code: u32) {
    if let Some(track) = follow::find(skb) {
        let journey = track.journey;
        record::<Answer>(|answer| {
            answer.head = head(Kind::Answer, journey);
            answer.kind = kind as u32;
            answer.icmp_type = icmp_type;
            answer.icmp_code = icmp_code;
        });
    }
}
