//! The command: arguments in, an exit code out.

use std::{env, io, process::ExitCode};

use tracer::{config::Command, error, run};

fn main() -> ExitCode {
    let command = Command::parse(env::args_os()).unwrap_or_else(|error| error.exit());
    error::report(run::run(&command), command.wants_detail(), &mut io::stderr())
}
