use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    enrich::{
        Address, ConntrackUse, Containers, DeviceSettings, JudgingPrograms, Link, Logger, Network,
        PolicyRule, Prefix, Settings, Sockets,
    },
    model::{Backend, Hook, TableFamily},
};

use super::*;

const NAT: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:8080
COMMIT
";
const FILTER: &str = "\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
-A FORWARD -o docker0 -j DOCKER
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT
COMMIT
";

/// A Docker host in order, to be put out of order.
struct Host {
    capabilities: Capabilities,
    settings: Settings,
    network: Network,
    ruleset: RulesetView,
    loggers: Loggers,
}

fn at<T>(value: T) -> Reading<T> {
    Reading::Known { value, at: Timestamp::UNIX_EPOCH }
}

impl Host {
    fn new() -> Self {
        let device = DeviceSettings {
            forwarding_v4: Some(true),
            forwarding_v6: Some(true),
            rp_filter: Some(0),
            route_localnet: Some(false),
            accept_local: Some(false),
        };
        let prefix = Prefix::new("172.17.0.1".parse().unwrap(), 16).unwrap();
        Self {
            capabilities: Capabilities { kernel: "Linux 6.18".to_owned(), ..Capabilities::default() },
            settings: Settings {
                ip_forward: Some(true),
                all: device,
                devices: [("docker0".to_owned(), device)].into(),
                bridge_calls_iptables: Some(true),
                bridge_calls_ip6tables: Some(true),
                tcp_l3mdev_accept: None,
                udp_l3mdev_accept: None,
                conntrack: Some(ConntrackUse { count: 10, max: 1000, dropped: Some(0) }),
                queues: None,
                ipvs: None,
            },
            network: Network {
                links: vec![Link {
                    index: 2,
                    name: "docker0".to_owned(),
                    kind: Some("bridge".to_owned()),
                    master: None,
                    up: true,
                    programs: JudgingPrograms::default(),
                }],
                addresses: vec![Address { link: 2, prefix }],
                ..Network::default()
            },
            ruleset: RulesetView::new(1),
            loggers: Loggers::default(),
        }
    }

    fn rules(mut self, backend: Backend, text: &str) -> Self {
        self.ruleset.add_iptables_save(backend, TableFamily::Ip, text);
        self
    }

    fn report(&self) -> Report {
        let surroundings = Surroundings {
            netns: 1,
            sockets: at(Arc::new(Sockets::default())),
            settings: at(Arc::new(self.settings.clone())),
            network: at(Arc::new(self.network.clone())),
            containers: at(Arc::new(Containers::default())),
        };
        examine(&Machine {
            capabilities: &self.capabilities,
            surroundings: &surroundings,
            ruleset: &self.ruleset,
            loggers: &at(self.loggers.clone()),
        })
    }

    fn warnings(&self) -> Vec<&'static str> {
        let items = self.report().items;
        items.into_iter().filter(|item| item.level >= Level::Warning).map(|item| item.code).collect()
    }
}

fn docker() -> Host {
    Host::new().rules(Backend::IptablesNft, NAT).rules(Backend::IptablesNft, FILTER)
}

#[test]
fn a_host_in_order_has_no_warning() {
    assert_eq!(docker().warnings(), [""; 0]);
    assert_eq!(Host::new().warnings(), [""; 0]);
}

#[test]
fn wiped_docker_rules_and_blocked_targets_are_seen() {
    let wiped = Host::new()
        .rules(Backend::IptablesNft, NAT)
        .rules(Backend::IptablesNft, "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
    assert_eq!(wiped.warnings(), ["docker-chains-half-present", "dnat-target-not-accepted"]);
    let nat_gone = Host::new().rules(Backend::IptablesNft, FILTER);
    assert_eq!(nat_gone.warnings(), ["docker-chains-half-present"]);
    let other_port = Host::new()
        .rules(Backend::IptablesNft, NAT)
        .rules(Backend::IptablesNft, &FILTER.replace("8080", "81"));
    assert_eq!(other_port.warnings(), ["dnat-target-not-accepted"]);
    let report = other_port.report();
    let item = report.items.iter().find(|item| item.code == "dnat-target-not-accepted").unwrap();
    assert!(
        item.evidence[0].ends_with("iptables-nft table filter stops it by the policy of FORWARD"),
        "{item:?}"
    );
    // A rule on a condition that is not known may accept it: nothing is claimed.
    let perhaps = FILTER
        .replace("8080", "81")
        .replace("COMMIT", "-A FORWARD -m set --match-set ok src -j ACCEPT\nCOMMIT");
    assert_eq!(
        Host::new().rules(Backend::IptablesNft, NAT).rules(Backend::IptablesNft, &perhaps).warnings(),
        [""; 0]
    );
}

#[test]
fn both_backends_count_as_mixed_only_if_both_do_something() {
    let idle = "*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    assert_eq!(docker().rules(Backend::IptablesLegacy, idle).warnings(), [""; 0]);
    let rule = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n";
    assert_eq!(docker().rules(Backend::IptablesLegacy, rule).warnings(), ["mixed-backends"]);
}

#[test]
fn settings_matter_where_rules_depend_on_them() {
    let mut host = docker();
    host.settings.ip_forward = Some(false);
    assert_eq!(host.warnings(), ["ip-forwarding-off"]);
    host.ruleset.tables.clear();
    assert_eq!(host.warnings(), [""; 0]);

    let loopback = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:80\nCOMMIT\n";
    let mut host = Host::new().rules(Backend::IptablesLegacy, loopback);
    assert_eq!(host.warnings(), ["route-localnet-off"]);
    host.settings.devices.get_mut("docker0").unwrap().route_localnet = Some(true);
    assert_eq!(host.warnings(), [""; 0]);

    let mut host = docker().rules(
        Backend::IptablesLegacy,
        "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i docker0 -o docker0 -j DROP\nCOMMIT\n",
    );
    host.settings.bridge_calls_iptables = None;
    assert_eq!(host.warnings(), ["mixed-backends", "bridge-netfilter-off"]);
}

#[test]
fn strict_reverse_path_filtering_is_a_risk_with_policy_routing() {
    let mut host = docker();
    host.settings.all.rp_filter = Some(1);
    assert_eq!(host.warnings(), [""; 0]);
    host.network.rules.push(PolicyRule {
        ipv6: false,
        priority: 100,
        source: None,
        destination: None,
        input: None,
        mark: Some((1, 1)),
        table: 100,
        refuses: None,
        other_conditions: false,
    });
    assert_eq!(host.warnings(), ["reverse-path-filter-strict"]);
    host.settings.devices.get_mut("docker0").unwrap().rp_filter = Some(2);
    assert_eq!(host.warnings(), [""; 0]);
}

#[test]
fn a_filling_connection_table_and_a_forgotten_logger() {
    let mut host = docker();
    host.settings.conntrack = Some(ConntrackUse { count: 800, max: 1000, dropped: None });
    assert_eq!(host.warnings(), ["conntrack-nearly-full"]);
    host.settings.conntrack = Some(ConntrackUse { count: 8, max: 1000, dropped: Some(3) });
    assert_eq!(host.warnings(), ["conntrack-was-full"]);
    host.settings.conntrack = None;
    host.loggers.by_family = vec![Logger { family: 2, bound: Some("nfnetlink_log".to_owned()) }];
    host.loggers.groups = Some(vec![]);
    assert_eq!(host.warnings(), ["logger-bound"]);
    host.loggers.groups = Some(vec![0]);
    assert_eq!(host.warnings(), [""; 0]);
}

#[test]
fn only_what_is_needed_stops_tracing() {
    let mut host = docker();
    let feature = |name: &str, available, needed, used| Capability {
        name: name.to_owned(),
        available,
        why: "tried".to_owned(),
        gives: format!("what {name} gives"),
        needed,
        used,
    };
    host.capabilities.features = vec![feature("BTF", true, true, false), feature("tcx", false, false, true)];
    assert!(!host.report().stops_tracing());
    assert_eq!(host.warnings(), ["probe"]);
    host.capabilities.features.push(feature("netfilter links", false, true, true));
    assert!(host.report().stops_tracing());
    host.capabilities.hooks.push(HookFunction {
        hook: Hook::Forward,
        family: TableFamily::Ip,
        priority: Some(0),
        function: "nft_do_chain_ipv4".to_owned(),
        stands_for: Some("ip filter FORWARD".to_owned()),
    });
    let text = host.report().to_string();
    assert!(text.contains("  STOP  netfilter links is missing: what netfilter links gives\n"), "{text}");
    assert!(text.contains("FORWARD     ip             0  nft_do_chain_ipv4: ip filter FORWARD\n"), "{text}");
    assert!(
        serde_json::to_string(&host.report())
            .unwrap()
            .starts_with(r#"{"type":"doctor","items":[{"section":"kernel""#)
    );
}
