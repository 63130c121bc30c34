//! Wires the stages together.

mod doctor;
mod ended;
mod findings;
mod kernel_trace;
mod order;
mod scope;
mod setup;
mod shown;
mod signals;
mod trace;
mod xdp;

use crate::{config::Command, error::Failure};

/// Runs the command until it is done, stopped or fails.
///
/// # Errors
/// What is missing on this machine, or why the trace could not go on.
pub fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Trace(config) => trace::run(config),
        Command::Doctor { json, .. } => doctor::run(*json),
    }
}
