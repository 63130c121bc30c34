//! The machine that tests run on: what it is, and proof that nothing was changed on it and nothing left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Result;

use crate::netns::{Netns, checked};

/// Whether this machine may be changed at will; only test machines say so (`cargo xtask vm-test`).
#[must_use]
pub fn is_disposable() -> bool {
    env::var_os("PATHTRACE_DISPOSABLE_MACHINE").is_some()
}

/// What pathtrace must not change in a namespace, by name of the aspect. Counters and times are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<&'static str, String>);

impl Fingerprint {
    /// Takes it.
    ///
    /// # Errors
    /// When a tool is missing or refuses.
    pub fn of(netns: &Netns) -> Result<Self> {
        let mut aspects = BTreeMap::from([
            ("devices", devices(netns)?),
            ("qdiscs", netns.exec("tc qdisc show")?),
            ("addresses", netns.exec("ip -o address show")?),
            ("routes", netns.exec("ip route show table all")?),
            ("nft", netns.exec("nft -s list ruleset")?),
            ("sysctls", netns.run(|| sysctls(Path::new("/proc/sys/net")))),
            (
                "legacy tables",
                netns.run(|| read_all("/proc/thread-self/net", &["ip_tables_names", "ip6_tables_names"])),
            ),
            ("loggers", netns.run(|| read_all("/proc/sys/net/netfilter/nf_log", &["2", "10"]))),
        ]);
        for (name, program) in [
            ("iptables-legacy", "iptables-legacy-save"),
            ("ip6tables-legacy", "ip6tables-legacy-save"),
            ("iptables-nft", "iptables-nft-save"),
            ("ip6tables-nft", "ip6tables-nft-save"),
        ] {
            aspects.insert(name, without_counters(&netns.exec(program)?));
        }
        Ok(Self(aspects))
    }

    /// The aspects in which `later` differs, each with both texts.
    #[must_use]
    pub fn differences(&self, later: &Self) -> Vec<String> {
        let pairs = self.0.iter().map(|(name, before)| (name, before, &later.0[name]));
        pairs
            .filter(|(_, before, after)| before != after)
            .map(|(name, before, after)| format!("{name} changed from\n{before}\nto\n{after}"))
            .collect()
    }
}

/// `iptables-save` output without its dates and counters.
#[must_use]
pub fn without_counters(saved: &str) -> String {
    saved
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match (line.starts_with(':'), line.rsplit_once(" [")) {
            (true, Some((chain, _))) => chain,
            _ => line,
        })
        .fold(String::new(), |all, line| all + line + "\n")
}

/// Without the statistics of the links and what changes by itself.
fn devices(netns: &Netns) -> Result<String> {
    netns.exec("ip -o -d link show")
}

/// Settings with their values; those that count or cannot be read are left out.
fn sysctls(folder: &Path) -> String {
    let mut entries: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    let counts = ["nf_conntrack_count", "fib_multipath_hash_seed"];
    entries.iter().fold(String::new(), |all, path| {
        if path.is_dir() {
            return all + &sysctls(path);
        }
        match fs::read_to_string(path) {
            Ok(value) if !counts.iter().any(|count| path.ends_with(count)) => {
                all + &format!("{} = {}\n", path.display(), value.trim())
            }
            _ => all,
        }
    })
}

fn read_all(folder: &str, names: &[&str]) -> String {
    names.iter().fold(String::new(), |all, name| {
        let text = fs::read_to_string(Path::new(folder).join(name)).unwrap_or_default();
        all + &format!("{name}: {text}\n")
    })
}

/// A kind of BPF object, with its name in `/proc/PID/fdinfo` and its `BPF_*_GET_NEXT_ID` command
/// (`enum bpf_cmd`, include/uapi/linux/bpf.h).
const KINDS: [(&str, libc::c_int); 3] = [("prog_id", 11), ("map_id", 12), ("link_id", 31)];

/// BPF objects of the kernel: kind and id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects(BTreeSet<(&'static str, u32)>);

impl BpfObjects {
    /// Those that a process holds.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: u32) -> Result<Self> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
                if let Some((kind, _)) = KINDS.iter().find(|(kind, _)| *kind == name)
                    && let Ok(id) = value.trim().parse()
                {
                    found.insert((*kind, id));
                }
            }
        }
        Ok(Self(found))
    }

    /// Those of `self` that the kernel still has.
    #[must_use]
    pub fn still_there(&self) -> Self {
        Self(self.0.iter().copied().filter(|(kind, id)| exists(kind, *id)).collect())
    }

    /// How many are of this kind (`link_id`, `prog_id`, `map_id`).
    #[must_use]
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|(its, _)| *its == kind).count()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Asks for the next id after the one before. Opening the object by its id would hold it, and while a prog array
/// is being cleared that can leak it for good.
fn exists(kind: &str, id: u32) -> bool {
    let Some((_, command)) = KINDS.iter().find(|(known, _)| *known == kind) else { return false };
    let mut attributes = [0_u32; 32];
    attributes[0] = id - 1;
    // SAFETY: the command reads and writes `union bpf_attr`, of which `attributes` is a zeroed prefix of this size.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, *command, attributes.as_mut_ptr(), size_of_val(&attributes)) };
    answer == 0 && attributes[1] == id
}

/// What this kernel says where a newer one gives that reason (`enum skb_drop_reason`, without its prefix): the same,
/// `NOT_SPECIFIED`, or before 5.17 nothing (`null`).
#[must_use]
pub fn drop_reason(name: &str) -> &str {
    [name, "NOT_SPECIFIED"].into_iter().find(|name| drop_reasons().contains(*name)).unwrap_or("null")
}

/// The reasons that this kernel names, without their prefix; none before 5.17.
#[must_use]
pub fn drop_reasons() -> &'static BTreeSet<String> {
    static REASONS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let types = type_data("vmlinux");
        let names = names(&types).filter_map(|name| name.strip_prefix(b"SKB_DROP_REASON_"));
        names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    });
    &REASONS
}

/// Whether this kernel describes nftables' types, without which nobody can read its rules. Where they are a module's,
/// they are there once that is loaded.
#[must_use]
pub fn has_nft_types() -> bool {
    /// Looking through all names takes a while, and many tests ask for every packet. What a module brings may come yet.
    static HAS: AtomicBool = AtomicBool::new(false);
    let has = |part: &&str| names(&type_data(part)).any(|name| name == b"nft_base_chain");
    let found = HAS.load(Ordering::Relaxed) || ["nf_tables", "vmlinux"].iter().any(has);
    HAS.store(found, Ordering::Relaxed);
    found
}

/// Whether this kernel has a tracepoint, and not in a module.
#[must_use]
pub fn has_tracepoint(name: &str) -> bool {
    let typedef = format!("btf_trace_{name}");
    names(&type_data("vmlinux")).any(|name| name == typedef.as_bytes())
}

/// The description of a part of the kernel: `vmlinux` or a module; empty where there is none.
fn type_data(part: &str) -> Vec<u8> {
    fs::read(Path::new("/sys/kernel/btf").join(part)).unwrap_or_default()
}

/// The names in it: one section has them all, each ended by a null byte.
fn names(types: &[u8]) -> impl Iterator<Item = &[u8]> {
    types.split(|byte| *byte == 0)
}

/// Lines of the kernel log that a trace could have caused: warnings, and TRACE lines of iptables.
///
/// # Errors
/// When the log cannot be read.
pub fn kernel_complaints() -> Result<Vec<String>> {
    let log = checked(&mut Command::new("dmesg"))?;
    let signs = ["TRACE: ", "WARNING: ", "BUG: ", "Oops", "bpf", "rcu: INFO"];
    Ok(log.lines().filter(|line| signs.iter().any(|sign| line.contains(sign))).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::without_counters;

    #[test]
    fn counters_and_dates_are_left_out_and_rules_are_kept() {
        let saved = "# Generated by iptables-save\n*filter\n:INPUT ACCEPT [12:3400]\n-A INPUT -m comment --comment \"a [b\" -j DROP\nCOMMIT\n";
        let kept = without_counters(saved);
        assert_eq!(kept, "*filter\n:INPUT ACCEPT\n-A INPUT -m comment --comment \"a [b\" -j DROP\nCOMMIT\n");
    }
}
