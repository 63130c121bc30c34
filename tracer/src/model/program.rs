//! What XDP and tc programs of others said of a packet.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use super::DeviceDirection;

/// What kind of program, which is where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgramType {
    /// At the device, before the stack.
    Xdp,
    /// A tc filter or a tcx link, at the stack's end of the device.
    Tc,
}

impl ProgramType {
    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::Tc => "tc",
        }
    }
}

/// What a verdict leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramFate {
    /// The packet goes on as if nobody had looked.
    Passed,
    Dropped,
    /// The program keeps it.
    Taken,
    /// It goes back, or to another device, socket or CPU.
    Redirected,
}

/// What a program returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramVerdict {
    program: ProgramType,
    code: i32,
}

/// `enum xdp_action` (include/uapi/linux/bpf.h), from 0.
const XDP: [&str; 5] = ["XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT"];
/// `TC_ACT_*` (include/uapi/linux/pkt_cls.h), from -1.
const TC: [&str; 10] = [
    "TC_ACT_UNSPEC",
    "TC_ACT_OK",
    "TC_ACT_RECLASSIFY",
    "TC_ACT_SHOT",
    "TC_ACT_PIPE",
    "TC_ACT_STOLEN",
    "TC_ACT_QUEUED",
    "TC_ACT_REPEAT",
    "TC_ACT_REDIRECT",
    "TC_ACT_TRAP",
];

impl ProgramVerdict {
    /// Any number that a program of that type returned.
    #[must_use]
    pub fn new(program: ProgramType, code: i32) -> Self {
        Self { program, code }
    }

    #[must_use]
    pub fn program(self) -> ProgramType {
        self.program
    }

    /// The kernel's name; the number where it has none.
    #[must_use]
    pub fn name(self) -> Cow<'static, str> {
        let (names, first): (&[&'static str], i32) = match self.program {
            ProgramType::Xdp => (&XDP, 0),
            ProgramType::Tc => (&TC, -1),
        };
        let index = self.code.checked_sub(first).and_then(|index| usize::try_from(index).ok());
        let name = index.and_then(|index| names.get(index));
        name.map_or_else(|| self.code.to_string().into(), |name| Cow::Borrowed(*name))
    }

    /// What the kernel does with it. XDP takes a number that it does not know for XDP_ABORTED (`bpf_warn_invalid_xdp_action`),
    /// tc for TC_ACT_UNSPEC (`cls_bpf_exec_opcode` of net/sched/cls_bpf.c, `tcx_action_code` of include/net/tcx.h; 6.12).
    #[must_use]
    pub fn fate(self) -> ProgramFate {
        match (self.program, self.code) {
            (ProgramType::Xdp, 2) => ProgramFate::Passed,
            (ProgramType::Xdp, 3 | 4) | (ProgramType::Tc, 7) => ProgramFate::Redirected,
            (ProgramType::Xdp, _) | (ProgramType::Tc, 2) => ProgramFate::Dropped,
            (ProgramType::Tc, 4 | 8) => ProgramFate::Taken,
            (ProgramType::Tc, _) => ProgramFate::Passed,
        }
    }
}

impl Serialize for ProgramVerdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// A program of somebody else judged the packet at a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ProgramStage {
    pub device: String,
    pub ifindex: u32,
    pub direction: DeviceDirection,
    pub program_type: ProgramType,
    /// As it was named when it was loaded, 15 characters at most; `None` where it has no name.
    pub program: Option<String>,
    /// As `bpftool prog show id` takes it.
    pub id: u32,
    pub verdict: ProgramVerdict,
}

impl ProgramStage {
    /// `drop_port (program 12)`
    #[must_use]
    pub fn label(&self) -> String {
        match &self.program {
            Some(name) => format!("{name} (program {})", self.id),
            None => format!("program {}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_have_the_kernels_names_and_what_it_makes_of_them() {
        use ProgramFate::{Dropped, Passed, Redirected, Taken};
        use ProgramType::{Tc, Xdp};
        for (program, code, name, fate) in [
            (Xdp, 0, "XDP_ABORTED", Dropped),
            (Xdp, 1, "XDP_DROP", Dropped),
            (Xdp, 2, "XDP_PASS", Passed),
            (Xdp, 3, "XDP_TX", Redirected),
            (Xdp, 4, "XDP_REDIRECT", Redirected),
            (Xdp, 5, "5", Dropped),
            (Xdp, -1, "-1", Dropped),
            (Tc, -1, "TC_ACT_UNSPEC", Passed),
            (Tc, 0, "TC_ACT_OK", Passed),
            (Tc, 2, "TC_ACT_SHOT", Dropped),
            (Tc, 4, "TC_ACT_STOLEN", Taken),
            (Tc, 7, "TC_ACT_REDIRECT", Redirected),
            (Tc, 8, "TC_ACT_TRAP", Taken),
            (Tc, 9, "9", Passed),
            (Tc, i32::MIN, "-2147483648", Passed),
            (Xdp, i32::MAX, "2147483647", Dropped),
        ] {
            let verdict = ProgramVerdict::new(program, code);
            assert_eq!((&*verdict.name(), verdict.fate()), (name, fate), "{program:?} {code}");
        }
    }
}
