//! What the targets of xtables do to a table's walk: the same code runs under iptables-legacy and, through
//! nft_compat, under iptables-nft.

use super::index::Effect;
use crate::model::Verdict;

/// Targets that change or report the packet and return `XT_CONTINUE`.
const CONTINUE: &[&str] = &[
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DNPT",
    "DSCP",
    "ECN",
    "HL",
    "HMARK",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "SECMARK",
    "SET",
    "SNPT",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
    "ULOG",
];

/// Targets that translate and return `NF_ACCEPT`, and TPROXY, which accepts what it found a socket for.
const ACCEPT: &[&str] = &["DNAT", "MASQUERADE", "NETMAP", "REDIRECT", "SAME", "SNAT", "TPROXY"];

/// The effect of a target by its `xt_target.name`.
pub(super) fn of_target(name: &str) -> Effect {
    let verdict = match name {
        "REJECT" => Verdict::Reject,
        "NFQUEUE" => Verdict::Queue,
        name if ACCEPT.contains(&name) => Verdict::Accept,
        name if CONTINUE.contains(&name) => return Effect::Continue { target: Some(name.to_owned()) },
        name => return Effect::Unknown { target: name.to_owned() },
    };
    Effect::Final { verdict, target: name.to_owned() }
}

/// A verdict that the kernel holds as `NF_*`, with its target's name; `None` for one that no rule gives.
pub(super) fn of_verdict(code: i32) -> Option<Effect> {
    let (verdict, target) = match code {
        libc::NF_DROP => (Verdict::Drop, "DROP"),
        libc::NF_ACCEPT => (Verdict::Accept, "ACCEPT"),
        libc::NF_STOLEN => (Verdict::Stolen, "STOLEN"),
        libc::NF_QUEUE => (Verdict::Queue, "QUEUE"),
        _ => return None,
    };
    Some(Effect::Final { verdict, target: target.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{of_target, of_verdict};
    use crate::{model::Verdict, rules::index::Effect};

    #[test]
    fn targets_end_the_walk_go_on_or_are_unknown() {
        assert!(matches!(of_target("DNAT"), Effect::Final { verdict: Verdict::Accept, .. }));
        assert!(matches!(of_target("REJECT"), Effect::Final { verdict: Verdict::Reject, .. }));
        assert!(matches!(of_target("NFQUEUE"), Effect::Final { verdict: Verdict::Queue, .. }));
        assert_eq!(of_target("LOG"), Effect::Continue { target: Some("LOG".to_owned()) });
        // SYNPROXY drops, steals or goes on, as it sees fit.
        assert_eq!(of_target("SYNPROXY"), Effect::Unknown { target: "SYNPROXY".to_owned() });
        assert_eq!(of_target(""), Effect::Unknown { target: String::new() });
    }

    #[test]
    fn verdicts_are_the_kernels_numbers() {
        assert!(matches!(of_verdict(0), Some(Effect::Final { verdict: Verdict::Drop, .. })));
        assert!(matches!(of_verdict(1), Some(Effect::Final { verdict: Verdict::Accept, .. })));
        assert_eq!(of_verdict(77), None);
        assert_eq!(of_verdict(-4), None);
    }
}
