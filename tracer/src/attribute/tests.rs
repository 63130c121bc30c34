//! When a table of NAT is asked.

use std::{net::Ipv4Addr, sync::Arc};

use super::{mapping::Mappings, table::judge, traced::Account};
use crate::{
    correlate::{DraftTable, Looks, Surroundings},
    model::{Backend, Family, Hook, Protocol, TableFamily, Tuple, Verdict},
    plan::{Gap, Judge},
    rules::{
        index::{BaseChain, Chain, ChainRef, TableIndex},
        nftrace::Passages,
        path::Fate,
        probes::Probes,
    },
};

const SOURCE_DONE: u32 = 1 << 7;
const DESTINATION_DONE: u32 = 1 << 8;
const CONFIRMED: u32 = 1 << 3;

/// A chain of type nat without rules.
fn nat(hook: Hook) -> Judge {
    let base = BaseChain { hook, priority: -100, policy: Verdict::Accept, address: 1 };
    let index = TableIndex {
        backend: Backend::Nftables,
        family: TableFamily::Ip,
        name: "n".into(),
        chains: vec![Chain { name: "c".into(), base: Some(base), rules: Vec::new(), end_counter: None }],
        counters: Vec::new(),
        check: None,
        probes: Probes::default(),
        offloads: false,
    };
    let table = Some((Arc::new(index), ChainRef(0)));
    Judge { reading: Some(1), table, nat: true, priority: -100, texts: Arc::default() }
}

/// Whether a packet that passed the chain is shown as judged there; `status` is its connection's before.
fn is_asked(hook: Hook, status: Option<u32>) -> bool {
    let any = Ipv4Addr::LOCALHOST.into();
    let tuple = Tuple { source: any, source_port: Some(1), destination: any, destination_port: Some(2) };
    let gap = Gap { judges: vec![nat(hook)], last: false, after_conntrack: true, holds_conntrack: false };
    let table = DraftTable {
        gap: Arc::new(gap),
        judge: 0,
        hook,
        family: Family::Ipv4,
        hits: None,
        parts: None,
        changed_cpu: false,
        fate: Fate::Passed,
        before: tuple,
        after: tuple,
        confirmed: status.is_some_and(|status| status & CONFIRMED != 0),
        tracked: true,
        around: Surroundings { conntrack_status: status, ..Surroundings::default() },
    };
    let looks = Looks { family: Family::Ipv4, protocol: Protocol::TCP, ip_id: None, tcp_flags: None };
    let mut passages = Passages::default();
    let mut account = Account { passages: &mut passages, looks, netns: 1, since: 0, read: 0, skipped: None };
    judge(&[&table], Some(1), None, &mut Mappings::default(), &mut account).stages.len() == 1
}

/// A VRF gives each packet to PREROUTING twice, IPVS to PREROUTING and OUTPUT: only the first pass asks.
#[test]
fn a_chain_of_nat_is_asked_once_for_each_end_of_a_connection() {
    for hook in [Hook::Prerouting, Hook::Output, Hook::Input, Hook::Postrouting] {
        let (own, other) = match hook {
            Hook::Prerouting | Hook::Output => (DESTINATION_DONE, SOURCE_DONE),
            _ => (SOURCE_DONE, DESTINATION_DONE),
        };
        for status in [None, Some(0), Some(other)] {
            assert!(is_asked(hook, status), "{hook:?} {status:?}");
        }
        for status in [own, own | other, CONFIRMED] {
            assert!(!is_asked(hook, Some(status)), "{hook:?} {status}");
        }
    }
}
