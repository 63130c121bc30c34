//! Numbers and codes in the words that people use.

use std::borrow::Cow;

use crate::model::{Direction, NatKind, Packet, Protocol, Verdict};

/// Columns that a line should not exceed.
pub(super) const WIDTH: usize = 110;

/// `SYN,ACK` for `SA`, as iptables `--tcp-flags` spells it.
pub(super) fn tcp_flags(letters: &str) -> String {
    let name = |letter| match letter {
        'S' => "SYN",
        'A' => "ACK",
        'F' => "FIN",
        'R' => "RST",
        'P' => "PSH",
        'U' => "URG",
        'E' => "ECE",
        'C' => "CWR",
        _ => "?",
    };
    if letters.is_empty() {
        return "no flags".to_owned();
    }
    letters.chars().map(name).collect::<Vec<_>>().join(",")
}

/// The name that `--icmp-type` and `--icmpv6-type` take, or the numbers.
pub(super) fn icmp(packet: &Packet) -> Option<Cow<'static, str>> {
    let (kind, code) = (packet.icmp_type?, packet.icmp_code);
    let name = match packet.protocol {
        Protocol::ICMP => icmp4_name(kind, code),
        Protocol::ICMP6 => icmp6_name(kind, code),
        _ => None,
    };
    Some(name.map_or_else(
        || match code {
            Some(code) => format!("type {kind} code {code}").into(),
            None => format!("type {kind}").into(),
        },
        Cow::Borrowed,
    ))
}

fn icmp4_name(kind: u8, code: Option<u8>) -> Option<&'static str> {
    Some(match (kind, code) {
        (0, _) => "echo-reply",
        (3, Some(0)) => "network-unreachable",
        (3, Some(1)) => "host-unreachable",
        (3, Some(2)) => "protocol-unreachable",
        (3, Some(3)) => "port-unreachable",
        (3, Some(4)) => "fragmentation-needed",
        (3, Some(9)) => "network-prohibited",
        (3, Some(10)) => "host-prohibited",
        (3, Some(13)) => "communication-prohibited",
        (3, _) => "destination-unreachable",
        (5, _) => "redirect",
        (8, _) => "echo-request",
        (11, _) => "time-exceeded",
        (12, _) => "parameter-problem",
        _ => return None,
    })
}

fn icmp6_name(kind: u8, code: Option<u8>) -> Option<&'static str> {
    Some(match (kind, code) {
        (1, Some(0)) => "no-route",
        (1, Some(1)) => "communication-prohibited",
        (1, Some(3)) => "address-unreachable",
        (1, Some(4)) => "port-unreachable",
        (1, _) => "destination-unreachable",
        (2, _) => "packet-too-big",
        (3, _) => "time-exceeded",
        (4, _) => "parameter-problem",
        (128, _) => "echo-request",
        (129, _) => "echo-reply",
        (133, _) => "router-solicitation",
        (134, _) => "router-advertisement",
        (135, _) => "neighbour-solicitation",
        (136, _) => "neighbour-advertisement",
        (137, _) => "redirect",
        _ => return None,
    })
}

pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Accept => "ACCEPT",
        Verdict::Drop => "DROP",
        Verdict::Reject => "REJECT",
        Verdict::Queue => "QUEUE",
        Verdict::Stolen => "STOLEN",
        Verdict::Repeat => "REPEAT",
    }
}

pub(super) fn nat(kind: NatKind) -> &'static str {
    match kind {
        NatKind::Dnat => "DNAT",
        NatKind::Snat => "SNAT",
        NatKind::Masquerade => "MASQUERADE",
        NatKind::Redirect => "REDIRECT",
    }
}

pub(super) fn direction(direction: Direction) -> Option<&'static str> {
    match direction {
        Direction::Original => None,
        Direction::Reply => Some("reply"),
    }
}

/// Routing tables by the names that every system gives them (include/uapi/linux/rtnetlink.h), others by number.
pub(super) fn routing_table(table: u32) -> Cow<'static, str> {
    match table {
        253 => "default".into(),
        254 => "main".into(),
        255 => "local".into(),
        other => other.to_string().into(),
    }
}

/// `850 ns`, `41.2 us`, `1.3 ms`, `3.0 s`.
pub(super) fn elapsed(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.1} s", value / 1e9),
    }
}

/// Puts parts on as few lines as fit into `width` columns; a part that is longer has a line of its own.
pub(super) fn fill<'a>(
    parts: impl IntoIterator<Item = &'a str>,
    separator: &str,
    width: usize,
) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            None => lines.push(part.to_owned()),
            Some(line) => {
                let joined =
                    [line.as_str(), separator, part].iter().map(|text| text.chars().count()).sum::<usize>();
                if joined > width {
                    line.push_str(separator.trim_end());
                    lines.push(part.to_owned());
                } else {
                    line.push_str(separator);
                    line.push_str(part);
                }
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_parts() {
        assert_eq!(fill(["ab", "cd", "ef"], " ", 5), ["ab cd", "ef"]);
        assert_eq!(fill(["abcdefgh", "x"], ", ", 5), ["abcdefgh,", "x"]);
        assert!(fill([], " ", 5).is_empty());
    }

    #[test]
    fn times_have_a_unit_that_fits() {
        let shown = [7, 2_100, 1_300_000, 3_000_000_000].map(elapsed);
        assert_eq!(shown, ["7 ns", "2.1 us", "1.3 ms", "3.0 s"]);
    }

    #[test]
    fn flags_by_their_iptables_names() {
        assert_eq!(tcp_flags("SA"), "SYN,ACK");
        assert_eq!(tcp_flags(""), "no flags");
    }
}
