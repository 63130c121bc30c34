use super::{HookKind, HookLayout, HookList, HookReader, OpsTypes};
use crate::{
    kernel::{
        ReadError, Symbols,
        btf::{BitField, tests::opened},
        memory::image::Image,
    },
    model::{Family, Hook},
};

const NET: u64 = 0x1000;
const ENTRIES: u64 = 0x2000;
const OPS: u64 = 0x3000;
const FIRST: u64 = 0xffff_0000;
const NAMES: [&str; 6] = [
    "ipt_do_table",
    "nft_do_chain_ipv4.llvm.1234",
    "nf_hook_run_bpf",
    "ipv4_conntrack_in",
    "accept_all",
    "nf_nat_ipv4_pre_routing",
];
const LAYOUT: HookLayout = HookLayout {
    hooks_ipv4: 0,
    hooks_ipv6: 40,
    entries_count: 0,
    entries: 8,
    entry_size: 16,
    entry_function: 0,
    entry_priv: 8,
    ops_size: 32,
    ops_function: 0,
    ops_type: Some(BitField { bit: 64, width: 8 }),
    ops_priority: 16,
};

/// Address of a function of that name.
fn function(name: &str) -> u64 {
    FIRST + 0x100 * NAMES.iter().position(|known| known.starts_with(name)).expect("a known name") as u64
}

/// Hooks functions at IPv4 FORWARD, as (name, private pointer, type, priority).
fn hooked(functions: &[(&str, u64, u8, i32)]) -> Image {
    let mut image = Image::default();
    image.map(NET, 80).put_u64(NET + 16, ENTRIES);
    image.map(ENTRIES, 8 + 24 * functions.len()).put_u16(ENTRIES, functions.len() as u16);
    image.map(OPS, 32 * functions.len().max(1));
    for ((name, private, kind, priority), number) in functions.iter().zip(0u64..) {
        let (entry, ops) = (ENTRIES + 8 + 16 * number, OPS + 32 * number);
        image.put_u64(entry, function(name)).put_u64(entry + 8, *private);
        image.put_u64(ENTRIES + 8 + 16 * functions.len() as u64 + 8 * number, ops);
        image.put_u64(ops, function(name)).put(ops + 8, &[*kind]).put_u32(ops + 16, priority.cast_unsigned());
    }
    image
}

fn read_with(image: &Image, symbols: &Symbols) -> Result<Vec<HookList>, ReadError> {
    let (_directory, _, types) = opened();
    let ops_types = OpsTypes { nf_tables: Some(1), bpf: Some(2) };
    HookReader { memory: image, symbols, types: &types, layout: LAYOUT, ops_types }.read(NET)
}

fn read(image: &Image) -> Result<Vec<HookList>, ReadError> {
    let lines: String = NAMES.iter().map(|name| format!("{:x} t {name}\n", function(name))).collect();
    read_with(image, &Symbols::parse(lines))
}

fn kinds(lists: &[HookList]) -> Vec<(i32, HookKind)> {
    let forward = lists.iter().find(|list| (list.family, list.hook) == (Family::Ipv4, Hook::Forward));
    forward.expect("all ten").functions.iter().map(|f| (f.priority, f.kind.clone())).collect()
}

#[test]
fn functions_are_told_apart_and_keep_their_order() {
    let image = hooked(&[
        ("ipv4_conntrack_in", 0x10, 0, -200),
        ("nft_do_chain_ipv4", 0x20, 1, -1),
        ("ipt_do_table", 0x30, 0, 0),
        ("nf_hook_run_bpf", 0x40, 2, 1),
        ("ipt_do_table", 0, 0, 2),
    ]);
    let lists = read(&image).unwrap();
    assert_eq!(lists.len(), 10);
    assert_eq!(
        kinds(&lists),
        [
            (-200, HookKind::Other),
            (-1, HookKind::NftChain { chain: 0x20 }),
            (0, HookKind::XtTable { table: 0x30 }),
            (1, HookKind::Bpf),
            (2, HookKind::Other),
        ]
    );
    assert_eq!(lists.iter().map(|list| list.functions.len()).sum::<usize>(), 5);
}

#[test]
fn without_symbols_only_what_the_kernel_itself_marks_is_known() {
    let image = hooked(&[
        ("nft_do_chain_ipv4", 0x20, 1, 0),
        ("ipt_do_table", 0x30, 0, 0),
        ("nf_hook_run_bpf", 0, 2, 1),
    ]);
    let lists = read_with(&image, &Symbols::default()).unwrap();
    assert_eq!(
        kinds(&lists),
        [(0, HookKind::NftChain { chain: 0x20 }), (0, HookKind::Other), (1, HookKind::Bpf)]
    );
    assert!(lists.iter().flat_map(|list| &list.functions).all(|function| function.symbol.is_none()));
}

#[test]
fn what_removal_left_is_not_shown() {
    let image = hooked(&[("accept_all", 0, 0, i32::MIN), ("ipt_do_table", 0x30, 0, 0)]);
    assert_eq!(kinds(&read(&image).unwrap()), [(0, HookKind::XtTable { table: 0x30 })]);
}

#[test]
fn torn_lists_are_errors() {
    let one = || hooked(&[("ipt_do_table", 0x30, 0, 0)]);
    let mut image = one();
    image.put_u64(OPS, function("accept_all"));
    assert!(matches!(read(&image), Err(ReadError::Impossible { .. })), "function and registration differ");
    let mut image = one();
    image.put_u16(ENTRIES, 5000);
    assert!(matches!(read(&image), Err(ReadError::Impossible { .. })));
    let mut image = one();
    image.put_u64(NET + 16, 0xdead_0000);
    assert!(matches!(read(&image), Err(ReadError::Unreadable { .. })));
}

#[test]
fn a_nat_engine_whose_layout_is_unknown_is_an_error_and_not_an_empty_one() {
    let image = hooked(&[("nf_nat_ipv4_pre_routing", 0x50, 0, -100)]);
    assert!(matches!(read(&image), Err(ReadError::NoMember { .. })));
}
