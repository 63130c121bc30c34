//! The journey of one packet, as every stage after `correlate` sees it. Pure data: the JSON contract is its
//! serialized form, so a field that is unknown is `None` (JSON null), never 0 or "".

mod journey;
mod line;
mod netfilter;
mod packet;
mod program;
mod stage;

pub use journey::{
    Conntrack, CtState, Direction, Finding, Journey, LocalSocket, Outcome, OutcomeKind, UNANSWERED,
};
pub use line::{Line, Notice, NoticeLevel, Start, Summary, SummaryFinding};
pub use netfilter::{
    Backend, DecidedBy, Hook, MatchedRule, NatKind, NetfilterStage, RULESET_CHANGED, RulesSource,
    TableFamily, Verdict,
};
pub use packet::{Family, Packet, Protocol, Tuple};
pub use program::{ProgramFate, ProgramStage, ProgramType, ProgramVerdict};
pub use stage::{DeviceDirection, DeviceStage, RouteStage, Stage, StageKind};
