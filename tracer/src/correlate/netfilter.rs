//! Through the hooks: what lay between two probes was passed when the packet turns up behind it.

use std::sync::Arc;

use super::{
    DraftStage, DraftTable,
    draft::{Surroundings, TimedStage},
    open::{InGap, Input, Open, Waiting},
};
use crate::{
    decode::{DeviceName, SightEvent},
    model::{DeviceDirection, DeviceStage, Family, Hook, Tuple},
    plan::{Gap, ProbeKey, View},
    rules::path::Fate,
};

/// `IPS_CONFIRMED` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const CONFIRMED: u32 = 1 << 3;

impl Open {
    pub(super) fn netfilter(
        &mut self,
        sight: &SightEvent,
        family: Family,
        hook: Hook,
        priority: i32,
        view: &View,
    ) {
        let key = ProbeKey { netns: sight.raw.netns, family, hook, priority };
        if self.is_inside_call(sight, view.gap(key)) {
            self.hits.clear();
            return;
        }
        self.leave_gap(sight);
        if self.stages.is_empty()
            && hook != Hook::Output
            && let Some(device) = sight.device_in()
        {
            // First sight behind the device (it began late): the hook knows where it came in.
            let ifindex = sight.raw.in_ifindex;
            let direction = DeviceDirection::In;
            let stage = DeviceStage { device, ifindex, direction, xdp: false, programs: Vec::new() };
            self.push(DraftStage::Device(stage));
        }
        let here = self.input_here(sight);
        if hook == Hook::Prerouting && self.input.is_none_or(|input| !input.is_at(&here)) {
            self.input = Some(here);
        }
        if self.hook != Some(hook) {
            self.enter_hook(sight, hook);
        }
        if hook == Hook::Prerouting {
            // What was looked up so far is what matches (addrtype, rpfilter, fib) asked.
            self.routes.clear();
        }
        let Some(gap) = view.gap(key) else { return };
        self.after_conntrack |= gap.after_conntrack;
        if hook == Hook::Input && sight.raw.socket_port != 0 {
            self.socket_port = Some(sight.raw.socket_port);
        }
        if gap.last && hook == Hook::Input {
            self.wait(Waiting::Delivery, sight.raw.head.time);
        }
        if let Some(before) = self.tuple
            && !gap.judges.is_empty()
        {
            self.gap = Some(InGap {
                gap: gap.clone(),
                hook,
                family,
                netns: sight.raw.netns,
                time: sight.raw.head.time,
                cpu: sight.raw.head.cpu,
                before,
                related: matches!(sight.conntrack_info(), Some(1 | 4)),
                around: Surroundings {
                    input: DeviceName::new(sight.raw.in_ifindex, sight.raw.in_name),
                    output: DeviceName::new(sight.raw.out_ifindex, sight.raw.out_name),
                    conntrack_info: sight.conntrack_info(),
                    conntrack_status: (sight.raw.conntrack != 0).then_some(sight.raw.conntrack_status),
                },
            });
        }
    }

    /// The NAT engine's functions call each other with what they were given (`nf_nat_ipv6_in` and `nf_nat_ipv6_fn`,
    /// net/netfilter/nf_nat_proto.c, 6.1), and a probe may stand on either: no rule was asked in between, and nothing
    /// rewritten.
    fn is_inside_call(&self, sight: &SightEvent, gap: Option<&Arc<Gap>>) -> bool {
        let (Some(inside), Some(gap)) = (&self.gap, gap) else { return false };
        Arc::ptr_eq(&inside.gap, gap)
            && gap.judges.iter().any(|judge| judge.nat)
            && sight.tuple == Some(inside.before)
            && self.hits.iter().all(|event| event.hits.is_empty())
    }

    /// A hook begins: the routing decision that led there comes first.
    fn enter_hook(&mut self, sight: &SightEvent, hook: Hook) {
        let from = self.hook.replace(hook);
        // A bridged frame is routed nowhere, and netfilter sees it at the bridge all the same.
        if matches!(hook, Hook::Input | Hook::Forward) && sight.raw.routed != 0 {
            self.came_in(sight);
        }
        match hook {
            Hook::Input | Hook::Forward | Hook::Output => self.routed(sight),
            // Rules of OUTPUT that change destination or mark have it routed once more (`ip_route_me_harder`).
            Hook::Postrouting if from == Some(Hook::Output) && self.is_rerouted(sight) => self.routed(sight),
            _ => self.routes.clear(),
        }
    }

    /// The device with which a hook sees it, as if that were news.
    fn input_here(&self, sight: &SightEvent) -> Input {
        let raw = &sight.raw;
        Input { netns: raw.netns, ifindex: raw.in_ifindex, time: raw.head.time, at: self.stages.len() }
    }

    /// A device gave the packet to one above it (VLAN, bond, VRF, macvlan) where nobody looks: the hooks say which that was.
    fn came_in(&mut self, sight: &SightEvent) {
        let (ifindex, netns) = (sight.raw.in_ifindex, sight.raw.netns);
        let last = self.stages.iter().rev().find_map(|timed| match &timed.stage {
            DraftStage::Device(device) => Some((device.direction, device.ifindex, timed.netns)),
            _ => None,
        });
        let Some(device) = sight.device_in() else { return };
        if last.is_none_or(|last| last == (DeviceDirection::In, ifindex, netns)) {
            return;
        }
        let here = self.input_here(sight);
        let input = self.input.filter(|input| input.is_at(&here)).unwrap_or(here);
        let direction = DeviceDirection::In;
        let stage = DeviceStage { device, ifindex, direction, xdp: false, programs: Vec::new() };
        let stage = TimedStage { stage: DraftStage::Device(stage), time: input.time, netns };
        self.stages.insert(input.at.min(self.stages.len()), stage);
    }

    /// The packet turned up behind the gap it was in.
    pub(super) fn leave_gap(&mut self, sight: &SightEvent) {
        let after = sight.tuple;
        self.judged(Fate::Passed, after);
    }

    /// The gap ended, in one way or another.
    pub(super) fn judged(&mut self, fate: Fate, after: Option<Tuple>) {
        let Some(inside) = self.gap.take() else { return };
        let hits = std::mem::take(&mut self.hits);
        let parts = std::mem::take(&mut self.parts);
        let after = after.unwrap_or(inside.before);
        for (number, judge) in inside.gap.judges.iter().enumerate() {
            let table = DraftTable {
                gap: inside.gap.clone(),
                judge: number,
                hook: inside.hook,
                family: inside.family,
                hits: hits.iter().find(|hits| judge.reading == Some(hits.table)).cloned().map(Box::new),
                parts: (!self.has_gap).then(|| parts.clone()),
                changed_cpu: inside.cpu != self.cpu,
                fate,
                before: inside.before,
                after,
                confirmed: inside.related
                    || inside.around.conntrack_status.is_some_and(|status| status & CONFIRMED != 0),
                // In a gap that holds connection tracking itself, the packet gets its entry there.
                tracked: inside.around.conntrack_status.is_some() || self.conntrack != 0,
                around: inside.around,
            };
            let stage = DraftStage::Table(table);
            self.stages.push(TimedStage { stage, time: inside.time, netns: inside.netns });
        }
    }
}
