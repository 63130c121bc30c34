//! Who watches devices.

/// What sees packets come in and leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceProbes {
    /// Tracepoints, to the end.
    Tracepoints,
    /// Tracepoints first, then tcx links (6.6).
    Tcx,
    /// Tracepoints until tc filters of a clsact qdisc stand; a change to the machine, made only when asked for.
    Clsact,
}

/// Chooses by what the kernel has (`tcx`), and by what the user allows (`--clsact`); `fixed`: no namespace will join
/// later, as one does with `--all-netns`.
#[must_use]
pub fn device_probes(tcx: bool, clsact: bool, fixed: bool) -> DeviceProbes {
    match (fixed, tcx, clsact) {
        (true, true, _) => DeviceProbes::Tcx,
        (true, false, true) => DeviceProbes::Clsact,
        (true, false, false) | (false, ..) => DeviceProbes::Tracepoints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qdisc_is_added_only_where_it_is_allowed_and_there_is_no_other_way() {
        for (tcx, clsact, fixed, chosen) in [
            (true, false, true, DeviceProbes::Tcx),
            (true, true, true, DeviceProbes::Tcx),
            (false, true, true, DeviceProbes::Clsact),
            (false, false, true, DeviceProbes::Tracepoints),
            (false, true, false, DeviceProbes::Tracepoints),
            (true, true, false, DeviceProbes::Tracepoints),
        ] {
            assert_eq!(
                device_probes(tcx, clsact, fixed),
                chosen,
                "tcx {tcx}, --clsact {clsact}, fixed {fixed}"
            );
        }
    }
}
