//! One round: rules and packets, as data that can be written to a file.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tests::{
    netns::{Door, checked},
    random::{
        Dice,
        iptables::{self, Size, TABLES},
        nft,
        packets::{self, Packet},
        rules::{self, Rule, Syntax, Table},
    },
    ruleset::Backend,
    topology::Family,
};

/// Whose rules are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Legacy,
    Nft,
    /// nftables' own tables, every rule with a counter.
    Native,
    /// The same with verdict maps, and with rules without a counter.
    Uncertain,
}

impl Kind {
    pub(crate) fn iptables(self) -> Option<Backend> {
        match self {
            Self::Legacy => Some(Backend::Legacy),
            Self::Nft => Some(Backend::Nft),
            Self::Native | Self::Uncertain => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) packets: Vec<Packet>,
    /// iptables: tables of IPv4. Native: all tables.
    pub(crate) v4: Vec<Table>,
    pub(crate) v6: Vec<Table>,
}

const SIZE: Size = Size { users: 4, rules: 4 };
/// Names of user chains end in this, until they are loaded under the round's own tag.
pub(crate) const TAG: &str = "-tag";
pub(crate) const SETS: [(&str, Family); 2] = [("near4", Family::Ipv4), ("near6", Family::Ipv6)];

impl Case {
    pub(crate) fn random(kind: Kind, dice: &mut Dice, packets: u16) -> Self {
        let (v4, v6) = match kind {
            Kind::Native => (native(dice, false), Vec::new()),
            Kind::Uncertain => (native(dice, true), Vec::new()),
            Kind::Legacy | Kind::Nft => (all_tables(dice, false), all_tables(dice, true)),
        };
        let packets = (0..packets).map(|number| packets::packet(dice, number)).collect();
        Self { kind, packets, v4, v6 }
    }

    /// Leaves only this chain of the filter tables with rules of its own: so many that do not match, and one that does.
    pub(crate) fn fill(&mut self, chain: &str, rules: usize) {
        for (tables, v6) in [(&mut self.v4, false), (&mut self.v6, true)] {
            for table in tables.iter_mut() {
                for known in &mut table.chains {
                    known.rules.truncate(usize::from(known.head != "-"));
                    if table.name == "filter" && known.name == chain {
                        let miss = |i: usize| {
                            let v4 = format!("10.9.{}.{}", i / 250, i % 250);
                            let address = if v6 { format!("fd09::{i:x}") } else { v4 };
                            Rule::new(&format!("-s {address}"), "-j DROP")
                        };
                        known.rules.extend((1..rules).map(miss));
                        known.rules.push(Rule::new("", "-j ACCEPT"));
                    }
                }
            }
        }
    }

    /// Under `tag`, which must be no longer than eight letters.
    pub(crate) fn script(&self, tag: &str) -> Script {
        let text = |syntax, tables: &[Table]| rules::script(syntax, tables, Some(tag)).replace(TAG, tag);
        let parts = match self.kind.iptables() {
            None => vec![("nft -f -".to_owned(), text(Syntax::Nft, &self.v4))],
            Some(backend) => [(Family::Ipv4, &self.v4), (Family::Ipv6, &self.v6)]
                .map(|(family, tables)| {
                    (format!("{}-restore -w 20", backend.program(family)), text(Syntax::Iptables, tables))
                })
                .into(),
        };
        Script { parts }
    }
}

/// Commands with their input.
pub(crate) struct Script {
    parts: Vec<(String, String)>,
}

impl Script {
    pub(crate) fn load(&self, inside: &Door) -> Result<()> {
        for (command, input) in &self.parts {
            inside.feed(command, input)?;
        }
        Ok(())
    }
}

fn all_tables(dice: &mut Dice, v6: bool) -> Vec<Table> {
    let address = |last: u8| {
        if v6 { format!("fd00:{}::2", last) } else { format!("10.{last}.0.2") }
    };
    let set = if v6 { SETS[1].0 } else { SETS[0].0 };
    let words = iptables::Words {
        v6,
        near: address(1),
        far: address(2),
        device: "eth0".to_owned(),
        set: Some(set.to_owned()),
    };
    TABLES.map(|(name, bases)| iptables::table(dice, &words, name, bases, TAG, SIZE)).into()
}

fn native(dice: &mut Dice, uncertain: bool) -> Vec<Table> {
    let words = nft::Words {
        near: ["10.1.0.2".to_owned(), "fd00:1::2".to_owned()],
        far: ["10.2.0.2".to_owned(), "fd00:2::2".to_owned()],
        device: "eth0".to_owned(),
        counted: if uncertain { 2 } else { 4 },
        maps: uncertain,
    };
    let early = [("pre", "prerouting", -310), ("out", "output", -310)];
    let late = [
        ("in", "input", 5),
        ("through", "forward", 5),
        ("outgoing", "output", 5),
        ("post", "postrouting", 5),
    ];
    vec![nft::table(dice, &words, "early", &early, TAG), nft::table(dice, &words, "late", &late, TAG)]
}

/// Sets that rules speak of.
pub(crate) fn make_sets(netns: &tests::netns::Netns) -> Result<()> {
    for (set, family) in SETS {
        let (kind, member) =
            if family == Family::Ipv4 { ("inet", "10.1.0.2") } else { ("inet6", "fd00:1::2") };
        checked(netns.command("ipset")?.args(["create", set, "hash:ip", "family", kind]))?;
        checked(netns.command("ipset")?.args(["add", set, member]))?;
    }
    Ok(())
}
