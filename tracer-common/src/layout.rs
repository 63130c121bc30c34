//! Where the fields that the kernel side reads lie in the running kernel's structures.
//!
//! One list names them; user space resolves each from BTF at start and hands the result to the programs as a
//! constant. A field that the running kernel does not have is [`Offset::ABSENT`], never 0.

/// Byte offset of a structure member, or absent.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset(u16);

impl Offset {
    pub const ABSENT: Self = Self(u16::MAX);

    /// An offset, unless it is too large to be one (65,535 and up).
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes < u16::MAX as u32 { Some(Self(bytes as u16)) } else { None }
    }

    /// Bytes from the start of the structure.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> Option<u64> {
        if self.0 == u16::MAX { None } else { Some(self.0 as u64) }
    }
}

/// One bit of a structure, or absent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit {
    byte: Offset,
    mask: u8,
    reserved: u8,
}

impl Bit {
    pub const ABSENT: Self = Self { byte: Offset::ABSENT, mask: 0, reserved: 0 };

    /// The bit that BTF gives this number, counted from the start of the structure.
    #[must_use]
    pub const fn new(bit: u32) -> Self {
        let mask = if cfg!(target_endian = "little") { 1 << (bit % 8) } else { 0x80 >> (bit % 8) };
        match Offset::new(bit / 8) {
            Some(byte) => Self { byte, mask, reserved: 0 },
            None => Self::ABSENT,
        }
    }

    /// Byte offset, and the bit in that byte.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> Option<(u64, u8)> {
        match self.byte.get() {
            Some(byte) => Some((byte, self.mask)),
            None => None,
        }
    }
}

macro_rules! kernel_layout {
    ($($field:ident: $kernel_type:literal . $path:literal,)+) => {
        /// Offsets of every member that the kernel side reads.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct KernelLayout { $(pub $field: Offset,)+ }

        impl KernelLayout {
            /// A layout in which nothing is known.
            pub const NOTHING: Self = Self { $($field: Offset::ABSENT,)+ };

            /// Asks `offset_of` for each member by structure and dotted path.
            pub fn resolve(mut offset_of: impl FnMut(&'static str, &'static str) -> Option<u32>) -> Self {
                Self { $($field: offset_of($kernel_type, $path).and_then(Offset::new).unwrap_or(Offset::ABSENT),)+ }
            }

            /// The members that are absent, as `structure.path`.
            pub fn absent(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
                [$((self.$field, $kernel_type, $path),)+]
                    .into_iter()
                    .filter(|(offset, _, _)| offset.get().is_none())
                    .map(|(_, kernel_type, path)| (kernel_type, path))
            }
        }
    };
}

kernel_layout! {
    skb_head: "sk_buff"."head",
    skb_data: "sk_buff"."data",
    skb_end: "sk_buff"."end",
    skb_len: "sk_buff"."len",
    skb_network_header: "sk_buff"."network_header",
    skb_protocol: "sk_buff"."protocol",
    skb_mac_len: "sk_buff"."mac_len",
    skb_dev: "sk_buff"."dev",
    skb_iif: "sk_buff"."skb_iif",
    skb_mark: "sk_buff"."mark",
    skb_nfct: "sk_buff"."_nfct",
    skb_dst: "sk_buff"."_skb_refdst",
    skb_sk: "sk_buff"."sk",
    shinfo_gso_segs: "skb_shared_info"."gso_segs",
    dev_name: "net_device"."name",
    dev_ifindex: "net_device"."ifindex",
    dev_net: "net_device"."nd_net.net",
    dev_type: "net_device"."type",
    xdp_data: "xdp_buff"."data",
    xdp_data_end: "xdp_buff"."data_end",
    xdp_hard_start: "xdp_buff"."data_hard_start",
    xdp_rxq: "xdp_buff"."rxq",
    rxq_dev: "xdp_rxq_info"."dev",
    net_inum: "net"."ns.inum",
    state_hook: "nf_hook_state"."hook",
    state_pf: "nf_hook_state"."pf",
    state_in: "nf_hook_state"."in",
    state_out: "nf_hook_state"."out",
    state_net: "nf_hook_state"."net",
    ct_status: "nf_conn"."status",
    ct_tuplehash: "nf_conn"."tuplehash",
    ct_mark: "nf_conn"."mark",
    ct_zone: "nf_conn"."zone.id",
    tuplehash_tuple: "nf_conntrack_tuple_hash"."tuple",
    tuple_src: "nf_conntrack_tuple"."src.u3",
    tuple_src_port: "nf_conntrack_tuple"."src.u",
    tuple_l3num: "nf_conntrack_tuple"."src.l3num",
    tuple_dst: "nf_conntrack_tuple"."dst.u3",
    tuple_dst_port: "nf_conntrack_tuple"."dst.u",
    tuple_protonum: "nf_conntrack_tuple"."dst.protonum",
    dst_dev: "dst_entry"."dev",
    dst_error: "dst_entry"."error",
    dst_flags: "dst_entry"."flags",
    rtable_type: "rtable"."rt_type",
    rtable_gw_family: "rtable"."rt_gw_family",
    rtable_gw4: "rtable"."rt_gw4",
    rtable_gw6: "rtable"."rt_gw6",
    rt6_gateway: "rt6_info"."rt6i_gateway",
    rt6_flags: "rt6_info"."rt6i_flags",
    fl4_oif: "flowi4"."__fl_common.flowic_oif",
    fl4_iif: "flowi4"."__fl_common.flowic_iif",
    fl4_mark: "flowi4"."__fl_common.flowic_mark",
    fl4_saddr: "flowi4"."saddr",
    fl4_daddr: "flowi4"."daddr",
    fl6_saddr: "flowi6"."saddr",
    fl6_daddr: "flowi6"."daddr",
    fl6_mark: "flowi6"."__fl_common.flowic_mark",
    nhc_dev: "fib_nh_common"."nhc_dev",
    nhc_gw: "fib_nh_common"."nhc_gw",
    nhc_gw_family: "fib_nh_common"."nhc_gw_family",
    fib6_result_nh: "fib6_result"."nh",
    fib6_result_type: "fib6_result"."fib6_type",
    fib6_nh_common: "fib6_nh"."nh_common",
    tb6_id: "fib6_table"."tb6_id",
    sock_family: "sock"."__sk_common.skc_family",
    sock_state: "sock"."__sk_common.skc_state",
    sock_num: "sock"."__sk_common.skc_num",
    sock_dport: "sock"."__sk_common.skc_dport",
    sock_rcv_saddr: "sock"."__sk_common.skc_rcv_saddr",
    sock_daddr: "sock"."__sk_common.skc_daddr",
    sock_v6_rcv_saddr: "sock"."__sk_common.skc_v6_rcv_saddr",
    sock_v6_daddr: "sock"."__sk_common.skc_v6_daddr",
    sock_socket: "sock"."sk_socket",
    socket_inode: "socket_alloc"."vfs_inode.i_ino",
    task_nsproxy: "task_struct"."nsproxy",
    nsproxy_net: "nsproxy"."net_ns",
    task_nvcsw: "task_struct"."nvcsw",
    task_nivcsw: "task_struct"."nivcsw",
    bpf_array_pptrs: "bpf_array"."pptrs",
}

/// Size in bytes of `struct nf_conntrack_tuple_hash`'s distance between the two directions is resolved apart, as
/// a size and not a member.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// `sizeof(struct nf_conntrack_tuple_hash)`, 0 when unknown.
    pub tuplehash: u32,
}
