//! The records that the programs put into the ring buffer. Fixed size, `repr(C)`, no padding that is not named,
//! the kind first. User space reads them field by field from bytes and rejects what it does not know.

use crate::tuple::Tuple;

/// What kind of record follows; the first four bytes of each.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Sight`]: a packet came in from a device (`net:netif_receive_skb`).
    DeviceIn = 1,
    /// [`Sight`]: a packet was handed to a device's driver (`net:net_dev_start_xmit`).
    DeviceOut = 2,
    /// [`Sight`]: a packet stands before priority `priority` of a netfilter hook.
    Netfilter = 3,
    /// [`Sight`]: `skb:kfree_skb`.
    Drop = 4,
    /// [`Sight`]: `skb:consume_skb`.
    Consume = 5,
    /// [`Sight`]: the packet turned up in a namespace that is not traced.
    Left = 6,
    /// [`ConntrackTuples`].
    Conntrack = 7,
    /// [`RuleHits`].
    RuleHits = 8,
    /// [`Route`]: one lookup in one routing table for the packet in hand on this CPU.
    Route = 9,
    /// [`Answer`]: `tcp:tcp_send_reset` or `icmp:icmp_send` about a followed packet.
    Answer = 10,
    /// [`SocketEvent`]: a socket took the packet in hand on this CPU.
    Socket = 11,
    /// [`Sight`]: a packet came by XDP on a device, which knows no `sk_buff` ([`Sight::skb`] is 0) unless the packet is
    /// followed already.
    Xdp = 12,
    /// [`RulePart`]: an expression of an nft rule was evaluated for a followed packet.
    RulePart = 13,
    /// [`Sight`]: an XDP program of somebody else has judged a frame: its number is [`Sight::location`], what it returned
    /// [`Sight::reason`]. [`Sight::skb`] as with [`Self::Xdp`].
    XdpVerdict = 14,
    /// [`Sight`]: the same of a tc program and a packet.
    TcVerdict = 15,
}

impl Kind {
    #[must_use]
    pub fn from_u32(number: u32) -> Option<Self> {
        [
            Self::DeviceIn,
            Self::DeviceOut,
            Self::Netfilter,
            Self::Drop,
            Self::Consume,
            Self::Left,
            Self::Conntrack,
            Self::RuleHits,
            Self::Route,
            Self::Answer,
            Self::Socket,
            Self::Xdp,
            Self::RulePart,
            Self::XdpVerdict,
            Self::TcVerdict,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }
}

/// Common start of every record.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Head {
    /// [`Kind`] as a number.
    pub kind: u32,
    pub cpu: u32,
    /// `bpf_ktime_get_ns`: CLOCK_MONOTONIC, nanoseconds.
    pub time: u64,
    /// The followed packet; unique while pathtrace runs.
    pub journey: u64,
}

/// [`Sight::flags`]: this sight began the journey.
pub const SIGHT_FIRST: u32 = 1;
/// [`Sight::flags`]: followed tentatively, shown only if it matches later.
pub const SIGHT_TENTATIVE: u32 = 2;
/// [`Sight::flags`]: the journey began in the middle (its connection was recognised after translation).
pub const SIGHT_LATE: u32 = 4;
/// [`Sight::flags`]: recognised as a packet of a connection that matched.
pub const SIGHT_BY_FLOW: u32 = 8;
/// [`Sight::flags`]: an ICMP error whose quoted packet matched.
pub const SIGHT_BY_QUOTE: u32 = 16;
/// [`Sight::flags`]: not the packet itself, but a copy that was made of it (bridge flooding, multicast).
pub const SIGHT_COPY: u32 = 64;
/// [`Sight::flags`]: sights of this packet before this one found the ring buffer full.
pub const SIGHT_GAP: u32 = 128;

/// [`Sight::flags`]: XDP saw this packet right before; the journey that it began then is in [`Sight::location`] (0: none).
pub const SIGHT_XDP: u32 = 256;

/// [`Sight::flags`]: something could not be read; fields that are 0 are unknown.
pub const SIGHT_UNREADABLE: u32 = 32;

/// [`Sight::conntrack_info`] when the packet has no conntrack entry.
pub const CONNTRACK_NONE: u8 = 0xff;

/// A packet, as seen at one place.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Sight {
    pub head: Head,
    /// Address of the `sk_buff`.
    pub skb: u64,
    /// Address of its buffer: clones share it.
    pub buffer: u64,
    /// Drop and consume: the caller of the freeing function. With [`SIGHT_XDP`]: a journey. Verdicts: a program. Else 0.
    pub location: u64,
    /// Address of the conntrack entry, 0 for none.
    pub conntrack: u64,
    /// Inode number of the namespace.
    pub netns: u32,
    /// `SIGHT_*`.
    pub flags: u32,
    /// Netfilter: priority of the next function that judges, as the probe was placed. Else 0.
    pub priority: i32,
    /// Drop: `enum skb_drop_reason`; [`REASON_UNKNOWN`] where the kernel has none. Verdicts: what the program returned.
    pub reason: u32,
    pub in_ifindex: u32,
    pub out_ifindex: u32,
    pub in_name: [u8; 16],
    pub out_name: [u8; 16],
    pub tuple: Tuple,
    /// The packet that an ICMP error quotes; family 0 for none.
    pub quoted: Tuple,
    /// `sk_buff.len` from the network header.
    pub length: u32,
    pub mark: u32,
    /// IPv4 identification; for IPv6 the low half of the fragment header's, 0 without one.
    pub ip_id: u16,
    /// IPv4 fragment field (host order), or IPv6 fragment header's.
    pub fragment: u16,
    pub ttl: u8,
    /// The TCP flag byte.
    pub tcp_flags: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    pub gso_segments: u16,
    /// `enum nf_inet_hooks`.
    pub hook: u8,
    /// `NFPROTO_*`.
    pub pf: u8,
    /// `enum ip_conntrack_info`, or [`CONNTRACK_NONE`].
    pub conntrack_info: u8,
    /// 0: no route yet. 1: route known, see the next fields.
    pub routed: u8,
    /// `RTN_*` of an IPv4 route (0 unknown).
    pub route_type: u8,
    /// 0 none, 2 IPv4, 10 IPv6.
    pub gateway_family: u8,
    pub conntrack_status: u32,
    pub conntrack_mark: u32,
    pub conntrack_zone: u16,
    /// Local port of the socket that is attached to the packet (early demultiplexing, TPROXY), 0 for none.
    pub socket_port: u16,
    pub gateway: [u32; 4],
    pub route_ifindex: u32,
    /// `dst_entry.error`: 0, or an errno, negative or positive.
    pub route_error: i32,
    pub reserved: u32,
    pub route_name: [u8; 16],
}

/// [`Sight::reason`] where the kernel gives none.
pub const REASON_UNKNOWN: u32 = u32::MAX;

const _: () = assert!(size_of::<Head>() == 24);
const _: () = assert!(size_of::<Sight>() == 272);

/// The two tuples of a followed packet's conntrack entry; sent when they are new or have changed.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct ConntrackTuples {
    pub head: Head,
    pub conntrack: u64,
    pub original: Tuple,
    pub reply: Tuple,
}

const _: () = assert!(size_of::<ConntrackTuples>() == 112);

/// How many moved counters one record holds.
pub const MAX_HITS: usize = 60;

/// [`RuleHits::flags`]: another packet passed here on this CPU between the two readings.
pub const HITS_INTERLEAVED: u32 = 1;
/// [`RuleHits::flags`]: the second reading was on another CPU, so there are no hits.
pub const HITS_CPU_CHANGED: u32 = 2;
/// [`RuleHits::flags`]: the ruleset was not the one that the index describes.
pub const HITS_STALE: u32 = 4;
/// [`RuleHits::flags`]: more counters moved than the record holds.
pub const HITS_TRUNCATED: u32 = 8;
/// [`RuleHits::flags`]: a counter could not be read.
pub const HITS_UNREADABLE: u32 = 16;
/// [`RuleHits::flags`]: the reading was overwritten by another packet's.
pub const HITS_OVERWRITTEN: u32 = 32;
/// With one of these the counters that moved are not all there, or not the table's.
pub const HITS_UNSURE: u32 =
    HITS_CPU_CHANGED | HITS_OVERWRITTEN | HITS_STALE | HITS_TRUNCATED | HITS_UNREADABLE;
/// [`RuleHits::flags`]: read when the packet died, not at the next probe.
pub const HITS_AT_DROP: u32 = 64;
/// [`RuleHits::flags`]: whatever else passed here began and ended between the readings. At OUTPUT and POSTROUTING, the
/// task on this CPU was the same and never switched out (`nvcsw`, `nivcsw` of `struct task_struct`); at the other hooks
/// bottom halves are off (`netif_receive_skb`).
pub const HITS_UNSWITCHED: u32 = 128;
/// [`RuleHits::flags`]: packets passed while the counters themselves were read: what they moved is in some of them only.
pub const HITS_DISTURBED: u32 = 256;

/// One rule whose counter moved.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Index in the table's list of counters, as user space laid it out.
    pub rule: u32,
    /// By how many packets.
    pub packets: u32,
}

/// The counters of one table that moved while it judged a packet. The record ends behind the last hit counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleHits {
    pub head: Head,
    /// `HITS_*`.
    pub flags: u32,
    /// User space's number of the table reading ([`Table::id`]).
    pub table: u32,
    pub count: u32,
    /// How many tables this reading is of: as many records have the same [`RuleHits::opened`].
    pub tables: u32,
    /// How many passes this CPU had counted, the packet's own included, when the first reading was taken. A packet that
    /// passes after that has a higher number.
    pub opened: u64,
    /// How often other packets passed a probe meanwhile, those probes left out behind which there is no table. Where
    /// each was of a followed packet, as many readings were sent before this one.
    pub others: u32,
    /// How often packets passed a probe meanwhile, this one's own pass at the end included unless it died.
    pub passed: u32,
    pub hits: [Hit; MAX_HITS],
}

/// Bytes of [`RuleHits`] before its hits.
pub const RULE_HITS_HEAD: usize = 56;

const _: () = assert!(core::mem::offset_of!(RuleHits, hits) == RULE_HITS_HEAD);
const _: () = assert!(size_of::<RuleHits>() == RULE_HITS_HEAD + size_of::<Hit>() * MAX_HITS);

/// One lookup in one routing table.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Route {
    pub head: Head,
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub gateway: [u32; 4],
    /// Routing table number.
    pub table: u32,
    /// 0, or a negative errno (`-EAGAIN`: no match in this table, the next is asked).
    pub error: i32,
    pub mark: u32,
    pub ifindex: u32,
    pub name: [u8; 16],
    /// [`crate::tuple::IPV4`] or [`crate::tuple::IPV6`].
    pub family: u8,
    /// 0 none, 2 IPv4, 10 IPv6.
    pub gateway_family: u8,
    /// `RTN_*`, 0 unknown.
    pub route_type: u8,
    pub reserved: [u8; 5],
}

const _: () = assert!(size_of::<Route>() == 24 + 48 + 16 + 16 + 8);

/// What was sent about a packet.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    TcpReset = 1,
    Icmp = 2,
}

/// The kernel answered a followed packet.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Answer {
    pub head: Head,
    /// [`AnswerKind`] as a number.
    pub kind: u32,
    pub icmp_type: u32,
    pub icmp_code: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Answer>() == 40);

/// A socket took the packet in hand.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct SocketEvent {
    pub head: Head,
    /// Address of the `sock`.
    pub sock: u64,
    /// Its inode in sockfs, by which user space knows it; 0 where it has none (a connection that is not accepted yet).
    pub inode: u64,
    /// The socket's local end as source, its peer (0 when unconnected) as destination.
    pub tuple: Tuple,
}

const _: () = assert!(size_of::<SocketEvent>() == 80);

/// [`RulePart::when`]: right before the expression is evaluated; nothing is known of what comes of it.
pub const PART_REACHED: u32 = 0;
/// [`RulePart::when`]: right after that, and it did not end the rule as one that does not match (`NFT_BREAK`).
pub const PART_RETURNED: u32 = 1;

/// A followed packet came to an expression of an nft rule. Of one walk they come in the order of evaluation.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct RulePart {
    pub head: Head,
    /// Address of the `struct nft_expr`, inside the rules of its chain.
    pub expression: u64,
    /// With [`PART_RETURNED`]: address of the `struct nft_chain` in the verdict, which means something for a jump. Else 0.
    pub chain: u64,
    /// With [`PART_RETURNED`]: the verdict, an `enum nft_verdicts` or `NF_*`. Else 0.
    pub verdict: i32,
    /// `PART_*`.
    pub when: u32,
}

const _: () = assert!(size_of::<RulePart>() == 48);
