//! Scenarios: one TOML file each in `tests/scenarios/`, with a lab, rules, traffic, and what must be shown.
//!
//! `${name}` in any string is replaced: an address of the lab (`${client}`; `${[client]}` in brackets where IPv6
//! needs them before a port), a name of the variant, or one of `max` (32 or 128), `any_net` (0.0.0.0/0 or ::/0),
//! `icmp` (`-p` of the family's ICMP), `icmp_name` (as JSON names it), `ipt` (`ip` or `ip6`, as tables are called),
//! `inet` (the family as ipset calls it), `nft_addr` (the type as nft calls it), `service` (an address outside
//! the lab), `host_unreachable` (as `--reject-with` spells it),
//! `security_priority`, `family`, `backend`, `other_backend` (the backends as JSON names them).

mod apart;
mod case;
mod file;
mod run;
mod whole_machine;

pub use apart::told_here;
pub(crate) use apart::{OF_RULES, as_rewriting, is_refusal};
pub use case::{Case, all, named};
pub use file::{Action, Expected, Scenario, Send, Step};
pub use run::Stage;
