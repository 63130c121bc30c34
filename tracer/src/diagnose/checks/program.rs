//! An XDP or tc program of somebody else ended the packet.

use crate::model::{DeviceDirection, ProgramFate, ProgramStage, ProgramType};

use super::{Answer, Case, Check, words};

/// A program's verdict was seen, and the packet came no further.
pub(super) struct DroppedByProgram;

impl Check for DroppedByProgram {
    fn code(&self) -> &'static str {
        "dropped-by-program"
    }

    fn look(&self, case: &Case<'_>) -> Answer {
        let Some(program) = case.journey.fatal_program() else { return Answer::No };
        let outcome = &case.journey.outcome;
        let packet = case.last().map_or(case.journey.packet.tuple, |leg| leg.exit);
        let did = match program.verdict.fate() {
            ProgramFate::Taken => "kept",
            _ => "dropped",
        };
        let name = match &program.program {
            Some(name) => format!("{name} (id {})", program.id),
            None => format!("of id {}", program.id),
        };
        let summary = format!(
            "{} program {name} {did} {} {}: it returned {}.",
            program.program_type.name(),
            words::packet(case.protocol(), packet),
            place(program),
            program.verdict.name(),
        );
        let verdict = program.verdict.name();
        let reason = outcome.reason.as_ref().filter(|reason| **reason != verdict);
        let mut evidence = vec![format!("{} returned {verdict} for this packet", program.label())];
        evidence.extend(reason.map(|reason| format!("reason {reason}")));
        evidence.extend(outcome.location.as_ref().map(|location| format!("freed in {location}")));
        Answer::Found(words::finding(self.code(), &summary, &evidence, &fix(program)))
    }
}

fn place(program: &ProgramStage) -> String {
    match program.direction {
        DeviceDirection::In => format!("as it came in by {}", program.device),
        DeviceDirection::Out => format!("on its way out of {}", program.device),
    }
}

/// How to look at it, and how it goes. Whoever placed it knows what it is for.
fn fix(program: &ProgramStage) -> String {
    let (id, device) = (program.id, &program.device);
    match (program.program_type, program.direction) {
        (ProgramType::Xdp, _) => format!(
            "bpftool prog show id {id}; ip -d link show dev {device}  # who placed it? `ip link set dev {device} xdp off` \
             (or `xdpgeneric off`) removes it; one that stands by a link goes with its process: `bpftool link show`"
        ),
        (ProgramType::Tc, direction) => {
            let side = if direction == DeviceDirection::In { "ingress" } else { "egress" };
            format!(
                "bpftool prog show id {id}; tc filter show dev {device} {side}; bpftool net show dev {device}  # who placed it? \
                 `tc filter del dev {device} {side}` removes all filters there; a tcx link goes with its process"
            )
        }
    }
}
