//! Every scenario file as tests of two kinds: `lab/NAME` proves that rules and traffic do what the file says
//! without pathtrace (for its first variant), `trace/NAME` that pathtrace shows it.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use tests::scenario::{self, Case};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let cases = match scenario::all() {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let labs = cases.iter().filter(|case| case.first_variant).cloned().map(lab);
    let trials = labs.chain(cases.iter().cloned().map(trace)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
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
