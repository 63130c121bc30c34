//! What follows for a packet at a place of the plan: as `probes::netfilter`, for programs that were given no packet
//! that the verifier knows.

use core::{ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{helpers::generated::bpf_tail_call, macros::kprobe, programs::ProbeContext};
use tracer_common::{
    kprobe::{BARE, PlaceKey},
    records::Kind,
    tuple::IPV4,
};

use crate::{
    emit::Place,
    headers::{self, Headers, network_header},
    maps::{HANDED_OVER, HandedOver, KPROBE_JUDGE, PLACES},
    probes::netfilter::{follow_on, pass},
    read::{Reader, member},
};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Leaves a packet to [`kprobe_judge`]. Does not return, unless that program is missing.
#[inline(always)]
pub(super) fn hand_over(ctx: *mut c_void, what: &HandedOver) {
    let Some(room) = HANDED_OVER.get_ptr_mut(0) else { return };
    // SAFETY: a valid per-CPU map value; the context is this program's own.
    unsafe {
        *room = *what;
        bpf_tail_call(ctx, (&raw const KPROBE_JUDGE).cast_mut().cast(), 0);
    }
}

/// At a hook that nobody is hooked to.
#[inline(always)]
pub(super) fn bare(ctx: *mut c_void, skb: u64, net: u64, hook: u32) {
    let mut reader = Reader::new();
    let header = network_header(&mut reader, skb);
    let first: u8 = reader.read(header);
    let pf = if first >> 4 == IPV4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
    let key = PlaceKey { net, function: BARE, hook, pf: pf as u32 };
    let Some(planned) = PLACES.get_ptr(&key) else { return };
    // SAFETY: a valid map value; user space replaces it whole.
    let place = unsafe { *planned };
    pass();
    let hook = hook as u8;
    hand_over(ctx, &HandedOver { skb, net, state: 0, place, hook, pf, reserved: 0 });
}

/// Never attached: other programs end in it.
#[kprobe]
pub(crate) fn kprobe_judge(_ctx: ProbeContext) -> u32 {
    let Some(room) = HANDED_OVER.get_ptr(0) else { return 0 };
    // SAFETY: a valid per-CPU map value.
    let HandedOver { skb, net, state, place: planned, hook, pf, .. } = unsafe { *room };
    let mut reader = Reader::new();
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(network_header(&mut reader, skb), headers) {
        return 0;
    }
    let mut place = Place {
        hook,
        pf,
        priority: planned.priority,
        ..Place::new(Kind::Netfilter, member!(reader, net, net_inum))
    };
    if state != 0 {
        place.device_in = member!(reader, state, state_in);
        place.device_out = member!(reader, state, state_out);
    }
    // No function of its own: six calls from here to the filter fill the 512 bytes that 6.1 gives them together.
    follow_on(skb, &mut place, headers, planned.role);
    0
}
