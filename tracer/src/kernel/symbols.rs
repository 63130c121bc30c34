//! Names of the running kernel's functions, from `/proc/kallsyms`.

use std::{fs, io, path::Path};

/// Where the kernel shows its symbols.
pub const KALLSYMS: &str = "/proc/kallsyms";

/// The kernel's symbols; empty where it hides addresses (kptr_restrict).
#[derive(Debug, Default)]
pub struct Symbols {
    text: String,
    /// By address; for one address the order of the file.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// Of the name in `Symbols::text`.
    start: u32,
    length: u16,
    code: bool,
}

impl Symbols {
    /// Reads `path` (on a live system [`KALLSYMS`]).
    ///
    /// # Errors
    /// When the file cannot be read. Hidden addresses are no error: nothing is known then.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(fs::read_to_string(path)?))
    }

    /// Takes `address type name[ \t[module]]` lines; others, and those with address 0, are left out.
    #[must_use]
    pub fn parse(text: String) -> Self {
        let mut entries = Vec::with_capacity(text.len() / 40);
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            entries.extend(entry(line, start));
            start += line.len();
        }
        if !entries.is_sorted_by_key(|entry| entry.address) {
            entries.sort_by_key(|entry| entry.address);
        }
        Self { text, entries }
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The function in which `address` lies, and how many bytes into it. The end of a function is where the next
    /// symbol starts; in the last one only its very start is certain.
    #[must_use]
    pub fn function_at(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.entries.partition_point(|entry| entry.address <= address);
        let found = self.entries[..after].last()?;
        if after == self.entries.len() && found.address != address {
            return None;
        }
        let first = self.entries.partition_point(|entry| entry.address < found.address);
        let function = self.entries[first..after].iter().find(|entry| entry.code)?;
        Some((self.name(function), address - function.address))
    }

    /// The function that starts at `address`, without the suffixes that compilers add (`.isra.0`, `.cold`).
    #[must_use]
    pub fn function(&self, address: u64) -> Option<&str> {
        let (name, offset) = self.function_at(address)?;
        (offset == 0).then(|| name.split('.').next().unwrap_or(name))
    }

    /// The address of a symbol; `None` when there is none, or several of that name.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let mut found =
            self.entries.iter().filter(|entry| self.name(entry) == name).map(|entry| entry.address);
        let address = found.next()?;
        found.all(|other| other == address).then_some(address)
    }

    /// Where a function begins, and where what follows it does; `None` as [`Self::address_of`], and for the last one.
    #[must_use]
    pub fn range_of(&self, name: &str) -> Option<[u64; 2]> {
        let start = self.address_of(name)?;
        let after = self.entries.partition_point(|entry| entry.address <= start);
        Some([start, self.entries.get(after)?.address])
    }

    fn name(&self, entry: &Entry) -> &str {
        &self.text[entry.start as usize..entry.start as usize + usize::from(entry.length)]
    }
}

fn entry(line: &str, start: usize) -> Option<Entry> {
    let (address, rest) = line.split_once(' ')?;
    let (kind, rest) = rest.split_once(' ')?;
    let name = rest.split(['\t', '\n', ' ']).next()?;
    let address = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0)?;
    let within = line.len() - rest.len();
    Some(Entry {
        address,
        start: u32::try_from(start + within).ok()?,
        length: u16::try_from(name.len()).ok()?,
        code: matches!(kind, "t" | "T" | "w" | "W"),
    })
}

#[cfg(test)]
mod tests {
    use super::Symbols;

    fn sample() -> Symbols {
        Symbols::parse(
            "ffffffff81000000 T _stext\n\
             ffffffff81000100 t ipt_do_table.isra.0\n\
             ffffffff81000200 T nf_hook_slow\n\
             ffffffff81000300 d twice\n\
             ffffffff81000310 d twice\n\
             ffffffff81000000 D zeroth\n\
             ffffffffc0000000 t nft_do_chain_inet\t[nf_tables]\n"
                .to_owned(),
        )
    }

    #[test]
    fn an_address_inside_a_function_has_its_name_and_offset() {
        let symbols = sample();
        assert_eq!(symbols.function_at(0xffff_ffff_8100_0242), Some(("nf_hook_slow", 0x42)));
        assert_eq!(symbols.function_at(0xffff_ffff_8100_0100), Some(("ipt_do_table.isra.0", 0)));
        assert_eq!(symbols.function_at(0xffff_ffff_8100_0000), Some(("_stext", 0)));
    }

    #[test]
    fn a_start_is_named_without_compiler_suffixes_and_an_inner_address_is_no_start() {
        let symbols = sample();
        assert_eq!(symbols.function(0xffff_ffff_8100_0100), Some("ipt_do_table"));
        assert_eq!(symbols.function(0xffff_ffff_c000_0000), Some("nft_do_chain_inet"));
        assert_eq!(symbols.function(0xffff_ffff_8100_0101), None);
    }

    #[test]
    fn data_and_the_unknown_have_no_function() {
        let symbols = sample();
        assert_eq!(symbols.function_at(0xffff_ffff_8100_0305), None);
        assert_eq!(symbols.function_at(0x1000), None);
        assert_eq!(
            symbols.function_at(0xffff_ffff_c000_0001),
            None,
            "behind the last symbol nothing is certain"
        );
    }

    #[test]
    fn a_name_has_an_address_only_when_it_is_unique() {
        let symbols = sample();
        assert_eq!(symbols.address_of("nf_hook_slow"), Some(0xffff_ffff_8100_0200));
        assert_eq!(symbols.address_of("twice"), None);
        assert_eq!(symbols.address_of("missing"), None);
        assert_eq!(symbols.range_of("nf_hook_slow"), Some([0xffff_ffff_8100_0200, 0xffff_ffff_8100_0300]));
        assert_eq!(symbols.range_of("missing"), None);
    }

    #[test]
    fn hidden_addresses_are_unknown() {
        let symbols =
            Symbols::parse("0000000000000000 T _stext\n0000000000000000 T nf_hook_slow\n".to_owned());
        assert!(symbols.is_empty());
        assert_eq!(symbols.function_at(0), None);
        assert_eq!(symbols.address_of("nf_hook_slow"), None);
    }

    #[test]
    fn lines_that_are_no_symbols_are_left_out() {
        let symbols = Symbols::parse("\nnonsense\nxyz T name\nffffffff81000000 T ok".to_owned());
        assert_eq!(symbols.function(0xffff_ffff_8100_0000), Some("ok"));
    }
}
