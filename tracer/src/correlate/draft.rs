//! A finished journey whose rules, sockets and causes are not looked up yet.

use std::{num::NonZeroU64, sync::Arc};

use tracer_common::{records::SIGHT_UNREADABLE, tuple as raw};

use super::{flows::Flows, open::Open};
use crate::{
    decode::{self, DeviceName, Fragment, HitsEvent, PartEvent, SightEvent},
    model::{
        Conntrack, CtState, DeviceStage, Direction, Family, Hook, Outcome, OutcomeKind, Packet, ProgramStage,
        Protocol, RouteStage, Tuple,
    },
    plan::Gap,
    rules::path::Fate,
};

/// What one judge in a gap had before it; attribution makes a netfilter stage of it.
#[derive(Clone, Debug)]
pub struct DraftTable {
    pub gap: Arc<Gap>,
    /// Index in [`Gap::judges`].
    pub judge: usize,
    pub hook: Hook,
    pub family: Family,
    pub hits: Option<Box<HitsEvent>>,
    /// Expressions of nft rules that it came to in the gap, in order; `None` where records of this packet were lost.
    pub parts: Option<Vec<PartEvent>>,
    /// It was seen next on another CPU: preempted, or queued to user space.
    pub changed_cpu: bool,
    pub fate: Fate,
    pub before: Tuple,
    pub after: Tuple,
    /// The connection was confirmed before: NAT follows the mapping.
    pub confirmed: bool,
    /// Connection tracking knows the packet.
    pub tracked: bool,
    pub around: Surroundings,
}

/// What rules can ask of a packet before a table, beside its headers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings {
    /// The hook's own devices (`nf_hook_state`); `None` where it has none.
    pub input: Option<DeviceName>,
    pub output: Option<DeviceName>,
    /// `enum ip_conntrack_info`.
    pub conntrack_info: Option<u8>,
    /// `enum ip_conntrack_status`, a mask; `None` for a packet without connection tracking.
    pub conntrack_status: Option<u32>,
}

/// A stage, as far as events tell.
#[derive(Clone, Debug)]
pub enum DraftStage {
    Device(DeviceStage),
    Route(RouteStage),
    Table(DraftTable),
    Program(ProgramStage),
}

/// A stage and when it was, in nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug)]
pub struct TimedStage {
    pub stage: DraftStage,
    pub time: u64,
    pub netns: u32,
}

/// What stays the same in a packet on its way, whatever is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looks {
    pub family: Family,
    pub protocol: Protocol,
    /// IPv4 only.
    pub ip_id: Option<u16>,
    /// TCP only.
    pub tcp_flags: Option<u8>,
}

impl Looks {
    fn of(sight: &SightEvent) -> Self {
        Self {
            family: sight.family,
            protocol: sight.protocol,
            ip_id: (sight.family == Family::Ipv4).then_some(sight.raw.ip_id),
            tcp_flags: (sight.protocol == Protocol::TCP).then_some(sight.raw.tcp_flags),
        }
    }
}

/// A finished journey.
#[derive(Clone, Debug)]
pub struct Draft {
    pub flow: Option<u64>,
    pub direction: Option<Direction>,
    /// First sight, nanoseconds of CLOCK_MONOTONIC.
    pub time: u64,
    pub packet: Packet,
    pub looks: Looks,
    pub stages: Vec<TimedStage>,
    pub conntrack: Option<Conntrack>,
    pub outcome: Outcome,
    pub notes: Vec<String>,
    /// Namespace of the last sight, and the packet's tuple there: where a receiving socket is looked for.
    pub netns: u32,
    pub last_tuple: Tuple,
    /// Local port of the socket that took it, where an event said so: TPROXY delivers to another port than the
    /// packet names.
    pub socket_port: Option<u16>,
    /// Inode of the first socket that took it and has one.
    pub socket_inode: Option<NonZeroU64>,
}

/// `IP_CT_IS_REPLY`, `IP_CT_UNTRACKED` (include/uapi/linux/netfilter/nf_conntrack_common.h).
const IS_REPLY: u8 = 3;
const UNTRACKED: u8 = 7;
/// `IPS_SRC_NAT_DONE`, `IPS_DST_NAT_DONE`: NAT of that end is set up, be it to nothing (same file).
const SOURCE_DONE: u32 = 1 << 7;
const DESTINATION_DONE: u32 = 1 << 8;

impl Open {
    /// `None` for a journey of which no packet was ever seen (its first records were lost).
    pub(super) fn into_draft(mut self, flows: &mut Flows) -> Option<Draft> {
        let first = self.first.take()?;
        let tuple = first.tuple?;
        let conntrack = self.conntrack_of_packet();
        let tracked = conntrack.as_ref().is_some_and(|c| c.original.is_some());
        let flow = if tracked { flows.number(&self.connections) } else { None };
        let direction = self.conntrack_info.filter(|_| tracked).and_then(direction);
        if first.raw.flags & SIGHT_UNREADABLE != 0 {
            self.notes.push("a part of the packet could not be read".to_owned());
        }
        self.note_copies();
        let last_stage = self.last_stage();
        let left_by = self.last_device_out();
        if let Some(outcome) =
            self.outcome.as_mut().filter(|outcome| outcome.result == OutcomeKind::Forwarded)
            && outcome.device == left_by
        {
            outcome.left_as = self.left_as;
        }
        Some(Draft {
            flow,
            direction,
            time: first.raw.head.time,
            packet: packet(&first, tuple),
            looks: Looks::of(&first),
            stages: self.stages,
            conntrack,
            outcome: self
                .outcome
                .unwrap_or(Outcome { stage: last_stage, ..Outcome::new(OutcomeKind::Incomplete) }),
            notes: self.notes,
            netns: self.netns,
            last_tuple: self.tuple.unwrap_or(tuple),
            socket_inode: self.socket_inode,
            socket_port: self.socket_port.or_else(|| self.socket.map(|socket| socket.tuple.source_port)),
        })
    }

    fn conntrack_of_packet(&self) -> Option<Conntrack> {
        let bare =
            |state| Conntrack { state, original: None, reply: None, mark: None, zone: None, status: None };
        let Some(info) = self.conntrack_info else {
            return self.after_conntrack.then(|| bare(CtState::Invalid));
        };
        if info == UNTRACKED || self.conntrack == 0 {
            return Some(bare(CtState::Untracked));
        }
        let state = state(info);
        let tuple = |choose: fn(&decode::TuplesEvent) -> &raw::Tuple| {
            self.connections.last().and_then(|tuples| decode::tuple(choose(tuples)))
        };
        Some(Conntrack {
            state,
            original: tuple(|t| &t.original),
            reply: tuple(|t| &t.reply),
            mark: Some(self.conntrack_mark),
            zone: Some(self.conntrack_zone),
            status: Some(self.conntrack_status),
        })
    }
}

fn direction(info: u8) -> Option<Direction> {
    match info {
        UNTRACKED.. => None,
        IS_REPLY.. => Some(Direction::Reply),
        _ => Some(Direction::Original),
    }
}

fn state(info: u8) -> CtState {
    match info {
        0 | IS_REPLY => CtState::Established,
        1 | 4 => CtState::Related,
        UNTRACKED => CtState::Untracked,
        _ => CtState::New,
    }
}

impl DraftTable {
    /// What `ct state` is to a rule of the table (`nft_ct_get_eval`, net/netfilter/nft_ct.c, 6.12); `None` where that is
    /// not known.
    #[must_use]
    pub fn state(&self) -> Option<CtState> {
        // Before PREROUTING and OUTPUT have been passed, connection tracking may be still to come.
        let passed = matches!(self.hook, Hook::Input | Hook::Forward | Hook::Postrouting);
        self.around.conntrack_info.map(state).or(passed.then_some(CtState::Invalid))
    }

    /// What `ct direction` is to a rule of the table.
    #[must_use]
    pub fn direction(&self) -> Option<Direction> {
        self.around.conntrack_info.and_then(direction)
    }

    /// Whether the connection's NAT of the end that this hook translates had been set up before: no chain is asked then, not
    /// for a packet of a new connection either (`nf_nat_inet_fn`, net/netfilter/nf_nat_core.c, 6.12).
    #[must_use]
    pub fn nat_is_set_up(&self) -> bool {
        let done = match self.hook {
            Hook::Prerouting | Hook::Output => DESTINATION_DONE,
            Hook::Input | Hook::Postrouting => SOURCE_DONE,
            Hook::Forward | Hook::Ingress | Hook::Egress => 0,
        };
        self.confirmed || self.around.conntrack_status.is_some_and(|status| status & done != 0)
    }

    /// What `ct status` is to a rule of the table.
    #[must_use]
    pub fn status(&self) -> Option<u32> {
        // Another table of the same gap may be one of NAT.
        self.around.conntrack_status.filter(|_| self.gap.judges.len() == 1)
    }
}

fn packet(sight: &SightEvent, tuple: Tuple) -> Packet {
    let raw = &sight.raw;
    let looks = Looks::of(sight);
    let is_icmp = matches!(sight.protocol, Protocol::ICMP | Protocol::ICMP6);
    Packet {
        family: sight.family,
        protocol: sight.protocol,
        tuple,
        length: raw.length,
        tcp_flags: looks.tcp_flags.map(tcp_flags),
        ip_id: looks.ip_id,
        icmp_type: is_icmp.then_some(raw.icmp_type),
        icmp_code: is_icmp.then_some(raw.icmp_code),
        ttl: raw.ttl,
        fragment: fragment(sight),
        segments: (raw.gso_segments > 1).then_some(raw.gso_segments),
        quoted: sight.quoted(),
    }
}

fn tcp_flags(byte: u8) -> String {
    const FLAGS: [(u8, char); 8] = [
        (0x02, 'S'),
        (0x10, 'A'),
        (0x01, 'F'),
        (0x04, 'R'),
        (0x08, 'P'),
        (0x20, 'U'),
        (0x40, 'E'),
        (0x80, 'C'),
    ];
    FLAGS.iter().filter(|(bit, _)| byte & bit != 0).map(|(_, letter)| letter).collect()
}

/// IPv4: offset in units of 8 bytes in the low 13 bits; IPv6: offset in the high 13 bits.
fn fragment(sight: &SightEvent) -> Option<String> {
    let field = sight.raw.fragment;
    let (offset, more) = match sight.family {
        Family::Ipv4 => ((field & 0x1fff) * 8, field & 0x2000 != 0),
        Family::Ipv6 => (field & 0xfff8, field & 1 != 0),
    };
    (sight.fragment() != Fragment::Whole)
        .then(|| format!("offset {offset}{}", if more { ", more follow" } else { ", last" }))
}
