//! What XDP and tc programs of others say of a packet: these look on when one of them returns (fexit).
//!
//! They are loaded by `tracer::attach::verdicts`, one for each program of somebody else, with its number (`patch`), in a
//! section that aya accepts and never loads. Their context is what the other program was given, the kernel's own
//! structure (`btf_translate_to_vmlinux`, kernel/bpf/btf.c), and what it returned.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use tracer_common::{
    records::{Kind, SIGHT_FIRST},
    settings::patch,
};

use crate::{
    emit::{Place, sight},
    follow, glance,
    headers::{self, Headers, network_header},
    maps::{Passed, SETTINGS, Track, XDP_PASSED},
    probes::{
        device::in_scope,
        netfilter::patched,
        xdp::{self, Frame},
    },
    read::{Reader, member, plain},
    wanted,
};

/// The argument of a program that had one, and what it returned behind it.
type Context = u64;

/// A tc program (`__sk_buff`, which is a `struct sk_buff`) returned.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub(crate) extern "C" fn tc_verdict(ctx: *const Context) -> i32 {
    // SAFETY: the verifier knows the context.
    let skb = plain(unsafe { *ctx });
    let header = network_header(&mut Reader::new(), skb);
    if follow::find(skb).is_some() || came_in(skb) && glance::may_match(skb, header) {
        judged(skb, header, returned(ctx), patched!(patch::PROGRAM));
    }
    0
}

/// An XDP program (`xdp_md`, which is a `struct xdp_buff`) returned.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket")]
pub(crate) extern "C" fn xdp_verdict(ctx: *const Context) -> i32 {
    // SAFETY: the verifier knows the context.
    let frame = plain(unsafe { *ctx });
    frame_judged(frame, returned(ctx), patched!(patch::PROGRAM));
    0
}

/// What the program returned. The helper knows where that stands, also where the kernel found that the program's
/// description of its arguments is not to be relied on.
#[cfg(not(feature = "older"))]
#[inline(always)]
fn returned(ctx: *const Context) -> u32 {
    let mut value = 0u64;
    // SAFETY: the program's own context, and a live number.
    unsafe {
        aya_ebpf::helpers::generated::bpf_get_func_ret(ctx.cast_mut().cast(), &raw mut value);
    }
    value as u32
}

/// The helper came with 5.17.
#[cfg(feature = "older")]
#[inline(always)]
fn returned(ctx: *const Context) -> u32 {
    // SAFETY: behind the only argument; the verifier knows the context.
    unsafe { *ctx.add(1) as u32 }
}

/// Whether tc has the packet on its way in; false where this kernel does not say.
#[inline(always)]
fn came_in(skb: u64) -> bool {
    // SAFETY: written before the program was loaded, read-only since.
    match unsafe { (*(&raw const SETTINGS)).tc_at_ingress.get() } {
        Some((byte, mask)) => Reader::new().read::<u8>(skb + byte) & mask != 0,
        None => false,
    }
}

#[inline(always)]
fn judged(skb: u64, header: u64, verdict: u32, program: u32) -> u32 {
    let mut reader = Reader::new();
    let device: u64 = member!(reader, skb, skb_dev);
    let Some(netns) = in_scope(&mut reader, device) else { return 0 };
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(header, headers) {
        return 0;
    }
    let mut place = Place { location: program as u64, reason: verdict, ..Place::new(Kind::TcVerdict, netns) };
    let came_in = came_in(skb);
    if came_in {
        place.device_in = device;
    } else {
        place.device_out = device;
    }
    if let Some(track) = follow::find(skb) {
        if follow::is_same(skb, track, headers) {
            sight(skb, track, headers, &place);
        }
        return 0;
    }
    let flags = if came_in { wanted::at_first_sight(headers, netns) } else { wanted::NO };
    if flags == wanted::NO {
        return 0;
    }
    // The program stands before our own.
    let Some(track) = follow::start(skb, headers, flags) else { return 0 };
    track.device_in = device;
    place.flags = SIGHT_FIRST;
    follow::take_in_hand(skb, track.journey, &headers.tuple);
    sight(skb, track, headers, &place);
    0
}

#[inline(always)]
fn frame_judged(frame: u64, verdict: u32, program: u32) -> u32 {
    let mut reader = Reader::new();
    let device = xdp::device_of(&mut reader, frame);
    let Some(netns) = in_scope(&mut reader, device) else { return 0 };
    let header = xdp::network_header(&mut reader, frame, device);
    if follow::in_hand().is_none() && !glance::frame_may_match(header) {
        return 0;
    }
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(header, headers) {
        return 0;
    }
    let end: u64 = member!(reader, frame, xdp_data_end);
    let buffer: u64 = member!(reader, frame, xdp_hard_start);
    let length = end.wrapping_sub(header) as u32;
    let frame = Frame { device, netns, buffer, length, program, verdict };
    if let Some((skb, journey)) = xdp::known_as(&frame, headers) {
        xdp::emit_frame(journey, skb, 0, &frame, headers);
        return 0;
    }
    let flags = wanted::at_first_sight(headers, netns);
    if flags == wanted::NO {
        return 0;
    }
    if verdict == XDP_PASS {
        remember(&frame, headers);
    } else if !follow::is_busy() {
        let journey = follow::new_journey();
        xdp::emit_frame(journey, 0, flags | SIGHT_FIRST, &frame, headers);
    }
    0
}

/// Remembers a frame that may pass until its `sk_buff` is seen. A function of its own: what it has on the stack is gone
/// when it returns.
#[inline(never)]
fn remember(frame: &Frame, headers: &Headers) -> u32 {
    let passed = Passed {
        device: frame.device,
        identity: headers.identity,
        tuple: headers.tuple,
        program: frame.program,
        reserved: 0,
    };
    // What finds no room is shown without that verdict.
    u32::from(XDP_PASSED.insert(frame.buffer, passed, 0).is_ok())
}

/// Sends the verdict of the XDP program that let a packet pass before it was an `sk_buff`: the same buffer, device and headers.
#[inline(always)]
pub(super) fn of_xdp(skb: u64, track: &mut Track, headers: &Headers, place: &mut Place) {
    // SAFETY: written before the program was loaded, read-only since.
    if unsafe { (*(&raw const SETTINGS)).verdicts } == 0 {
        return;
    }
    let buffer: u64 = member!(Reader::new(), skb, skb_head);
    // SAFETY: a valid map value.
    let Some(passed) = XDP_PASSED.get_ptr(buffer).map(|passed| unsafe { &*passed }) else { return };
    let same = passed.device == place.device_in
        && passed.identity == headers.identity
        && passed.tuple == headers.tuple;
    place.kind = Kind::XdpVerdict;
    place.flags = 0;
    place.location = passed.program as u64;
    place.reason = XDP_PASS;
    let _ = XDP_PASSED.remove(buffer);
    if same {
        sight(skb, track, headers, place);
    }
}
