//! What the user asked for, checked: flags go in, a [`Command`] that makes sense comes out.

mod filter;
pub(crate) mod values;

use std::{ffi::OsString, fmt, num::NonZeroU64, time::Duration};

use clap::{CommandFactory, Parser, error::ErrorKind};
use tracer_common::filter::Filter;

pub use self::values::{InterfaceName, NetnsSpec};
pub use crate::cli::{ColorChoice, KernelFeature, ProbeMode, RulesMode};
use crate::{
    cli::{Cli, OutputArgs, ScopeArgs, Subcommands, TraceArgs},
    model::CtState,
};

/// One run of pathtrace.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Trace(Box<Config>),
    Doctor { json: bool, color: ColorChoice },
}

impl Command {
    /// Reads the command line, the program's name first.
    ///
    /// # Errors
    /// Bad arguments, with the flag named; also `--help` and `--version`. `clap::Error::exit` prints either where
    /// it belongs and ends the process with the right code (2, or 0).
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let cli = Cli::try_parse_from(arguments)?;
        if let Some(Subcommands::Doctor(args)) = cli.command {
            return Ok(Self::Doctor { json: args.json, color: args.color });
        }
        match Config::new(cli.trace) {
            Ok(config) => Ok(Self::Trace(Box::new(config))),
            Err(bad) => Err(Cli::command().error(ErrorKind::ArgumentConflict, bad)),
        }
    }

    /// Whether the kernel's own words are wanted, be they many (`-vv`).
    #[must_use]
    pub fn wants_detail(&self) -> bool {
        matches!(self, Self::Trace(config) if config.kernel_log)
    }
}

/// A value that is well formed but cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BadArgument {
    flag: &'static str,
    problem: String,
}

impl fmt::Display for BadArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.flag, self.problem)
    }
}

/// A live trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub filter: Filter,
    /// Devices through which a packet must come in or go out; empty for any.
    pub interfaces: Vec<InterfaceName>,
    /// Conntrack states, one of which a packet must have; empty for any.
    pub ct_states: Vec<CtState>,
    pub scope: Scope,
    pub rules: RulesMode,
    pub probes: ProbeMode,
    /// Observe with XDP on `interfaces`, which are then not empty.
    pub xdp: bool,
    /// tc filters and clsact qdiscs may be added where tcx is missing.
    pub clsact: bool,
    /// Kernel features to do without.
    pub without: Vec<KernelFeature>,
    /// Notices say which probes watch devices.
    pub says_probes: bool,
    /// Show the kernel side's own diagnostics.
    pub kernel_log: bool,
    pub output: Output,
    pub stop: Stop,
}

/// Which namespaces are traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// At least one.
    These(Vec<NetnsSpec>),
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    pub format: Format,
    /// Only journeys that end badly.
    pub drops_only: bool,
    pub color: ColorChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text {
        /// Every journey in full, also those that repeat an earlier one of their flow.
        every: bool,
        /// Every matched rule, backends, priorities, times.
        verbose: bool,
    },
    /// JSON lines.
    Json,
}

/// When the trace ends by itself, whichever comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stop {
    /// Journeys that were shown, or counted as a repeat of one.
    pub count: Option<NonZeroU64>,
    pub duration: Option<Duration>,
}

impl Config {
    fn new(args: TraceArgs) -> Result<Self, BadArgument> {
        let TraceArgs { filter, scope, output, stop, probes } = args;
        let duration = stop.duration.map(|duration| duration.unsigned_abs());
        Ok(Self {
            filter: filter::build(&filter)?,
            interfaces: filter.iface,
            ct_states: filter.ct_state,
            scope: Scope::new(scope),
            rules: probes.rules,
            probes: probes.probes,
            xdp: probes.xdp,
            clsact: probes.clsact,
            without: probes.without,
            says_probes: output.verbose > 0,
            kernel_log: output.verbose > 1,
            output: Output::new(&output),
            stop: Stop { count: stop.count, duration },
        })
    }
}

impl Scope {
    fn new(args: ScopeArgs) -> Self {
        if args.all_netns {
            return Self::All;
        }
        if args.netns.is_empty() {
            return Self::These(vec![NetnsSpec::Current]);
        }
        Self::These(args.netns)
    }
}

impl Output {
    fn new(args: &OutputArgs) -> Self {
        let text = Format::Text { every: args.every, verbose: args.verbose > 0 };
        let format = if args.json { Format::Json } else { text };
        Self { format, drops_only: args.drops, color: args.color }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Result<Command, clap::Error> {
        Command::parse(std::iter::once("pathtrace").chain(flags.split_whitespace()).map(OsString::from))
    }

    fn config(flags: &str) -> Config {
        match parse(flags).unwrap() {
            Command::Trace(config) => *config,
            Command::Doctor { .. } => panic!("{flags} is doctor"),
        }
    }

    /// The first line of the message, for arguments that end with exit code 2.
    fn refusal(flags: &str) -> String {
        let error = parse(flags).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{flags}");
        error.to_string().lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn the_flag_is_named() {
        let cases = [
            ("--port 0", "--port"),
            ("--sport 90-80", "--sport"),
            ("--dport x", "--dport"),
            ("--host 10.0.0", "--host"),
            ("--src 10.0.0.0/40", "--src"),
            ("--dst x", "--dst"),
            ("--proto http", "--proto"),
            ("--iface a/b", "--iface"),
            ("--ct-state new,old", "--ct-state"),
            ("--netns pid:0", "--netns"),
            ("--netns a --all-netns", "--all-netns"),
            ("--rules maybe", "--rules"),
            ("--probes maybe", "--probes"),
            ("--color maybe", "--color"),
            ("--count 0", "--count"),
            ("--duration 30", "--duration"),
            ("--duration 0s", "--duration"),
            ("-4 -6", "-6"),
            ("-4 --host fd00::1", "--host"),
            ("--proto icmp --port 80", "--port"),
            ("--nonsense", "--nonsense"),
            ("--port 80 doctor", "doctor"),
        ];
        for (flags, named) in cases {
            let said = refusal(flags);
            assert!(said.contains(named), "{flags}: {said}");
        }
    }

    #[test]
    fn xdp_needs_to_know_where() {
        let error = parse("--xdp").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--iface"));
        assert!(config("--xdp --iface eth0").xdp);
    }

    #[test]
    fn the_default_is_this_namespace_and_text() {
        let config = config("");
        assert_eq!(config.scope, Scope::These(vec![NetnsSpec::Current]));
        assert_eq!(config.output.format, Format::Text { every: false, verbose: false });
        assert_eq!(config.stop, Stop::default());
        assert_eq!(config.rules, RulesMode::Auto);
    }

    #[test]
    fn lists_and_repetition() {
        let config = config("--netns a --netns pid:7 --iface x --iface y --ct-state new,INVALID");
        assert_eq!(config.scope, Scope::These(vec![NetnsSpec::Name("a".into()), NetnsSpec::Pid(7)]));
        assert_eq!(config.interfaces.iter().map(InterfaceName::as_str).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(config.ct_states, [CtState::New, CtState::Invalid]);
    }

    #[test]
    fn verbosity_has_two_steps() {
        assert!(!config("-v").kernel_log);
        let twice = config("-vv");
        assert!(twice.kernel_log);
        assert_eq!(twice.output.format, Format::Text { every: false, verbose: true });
    }

    #[test]
    fn stop_conditions() {
        let stop = config("--count 3 --duration 1h").stop;
        assert_eq!(stop.count, NonZeroU64::new(3));
        assert_eq!(stop.duration, Some(Duration::from_secs(3600)));
    }

    #[test]
    fn doctor_has_its_own_flags() {
        assert_eq!(parse("doctor --json").unwrap(), Command::Doctor { json: true, color: ColorChoice::Auto });
        assert!(refusal("doctor --port 80").contains("--port"));
    }

    #[test]
    fn help_and_version_are_not_errors() {
        assert_eq!(parse("--help").unwrap_err().exit_code(), 0);
        assert_eq!(parse("--version").unwrap_err().exit_code(), 0);
    }
}
