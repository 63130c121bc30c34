//! What the kprobe programs are told: where the arguments of kernel functions stand, and which functions are places
//! of the plan.

use crate::layout::Offset;

/// Position of an argument of a kernel function, 0 the first; or absent.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position(u8);

impl Position {
    pub const ABSENT: Self = Self(u8::MAX);
    /// Positions from here on are not in registers on every machine.
    pub const COUNT: usize = 4;

    /// A position, unless it is one that programs cannot read (4 and up).
    #[must_use]
    pub const fn new(position: usize) -> Option<Self> {
        if position < Self::COUNT { Some(Self(position as u8)) } else { None }
    }

    /// 0..=3
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> Option<usize> {
        if self.0 == u8::MAX { None } else { Some(self.0 as usize) }
    }
}

/// Where arguments stand in the running kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// `nf_hook_slow`: the packet, its `nf_hook_state`.
    pub slow_skb: Position,
    pub slow_state: Position,
    /// Every hooked function (`nf_hookfn`): its private pointer, the packet, the state.
    pub function_private: Position,
    pub function_skb: Position,
    pub function_state: Position,
    /// `__ip_local_out`, `ip_output` and those of IPv6: namespace and packet.
    pub output_net: Position,
    pub output_skb: Position,
    /// `ip_local_deliver`, `ip6_input`: the packet.
    pub input_skb: Position,
}

impl Arguments {
    /// Nothing is known.
    pub const NOTHING: Self = Self {
        slow_skb: Position::ABSENT,
        slow_state: Position::ABSENT,
        function_private: Position::ABSENT,
        function_skb: Position::ABSENT,
        function_state: Position::ABSENT,
        output_net: Position::ABSENT,
        output_skb: Position::ABSENT,
        input_skb: Position::ABSENT,
    };
}

/// Key of a place: a function at a hook of a namespace, or one of the ends of the hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlaceKey {
    /// Address of the `struct net`.
    pub net: u64,
    /// What the function is given (`xt_table`, `nft_chain`, `nf_nat_lookup_hook_priv`), or [`END`], or [`BARE`].
    pub function: u64,
    /// `enum nf_inet_hooks`.
    pub hook: u32,
    /// `NFPROTO_IPV4` (2) or `NFPROTO_IPV6` (10).
    pub pf: u32,
}

const _: () = assert!(size_of::<PlaceKey>() == 24);

/// [`PlaceKey::function`]: behind the last function of a hook (`nf_hook_slow` returned 1).
pub const END: u64 = 0;
/// [`PlaceKey::function`]: a hook that nobody is hooked to, so that `nf_hook_slow` is not called.
pub const BARE: u64 = 1;

/// What happens at a place.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Place {
    /// As [`crate::settings::GapKey::priority`].
    pub priority: i32,
    /// [`crate::settings::role`] bits.
    pub role: u32,
    /// At [`END`]: not 0 where a journey can begin somewhere in this hook.
    pub begins: u32,
}

const _: () = assert!(size_of::<Place>() == 12);

/// Places of all namespaces together.
pub const MAX_PLACES: u32 = 16_384;

/// Where an evaluation of an nft expression (`nft_expr_ops.eval`, include/net/netfilter/nf_tables.h) says what it is of.
/// Told apart from [`Arguments`], since nf_tables may be loaded while a trace runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// Arguments: `struct nft_expr`, `struct nft_regs`, `struct nft_pktinfo`.
    pub expression: Position,
    pub registers: Position,
    pub packet: Position,
    pub reserved: u8,
    /// `nft_pktinfo.skb`
    pub packet_skb: Offset,
    /// `nft_regs.verdict.code`, `nft_regs.verdict.chain`
    pub verdict_code: Offset,
    pub verdict_chain: Offset,
}

const _: () = assert!(size_of::<Evaluation>() == 10);
