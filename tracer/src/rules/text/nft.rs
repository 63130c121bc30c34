//! What `nft -s -a list ruleset` prints.

use std::collections::{HashMap, hash_map::Entry};

use crate::model::{Hook, TableFamily};

/// A rule's handle is its own in its table for as long as the table exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RuleKey {
    pub(super) family: TableFamily,
    pub(super) table: String,
    pub(super) handle: u64,
}

/// Statement text of every rule, without the handle, on one line.
pub(super) type Rules = HashMap<RuleKey, String>;

/// A base chain, by its name and by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) family: TableFamily,
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) hook: Hook,
    pub(super) priority: i32,
    pub(super) nat: bool,
}

/// What a ruleset's listing says.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) rules: Rules,
    pub(super) bases: Vec<Base>,
    /// Family, table and name of every named map and of every named set that only the ruleset's owner changes, and its
    /// elements on one line.
    maps: HashMap<(TableFamily, String, String), String>,
}

impl Listing {
    /// The elements of a named map or set.
    pub(super) fn map(&self, family: TableFamily, table: &str, name: &str) -> Option<&str> {
        self.maps.get(&(family, table.to_owned(), name.to_owned())).map(String::as_str)
    }
}

pub(super) fn parse(output: &str) -> Listing {
    let mut parser = Parser::default();
    for line in output.lines() {
        parser.line(line);
    }
    Listing {
        rules: parser.rules.into_iter().filter_map(|(key, text)| Some((key, text?))).collect(),
        bases: parser.bases,
        maps: parser.maps,
    }
}

#[derive(Default)]
struct Parser {
    table: Option<(TableFamily, String)>,
    in_chain: bool,
    chain: String,
    bases: Vec<Base>,
    /// Name of the map or set that is being listed, and its lines so far.
    map: Option<(String, String)>,
    in_set: bool,
    maps: HashMap<(TableFamily, String, String), String>,
    /// Rules begun and not ended, outermost first.
    open: Vec<Begun>,
    /// `None` for a handle that came twice: a comment with line breaks can look like a rule, and nft quotes nothing.
    rules: HashMap<RuleKey, Option<String>>,
}

struct Begun {
    text: String,
    /// Inside the braces of an anonymous chain; else in a list of set elements.
    block: bool,
}

impl Parser {
    fn line(&mut self, line: &str) {
        let text = line.trim_start_matches('\t');
        match line.len() - text.len() {
            0 if text.is_empty() => {}
            0 => self.table = table(text),
            1 => {
                self.map_ends();
                let chain = text.strip_prefix("chain ").and_then(|rest| rest.split_once(" {"));
                self.in_chain = text.starts_with("chain ");
                self.chain = chain.map_or_else(String::new, |(name, _)| name.to_owned());
                self.in_set = text.starts_with("set ");
                self.map = map_name(text).map(|name| (name.to_owned(), String::new()));
                self.open.clear();
            }
            _ if self.in_chain => self.statement(text.trim()),
            _ => {
                if let Some((_, lines)) = &mut self.map {
                    lines.extend([text.trim(), " "]);
                }
            }
        }
    }

    fn map_ends(&mut self) {
        let (Some((name, lines)), Some((family, table))) = (self.map.take(), self.table.clone()) else {
            return;
        };
        let (about, elements) = match lines.split_once("elements = {") {
            Some((about, elements)) => (about, elements.trim_end().strip_suffix('}')),
            None => (&*lines, Some("")),
        };
        // Packets and time change the others.
        let is_fixed = !self.in_set || !["dynamic", "timeout"].iter().any(|word| about.contains(word));
        if let Some(elements) = elements.filter(|_| is_fixed) {
            self.maps.insert((family, table, name), elements.to_owned());
        }
    }

    fn statement(&mut self, line: &str) {
        let describes_chain = line.starts_with("type ") || line.starts_with("comment \"");
        if self.open.is_empty() && describes_chain {
            self.bases.extend(self.base(line));
            return;
        }
        let (text, handle) = split_handle(line);
        let continues = text.starts_with('}') || self.open.last().is_some_and(|begun| !begun.block);
        let begun = if continues { self.open.pop() } else { None };
        let text = begun.map_or_else(|| text.to_owned(), |begun| format!("{} {text}", begun.text));
        match (handle, self.open.last_mut()) {
            (Some(handle), _) => self.rule(handle, text),
            (None, _) if line.ends_with(" {") => self.open.push(Begun { text, block: true }),
            (None, _) if line.ends_with(',') => self.open.push(Begun { text, block: false }),
            (None, Some(around)) => around.text = format!("{} {text};", around.text),
            // Not what nft prints: a line break in a comment or log prefix. What follows cannot be told from rules.
            (None, None) => self.in_chain = false,
        }
    }

    /// `type nat hook prerouting priority dstnat + 5; policy accept;`
    fn base(&self, line: &str) -> Option<Base> {
        let (family, table) = self.table.clone()?;
        let (kind, rest) = line.strip_prefix("type ")?.split_once(" hook ")?;
        let (hook, rest) = rest.split_once(' ')?;
        let (_, rest) = rest.split_once("priority ")?;
        let priority = priority(rest.split_once(';')?.0)?;
        let hook = (0..5)
            .filter_map(Hook::from_inet_number)
            .find(|known| known.iptables_name().eq_ignore_ascii_case(hook))?;
        Some(Base { family, table, chain: self.chain.clone(), hook, priority, nat: kind == "nat" })
    }

    fn rule(&mut self, handle: u64, text: String) {
        if let Some(around) = self.open.last_mut() {
            around.text = format!("{} {text};", around.text);
        }
        let Some((family, table)) = self.table.clone() else { return };
        match self.rules.entry(RuleKey { family, table, handle }) {
            Entry::Vacant(entry) => drop(entry.insert(Some(text))),
            Entry::Occupied(mut entry) => drop(entry.insert(None)),
        }
    }
}

/// A number, or one of nft's words for one (nft(8), standard priority names), with a number to add or not.
fn priority(text: &str) -> Option<i32> {
    let mut words = text.split_whitespace();
    let first = words.next()?;
    let named = match first {
        "raw" => -300,
        "mangle" => -150,
        "dstnat" => -100,
        "filter" => 0,
        "security" => 50,
        "srcnat" => 100,
        number => number.parse().ok()?,
    };
    match (words.next(), words.next()) {
        (None, _) => Some(named),
        (Some("+"), Some(more)) => named.checked_add(more.parse().ok()?),
        (Some("-"), Some(less)) => named.checked_sub(less.parse().ok()?),
        _ => None,
    }
}

/// `map NAME { # handle N`
fn map_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("map ").or_else(|| line.strip_prefix("set "))?;
    Some(rest.split_once(" {")?.0)
}

/// `table FAMILY NAME { # handle N`
fn table(line: &str) -> Option<(TableFamily, String)> {
    let (family, rest) = line.strip_prefix("table ")?.split_once(' ')?;
    Some((TableFamily::from_name(family)?, rest.split_once(" {")?.0.to_owned()))
}

fn split_handle(line: &str) -> (&str, Option<u64>) {
    match line.rsplit_once(" # handle ").map(|(text, handle)| (text, handle.parse())) {
        Some((text, Ok(handle))) => (text.trim_end(), Some(handle)),
        _ => (line, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = include_str!("../../../tests/data/rules/nft-list.txt");

    fn text(rules: &Rules, family: TableFamily, table: &str, handle: u64) -> Option<String> {
        rules.get(&RuleKey { family, table: table.into(), handle }).cloned()
    }

    #[test]
    fn base_chains_are_found_by_their_place() {
        let text = "table inet fw { # handle 1\n\tchain in { # handle 2\n\t\ttype filter hook input priority filter - 5; policy drop;\n\t\t\
            accept # handle 3\n\t}\n\tchain user { # handle 4\n\t}\n}\ntable ip nat {\n\tchain pre {\n\t\t\
            type nat hook prerouting priority dstnat; policy accept;\n\t}\n}\n";
        let base = |family, table: &str, chain: &str, hook, priority| Base {
            family,
            table: table.to_owned(),
            chain: chain.to_owned(),
            hook,
            priority,
            nat: hook == Hook::Prerouting,
        };
        let expected = [
            base(TableFamily::Inet, "fw", "in", Hook::Input, -5),
            base(TableFamily::Ip, "nat", "pre", Hook::Prerouting, -100),
        ];
        assert_eq!(parse(text).bases, expected);
    }

    #[test]
    fn every_recorded_rule_is_found_and_nothing_else() {
        let rules = parse(RECORDED).rules;
        assert_eq!(rules.len(), 44);
        let inet = |handle| text(&rules, TableFamily::Inet, "fw", handle);
        assert_eq!(inet(9).unwrap(), r#"iifname "lo" accept comment "loop # handle 99 \ back""#);
        assert_eq!(
            inet(12).unwrap(),
            "tcp dport { 22, 80, 443, 8080, 8081, 8082, 8083, 8084, 8085, 8086, 8087, 8088 } counter name \
             \"hits\" jump web"
        );
        assert_eq!(inet(13).unwrap(), "tcp dport vmap @ports");
        assert_eq!(inet(16).unwrap(), r#"limit rate 5/second burst 10 packets log prefix "in: { " counter"#);
        assert_eq!(inet(19).unwrap(), "return");
        assert_eq!(inet(5), None, "a set's handle");
        assert_eq!(
            text(&rules, TableFamily::Ip, "nat2", 6).unwrap(),
            "dnat to tcp dport map { 90 : 10.0.0.3, 91 : 10.0.0.4 }"
        );
        assert_eq!(text(&rules, TableFamily::Ip, "raw", 2).unwrap(), "udp dport 53 counter notrack");
        assert_eq!(text(&rules, TableFamily::Netdev, "early", 2).unwrap(), "ip protocol icmp counter");
        assert_eq!(
            text(&rules, TableFamily::Ip6, "filter", 3).unwrap(),
            "ip6 saddr fe80::/10 xt match set counter drop"
        );
    }

    /// As nft 1.0.6 prints them.
    #[test]
    fn anonymous_chains_belong_to_their_rule() {
        let output = "table inet a { # handle 1\n\tchain c { # handle 1\n\t\tcomment \"says # handle 3\"\n\
            \t\ttype filter hook input priority filter; policy accept;\n\t\ttcp dport 22 jump {\n\
            \t\t\tip saddr 1.1.1.1 accept\n\t\t\tdrop\n\t\t} # handle 5\n\
            \t\tcounter log prefix \"after\" # handle 9\n\t}\n}\n";
        let rules = parse(output).rules;
        assert_eq!(rules.len(), 2);
        let whole = text(&rules, TableFamily::Inet, "a", 5).unwrap();
        assert_eq!(whole, "tcp dport 22 jump { ip saddr 1.1.1.1 accept; drop; }");
        assert_eq!(text(&rules, TableFamily::Inet, "a", 9).unwrap(), "counter log prefix \"after\"");
    }

    #[test]
    fn rules_inside_an_anonymous_chain_keep_their_own_handles() {
        let output = "table ip a {\n\tchain c {\n\t\ttcp dport 22 jump {\n\t\t\taccept # handle 3\n\t\t} # handle 5\n\t}\n}";
        let rules = parse(output).rules;
        assert_eq!(text(&rules, TableFamily::Ip, "a", 3).unwrap(), "accept");
        assert_eq!(text(&rules, TableFamily::Ip, "a", 5).unwrap(), "tcp dport 22 jump { accept; }");
    }

    #[test]
    fn a_long_list_of_elements_may_go_over_lines() {
        let output = "table ip a {\n\tchain c {\n\t\ttcp dport { 1,\n\t\t\t     2,\n\t\t\t     3 } drop # handle 4\n\t}\n}";
        assert_eq!(
            text(&parse(output).rules, TableFamily::Ip, "a", 4).unwrap(),
            "tcp dport { 1, 2, 3 } drop"
        );
    }

    #[test]
    fn a_comment_cannot_pretend_to_be_a_rule() {
        let output = "table ip a {\n\tchain c {\n\t\tlog # handle 2\n\t\taccept comment \"x\n\t\tdrop # handle 4\n\
            \t\t\" # handle 3\n\t\treject # handle 4\n\t}\n\tchain d {\n\t\tlog # handle 5\n\t}\n}";
        let rules = parse(output).rules;
        let seen = |handle| text(&rules, TableFamily::Ip, "a", handle);
        assert_eq!((seen(3), seen(4)), (None, None));
        assert_eq!((seen(2).as_deref(), seen(5).as_deref()), (Some("log"), Some("log")));
    }

    #[test]
    fn nonsense_gives_nothing() {
        for output in [
            "",
            "}\n\t}\n\t\t} # handle 3",
            "table x y {\n\tchain c {\n\t\taccept # handle 1",
            "\t\taccept # handle 2",
        ] {
            assert!(parse(output).rules.is_empty(), "{output:?}");
        }
    }
}
