//! Scenarios times backends, families and variants.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use toml::Value;

use super::{file::Scenario, whole_machine};
use crate::{
    machine,
    ruleset::Backend,
    topology::{Family, Topology},
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");

/// A scenario with everything chosen.
#[derive(Clone, Debug)]
pub struct Case {
    /// `publish-ok/nft/ipv4/main`
    pub name: String,
    pub scenario: Scenario,
    pub backend: Backend,
    pub family: Family,
    /// Whether no other variant of the scenario comes before it.
    pub first_variant: bool,
}

impl Case {
    /// Why it cannot run on this machine.
    #[must_use]
    pub fn impossible_here(&self) -> Option<&'static str> {
        whole_machine::impossible_here(&self.scenario)
    }

    /// Whether it changes settings of the whole machine.
    #[must_use]
    pub fn needs_the_machine(&self) -> bool {
        !self.scenario.machine.is_empty()
    }
}

/// What says which cases a file makes.
#[derive(Deserialize)]
struct Head {
    topology: Topology,
    /// Both, where the file does not say.
    backends: Option<Vec<Backend>>,
    /// Both, where the file does not say.
    families: Option<Vec<Family>>,
    /// Names of each variant's own, that may use the others.
    #[serde(default)]
    variants: BTreeMap<String, BTreeMap<String, String>>,
}

/// Every case of every scenario, by name.
///
/// # Errors
/// When a file cannot be read or is wrong; names it.
pub fn all() -> Result<Vec<Case>> {
    let mut files: Vec<PathBuf> = fs::read_dir(FOLDER)
        .with_context(|| format!("read {FOLDER}"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for file in &files {
        cases.extend(cases_of(file).with_context(|| file.display().to_string())?);
    }
    Ok(cases)
}

/// The cases whose name is `name` or starts with `name/`.
///
/// # Errors
/// When there is none, or as [`all`].
pub fn named(name: &str) -> Result<Vec<Case>> {
    let mut cases = all()?;
    cases.retain(|case| {
        case.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    ensure!(!cases.is_empty(), "no scenario is named {name}; `cargo xtask scenario --list` shows them");
    Ok(cases)
}

fn cases_of(file: &Path) -> Result<Vec<Case>> {
    let id = file.file_stem().unwrap_or_default().to_string_lossy();
    let mut raw: toml::Table = fs::read_to_string(file)?.parse()?;
    let head: Head = raw.clone().try_into()?;
    for key in ["backends", "families", "variants"] {
        raw.remove(key);
    }
    let mut variants = head.variants;
    if variants.is_empty() {
        variants.insert("main".to_owned(), BTreeMap::new());
    }
    let mut cases = Vec::new();
    for backend in head.backends.unwrap_or(Backend::BOTH.to_vec()) {
        for family in head.families.as_deref().unwrap_or(&Family::BOTH) {
            for (number, (variant, own)) in variants.iter().enumerate() {
                let name = format!("{id}/{}/{}/{variant}", backend.suffix(), family.name());
                let mut names = known_names(head.topology, *family, backend);
                for (key, value) in own {
                    names.insert(key.clone(), replaced(value, &names).context(name.clone())?);
                }
                let mut value = Value::Table(raw.clone());
                replace_in(&mut value, &names).context(name.clone())?;
                let scenario = value.try_into().context(name.clone())?;
                cases.push(Case { name, scenario, backend, family: *family, first_variant: number == 0 });
            }
        }
    }
    Ok(cases)
}

fn known_names(topology: Topology, family: Family, backend: Backend) -> BTreeMap<String, String> {
    let v4 = family == Family::Ipv4;
    let pick = |four: &str, six: &str| if v4 { four.to_owned() } else { six.to_owned() };
    let mut names = BTreeMap::from([
        ("max".to_owned(), pick("32", "128")),
        ("any_net".to_owned(), pick("0.0.0.0/0", "::/0")),
        ("icmp".to_owned(), pick("icmp", "ipv6-icmp")),
        ("icmp_name".to_owned(), pick("icmp", "icmp6")),
        ("ipt".to_owned(), pick("ip", "ip6")),
        ("inet".to_owned(), pick("inet", "inet6")),
        ("host_unreachable".to_owned(), pick("icmp-host-unreachable", "icmp6-addr-unreachable")),
        ("service".to_owned(), pick("10.96.0.10", "fd00:96::10")),
        ("nft_addr".to_owned(), pick("ipv4_addr", "ipv6_addr")),
        ("family".to_owned(), family.name().to_owned()),
        ("backend".to_owned(), backend.name().to_owned()),
        // iptables-nft hangs its security table elsewhere than the kernel does its own.
        ("security_priority".to_owned(), if backend == Backend::Legacy { "50" } else { "150" }.to_owned()),
        ("other_backend".to_owned(), backend.other().name().to_owned()),
    ]);
    for (name, address) in topology.addresses(family) {
        names.insert(name.to_owned(), address.to_string());
        names.insert(format!("[{name}]"), if v4 { address.to_string() } else { format!("[{address}]") });
    }
    names
}

fn replace_in(value: &mut Value, names: &BTreeMap<String, String>) -> Result<()> {
    match value {
        Value::String(text) => *text = replaced(text, names)?,
        Value::Array(items) => items.iter_mut().try_for_each(|item| replace_in(item, names))?,
        Value::Table(table) => table.iter_mut().try_for_each(|(_, inner)| replace_in(inner, names))?,
        _ => {}
    }
    Ok(())
}

fn replaced(text: &str, names: &BTreeMap<String, String>) -> Result<String> {
    let mut parts = text.split("${");
    let mut result = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) =
            part.split_once('}').with_context(|| format!("`${{` without its end in {text:?}"))?;
        match name.strip_prefix("reason:") {
            Some(reason) => result += machine::drop_reason(reason),
            None => result += names.get(name).with_context(|| format!("nothing is named ${{{name}}}"))?,
        }
        result += rest;
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::{all, known_names, replaced};
    use crate::{
        ruleset::Backend,
        topology::{Family, Topology},
    };

    #[test]
    fn every_scenario_file_is_well_formed() {
        let cases = all().unwrap();
        assert!(cases.len() > 20, "only {} cases", cases.len());
    }

    #[test]
    fn names_become_addresses_and_unknown_ones_are_refused() {
        let names = known_names(Topology::Routed, Family::Ipv6, Backend::Nft);
        assert_eq!(
            replaced("-d ${server}/${max} to ${[server]}:80", &names).unwrap(),
            "-d fd00:2::2/128 to [fd00:2::2]:80"
        );
        assert!(replaced("${nobody}", &names).is_err());
        assert!(replaced("${server", &names).is_err());
    }
}
