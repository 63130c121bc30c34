//! A ruleset as data: rules can be taken out one by one while a test still fails.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// How a ruleset is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Syntax {
    /// For iptables-restore.
    Iptables,
    /// For `nft -f`, in family inet; a table of the same name is replaced.
    Nft,
}

/// A table of either syntax.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub name: String,
    /// nft: what stands before the chains (sets).
    #[serde(default)]
    pub before: String,
    pub chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    pub name: String,
    /// iptables: the policy, `-` for a user chain. nft: `type ... hook ...`, empty for a user chain.
    pub head: String,
    /// Without `-A CHAIN`, and without a comment.
    pub rules: Vec<Rule>,
}

/// A rule's condition and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    pub condition: String,
    pub action: String,
}

impl Rule {
    #[must_use]
    pub fn new(condition: &str, action: &str) -> Self {
        Self { condition: condition.to_owned(), action: action.to_owned() }
    }
}

/// What names a rule in its own comment: `cTAG.TABLE.CHAIN.POSITION`.
#[must_use]
pub fn comment(tag: &str, table: &str, chain: &str, position: usize) -> String {
    format!("c{tag}.{table}.{chain}.{position}")
}

/// The script that loads `tables`; with a tag, each rule has its [`comment`].
#[must_use]
pub fn script(syntax: Syntax, tables: &[Table], tag: Option<&str>) -> String {
    tables.iter().fold(String::new(), |all, table| {
        all + &match syntax {
            Syntax::Iptables => restore(table, tag),
            Syntax::Nft => nft(table, tag),
        }
    })
}

fn restore(table: &Table, tag: Option<&str>) -> String {
    let mut text = format!("*{}\n", table.name);
    for chain in &table.chains {
        _ = writeln!(text, ":{} {} [0:0]", chain.name, chain.head);
    }
    for chain in &table.chains {
        for (rule, position) in chain.rules.iter().zip(1..) {
            let says = tag.map_or(String::new(), |tag| {
                format!("-m comment --comment {}", comment(tag, &table.name, &chain.name, position))
            });
            _ = writeln!(text, "-A {} {} {says} {}", chain.name, rule.condition, rule.action);
        }
    }
    text + "COMMIT\n"
}

fn nft(table: &Table, tag: Option<&str>) -> String {
    let name = &table.name;
    let mut text =
        format!("table inet {name}\ndelete table inet {name}\ntable inet {name} {{\n{}", table.before);
    // Chains may be jumped to before they are filled.
    for chain in &table.chains {
        _ = writeln!(text, "chain {} {{ {}\n}}", chain.name, chain.head);
    }
    for chain in &table.chains {
        _ = writeln!(text, "chain {} {{", chain.name);
        for (rule, position) in chain.rules.iter().zip(1..) {
            let says = tag.map_or(String::new(), |tag| {
                format!("comment \"{}\"", comment(tag, name, &chain.name, position))
            });
            _ = writeln!(text, "{} {} {says}", rule.condition, rule.action);
        }
        text += "}\n";
    }
    text + "}\n"
}

/// How many rules there are.
#[must_use]
pub fn count(tables: &[Table]) -> usize {
    tables.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
}

/// The same without some of the rules, numbered from 0 in the order of the script.
#[must_use]
pub fn without(tables: &[Table], rules: std::ops::Range<usize>) -> Vec<Table> {
    let mut number = 0;
    let mut fewer = tables.to_vec();
    for chain in fewer.iter_mut().flat_map(|table| &mut table.chains) {
        chain.rules.retain(|_| {
            number += 1;
            !rules.contains(&(number - 1))
        });
    }
    fewer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_taken_out_and_comments_follow() {
        let chain = |name: &str, rules: &[&str]| Chain {
            name: name.to_owned(),
            head: "-".to_owned(),
            rules: rules.iter().map(|action| Rule::new("", action)).collect(),
        };
        let tables = vec![Table {
            name: "raw".to_owned(),
            before: String::new(),
            chains: vec![chain("A", &["-j ACCEPT", "-j B"]), chain("B", &["-j DROP"])],
        }];
        assert_eq!(count(&tables), 3);
        let fewer = without(&tables, 0..1);
        let text = script(Syntax::Iptables, &fewer, Some("x"));
        assert!(text.contains("-A A  -m comment --comment cx.raw.A.1 -j B"), "{text}");
        assert_eq!(count(&without(&tables, 1..3)), 1);
    }
}
