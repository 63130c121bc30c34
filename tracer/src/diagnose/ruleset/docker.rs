//! The chains that Docker makes.

use super::RulesetView;

/// Chains through which Docker lets packets pass, before version 28 and from it on.
const DOCKER_FILTER_CHAINS: [&str; 3] = ["DOCKER", "DOCKER-FORWARD", "DOCKER-BRIDGE"];

/// What Docker made, and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DockerChains {
    /// nat has a chain DOCKER.
    pub nat: bool,
    /// Chain FORWARD reaches one of Docker's filter chains.
    pub filter: bool,
}

/// Looks for them, in whichever backend.
#[must_use]
pub fn docker_chains(ruleset: &RulesetView, ipv6: bool) -> DockerChains {
    let filter =
        ruleset.tables.iter().filter(|table| table.name == "filter" && table.judges(ipv6)).any(|table| {
            DOCKER_FILTER_CHAINS.iter().any(|chain| table.chain(chain).is_some() && table.is_reached(chain))
        });
    DockerChains { nat: ruleset.chain("nat", "DOCKER", ipv6).is_some(), filter }
}
