//! Which generation of a namespace's nft ruleset is in force.

use crate::{
    kernel::{
        Block, KernelTypes, Memory, ReadError, Symbols,
        btf::{BitField, kernel_layout},
    },
    rules::index::Check,
};

kernel_layout! {
    /// Where the kernel keeps the number of the last commit, and which half of each chain's rules is in force.
    GenerationLayout {
        cursor: offset("net", "nft.gencursor"),
        // Since 6.17; before that in nf_tables' own data of the namespace.
        sequence: maybe("net", "nft.base_seq"),
        generic: maybe("net", "gen"),
        generic_pointers: maybe("net_generic", "ptr"),
        pernet_sequence: maybe("nftables_pernet", "base_seq"),
    }
}

/// A generation of the ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::rules) struct Generation {
    /// 0 or 1: which of two blocks of rules each chain runs.
    pub(super) cursor: u8,
    /// Changes with every commit; where the kernel shows no number, the cursor alone, which every second commit
    /// sets back.
    pub(super) check: Check,
}

impl Generation {
    /// Whether the object with this generation mask is in force (`nft_is_active`).
    pub(super) fn has(self, mask: BitField, object: &Block) -> Result<bool, ReadError> {
        Ok(mask.extract(object.u64(mask.unit())?) >> self.cursor & 1 == 0)
    }
}

/// Reads generations of one namespace.
pub(super) struct Generations<'a> {
    memory: &'a dyn Memory,
    /// Addresses.
    cursor: u64,
    sequence: Option<u64>,
}

impl<'a> Generations<'a> {
    pub(super) fn new(
        memory: &'a dyn Memory,
        types: &KernelTypes,
        symbols: &Symbols,
        net: u64,
    ) -> Result<Self, ReadError> {
        Self::with_layout(memory, &GenerationLayout::resolve(types)?, symbols, net)
    }

    pub(super) fn with_layout(
        memory: &'a dyn Memory,
        layout: &GenerationLayout,
        symbols: &Symbols,
        net: u64,
    ) -> Result<Self, ReadError> {
        let at = |offset: u32| net.wrapping_add(u64::from(offset));
        let sequence = match layout.sequence {
            Some(offset) => Some(at(offset)),
            None => pernet(memory, layout, symbols, net)?,
        };
        Ok(Self { memory, cursor: at(layout.cursor), sequence })
    }

    /// The generation in force now.
    pub(super) fn current(&self) -> Result<Generation, ReadError> {
        let unreadable = |address| {
            move |source| ReadError::Unreadable { what: "the generation of net.nft", address, source }
        };
        let cursor = |address| self.memory.read_u8(address).map_err(unreadable(address));
        let check = match self.sequence {
            // Side by side, one comparison covers the number and the cursor, which is set after it.
            Some(address) if self.cursor == address.wrapping_add(4) => {
                let value = self.memory.read_u64(address).map_err(unreadable(address))?;
                Check { address, length: 8, value }
            }
            Some(address) => {
                let value = self.memory.read_u32(address).map_err(unreadable(address))?;
                Check { address, length: 4, value: value.into() }
            }
            None => Check { address: self.cursor, length: 1, value: cursor(self.cursor)?.into() },
        };
        Ok(Generation { cursor: cursor(self.cursor)?, check })
    }
}

/// Address of `nftables_pernet.base_seq`: `net_generic(net, nf_tables_net_id)` (include/net/netns/generic.h).
fn pernet(
    memory: &dyn Memory,
    layout: &GenerationLayout,
    symbols: &Symbols,
    net: u64,
) -> Result<Option<u64>, ReadError> {
    let (Some(generic), Some(pointers), Some(sequence), Some(id)) = (
        layout.generic,
        layout.generic_pointers,
        layout.pernet_sequence,
        symbols.address_of("nf_tables_net_id"),
    ) else {
        return Ok(None);
    };
    let unreadable = |what, address| move |source| ReadError::Unreadable { what, address, source };
    let number = memory.read_u32(id).map_err(unreadable("nf_tables_net_id", id))?;
    let slot = net.wrapping_add(u64::from(generic));
    let array = memory.read_u64(slot).map_err(unreadable("net.gen", slot))?;
    let slot = array.wrapping_add(u64::from(pointers)).wrapping_add(8 * u64::from(number));
    let data = memory.read_u64(slot).map_err(unreadable("net_generic.ptr", slot))?;
    Ok(Some(data.wrapping_add(u64::from(sequence))))
}
