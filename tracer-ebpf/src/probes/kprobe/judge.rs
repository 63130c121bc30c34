//! What follows for a packet at a place of the plan: as `probes::netfilter`, for programs that were given no packet
//! that the verifier knows.

use core::mem::MaybeUninit;

use tracer_common::{
    kprobe::{BARE, Place as Planned, PlaceKey},
    records::{Kind, SIGHT_FIRST},
    settings::{GapKey, role},
    tuple::IPV4,
};

use super::LOCAL_OUT;
use crate::{
    counters,
    emit::{Place, sight},
    follow,
    headers::{self, Headers, network_header},
    maps::PLACES,
    probes::netfilter::{begins, pass},
    read::{Reader, member},
};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// At a function of a hook, or behind the last.
#[inline(always)]
pub(super) fn in_hook(skb: u64, state: u64, planned: &Planned) {
    let mut reader = Reader::new();
    let net: u64 = member!(reader, state, state_net);
    let mut place = Place {
        hook: member!(reader, state, state_hook),
        pf: member!(reader, state, state_pf),
        priority: planned.priority,
        device_in: member!(reader, state, state_in),
        device_out: member!(reader, state, state_out),
        ..Place::new(Kind::Netfilter, member!(reader, net, net_inum))
    };
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if headers::parse(network_header(&mut reader, skb), headers) {
        judge(skb, &mut place, headers, planned.role);
    }
}

/// At a hook that nobody is hooked to.
#[inline(always)]
pub(super) fn bare(skb: u64, net: u64, hook: u32) {
    let mut reader = Reader::new();
    let mut room = MaybeUninit::uninit();
    let headers = Headers::empty(&mut room);
    if !headers::parse(network_header(&mut reader, skb), headers) {
        return;
    }
    let pf = if headers.tuple.family == IPV4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
    let key = PlaceKey { net, function: BARE, hook, pf: pf as u32 };
    let Some(planned) = PLACES.get_ptr(&key) else { return };
    // SAFETY: a valid map value; user space replaces it whole.
    let planned = unsafe { *planned };
    pass();
    let mut place = Place {
        hook: hook as u8,
        pf,
        priority: planned.priority,
        ..Place::new(Kind::Netfilter, member!(reader, net, net_inum))
    };
    judge(skb, &mut place, headers, planned.role);
}

#[inline(never)]
fn judge(skb: u64, place: &mut Place, headers: &Headers, role: u32) -> i32 {
    let mut known = follow::find(skb);
    // A packet at the start of OUTPUT is new, whoever used this sk_buff before.
    if role & role::GATE != 0
        && place.hook as u32 == LOCAL_OUT
        && let Some(track) = &known
        && track.identity != headers.identity
    {
        follow::stop(skb);
        known = None;
    }
    let track = match known {
        Some(track) => {
            track.device_in = 0;
            track.device_out = 0;
            counters::close(track.journey, 0);
            track
        }
        None => {
            let Some(flags) = begins(skb, role, headers, place.netns) else { return 0 };
            let Some(track) = follow::start(skb, headers, flags) else { return 0 };
            place.flags = SIGHT_FIRST;
            track
        }
    };
    follow::take_in_hand(skb, track.journey, &headers.tuple);
    sight(skb, track, headers, place);
    let key =
        GapKey { netns: place.netns, priority: place.priority, hook: place.hook as u32, pf: place.pf as u32 };
    counters::open(track.journey, &key);
    0
}
