use super::*;
use crate::model::{ProgramStage, ProgramType, ProgramVerdict};

const CLIENT: &str = "10.1.0.2:40000";

fn judged(
    program_type: ProgramType,
    code: i32,
    direction: DeviceDirection,
    (reason, location): (&str, &str),
) -> Lab {
    let lab = Lab::tcp(CLIENT, "10.1.0.1:22").comes_in("c0").push(StageKind::Program(ProgramStage {
        device: "c0".to_owned(),
        ifindex: 1,
        direction,
        program_type,
        program: Some("drop_port".to_owned()),
        id: 12,
        verdict: ProgramVerdict::new(program_type, code),
    }));
    let mut lab = lab.dropped(reason, location);
    lab.journey.outcome.stage = Some(1);
    lab
}

#[test]
fn an_xdp_program_that_drops_is_named_and_how_to_look_at_it() {
    let lab = judged(ProgramType::Xdp, 1, DeviceDirection::In, ("XDP_DROP", ""));
    let finding = lab.only("dropped-by-program");
    assert_eq!(
        finding.summary,
        "XDP program drop_port (id 12) dropped tcp 10.1.0.2:40000 -> 10.1.0.1:22 as it came in by c0: it returned XDP_DROP."
    );
    for part in ["bpftool prog show id 12", "ip -d link show dev c0", "ip link set dev c0 xdp off"] {
        assert!(finding.fix.contains(part), "{}", finding.fix);
    }
}

#[test]
fn a_tc_program_is_named_with_its_side() {
    let lab = judged(ProgramType::Tc, 2, DeviceDirection::Out, ("TC_EGRESS", "sch_handle_egress"));
    let finding = lab.only("dropped-by-program");
    assert_eq!(
        finding.summary,
        "tc program drop_port (id 12) dropped tcp 10.1.0.2:40000 -> 10.1.0.1:22 on its way out of c0: it returned TC_ACT_SHOT."
    );
    assert!(finding.evidence.iter().any(|line| line == "reason TC_EGRESS"), "{:?}", finding.evidence);
    assert!(finding.fix.contains("tc filter show dev c0 egress"), "{}", finding.fix);
}

#[test]
fn a_program_that_let_it_pass_is_not_to_blame() {
    let lab = judged(ProgramType::Tc, 0, DeviceDirection::In, ("IP_CSUM", "ip_rcv_core"));
    lab.only("dropped-by-kernel");
}
