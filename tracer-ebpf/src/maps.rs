//! Every map and global of the kernel side.

use core::arch::asm;

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
};
use tracer_common::{
    counters::{COUNTERS as COUNTER_COUNT, Counter},
    kprobe::{Evaluation, MAX_PLACES, Place, PlaceKey},
    records::RuleHits,
    settings::{Gap, GapKey, MAX_COUNTERS, READING_SLOTS, SNAPSHOT_PER_CPU, Settings},
    tuple::Tuple,
};

/// Constants of this trace. Mutable for the compiler only: user space writes them before loading and freezes
/// the map, so that the verifier knows each value. In a section of its own: aya-log has constants in `.rodata`.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".rodata.settings")]
pub(crate) static mut SETTINGS: Settings = Settings::ZERO;

/// Records for user space. 8 MiB hold about 30,000 sights.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_SIZE, 0);
const EVENTS_SIZE: u32 = 8 << 20;
/// Unread bytes from which on no further packet is followed: the rest is for those under way.
pub(crate) const EVENTS_BUSY: u64 = EVENTS_SIZE as u64 / 2;

/// The program that netfilter probes hand a followed packet to ([`crate::probes`]).
#[map]
pub(crate) static JUDGE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Followed packets by address of their `sk_buff`.
#[map]
pub(crate) static TRACKED: HashMap<u64, Track> = HashMap::with_max_entries(65_536, 0);

/// How many packets are followed. A global, not a map's entry: programs reach it in one load.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.followed")]
pub(crate) static mut FOLLOWED: Followed = Followed { all: 0, buckets: [0; BUCKET_COUNT as usize] };
pub(crate) const BUCKET_COUNT: u32 = 1 << 12;

/// Connections that matched, by their packets' tuples as they arrive.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(65_536, 0);

/// Not 0 where a tuple with this hash was put into [`FLOWS`].
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.flows")]
pub(crate) static mut FLOW_BUCKETS: [u8; FLOW_BUCKET_COUNT as usize] = [0; FLOW_BUCKET_COUNT as usize];
pub(crate) const FLOW_BUCKET_COUNT: u32 = 1 << 16;

/// Conntrack entries whose connection was seen not to match.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".bss.refused")]
pub(crate) static mut REFUSED: [u64; REFUSED_COUNT as usize] = [0; REFUSED_COUNT as usize];
pub(crate) const REFUSED_COUNT: u32 = 1 << 12;

/// Traced namespaces: address of `struct net` to inode number.
#[map]
pub(crate) static SCOPE: HashMap<u64, u32> = HashMap::with_max_entries(4096, 0);

/// The packet last seen on this CPU.
#[map]
pub(crate) static HAND: PerCpuArray<Hand> = PerCpuArray::with_max_entries(1, 0);

/// Where `skb_expand_head` begins and ends, once user space knows: it goes on with a copy that has more room in front, and
/// frees the packet.
#[map]
pub(crate) static EXPANDS: Array<[u64; 2]> = Array::with_max_entries(1, 0);

/// The frame that XDP saw last on this CPU.
#[map]
pub(crate) static XDP_SEEN: PerCpuArray<XdpSeen> = PerCpuArray::with_max_entries(1, 0);

/// Frames that XDP programs of others let pass, by their buffer's address, until their `sk_buff` is seen.
#[map]
pub(crate) static XDP_PASSED: LruHashMap<u64, Passed> = LruHashMap::with_max_entries(1024, 0);

/// [`Counter`]s.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_COUNT, 0);

/// Last journey number given on this CPU.
#[map]
pub(crate) static JOURNEYS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// When a packet was last refused on this CPU because the ring buffer was busy (nanoseconds of CLOCK_MONOTONIC).
#[map]
pub(crate) static REFUSED_AT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Packets that pass netfilter probes on this CPU.
#[map]
pub(crate) static PASSES: PerCpuArray<Passes> = PerCpuArray::with_max_entries(1, 0);

/// The tables between a netfilter probe and the next.
#[map]
pub(crate) static GAPS: HashMap<GapKey, Gap> = HashMap::with_max_entries(4096, 0);

/// Addresses of rule counters, table after table; bit 0 set: not per CPU.
#[map]
pub(crate) static COUNTER_LIST: Array<u64> = Array::with_max_entries(MAX_COUNTERS, 0);

/// This CPU's per-CPU offset; 0 until user space has found it.
#[map]
pub(crate) static PER_CPU_OFFSET: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// First readings of rule counters, CPU after CPU: an array of each CPU's own would cost the kernel an allocation for each of
/// its entries, and a trace a good part of the time until it is ready. User space gives it as many entries as there are CPUs.
#[map]
pub(crate) static SNAPSHOT: Array<u64> = Array::with_max_entries(SNAPSHOT_PER_CPU, 0);

/// What [`SNAPSHOT`] holds.
#[map]
pub(crate) static READING: PerCpuArray<Reading> = PerCpuArray::with_max_entries(READING_SLOTS, 0);

/// What the kprobe programs do at which function.
#[map]
pub(crate) static PLACES: HashMap<PlaceKey, Place> = HashMap::with_max_entries(MAX_PLACES, 0);

/// The program that the other kprobe programs hand a packet to: the verifier looks at it once.
#[map]
pub(crate) static KPROBE_JUDGE: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// What they hand over. Kprobe programs do not interrupt each other on one CPU (`bpf_prog_active`).
#[map]
pub(crate) static HANDED_OVER: PerCpuArray<HandedOver> = PerCpuArray::with_max_entries(1, 0);

/// Calls of `nf_hook_slow` under way, by the stack pointer at their beginning.
#[map]
pub(crate) static CALLS: HashMap<u64, Call> = HashMap::with_max_entries(4096, 0);

/// What the rule probes are told before the first is attached.
#[map]
pub(crate) static EVALUATION: Array<Evaluation> = Array::with_max_entries(1, 0);

/// Evaluations of nft expressions under way, by the stack pointer at their beginning.
#[map]
pub(crate) static EVALUATIONS: HashMap<u64, Evaluated> = HashMap::with_max_entries(4096, 0);

/// Room to put a [`RuleHits`] together.
#[map]
pub(crate) static HITS: PerCpuArray<RuleHits> = PerCpuArray::with_max_entries(READING_SLOTS, 0);

/// Followed packets, counted: nearly all packets of a busy machine are told apart by this alone.
#[repr(C)]
pub(crate) struct Followed {
    /// On the whole machine.
    pub(crate) all: u64,
    /// By the bucket that their `sk_buff`'s address falls into.
    pub(crate) buckets: [u64; BUCKET_COUNT as usize],
}

/// A followed packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Track {
    pub(crate) journey: u64,
    /// What does not change on the way ([`crate::headers::Headers::identity`]): a reused `sk_buff` has another.
    pub(crate) identity: u64,
    /// Conntrack entry and status of the last [`tracer_common::records::ConntrackTuples`] sent.
    pub(crate) conntrack: u64,
    pub(crate) conntrack_status: u32,
    /// `SIGHT_*` flags that belong to the journey.
    pub(crate) flags: u32,
    /// Priority of the netfilter probe that the packet is at, for the program that the probe hands over to.
    pub(crate) priority: i32,
    /// `enum ip_conntrack_info` where it was seen last; [`CONNTRACK_NONE`] without an entry.
    ///
    /// [`CONNTRACK_NONE`]: tracer_common::records::CONNTRACK_NONE
    pub(crate) conntrack_info: u32,
    /// Device by which it was seen to come in last, 0 when it has been seen elsewhere since.
    pub(crate) device_in: u64,
    /// Device that a tcx program saw it leave by last, 0 when it has been seen elsewhere since.
    pub(crate) device_out: u64,
}

/// No address of a buffer.
pub(crate) const EXPANDED: u64 = 1;

/// The packet last seen on a CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Hand {
    pub(crate) skb: u64,
    /// `sk_buff.head`, which copies share; [`EXPANDED`] when the packet goes on as a copy that has a buffer of its own.
    pub(crate) buffer: u64,
    pub(crate) journey: u64,
    pub(crate) tuple: Tuple,
}

/// A frame that XDP saw, until its `sk_buff` is seen on the same CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct XdpSeen {
    /// Its buffer, which is the `sk_buff`'s; 0: nothing, or it has been seen.
    pub(crate) buffer: u64,
    /// `struct net_device`
    pub(crate) device: u64,
    /// [`crate::headers::Headers::identity`]
    pub(crate) identity: u64,
    /// The journey that began with it; 0: it was not asked for.
    pub(crate) journey: u64,
    pub(crate) tuple: Tuple,
}

/// A frame that an XDP program of somebody else let pass.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Passed {
    /// `struct net_device`
    pub(crate) device: u64,
    /// [`crate::headers::Headers::identity`], as the program left it.
    pub(crate) identity: u64,
    pub(crate) tuple: Tuple,
    /// The program's number.
    pub(crate) program: u32,
    pub(crate) reserved: u32,
}

/// A packet at a place of the plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct HandedOver {
    pub(crate) skb: u64,
    /// `struct net`
    pub(crate) net: u64,
    /// `struct nf_hook_state`, 0 at a hook that nobody is hooked to.
    pub(crate) state: u64,
    pub(crate) place: Place,
    pub(crate) hook: u8,
    pub(crate) pf: u8,
    pub(crate) reserved: u16,
}

/// A call of `nf_hook_slow`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) skb: u64,
    /// Lies in the caller's frame, and so is there when the call returns.
    pub(crate) state: u64,
}

/// An evaluation of an nft expression for a followed packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Evaluated {
    /// `struct nft_expr`
    pub(crate) expression: u64,
    /// `struct nft_regs`, in the frame of `nft_do_chain`, and so there when the evaluation returns.
    pub(crate) registers: u64,
    pub(crate) skb: u64,
}

/// A tuple in a namespace.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FlowKey {
    pub(crate) tuple: Tuple,
    pub(crate) netns: u32,
    pub(crate) reserved: u32,
}

/// Whose counters stand in [`SNAPSHOT`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Reading {
    /// 0: nobody's.
    pub(crate) journey: u64,
    pub(crate) gap: GapKey,
    /// [`Gap::generation`] at the first reading.
    pub(crate) generation: u32,
    /// Not 0 while a program works on the buffers of this CPU.
    pub(crate) busy: u32,
    /// [`Passes::all`] and [`Passes::bare`] at the first reading.
    pub(crate) passes: u64,
    pub(crate) bare: u64,
    /// Not 0 when another packet passed during the first reading: it moved some counters before and some after.
    pub(crate) disturbed: u64,
    /// The task at the first reading and how often it had been switched out; 0 where that is not known.
    pub(crate) task: u64,
    pub(crate) switches: u64,
}

/// How packets pass netfilter probes on a CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Passes {
    /// How often any packet passed any probe.
    pub(crate) all: u64,
    /// How often a followed packet passed one behind which no table stands.
    pub(crate) bare: u64,
    /// [`Gap::generation`] of the gap that a followed packet entered last.
    pub(crate) generation: u64,
}

/// The low bits of a number as an index into `COUNT` entries, a power of two; with an instruction that the verifier of every
/// kernel follows, and that the compiler does not move to where it does not.
#[inline(always)]
pub(crate) fn index<const COUNT: u32>(number: u32) -> usize {
    const { assert!(COUNT.is_power_of_two()) };
    let mut index = u64::from(number);
    // SAFETY: arithmetic.
    unsafe { asm!("{0} &= {1}", inout(reg) index, const COUNT - 1, options(pure, nomem, nostack)) };
    index as usize
}

/// Adds to a number that programs on other CPUs, or some that interrupt this one, add to as well: none of it may get lost.
/// (core has no atomic addition for this target.)
///
/// # Safety
/// `to` lies in a map's value.
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, change: i64) {
    // SAFETY: the caller's.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) to, in(reg) change) };
}

/// Adds 1 to a counter of this CPU, and says what it is by now.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> u64 {
    let Some(value) = COUNTERS.get_ptr_mut(counter as u32) else { return 0 };
    // SAFETY: a valid per-CPU map value; a lost increment under preemption is accepted.
    unsafe {
        *value += 1;
        *value
    }
}
