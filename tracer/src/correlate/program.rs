//! Verdicts of XDP and tc programs of others. A verdict of tc is a stage like others: what the kernel makes of it is
//! seen afterwards. So is one of XDP on a packet that is followed already; a frame that is no `sk_buff` ends with it,
//! and one that may pass is sent only with its first sight in the stack.

use super::{
    Correlator, DraftStage, Names, Output,
    open::{Open, Waiting},
};
use crate::{
    decode::SightEvent,
    model::{
        DeviceDirection, DeviceStage, OutcomeKind, ProgramFate, ProgramStage, ProgramType, ProgramVerdict,
    },
};

impl Correlator {
    /// An XDP program kept a frame from the stack.
    pub(super) fn ended_at_xdp(&mut self, journey: u64, sight: &SightEvent, output: &mut Output) {
        let mut open = self.open.remove(&journey).unwrap_or_default();
        open.see(sight, &self.filter);
        open.skb = None;
        open.pass(sight, &self.view, &self.names);
        if let Some(fate) = open.last_fate() {
            open.ended_by_program(fate);
        }
        self.close(journey, open, output);
    }
}

impl Open {
    /// A program returned.
    pub(super) fn program(&mut self, sight: &SightEvent, id: u32, verdict: ProgramVerdict, names: &Names) {
        let (device, ifindex, direction) = match (sight.device_in(), sight.device_out()) {
            (Some(device), _) => (device, sight.raw.in_ifindex, DeviceDirection::In),
            (None, Some(device)) => (device, sight.raw.out_ifindex, DeviceDirection::Out),
            (None, None) => return,
        };
        if direction == DeviceDirection::In {
            self.came_in_by(&device, ifindex);
        } else {
            self.leave_gap(sight);
        }
        self.hook = None;
        let departs = self.last_device_out().is_some() || verdict.fate() == ProgramFate::Redirected;
        let stage = ProgramStage {
            device,
            ifindex,
            direction,
            program_type: verdict.program(),
            program: names.program(id),
            id,
            verdict,
        };
        self.push(DraftStage::Program(stage));
        if departs && verdict.fate() != ProgramFate::Dropped {
            self.wait(Waiting::Departure, sight.raw.head.time);
        }
    }

    /// The device is shown before what stands on it judges, where nobody else has seen the packet there.
    fn came_in_by(&mut self, device: &str, ifindex: u32) {
        let direction = DeviceDirection::In;
        let last = self.stages.iter().rev().find(|timed| !matches!(timed.stage, DraftStage::Program(_)));
        let seen = matches!(last.map(|timed| &timed.stage), Some(DraftStage::Device(stage))
            if stage.direction == direction && stage.ifindex == ifindex);
        if !seen {
            let device = device.to_owned();
            let stage = DeviceStage { device, ifindex, direction, xdp: false, programs: Vec::new() };
            self.push(DraftStage::Device(stage));
        }
    }

    /// The last stage that did more than let the packet pass.
    pub(super) fn last_but_passing(&self) -> Option<&DraftStage> {
        let passes = |stage: &&DraftStage| matches!(stage, DraftStage::Program(program) if program.verdict.fate() == ProgramFate::Passed);
        self.stages.iter().rev().map(|timed| &timed.stage).find(|stage| !passes(stage))
    }

    /// What a program has done with the packet, where one was the last that was seen of it.
    pub(super) fn last_fate(&self) -> Option<ProgramFate> {
        match &self.stages.last()?.stage {
            DraftStage::Program(program) => {
                Some(program.verdict.fate()).filter(|fate| *fate != ProgramFate::Passed)
            }
            _ => None,
        }
    }

    /// The end of a packet that a program did not let pass.
    pub(super) fn ended_by_program(&mut self, fate: ProgramFate) {
        let Some(DraftStage::Program(program)) = self.stages.last().map(|timed| &timed.stage) else { return };
        let (verdict, label) = (program.verdict.name().into_owned(), program.label());
        // Only XDP tells by itself that it sends back by the same device.
        let device =
            (program.program_type == ProgramType::Xdp && verdict == XDP_TX).then(|| program.device.clone());
        let stage = self.last_stage();
        match fate {
            ProgramFate::Passed => {}
            ProgramFate::Dropped | ProgramFate::Taken => {
                self.end(OutcomeKind::Dropped, stage).reason = Some(verdict);
            }
            ProgramFate::Redirected => {
                if device.is_none() {
                    self.notes.push(format!("redirected by {label}; where it went was not seen"));
                }
                self.end(OutcomeKind::Forwarded, None).device = device;
            }
        }
    }
}

/// As [`ProgramVerdict::name`] has it.
const XDP_TX: &str = "XDP_TX";
