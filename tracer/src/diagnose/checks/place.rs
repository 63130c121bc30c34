//! What the place where the kernel freed a packet says, where its reason says nothing or too little.

use crate::model::Hook;

use super::{Case, words};

/// Why, and what to look at.
pub(super) struct Told {
    pub(super) why: String,
    pub(super) fix: String,
}

/// `None`: the place says nothing more.
pub(super) fn explain(case: &Case<'_>) -> Option<Told> {
    if case.judge().is_some() {
        return None;
    }
    // Compilers add to names (`.constprop.0`).
    let function = case.journey.outcome.location.as_deref()?.split('.').next()?;
    match function {
        "__netif_receive_skb_core" => idle_slave(case),
        "nf_hook_slow" => refused_by_ipvs(case),
        _ if !case.reason_is_vague() => None,
        "wg_xmit" => Some(no_peer(case)),
        "vlan_do_receive" => Some(vlan_down(case)),
        "ip_tunnel_xmit" => Some(no_way_for_tunnel(case)),
        _ => None,
    }
}

/// Bonds and teams take nothing from a device that is not active but what is bound to it (`bond_handle_frame`,
/// drivers/net/bonding/bond_main.c); of IP nothing is, and so nothing handles it (`PTYPE_ABSENT` until 5.18).
fn idle_slave(case: &Case<'_>) -> Option<Told> {
    if !case.reason_is_vague() && !case.reason_is(&["UNHANDLED_PROTO", "PTYPE_ABSENT"]) {
        return None;
    }
    let leg = case.last()?;
    let device = leg.input()?;
    let master = case.network(leg.netns)?.master_of(device)?;
    let name = words::quoted(&master.name);
    let (kind, look) = match master.kind.as_deref()? {
        "bond" => ("bond", format!("cat /proc/net/bonding/{name}")),
        "team" => ("team", format!("teamdctl {name} state")),
        _ => return None,
    };
    Some(Told {
        why: format!(
            "{device} is a port of {kind} {}, most likely not the active one, and the {kind} takes no packets from those",
            master.name
        ),
        fix: format!("{look}  # which port is active? Harmless where a switch floods frames to both"),
    })
}

/// Without a peer, or where a peer's address is not known, `wg_xmit` tells the sender that the host is unreachable
/// (drivers/net/wireguard/device.c).
fn no_peer(case: &Case<'_>) -> Told {
    let leg = case.last();
    let device = leg.and_then(|leg| leg.output());
    let to = leg.map_or(case.journey.packet.tuple, |leg| leg.exit).destination;
    let (name, shown) = (device.unwrap_or("the device"), words::quoted(device.unwrap_or("DEVICE")));
    Told {
        why: format!(
            "most likely no peer of {name} has {to} in its allowed-ips, or that peer's endpoint is not known yet (this kernel \
             gives no reason)"
        ),
        fix: format!("wg show {shown} allowed-ips; wg show {shown} endpoints"),
    }
}

/// `vlan_do_receive` (net/8021q/vlan_core.c) frees for little else (no memory).
fn vlan_down(case: &Case<'_>) -> Told {
    let device = case.last().and_then(|leg| leg.input());
    let on = device.map_or_else(String::new, |device| format!(" on {device}"));
    Told {
        why: format!(
            "most likely the VLAN device{on} that takes its tag is down (this kernel gives no reason)"
        ),
        fix: "ip -d link show type vlan  # then: ip link set DEVICE up".to_owned(),
    }
}

/// `ip_tunnel_xmit` (net/ipv4/ip_tunnel.c): no way to the other end, one that leads into the tunnel again, or too large.
fn no_way_for_tunnel(case: &Case<'_>) -> Told {
    let device = case.last().and_then(|leg| leg.output());
    let (name, shown) = (device.unwrap_or("the tunnel"), words::quoted(device.unwrap_or("DEVICE")));
    Told {
        why: format!(
            "most likely no route leads to the other end of {name}, or one that leads into {name} itself; or it is too large \
             for {name} (this kernel gives no reason)"
        ),
        fix: format!("ip -d link show {shown}  # then, of the address behind `remote`: ip route get ADDRESS"),
    }
}

/// IPVS judges at INPUT and OUTPUT, unseen, and refuses what no server is there for (`ip_vs_leave`,
/// net/netfilter/ipvs/ip_vs_core.c).
fn refused_by_ipvs(case: &Case<'_>) -> Option<Told> {
    let leg = case.last()?;
    let hook = leg.netfilter().next_back().map(|stage| stage.hook);
    let by_netfilter = case.reason_is(&["NETFILTER_DROP"]) || case.journey.outcome.reason.is_none();
    if !by_netfilter || matches!(hook, Some(Hook::Forward | Hook::Postrouting)) {
        return None;
    }
    let services = case.settings(leg.netns)?.ipvs.as_ref()?;
    let service = services.iter().find(|service| service.takes(case.protocol(), &leg.exit))?;
    let to = leg.exit.destination_text();
    let servers = match service.servers {
        0 => "which has no real server",
        _ => "for want of a server that takes it",
    };
    Some(Told {
        why: format!("most likely IPVS refused it: {to} is a virtual service of IPVS, {servers}"),
        fix: "ipvsadm -ln  # its real servers and their weights; then see what should add them (kube-proxy, keepalived)"
            .to_owned(),
    })
}
