//! What `iptables-save` prints, of any backend and family.

use std::collections::HashMap;

/// The rules of each chain in order, each as its `-A CHAIN ...` line; by table and chain.
pub(super) type Chains = HashMap<(String, String), Vec<String>>;

pub(super) fn parse(output: &str) -> Chains {
    let mut chains = Chains::new();
    let mut table = "";
    for line in logical_lines(output) {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':').and_then(|l| l.split(' ').next()) {
            chains.entry((table.into(), chain.into())).or_default();
        } else if let Some(chain) = line.strip_prefix("-A ").and_then(|l| l.split(' ').next()) {
            chains.entry((table.into(), chain.into())).or_default().push(line.into());
        }
    }
    chains
}

/// Lines, except that a quoted argument (a comment, a log prefix) may go over several. A quote opens only at the
/// start of an argument, since names of chains and sets can hold one and are not quoted.
fn logical_lines(output: &str) -> impl Iterator<Item = &str> {
    let mut rest = output;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = line_end(rest);
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or("");
        Some(line)
    })
}

fn line_end(text: &str) -> usize {
    let (mut quoted, mut escaped, mut previous) = (false, false, b'\n');
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\n' if !quoted => return at,
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if quoted => quoted = false,
            b'"' if previous == b' ' => quoted = true,
            _ => {}
        }
        previous = byte;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(chains: &Chains, table: &str, chain: &str) -> Vec<String> {
        chains[&(table.to_owned(), chain.to_owned())].clone()
    }

    #[test]
    fn recorded_output_of_both_backends() {
        let legacy = parse(include_str!("../../../tests/data/rules/iptables-legacy-save.txt"));
        let nft = parse(include_str!("../../../tests/data/rules/iptables-nft-save.txt"));
        assert_eq!(legacy, nft);
        assert_eq!(rules(&legacy, "filter", "OUTPUT"), ["-A OUTPUT -m owner --uid-owner 0 -j ACCEPT"]);
        assert_eq!(rules(&legacy, "mangle", "FORWARD"), Vec::<String>::new());
        let docker = rules(&legacy, "nat", "DOCKER");
        assert_eq!(docker.len(), 3);
        assert_eq!(
            docker[1],
            "-A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80"
        );
        let forward = rules(&legacy, "filter", "FORWARD");
        assert_eq!(forward.len(), 7);
        assert_eq!(
            forward[2],
            r#"-A FORWARD -m comment --comment "it\'s a \"quoted\" comment -j DROP # no" -g odd:chain.name-A"#
        );
        assert_eq!(forward[3], r#"-A FORWARD -m limit --limit 3/min -j LOG --log-prefix "fw: \"x\" ""#);
    }

    #[test]
    fn recorded_output_for_ipv6() {
        let chains = parse(include_str!("../../../tests/data/rules/ip6tables-legacy-save.txt"));
        assert_eq!(rules(&chains, "filter", "INPUT").len(), 2);
        assert_eq!(
            rules(&chains, "nat", "PREROUTING"),
            ["-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::2]:8080"]
        );
    }

    /// As iptables 1.8.9 prints a comment with line breaks, quotes and backslashes, and a chain with a quote.
    #[test]
    fn a_comment_cannot_pretend_to_be_a_rule() {
        let output = "*filter\n:INPUT ACCEPT [0:0]\n:q\"uo - [0:0]\n\
            -A INPUT -m comment --comment \"one\n-A INPUT -j DROP\ntwo \\\"q\\\" \\\\\" -j ACCEPT\n\
            -A INPUT -j q\"uo\n-A q\"uo -j RETURN\nCOMMIT\n";
        let chains = parse(output);
        let input = rules(&chains, "filter", "INPUT");
        assert_eq!(input.len(), 2);
        assert!(input[0].ends_with("-j ACCEPT"), "{input:?}");
        assert_eq!(rules(&chains, "filter", "q\"uo"), ["-A q\"uo -j RETURN"]);
    }

    #[test]
    fn nonsense_gives_nothing() {
        assert!(parse("").is_empty());
        assert!(parse("# iptables: no such thing\n\n\"unclosed").is_empty());
        assert!(parse("COMMIT\n-B x").is_empty());
    }
}
