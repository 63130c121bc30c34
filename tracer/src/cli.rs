//! Flags and help. What they mean together is settled in [`crate::config`].

use std::num::NonZeroU64;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use jiff::SignedDuration;

use crate::{
    config::{
        InterfaceName, NetnsSpec,
        values::{self, PortList},
    },
    model::{CtState, Protocol},
};

const EXAMPLES: &str = "\
Examples:
  sudo pathtrace --port 80                      every packet of port 80, before or after translation
  sudo pathtrace --host 10.0.0.2 --drops        only what dies on its way to or from 10.0.0.2
  sudo pathtrace --netns web --proto icmp       pings inside the namespace `web`
  sudo pathtrace --port 80 --count 1 --json     one journey, for a program
  pathtrace doctor                              what this machine can show";

/// Shows, live, each packet's way through netfilter: hook, table, chain, rule, NAT, routing, and why it died.
///
/// Nothing on the machine is changed: no rule, no log, no setting. A packet is shown when its addresses and ports
/// match before or after translation; so are the replies of its connection.
#[derive(Debug, Parser)]
#[command(name = "pathtrace", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Subcommands>,
    #[command(flatten)]
    pub trace: TraceArgs,
}

#[derive(Debug, Subcommand)]
pub enum Subcommands {
    /// Say what this machine can show, what is missing, and which settings are risky
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// One JSON object on standard output
    #[arg(long)]
    pub json: bool,
    /// When to use colour; `auto` means on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: ColorChoice,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
    #[command(flatten)]
    pub scope: ScopeArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub stop: StopArgs,
    #[command(flatten)]
    pub probes: ProbeArgs,
}

/// Which packets. All conditions must hold.
#[derive(Debug, Args)]
#[command(next_help_heading = "Filter")]
pub struct FilterArgs {
    /// Source or destination address, or prefix
    #[arg(long, value_name = "IP[/LEN]", value_parser = values::prefix)]
    pub host: Option<IpNet>,
    /// Source address or prefix
    #[arg(long, value_name = "IP[/LEN]", value_parser = values::prefix)]
    pub src: Option<IpNet>,
    /// Destination address or prefix
    #[arg(long, value_name = "IP[/LEN]", value_parser = values::prefix)]
    pub dst: Option<IpNet>,
    /// Source or destination port: 80, 80,443 or 8000-8100
    #[arg(long, value_name = "PORTS", allow_hyphen_values = true, value_parser = values::ports)]
    pub port: Vec<PortList>,
    /// Source port
    #[arg(long, value_name = "PORTS", allow_hyphen_values = true, value_parser = values::ports)]
    pub sport: Vec<PortList>,
    /// Destination port
    #[arg(long, value_name = "PORTS", allow_hyphen_values = true, value_parser = values::ports)]
    pub dport: Vec<PortList>,
    /// Protocol: tcp, udp, icmp, icmp6, esp, gre, sctp or a number
    #[arg(long, value_name = "PROTO", value_parser = values::protocol)]
    pub proto: Option<Protocol>,
    /// Packets that come in or go out through this device (repeatable)
    #[arg(long, value_name = "NAME")]
    pub iface: Vec<InterfaceName>,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6')]
    pub ipv6: bool,
    /// Connection tracking state: new, established, related, invalid, untracked
    #[arg(long, value_name = "STATE[,STATE]", value_delimiter = ',', value_parser = values::ct_state)]
    pub ct_state: Vec<CtState>,
}

/// Where to look.
#[derive(Debug, Args)]
#[command(next_help_heading = "Scope")]
pub struct ScopeArgs {
    /// Network namespace: its name (`ip netns`), a path, or pid:N (repeatable) [default: this one]
    #[arg(long, value_name = "NAME|PATH|pid:N")]
    pub netns: Vec<NetnsSpec>,
    /// Every network namespace of the machine, also those that appear later
    #[arg(long, conflicts_with = "netns")]
    pub all_netns: bool,
}

/// What to print.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// One JSON object a line, and nothing else on standard output
    #[arg(long)]
    pub json: bool,
    /// Only packets that are dropped or rejected
    #[arg(long)]
    pub drops: bool,
    /// Every packet in full; otherwise packets of a connection that went the same way are counted
    #[arg(long)]
    pub every: bool,
    /// Every rule that matched, backends, priorities and times, and which probes watch devices; twice: also the kernel
    /// side's own diagnostics
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// When to use colour; `auto` means on a terminal, unless NO_COLOR is set
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    pub color: ColorChoice,
}

/// When to stop. The summary is printed then, and on Ctrl-C.
#[derive(Debug, Args)]
#[command(next_help_heading = "Stop")]
pub struct StopArgs {
    /// After N packets that were shown or counted
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub count: Option<NonZeroU64>,
    /// After this time: 500ms, 30s, 2m, 1h
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = values::duration)]
    pub duration: Option<SignedDuration>,
}

/// How to look.
#[derive(Debug, Args)]
#[command(next_help_heading = "Method")]
pub struct ProbeArgs {
    /// How matching rules are found: by their counters, with `auto` by kprobes, too, for nftables rules without one, and only
    /// with `nftrace`, where counters do not tell, by the kernel's own trace, which takes a temporary table in the ruleset
    #[arg(long, value_enum, value_name = "HOW", default_value_t)]
    pub rules: RulesMode,
    /// Which kernel mechanism looks at the tables
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub probes: ProbeMode,
    /// Look at packets first with XDP (generic mode) on the devices that --iface names; refused where another XDP
    /// program is attached. The kernel switches LRO and hardware GRO off on such a device, and leaves them off
    #[arg(long, requires = "iface")]
    pub xdp: bool,
    /// Allow tc filters where the kernel has no tcx (before 6.6), and a clsact qdisc where there is none: a change to
    /// the machine that is announced, and undone when the trace ends. After `kill -9` they stay until the next trace
    /// with --clsact
    #[arg(long)]
    pub clsact: bool,
    /// Do as if the kernel lacked this (for tests)
    #[arg(long, value_enum, value_name = "FEATURE", hide = true)]
    pub without: Vec<KernelFeature>,
}

/// `--without`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelFeature {
    Tcx,
}

/// `--color`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    #[default]
    Auto,
    Always,
    Never,
}

/// `--rules`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RulesMode {
    /// The rules' own counters where they have them; never changes the ruleset
    #[default]
    Auto,
    /// The rules' own counters
    Counters,
    /// The kernel's rule trace, asked for by a temporary nftables table
    Nftrace,
    /// Verdicts only
    Off,
}

/// `--probes`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProbeMode {
    /// The best that this kernel offers
    #[default]
    Auto,
    /// Netfilter programs (kernel 6.4 or later)
    Netfilter,
    /// kprobes on the kernel's functions, every namespace at once (where the kernel allows them)
    Kprobe,
}
