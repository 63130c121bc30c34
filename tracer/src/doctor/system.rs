//! Settings that the rules depend on.

use crate::{
    diagnose::ruleset::{Placed, RulesetView, Target},
    enrich::{Settings, Surroundings},
};

use super::{Level, Machine, Report, Section};

pub(super) fn examine(machine: &Machine<'_>, report: &mut Report) {
    match machine.surroundings.settings.known() {
        Some(settings) => {
            forwarding(machine.ruleset, settings, report);
            route_localnet(machine.ruleset, settings, report);
            reverse_path(machine.surroundings, settings, report);
            bridges(machine, settings, report);
            conntrack(settings, report);
        }
        None => report.add(
            Section::Settings,
            Level::Warning,
            "settings-unread",
            "the settings below /proc/sys/net could not be read",
            &[],
            None,
        ),
    }
    loggers(machine, report);
}

fn texts<'a>(rules: impl Iterator<Item = Placed<'a>>) -> Vec<String> {
    rules.map(|placed| format!("`{}`", placed.rule.text)).collect()
}

fn forwarding(ruleset: &RulesetView, settings: &Settings, report: &mut Report) {
    for (ipv6, name, value) in [
        (false, "net.ipv4.ip_forward", settings.ip_forward),
        (true, "net.ipv6.conf.all.forwarding", settings.all.forwarding_v6),
    ] {
        let Some(value) = value else { continue };
        let leading_away = ruleset.destination_nat(ipv6).filter(|placed| match &placed.rule.facts.target {
            Target::Dnat(target) => target.address.is_some_and(|address| !address.is_loopback()),
            _ => false,
        });
        let needing = texts(leading_away.chain(ruleset.source_nat(ipv6)));
        if !value && !needing.is_empty() {
            let summary = format!("{name} is 0, and NAT rules are there that need forwarding:");
            let fix = format!("sysctl -w {name}=1");
            report.add(
                Section::Settings,
                Level::Warning,
                "ip-forwarding-off",
                &summary,
                &needing,
                Some(&fix),
            );
        } else {
            let summary = format!("{name} = {}", u8::from(value));
            report.add(Section::Settings, Level::Ok, "ip-forwarding", &summary, &[], None);
        }
    }
}

fn route_localnet(ruleset: &RulesetView, settings: &Settings, report: &mut Report) {
    let to_loopback = ruleset.destination_nat(false).filter(|placed| match &placed.rule.facts.target {
        Target::Dnat(target) => target.address.is_some_and(|address| address.is_loopback()),
        _ => false,
    });
    let rules = texts(to_loopback);
    let on_anywhere = settings.all.route_localnet == Some(true)
        || settings.devices.values().any(|device| device.route_localnet == Some(true));
    if !rules.is_empty() && !on_anywhere {
        report.add(
            Section::Settings,
            Level::Warning,
            "route-localnet-off",
            "route_localnet is 0 on every device, and DNAT rules lead to loopback addresses:",
            &rules,
            Some("sysctl -w net.ipv4.conf.DEVICE.route_localnet=1  # for the device where such packets come in"),
        );
    }
}

fn reverse_path(surroundings: &Surroundings, settings: &Settings, report: &mut Report) {
    let Some(network) = surroundings.network.known() else { return };
    let strict: Vec<&str> = settings
        .devices
        .keys()
        .map(String::as_str)
        .filter(|device| *device != "lo" && settings.rp_filter(device) == Some(1))
        .collect();
    // The three rules that every system has look into these tables, without conditions.
    let marked = network.rules.iter().filter(|rule| rule.mark.is_some() || rule.source.is_some()).count();
    if !strict.is_empty() && marked > 0 {
        report.add(
            Section::Settings,
            Level::Warning,
            "reverse-path-filter-strict",
            "strict reverse-path filtering together with policy routing drops packets whose answers take another way:",
            &[
                format!("rp_filter = 1 on {}", strict.join(", ")),
                format!("{marked} policy rules by mark or source (`ip rule`)"),
            ],
            Some("sysctl -w net.ipv4.conf.DEVICE.rp_filter=2"),
        );
    }
}

fn bridges(machine: &Machine<'_>, settings: &Settings, report: &mut Report) {
    let Some(network) = machine.surroundings.network.known() else { return };
    let is_bridge =
        |name: &str| network.link_named(name).is_some_and(|link| link.kind.as_deref() == Some("bridge"));
    let within = |placed: &Placed<'_>| {
        let wanted = &placed.rule.facts.selectors;
        match (&wanted.input, &wanted.output) {
            (Some(input), Some(output)) => {
                !input.negated && input == output && input.any_of.iter().any(|name| is_bridge(name))
            }
            _ => placed.rule.text.contains("-m physdev"),
        }
    };
    let rules = texts(machine.ruleset.rules().filter(within));
    match settings.bridge_calls_iptables {
        Some(true) if network.links.iter().any(|link| link.kind.as_deref() == Some("bridge")) => report.add(
            Section::Settings,
            Level::Info,
            "bridge-netfilter-on",
            "packets within a bridge pass iptables too (net.bridge.bridge-nf-call-iptables = 1)",
            &[],
            None,
        ),
        Some(true) => {}
        off if !rules.is_empty() => {
            let state = if off.is_none() {
                "br_netfilter is not loaded"
            } else {
                "net.bridge.bridge-nf-call-iptables = 0"
            };
            report.add(
                Section::Settings,
                Level::Warning,
                "bridge-netfilter-off",
                &format!("{state}: packets within a bridge do not pass iptables, and rules are there that want them:"),
                &rules,
                Some("modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1"),
            );
        }
        _ => {}
    }
}

/// From here on the table is called nearly full: percent.
const NEARLY_FULL: u64 = 80;

fn conntrack(settings: &Settings, report: &mut Report) {
    let Some(table) = settings.conntrack.filter(|table| table.max > 0) else { return };
    let full = table.count * 100 >= table.max * NEARLY_FULL;
    let mut evidence =
        vec![format!("net.netfilter.nf_conntrack_count = {}, nf_conntrack_max = {}", table.count, table.max)];
    let dropped = table.dropped.filter(|dropped| *dropped > 0);
    evidence.extend(dropped.map(|count| format!("{count} packets dropped for want of an entry since boot")));
    let summary = format!("connection table: {} of {} entries", table.count, table.max);
    let (level, code) = match (full, dropped) {
        (true, _) => (Level::Warning, "conntrack-nearly-full"),
        (false, Some(_)) => (Level::Warning, "conntrack-was-full"),
        (false, None) => (Level::Ok, "conntrack"),
    };
    let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}", table.max.saturating_mul(2));
    report.add(
        Section::Settings,
        level,
        code,
        &summary,
        &evidence,
        (level == Level::Warning).then_some(&*fix),
    );
}

/// IPv4 and IPv6 (`NFPROTO_*`, include/uapi/linux/netfilter.h).
const FAMILIES: [(u8, &str); 2] = [(2, "IPv4"), (10, "IPv6")];

fn loggers(machine: &Machine<'_>, report: &mut Report) {
    let Some(loggers) = machine.loggers.known() else { return };
    for (family, name) in FAMILIES {
        let bound =
            loggers.by_family.iter().find(|logger| logger.family == family).and_then(|l| l.bound.as_deref());
        if bound != Some("nfnetlink_log") {
            continue;
        }
        let listened = loggers.groups.as_ref().is_some_and(|groups| !groups.is_empty());
        let evidence = [
            format!("/proc/net/netfilter/nf_log: {family} nfnetlink_log"),
            match &loggers.groups {
                Some(groups) if listened => format!("a program listens to nfnetlink_log groups {groups:?}"),
                Some(_) => "no program listens to any nfnetlink_log group".to_owned(),
                None => "/proc/net/netfilter/nfnetlink_log could not be read".to_owned(),
            },
        ];
        let (level, summary) = if listened {
            (
                Level::Info,
                format!("{name} log lines of LOG and TRACE rules go to a program, not to the kernel log"),
            )
        } else {
            (
                Level::Warning,
                format!(
                    "{name} log lines of LOG and TRACE rules go nowhere: a program has bound nfnetlink_log and left it so"
                ),
            )
        };
        let fix = format!(
            "echo NONE > /proc/sys/net/netfilter/nf_log/{family}  # then the kernel log's own logger, e.g. nf_log_syslog"
        );
        report.add(
            Section::Settings,
            level,
            "logger-bound",
            &summary,
            &evidence,
            (!listened).then_some(&*fix),
        );
    }
}
