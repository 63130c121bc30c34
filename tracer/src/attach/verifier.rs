//! What the verifier says of a program that it refuses.

use anyhow::anyhow;
use aya::programs::ProgramError;

/// What `print_verification_stats` (kernel/bpf/verifier.c) puts behind the reason: figures.
const FIGURES: [&str; 3] = ["processed ", "stack depth ", "verification time "];

/// The line that gives the reason: the last, but for figures.
pub(super) fn reason(log: &str) -> &str {
    let is_figure = |line: &&str| FIGURES.iter().any(|figure| line.starts_with(figure));
    log.lines().map(str::trim).rfind(|line| !line.is_empty() && !is_figure(line)).unwrap_or_default()
}

/// A refusal of a program that aya loads: in its first line what failed, on what, and the verifier's reason; the log in those
/// behind it.
pub(super) fn refusal(what: &str, error: ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return anyhow!(error).context(what.to_owned());
    };
    let log = verifier_log.to_string();
    match reason(&log) {
        "" => anyhow!("{what} was refused (BPF_PROG_LOAD): {io_error}"),
        reason => anyhow!("{what} was refused (BPF_PROG_LOAD): {io_error}: {reason}\n{log}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_stands_before_the_figures() {
        let log = "reg type unsupported for arg#2 function tuple#58\n\
                   math between map_value pointer and register with unbounded min value is not allowed\n\
                   verification time 10101 usec\n\
                   stack depth 0+72+0\n\
                   processed 115 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(
            reason(log),
            "math between map_value pointer and register with unbounded min value is not allowed"
        );
        assert_eq!(reason("processed 2 insns\n"), "");
    }
}
