//! Why a packet died, or works in a way that surprises, and what to do. Pure: a [`Case`] in, findings out.
//!
//! Each cause is one small type that implements [`Check`]; [`checks::ALL`] lists them. docs/findings.md explains
//! every code to users.

mod case;
mod checks;
mod leg;
mod reasons;
pub mod ruleset;
mod words;

#[cfg(test)]
mod tests;

use jiff::Timestamp;

pub use case::{Case, Delivery, Flow, REPLY_PATIENCE};
pub use leg::Leg;
pub use ruleset::RulesetView;

use crate::model::Finding;

/// What a check has to say about a case.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// The cause does not apply.
    No,
    Found(Finding),
    /// It may apply: ask again at this time, or when the flow has moved on.
    NotYet(Timestamp),
}

impl From<Option<Finding>> for Answer {
    fn from(finding: Option<Finding>) -> Self {
        finding.map_or(Self::No, Self::Found)
    }
}

/// One cause.
trait Check: Sync {
    /// Stable code, as in docs/findings.md.
    fn code(&self) -> &'static str;

    /// More general findings that say nothing more when this one is there.
    fn replaces(&self) -> &'static [&'static str] {
        &[]
    }

    fn look(&self, case: &Case<'_>) -> Answer;
}

/// Everything found about a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    pub findings: Vec<Finding>,
    /// When to ask again, because a cause may show only then (a reply that never comes).
    pub again_at: Option<Timestamp>,
}

/// Looks for every known cause. A healthy journey has none.
#[must_use]
pub fn diagnose(case: &Case<'_>) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    let mut replaced = Vec::new();
    for check in checks::ALL {
        match check.look(case) {
            Answer::No => {}
            Answer::Found(finding) => {
                replaced.extend_from_slice(check.replaces());
                diagnosis.findings.push(finding);
            }
            Answer::NotYet(time) => {
                diagnosis.again_at = Some(diagnosis.again_at.map_or(time, |earlier| earlier.min(time)));
            }
        }
    }
    diagnosis.findings.retain(|finding| !replaced.contains(&finding.code));
    if diagnosis.findings.is_empty()
        && let Answer::Found(finding) = checks::FALLBACK.look(case)
    {
        diagnosis.findings.push(finding);
    }
    diagnosis
}

/// The codes of all findings that exist, for help and documentation.
pub fn codes() -> impl Iterator<Item = &'static str> {
    checks::ALL.iter().chain([&checks::FALLBACK]).map(|check| check.code())
}
