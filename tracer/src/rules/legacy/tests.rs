use std::collections::BTreeMap;

use super::{EntryLayout, LegacyReader, XtLayout};
use crate::{
    kernel::{Memory, ReadError, memory::image::Image},
    model::{Hook, TableFamily, Verdict},
    rules::index::{ChainRef, CounterAddress, Effect, TableIndex},
};

const TABLE: u64 = 0x1000;
const INFO: u64 = 0x2000;
const ENTRIES: u64 = INFO + 48;
const TARGETS: u64 = 0x8000;
const RETURN: i32 = -5;
const ACCEPT: i32 = -2;
const DROP: i32 = -1;

const LAYOUT: XtLayout = XtLayout {
    table_size: 64,
    table_name: 0,
    table_private: 32,
    table_valid_hooks: 40,
    info_size: 0,
    info_number: 4,
    info_hook_entry: 8,
    info_underflow: 28,
    info_entries: 48,
    target_pointer: 0,
    target_data: 8,
    standard_verdict: 8,
    target_name: 4,
    counters_size: 16,
    counter_packets: 8,
};
const ENTRY: EntryLayout =
    EntryLayout { flags: 0, target_offset: 2, next_offset: 4, counters: 8, matches: 24, goto: 0x02 };

enum Of {
    Verdict(i32),
    Goto(i32),
    Chain(&'static str),
    Target(&'static str),
}

/// Bytes of every entry here: 24, and a target of 40.
const SIZE: u32 = 64;

fn table(entries: &[Of]) -> Image {
    let mut image = Image::default();
    image.map(TABLE, 64).put(TABLE, b"filter").put_u64(TABLE + 32, INFO).put_u32(TABLE + 40, 1 << 1 | 1 << 2);
    image.map(INFO, 48 + entries.len() * SIZE as usize);
    image.put_u32(INFO, entries.len() as u32 * SIZE).put_u32(INFO + 4, entries.len() as u32);
    image.map(TARGETS, 0x1000);
    for (entry, number) in entries.iter().zip(0u64..) {
        let at = ENTRIES + number * u64::from(SIZE);
        image.put_u16(at + 2, 24).put_u16(at + 4, SIZE as u16).put_u64(at + 8, 0x10_0000 + number * 16);
        let target = at + 24;
        let named = |image: &mut Image, name: &str| {
            let address = TARGETS + number * 64;
            image.put(address + 4, name.as_bytes()).put_u64(target, address);
        };
        match entry {
            Of::Verdict(verdict) | Of::Goto(verdict) => {
                named(&mut image, "");
                image.put_u32(target + 8, verdict.cast_unsigned());
                image.put(at, &[if matches!(entry, Of::Goto(_)) { 0x02 } else { 0 }]);
            }
            Of::Chain(name) => {
                named(&mut image, "ERROR");
                image.put(target + 8, name.as_bytes());
            }
            Of::Target(name) => named(&mut image, name),
        }
    }
    image
}

/// Which entries a hook starts and ends with.
fn hook(image: &mut Image, number: u64, first: u32, last: u32) {
    image.put_u32(INFO + 8 + 4 * number, first * SIZE).put_u32(INFO + 28 + 4 * number, last * SIZE);
}

fn read_with(image: &Image, per_cpu: bool) -> Result<TableIndex, ReadError> {
    let reader =
        LegacyReader { memory: image, layout: LAYOUT, entry: ENTRY, family: TableFamily::Ip, per_cpu };
    let priorities = BTreeMap::from([(Hook::Input, 0), (Hook::Forward, 0)]);
    reader.table(TABLE, &priorities).map(|(table, _)| table)
}

fn read(image: &Image) -> Result<TableIndex, ReadError> {
    read_with(image, true)
}

/// INPUT: jump to `user`, LOG, no target, policy DROP. FORWARD: goto `user`, policy ACCEPT. `user`: a RETURN, then a DNAT.
fn sample() -> Image {
    let user = 8 * SIZE as i32;
    let mut image = table(&[
        Of::Verdict(user),
        Of::Target("LOG"),
        Of::Verdict(3 * SIZE as i32),
        Of::Verdict(DROP),
        Of::Goto(user),
        Of::Verdict(ACCEPT),
        Of::Verdict(ACCEPT),
        Of::Chain("user"),
        Of::Verdict(RETURN),
        Of::Target("DNAT"),
        Of::Verdict(RETURN),
        Of::Chain("ERROR"),
    ]);
    hook(&mut image, 1, 0, 3);
    hook(&mut image, 2, 4, 6);
    image
}

fn effects(table: &TableIndex, chain: usize) -> Vec<Effect> {
    table.chains[chain].rules.iter().map(|rule| rule.effect.clone()).collect()
}

fn accept(target: &str) -> Effect {
    Effect::Final { verdict: Verdict::Accept, target: target.to_owned() }
}

#[test]
fn chains_rules_and_policies() {
    let table = read(&sample()).unwrap();
    assert_eq!(table.name, "filter");
    let names: Vec<_> = table.chains.iter().map(|chain| chain.name.as_str()).collect();
    assert_eq!(names, ["INPUT", "FORWARD", "user"]);
    let user = ChainRef(2);
    assert_eq!(
        effects(&table, 0),
        [
            Effect::Jump(user),
            Effect::Continue { target: Some("LOG".to_owned()) },
            Effect::Continue { target: None }
        ]
    );
    assert_eq!(effects(&table, 1), [Effect::Goto(user), accept("ACCEPT")]);
    assert_eq!(effects(&table, 2), [Effect::Return, accept("DNAT")], "the last RETURN is not the user's");
    let policies: Vec<_> = table.chains.iter().filter_map(|c| Some(c.base.as_ref()?.policy)).collect();
    assert_eq!(policies, [Verdict::Drop, Verdict::Accept]);
    let positions: Vec<_> = table.chains[0].rules.iter().map(|rule| rule.position).collect();
    assert_eq!(positions, [1, 2, 3]);
}

#[test]
fn every_rule_and_chain_end_has_its_own_counter() {
    let table = read(&sample()).unwrap();
    // Twelve entries, two of which are heads.
    assert_eq!(table.counters.len(), 10);
    let address = |index: usize| table.counters[index];
    let user = &table.chains[2];
    assert_eq!(address(user.rules[0].counter.unwrap().index), CounterAddress::PerCpu(0x10_0000 + 8 * 16 + 8));
    assert_eq!(address(user.end_counter.unwrap()), CounterAddress::PerCpu(0x10_0000 + 10 * 16 + 8));
    assert_eq!(address(table.chains[0].end_counter.unwrap()), CounterAddress::PerCpu(0x10_0000 + 3 * 16 + 8));
}

#[test]
fn with_one_possible_cpu_the_entry_itself_counts() {
    let table = read_with(&sample(), false).unwrap();
    let first = table.chains[0].rules[0].counter.unwrap().index;
    assert_eq!(table.counters[first], CounterAddress::Plain(ENTRIES + 8 + 8));
}

#[test]
fn counting_packets_does_not_change_the_content_but_a_rule_does() {
    let content = |image: &Image| {
        let reader = LegacyReader {
            memory: image,
            layout: LAYOUT,
            entry: ENTRY,
            family: TableFamily::Ip,
            per_cpu: false,
        };
        reader.table(TABLE, &BTreeMap::from([(Hook::Input, 0), (Hook::Forward, 0)])).unwrap().1
    };
    let mut image = sample();
    let before = content(&image);
    image.put_u64(ENTRIES + 16, 77);
    assert_eq!(content(&image), before);
    image.put_u32(ENTRIES + 3 * u64::from(SIZE) + 32, ACCEPT.cast_unsigned());
    assert_ne!(content(&image), before);
}

#[test]
fn the_check_is_the_pointer_to_the_entries() {
    let check = read(&sample()).unwrap().check.unwrap();
    assert_eq!((check.address, check.length, check.value), (TABLE + 32, 8, INFO));
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Image)) {
    let mut image = sample();
    change(&mut image);
    assert!(matches!(read(&image), Err(ReadError::Impossible { .. } | ReadError::Unreadable { .. })));
}

#[test]
fn impossible_tables_are_refused() {
    refused(|image| {
        image.put_u16(ENTRIES + 4, 0);
    });
    refused(|image| {
        image.put_u16(ENTRIES + 4, u16::MAX);
    });
    refused(|image| {
        image.put_u16(ENTRIES + 2, 0);
    });
    refused(|image| {
        image.put_u32(INFO, u32::MAX);
    });
    refused(|image| {
        image.put_u32(INFO + 4, 3);
    });
    refused(|image| {
        image.put_u64(TABLE + 32, 0xdead_0000);
    });
    refused(|image| {
        image.put_u32(ENTRIES + 32, 8 * SIZE + 4);
    });
    refused(|image| {
        image.put_u32(ENTRIES + 32, (-77i32).cast_unsigned());
    });
    refused(|image| {
        image.put_u32(ENTRIES + 32, i32::MIN.cast_unsigned());
    });
    refused(|image| {
        image.put_u32(ENTRIES + 3 * u64::from(SIZE) + 32, RETURN.cast_unsigned());
    });
    refused(|image| hook(image, 1, 3, 0));
    refused(|image| hook(image, 1, 0, 100));
}

#[test]
fn torn_bytes_never_panic_and_never_loop() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000 {
        let mut image = sample();
        for _ in 0..3 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let length = 48 + 12 * u64::from(SIZE);
            image.put(INFO + random % length, &[(random >> 32) as u8]);
        }
        // Either answer is right; what counts is that there is one.
        let _ = read(&image);
    }
    assert!(sample().read_u8(INFO).is_ok());
}
