//! Rulesets that change, and large ones.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tracer::{
    model::{Backend, TableFamily},
    rules::live::Ruleset,
};

use super::{chain, lab::Lab, reader, ruleset, table};

#[test]
fn the_check_fails_once_rules_change_and_only_in_that_namespace() {
    let (lab, other) = (Lab::new(), Lab::new());
    for line in ["iptables-legacy -w -A INPUT -j ACCEPT", "iptables-nft -w -A INPUT -j DROP"] {
        lab.run(line);
        other.run(line);
    }
    let reader = reader(&lab);
    let holds = |ruleset: &Ruleset| -> Vec<bool> {
        ruleset.tables.iter().map(|table| reader.holds(table.check.unwrap()).unwrap()).collect()
    };
    let (mine, others) = (ruleset(&lab), ruleset(&other));
    assert_eq!(holds(&mine), [true, true]);
    lab.run("iptables-nft -w -A INPUT -j ACCEPT");
    assert_eq!(holds(&mine), [true, false]);
    lab.run("iptables-legacy -w -A INPUT -j DROP");
    assert_eq!(holds(&mine), [false, false]);
    assert_eq!(holds(&others), [true, true]);
}

#[test]
fn other_rules_at_the_same_address_are_noticed() {
    let lab = Lab::new();
    let reader = reader(&lab);
    // Other programs may get a piece of memory first: any that comes back serves.
    let mut earlier: Vec<Ruleset> = Vec::new();
    for i in 0..250 {
        let script = format!("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -s 192.0.2.{i} -j DROP\nCOMMIT\n");
        lab.feed(&["iptables-legacy-restore", "-w"], &script);
        let now = ruleset(&lab);
        assert!(reader.is_current(&now.tables, &now.contents).unwrap());
        let same_address = |old: &&Ruleset| reader.holds(old.tables[0].check.unwrap()).unwrap();
        if let Some(old) = earlier.iter().find(same_address) {
            assert!(!reader.is_current(&old.tables, &old.contents).unwrap());
            return;
        }
        earlier.push(now);
    }
    panic!("the kernel never gave the memory out again: this test has shown nothing");
}

#[test]
fn five_thousand_rules_are_walked() {
    let lab = Lab::new();
    let rules: String = (0..5000u32)
        .map(|i| {
            format!(
                "-A INPUT -s 10.{}.{}.{} -p tcp --dport 22 -j DROP\n",
                i >> 16 & 255,
                i >> 8 & 255,
                i & 255
            )
        })
        .collect();
    let script = format!("*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n");
    for (tool, backend) in
        [("iptables-legacy-restore", Backend::IptablesLegacy), ("iptables-nft-restore", Backend::IptablesNft)]
    {
        lab.feed(&[tool, "-w"], &script);
        let ruleset = ruleset(&lab);
        assert_eq!(chain(table(&ruleset, backend, TableFamily::Ip, "filter"), "INPUT").rules.len(), 5000);
    }
}

/// Also when an assertion fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_ruleset_that_changes_all_the_time_is_read_whole_or_not_at_all() {
    let lab = Lab::new();
    let script = |mark: u32, rules: u32| {
        let rules: String = (0..rules).map(|_| format!("-A chain -j MARK --set-xmark {mark}\n")).collect();
        format!("*mangle\n:OUTPUT ACCEPT [0:0]\n:chain - [0:0]\n{rules}-A OUTPUT -j chain\nCOMMIT\n")
    };
    let (few, many) = (script(1, 3), script(2, 300));
    let tools = ["iptables-legacy-restore", "iptables-nft-restore"];
    tools.iter().for_each(|tool| drop(lab.feed(&[tool, "-w"], &few)));
    let stop = AtomicBool::new(false);
    let (mut read, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for script in [&many, &few] {
                    tools.iter().for_each(|tool| drop(lab.feed(&[tool, "-w"], script)));
                }
            }
        });
        let _stop = StopOnDrop(&stop);
        for _ in 0..100 {
            match reader(&lab).read(lab.net()) {
                Ok(ruleset) => {
                    read += 1;
                    for table in &ruleset.tables {
                        let rules = chain(table, "chain").rules.len();
                        assert!(rules == 3 || rules == 300, "{rules} rules in {table:?}");
                    }
                }
                Err(_) => refused += 1,
            }
        }
    });
    assert!(read > refused, "{read} read, {refused} refused");
}
