use std::{fs, path::Path};

use super::{BitField, KernelTypes};

/// Writes BTF (Documentation/bpf/btf.rst).
pub(crate) struct Writer {
    next_id: u32,
    next_string: u32,
    types: Vec<u8>,
    strings: Vec<u8>,
}

const INT: u32 = 1;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FORWARD: u32 = 7;
const TYPEDEF: u32 = 8;
const CONST: u32 = 10;

impl Writer {
    fn vmlinux() -> Self {
        Self { next_id: 1, next_string: 1, types: Vec::new(), strings: vec![0] }
    }

    /// What a module adds to `base`.
    fn module(base: &Self) -> Self {
        Self { next_id: base.next_id, next_string: base.next_string, types: Vec::new(), strings: Vec::new() }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.next_string;
        self.strings.extend(text.as_bytes());
        self.strings.push(0);
        self.next_string += text.len() as u32 + 1;
        at
    }

    fn add(&mut self, name: &str, kind: u32, size_or_type: u32, more: &[u32], count: u32, flag: bool) -> u32 {
        let name = self.string(name);
        let info = kind << 24 | count | u32::from(flag) << 31;
        for word in [name, info, size_or_type].iter().chain(more) {
            self.types.extend(word.to_ne_bytes());
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn int(&mut self, name: &str, bytes: u32) -> u32 {
        self.add(name, INT, bytes, &[bytes * 8], 0, false)
    }

    /// Members as (name, type, bit offset, bit-field width or 0).
    fn record(&mut self, kind: u32, name: &str, bytes: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        let words: Vec<u32> = members
            .iter()
            .flat_map(|(n, kind, bit, width)| [self.string(n), *kind, bit | width << 24])
            .collect();
        self.add(name, kind, bytes, &words, members.len() as u32, true)
    }

    fn write(&self, path: &Path) {
        let mut file = Vec::new();
        file.extend(0xeb9f_u16.to_ne_bytes());
        file.extend([1, 0]);
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(&self.types);
        file.extend(&self.strings);
        fs::write(path, file).unwrap();
    }
}

fn vmlinux() -> Writer {
    let mut btf = Writer::vmlinux();
    let byte = btf.int("u8", 1);
    let word = btf.int("u32", 4);
    let long = btf.int("u64", 8);
    let verdict = btf.record(STRUCT, "verdict", 16, &[("code", word, 0, 0), ("chain", long, 64, 0)]);
    let either = btf.record(UNION, "", 16, &[("raw", long, 0, 0), ("verdict", verdict, 0, 0)]);
    let data = btf.record(STRUCT, "data", 16, &[("", either, 0, 0)]);
    let constant = btf.add("", CONST, data, &[], 0, false);
    let named = btf.add("data_t", TYPEDEF, constant, &[], 0, false);
    let list = btf.add("", ARRAY, 0, &[verdict, word, 4], 0, false);
    btf.record(
        STRUCT,
        "expr",
        96,
        &[
            ("head", long, 0, 0),
            ("data", named, 64, 0),
            ("is_last", long, 192, 1),
            ("dlen", long, 193, 12),
            ("handle", long, 205, 42),
            ("list", list, 256, 0),
            ("level", byte, 760, 0),
        ],
    );
    let names = [("NEGATIVE", -1i32), ("ZERO", 0), ("TWO", 2)];
    let words: Vec<u32> =
        names.iter().flat_map(|(n, value)| [btf.string(n), value.cast_unsigned()]).collect();
    btf.add("choice", ENUM, 4, &words, 3, true);
    btf.add("elsewhere", FORWARD, 0, &[], 0, false);
    btf
}

pub(crate) fn opened() -> (tempfile::TempDir, Writer, KernelTypes) {
    let directory = tempfile::tempdir().unwrap();
    let btf = vmlinux();
    btf.write(&directory.path().join("vmlinux"));
    let types = KernelTypes::open(directory.path()).unwrap();
    (directory, btf, types)
}

#[test]
fn paths_descend_through_anonymous_members_typedefs_and_arrays() {
    let (_directory, _, types) = opened();
    assert_eq!(types.offset_of("expr", "head"), Some(0));
    assert_eq!(types.offset_of("expr", "data.verdict.chain"), Some(16));
    assert_eq!(types.offset_of("data", "raw"), Some(0));
    assert_eq!(types.offset_of("expr", "list.chain"), Some(40));
    assert_eq!(types.offset_of("expr", "level"), Some(95));
    assert_eq!(types.size_of("expr"), Some(96));
    assert_eq!(types.size_of("choice"), Some(4));
}

#[test]
fn names_found_all_at_once_answer_like_names_found_alone() {
    let (_directory, _, alone) = opened();
    let (_other, _, together) = opened();
    together.find_all(["expr", "data", "choice", "nowhere", "elsewhere", "a|expr"]);
    for name in ["expr", "data", "choice", "nowhere", "elsewhere"] {
        assert_eq!(together.size_of(name), alone.size_of(name), "{name}");
    }
    assert_eq!(together.offset_of("expr", "list.chain"), Some(40));
    assert_eq!(together.structure_id("expr"), alone.structure_id("expr"));
}

#[test]
fn what_is_not_there_is_unknown() {
    let (_directory, _, types) = opened();
    assert_eq!(types.offset_of("expr", "missing"), None);
    assert_eq!(types.offset_of("expr", "head.inner"), None);
    assert_eq!(types.offset_of("missing", "head"), None);
    assert_eq!(types.offset_of("elsewhere", "head"), None, "a forward declaration has no members");
    assert_eq!(types.offset_of("choice", "TWO"), None);
    assert_eq!(types.size_of("elsewhere"), None);
    assert_eq!(types.enum_values("expr"), None);
    let error = types.require("expr", "missing").unwrap_err();
    assert!(error.to_string().contains("expr.missing"), "{error}");
}

#[test]
fn bit_fields_are_taken_out_of_their_word() {
    let (_directory, _, types) = opened();
    let word = 1 | 0x123 << 1 | 0x2aa_aaaa_aaaa << 13;
    let field = |name| types.bit_field("expr", name).unwrap();
    assert_eq!(field("handle"), BitField { bit: 205, width: 42 });
    assert!(["is_last", "dlen", "handle"].iter().all(|name| field(name).unit() == 24));
    assert_eq!(field("is_last").extract(word), 1);
    assert_eq!(field("dlen").extract(word), 0x123);
    assert_eq!(field("handle").extract(word), 0x2aa_aaaa_aaaa);
    assert_eq!(field("level").extract(0xab << 56), 0xab);
    assert_eq!(types.bit_field("expr", "head"), Some(BitField { bit: 0, width: 64 }));
    assert_eq!(types.offset_of("expr", "dlen"), None, "it starts inside a byte");
}

#[test]
fn enum_values_keep_their_sign_and_order() {
    let (_directory, _, types) = opened();
    let values = types.enum_values("choice").unwrap();
    assert_eq!(values, [("NEGATIVE".to_owned(), -1), ("ZERO".to_owned(), 0), ("TWO".to_owned(), 2)]);
}

#[test]
fn a_module_is_asked_for_what_vmlinux_does_not_have_even_when_loaded_later() {
    let (directory, base, types) = opened();
    assert_eq!(types.offset_of("elsewhere", "second"), None);
    fs::write(directory.path().join("broken"), b"no BTF").unwrap();
    let mut module = Writer::module(&base);
    // Type 3 is vmlinux's u64.
    module.record(STRUCT, "elsewhere", 16, &[("first", 3, 0, 0), ("second", 3, 64, 0)]);
    module.write(&directory.path().join("nf_tables"));
    assert_eq!(types.offset_of("elsewhere", "second"), Some(8));
    assert_eq!(types.offset_of("expr", "head"), Some(0));
    assert_eq!(types.offset_of("elsewhere", "third"), None);
}

#[test]
fn a_kernel_without_btf_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let error = KernelTypes::open(directory.path()).err().unwrap();
    assert!(error.to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
}
