//! Every scenario file as tests of two kinds: `lab/NAME` proves that rules and traffic do what the file says
//! without pathtrace (for its first variant), `trace/NAME` that pathtrace shows it. `PATHTRACE_SCENARIOS=sample` takes a part
//! of the second kind.

use std::{env, process::ExitCode};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tests::{
    ruleset::Backend,
    scenario::{self, Case},
    topology::Family,
};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases = match scenario::all() {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let sample = env::var_os("PATHTRACE_SCENARIOS").is_some_and(|which| which == "sample");
    let labs = cases.iter().filter(|case| !sample && case.first_variant).cloned().map(lab);
    let traces = cases.iter().filter(|case| !sample || in_sample(case)).cloned().map(trace);
    let trials = labs.chain(traces).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Every scenario, backend and family, each at least once: for slow machines. Where no other machine runs it, each
/// backend with each family, and each variant, too.
fn in_sample(case: &Case) -> bool {
    let crossed = (case.backend == Backend::Nft) == (case.family == Family::Ipv4);
    if case.needs_the_machine() { crossed == case.first_variant } else { crossed && case.first_variant }
}

fn lab(case: Case) -> Trial {
    trial("lab", case, |case| case.build()?.check_traffic())
}

fn trace(case: Case) -> Trial {
    trial("trace", case, |case| case.build()?.check_trace())
}

fn trial(kind: &str, case: Case, check: fn(&Case) -> anyhow::Result<()>) -> Trial {
    Trial::ignorable_test(format!("{kind}/{}", case.name), move || match case.impossible_here() {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => {
            check(&case).map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:#}")))
        }
    })
}
