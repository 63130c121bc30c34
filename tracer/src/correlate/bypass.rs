//! Past all hooks: a flow table takes the packets of a connection from one device to the other by itself
//! (`nf_flow_offload_ip_hook`, net/netfilter/nf_flow_table_ip.c), and so can programs of others.

use super::open::Open;
use crate::{
    decode::{Fragment, SightEvent, SightKind},
    model::{Hook, ProgramFate, Tuple},
    plan::View,
};

const BY_FLOW_TABLE: &str = "passed no hook: a flowtable took it past FORWARD, whatever rules say there now";
const BY_SOMEBODY: &str =
    "passed no hook: a flowtable, or a program of others on the device, took it past FORWARD";

/// A packet between the device that it came in by and what comes next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crossing {
    netns: u32,
    ifindex: u32,
    tuple: Tuple,
    ttl: u8,
}

impl Open {
    /// Takes note of where a sight stands between two devices. To be called before the sight becomes a stage.
    pub(super) fn cross(&mut self, sight: &SightEvent, view: &View) {
        match sight.kind {
            SightKind::Xdp | SightKind::DeviceIn => {
                self.crossing = sight.tuple.map(|tuple| Crossing {
                    netns: sight.raw.netns,
                    ifindex: sight.raw.in_ifindex,
                    tuple,
                    ttl: sight.raw.ttl,
                });
            }
            SightKind::Verdict { verdict, .. } if verdict.fate() == ProgramFate::Passed => {}
            SightKind::DeviceOut => {
                self.left_as = sight.tuple.filter(|_| sight.fragment() == Fragment::Whole);
                let note = self.crossing.take().and_then(|crossing| self.bypassed(crossing, sight, view));
                if let Some(note) = note.filter(|note| self.notes.iter().all(|known| known != note)) {
                    self.notes.push(note.to_owned());
                }
            }
            _ => self.crossing = None,
        }
    }

    /// What took the packet past the hooks. A bridge leaves it as it is; forwarding and a flow table take one off its TTL, and
    /// forwarding looks for a route.
    fn bypassed(&self, from: Crossing, sight: &SightEvent, view: &View) -> Option<&'static str> {
        let (netns, family) = (sight.raw.netns, sight.family);
        let is_crossing = from.netns == netns && from.ifindex != sight.raw.out_ifindex;
        let is_older = from.ttl.checked_sub(1) == Some(sight.raw.ttl);
        let changed = is_older || sight.tuple.is_some_and(|tuple| tuple != from.tuple);
        let by_forwarding = !self.routes.is_empty() || sight.conntrack_info().is_some();
        let would_show = !self.has_gap && view.watches(netns, family, Hook::Forward);
        if !is_crossing || !changed || by_forwarding || !would_show {
            return None;
        }
        Some(if is_older && view.offloads(netns, family) { BY_FLOW_TABLE } else { BY_SOMEBODY })
    }
}
