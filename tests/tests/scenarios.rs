//! Every scenario file as tests of two kinds: `lab/NAME` proves that rules and traffic do what the file says
//! without pathtrace (for its first variant), `trace/NAME` that pathtrace shows it. `PATHTRACE_SCENARIOS=sample` takes a part
//! of the second kind.

use std::{env, process::ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
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
    let trials = if env::var_os("PATHTRACE_SCENARIOS").is_some_and(|which| which == "sample") {
        cases.into_iter().filter(in_sample).map(trace).collect()
    } else {
        let labs = cases.iter().filter(|case| case.first_variant).cloned().map(lab);
        labs.chain(cases.iter().cloned().map(trace)).collect()
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Every scenario, backend and family, each at least once: for slow machines.
fn in_sample(case: &Case) -> bool {
    let crossed = (case.backend == Backend::Nft) == (case.family == Family::Ipv4);
    case.first_variant && crossed
}

fn lab(case: Case) -> Trial {
    trial("lab", case, |case| case.build()?.check_traffic())
}

fn trace(case: Case) -> Trial {
    trial("trace", case, |case| case.build()?.check_trace())
}

fn trial(kind: &str, case: Case, check: fn(&Case) -> anyhow::Result<()>) -> Trial {
    Trial::test(format!("{kind}/{}", case.name), move || {
        check(&case).map_err(|error| Failed::from(format!("{error:#}")))
    })
}
