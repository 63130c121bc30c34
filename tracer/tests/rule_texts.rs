//! Rule texts from the real tools, each test in a network namespace of its own.

use std::{os::fd::AsRawFd, process::Command, sync::LazyLock, time::Duration};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use tracer::{
    model::{Backend, TableFamily, Verdict},
    rules::{
        index::{Chain, ChainRef, Effect, Rule, RuleCounter, TableIndex},
        path::Step,
        probes::Probes,
        text::{Failure, Processes, Runner, Texts, Tool},
    },
};

#[expect(dead_code, reason = "its readers of kernel memory are for other tests")]
mod lab;
use lab::Lab;

static TOOLS: LazyLock<Processes> =
    LazyLock::new(|| Processes { deadline: lab::scaled(Duration::from_secs(20)) });

/// Runs a test in a fresh namespace.
fn in_namespace(test: impl FnOnce() + Send) {
    Lab::new().inside(test);
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}

fn table(backend: Backend, name: &str, chains: &[(&str, &[Effect])]) -> TableIndex {
    let rule = |(effect, position): (&Effect, u32)| Rule {
        position,
        handle: None,
        counter: Some(RuleCounter { index: 0, proves_match: true }),
        unconditional: false,
        tail_may_fail: false,
        effect: effect.clone(),
    };
    let chain = |(name, effects): &(&str, &[Effect])| Chain {
        name: (*name).into(),
        base: None,
        rules: effects.iter().zip(1..).map(rule).collect(),
        end_counter: None,
    };
    TableIndex {
        backend,
        family: TableFamily::Ip,
        name: name.into(),
        chains: chains.iter().map(chain).collect(),
        counters: Vec::new(),
        check: None,
        probes: Probes::default(),
        offloads: false,
    }
}

fn drop_packet() -> Effect {
    Effect::Final { verdict: Verdict::Drop, target: "DROP".into() }
}

/// What could be changed by looking: legacy tables, nft tables, the nft generation, every rule. The lists of tables
/// are missing until a module that has them is loaded.
fn state() -> String {
    sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true; nft list ruleset 2>&1; \
        iptables-legacy-save; ip6tables-legacy-save")
    .lines()
    .filter(|l| !l.starts_with('#'))
    .collect::<Vec<_>>()
    .join("\n")
}

/// The nftables generation number: NFT_MSG_GETGEN, whose answer begins with it (NFTA_GEN_ID).
fn generation() -> u32 {
    let netlink = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkNetFilter);
    let socket = socket(netlink.0, netlink.1, SockFlag::SOCK_CLOEXEC, netlink.2).expect("a netlink socket");
    let request: [u8; 20] = [20, 0, 0, 0, 16, 10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).expect("request");
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("answer");
    assert!(length >= 28 && answer[4] == 15, "not NFT_MSG_NEWGEN: {:?}", &answer[..length]);
    u32::from_be_bytes(answer[24..28].try_into().expect("four bytes"))
}

#[test]
fn looking_into_an_empty_namespace_creates_nothing() {
    in_namespace(|| {
        let (before, generation_before) = (state(), generation());
        for tool in Tool::ALL {
            assert_eq!(TOOLS.run(tool), Ok(String::new()), "{tool:?}");
        }
        assert_eq!((state(), generation()), (before, generation_before));
        assert_eq!(sh("cat /proc/net/ip_tables_names"), "");
    });
}

#[test]
fn looking_at_rules_changes_nothing() {
    in_namespace(|| {
        sh("nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; }; \
                 add rule inet fw in tcp dport { 1, 2 } counter drop'
            iptables-legacy -t raw -A PREROUTING -j ACCEPT
            iptables-nft -t mangle -A PREROUTING -j ACCEPT");
        let (before, generation_before) = (state(), generation());
        for tool in Tool::ALL {
            let quiet = matches!(tool, Tool::Ip6tablesLegacySave | Tool::Ip6tablesNftSave);
            assert_eq!(TOOLS.run(tool).map(|text| text.is_empty()), Ok(quiet), "{tool:?}");
        }
        assert_eq!((state(), generation()), (before, generation_before));
        assert_eq!(sh("cat /proc/net/ip_tables_names"), "raw\n");
    });
}

#[test]
fn the_same_rules_read_alike_from_both_backends() {
    let rules = "-A FORWARD -s 10.0.0.0/8 -j USER\n-A USER -p tcp -m tcp --dport 80 -m comment --comment \"a b\" -j DROP";
    for (backend, iptables) in
        [(Backend::IptablesLegacy, "iptables-legacy"), (Backend::IptablesNft, "iptables-nft")]
    {
        in_namespace(move || {
            sh(&format!("printf '*filter\n:USER - [0:0]\n%s\nCOMMIT\n' '{rules}' | {iptables}-restore"));
            let chains: [(&str, &[Effect]); 2] =
                [("FORWARD", &[Effect::Jump(ChainRef(1))]), ("USER", &[drop_packet()])];
            let tables = [table(backend, "filter", &chains)];
            let texts = Texts::read(&*TOOLS, &tables);
            let read: Vec<_> =
                (0..2).filter_map(|n| texts.of(&tables[0], Step { chain: ChainRef(n), rule: 0 })).collect();
            assert_eq!(read.join("\n"), rules);
            assert!(texts.missing().is_empty(), "{:?}", texts.missing());
        });
    }
}

#[test]
fn a_tool_runs_in_the_namespace_of_the_calling_thread() {
    in_namespace(|| {
        sh("nft add table inet mine");
        assert!(TOOLS.run(Tool::Nft).is_ok_and(|text| text.contains("table inet mine")));
        in_namespace(|| assert_eq!(TOOLS.run(Tool::Nft), Ok::<_, Failure>(String::new())));
    });
}
