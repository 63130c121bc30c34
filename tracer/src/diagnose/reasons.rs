//! `enum skb_drop_reason` in plain words (include/net/dropreason-core.h).

/// What a drop reason means and what to look at; `None` for one that has no entry here.
pub(super) fn explain(reason: &str) -> Option<(&'static str, &'static str)> {
    TABLE.iter().find(|(name, _, _)| *name == reason).map(|(_, meaning, look)| (*meaning, *look))
}

#[rustfmt::skip]
const TABLE: &[(&str, &str, &str)] = &[
    ("NO_SOCKET", "it belongs to no open connection and no socket waits for it", "ss -tulpn  # is the service running, and did the connection end before?"),
    ("SOCKET_CLOSE", "the socket was just being closed", "# nothing, if it is the end of a connection"),
    ("SOCKET_FILTER", "a filter that the receiving program attached to its socket refused it", "# look at the receiving program (SO_ATTACH_FILTER, SO_ATTACH_BPF)"),
    ("SOCKET_RCVBUFF", "the receiver's buffer is full: the program reads too slowly", "ss -uamn  # Recv-Q; raise net.core.rmem_max or make the program faster"),
    ("SOCKET_BACKLOG", "the receiving socket's backlog is full: the program reads too slowly", "ss -tamn  # Recv-Q; raise net.core.rmem_max or make the program faster"),
    ("PROTO_MEM", "the memory for all sockets of this protocol is used up", "sysctl net.ipv4.tcp_mem net.ipv4.udp_mem"),
    ("PKT_TOO_SMALL", "it is shorter than its own headers say", "# look at the sender, or at a device on the way that cuts packets"),
    ("TCP_CSUM", "its TCP checksum is wrong", "ethtool -K DEVICE tx off  # on the sending side, if checksum offload is broken there"),
    ("UDP_CSUM", "its UDP checksum is wrong", "ethtool -K DEVICE tx off  # on the sending side, if checksum offload is broken there"),
    ("ICMP_CSUM", "its ICMP checksum is wrong", "# look at the sender"),
    ("IP_CSUM", "its IP header checksum is wrong", "# look at the sender, or at a device on the way"),
    ("IP_INHDR", "its IP header is malformed, or its TTL ran out", "# look at the sender; a TTL that runs out points to a routing loop"),
    ("IP_INADDRERRORS", "this host may not take or forward a packet for that address", "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding"),
    ("IP_INVALID_SOURCE", "its source address cannot be one (broadcast, multicast, zero)", "# look at the sender"),
    ("IP_LOCAL_SOURCE", "its source address is this host's own, and yet it came in from outside", "sysctl -w net.ipv4.conf.DEVICE.accept_local=1  # only if that is wanted; more often an address is used twice"),
    ("IP_LOCALNET", "its source or destination is a loopback address (127.0.0.0/8), and it came in from outside", "# look at the sender; net.ipv4.conf.DEVICE.route_localnet=1 admits such packets, which is seldom wanted"),
    ("IP_INVALID_DEST", "its destination address cannot be one (zero, or a broadcast that is not forwarded)", "# look at the sender, or at the NAT rule that wrote that address"),
    ("IP_NOPROTO", "nothing on this host handles its IP protocol", "# load the protocol's module, or look at why it is sent here"),
    ("OTHERHOST", "its Ethernet address is another machine's, or it has a VLAN tag that no device here takes", "ip neigh  # on the sender: does it know this host's Ethernet address? For a VLAN, here: ip -d link show type vlan"),
    ("UNICAST_IN_L2_MULTICAST", "it is for one host, but came in an Ethernet broadcast", "# look at the sender; a bridge or load balancer may rewrite Ethernet addresses"),
    ("XFRM_POLICY", "an IPsec policy wants it encrypted (or not), and it is not so", "ip xfrm policy; ip xfrm state"),
    ("UNHANDLED_PROTO", "nothing on this host handles its protocol (Ethernet type, or an option in its headers)", "# nothing, unless that protocol should be handled here"),
    ("TCP_FLAGS", "its TCP flags make no sense for the connection's state", "# look at the peer"),
    ("TCP_ZEROWINDOW", "the receiver has announced that it has no room", "ss -tamn  # Recv-Q: the program reads too slowly"),
    ("TCP_OLD_DATA", "it repeats data that had arrived already", "# nothing: a retransmission; many of them point to loss on the way back"),
    ("TCP_OVERWINDOW", "its data lies outside the receiver's window", "# look at middleboxes that rewrite sequence numbers"),
    ("TCP_OFOMERGE", "its data had arrived already, out of order", "# nothing: a retransmission"),
    ("TCP_RFC7323_PAWS", "its TCP timestamp is older than one seen before", "# hosts behind one NAT address with different clocks: look at net.ipv4.tcp_timestamps there"),
    ("TCP_OLD_SEQUENCE", "its sequence number lies before what was received", "# nothing: a retransmission"),
    ("TCP_INVALID_SEQUENCE", "its sequence number lies outside the window", "# look for an old connection with the same ports, or a middlebox that rewrites sequence numbers"),
    ("TCP_RESET", "it is a reset that the connection took: nothing was lost", "# look at why the peer reset the connection"),
    ("TCP_INVALID_SYN", "a SYN came in the middle of a connection", "# look for a client that reuses ports too fast"),
    ("TCP_CLOSE", "the connection is closed", "# nothing, if it is the end of a connection"),
    ("TCP_LISTEN_OVERFLOW", "the listener's queue of new connections is full: the program accepts too slowly", "ss -ltn  # Recv-Q against Send-Q; raise net.core.somaxconn and the program's backlog"),
    ("TCP_OLD_ACK", "its acknowledgement is older than one seen before", "# nothing: a late packet"),
    ("QUEUE_PURGE", "its queue was emptied: the socket or device was closed before anybody took it from there", "# nothing, if it is the end of a connection"),
    ("TCP_MINTTL", "its TTL is below what the socket asks for (IP_MINTTL)", "# look at the number of hops, or the program's setting"),
    ("BPF_CGROUP_EGRESS", "a BPF program of a cgroup refused it", "bpftool cgroup tree"),
    ("IPV6DISABLED", "IPv6 is switched off on that device", "sysctl net.ipv6.conf.DEVICE.disable_ipv6"),
    ("NEIGH_CREATEFAIL", "the neighbour table is full", "sysctl net.ipv4.neigh.default.gc_thresh3  # raise it; compare `ip neigh | wc -l`"),
    ("NEIGH_QUEUEFULL", "too many packets wait for the next hop's Ethernet address", "ip neigh  # does the next hop answer?"),
    ("TC_EGRESS", "a tc filter or program on the way out dropped it", "tc filter show dev DEVICE egress; bpftool net"),
    ("TC_INGRESS", "a tc filter or program on the way in dropped it", "tc filter show dev DEVICE ingress; bpftool net"),
    ("XDP", "an XDP program dropped it", "bpftool net"),
    ("SECURITY_HOOK", "a security module (SELinux, AppArmor, Smack) refused it", "dmesg | grep -i denied; ausearch -m avc"),
    ("QDISC_DROP", "the device's queue dropped it (full, or by its own rules)", "tc -s qdisc show dev DEVICE"),
    ("QDISC_OVERLIMIT", "the device's queue is over its limit", "tc -s qdisc show dev DEVICE"),
    ("QDISC_CONGESTED", "the device's queue dropped it to signal congestion", "tc -s qdisc show dev DEVICE"),
    ("CPU_BACKLOG", "this CPU's receive queue is full", "sysctl net.core.netdev_max_backlog; cat /proc/net/softnet_stat"),
    ("DEV_READY", "the device is down", "ip link set DEVICE up"),
    ("FULL_RING", "the device's ring is full: the reader (a virtual machine, a program) is too slow", "ip -s link show DEVICE"),
    ("TAP_FILTER", "the tap device's filter refused it", "# look at the program behind the device"),
    ("NOMEM", "the kernel had no memory for it", "free -m; dmesg | tail"),
    ("PKT_TOO_BIG", "it is larger than the next device takes and may not be cut", "ip link show  # compare the MTUs; is ICMP \"fragmentation needed\" filtered on the way?"),
    ("FRAG_REASM_TIMEOUT", "other fragments of it never came", "# look for loss or a filter on fragments on the way"),
    ("DUP_FRAG", "a fragment overlaps another", "# look at the sender"),
    ("BRIDGE_INGRESS_STP_STATE", "the bridge port is not forwarding (spanning tree)", "bridge link"),
    ("LOCAL_MAC", "its source Ethernet address is the bridge's own: a loop", "bridge fdb show"),
    ("NO_TX_TARGET", "the bridge or switch device has no port to send it to", "bridge fdb show; bridge link"),
    ("VXLAN_VNI_NOT_FOUND", "no VXLAN device has that network id", "ip -d link show type vxlan"),
    ("RECURSION_LIMIT", "devices pass it around in a circle", "ip -d link  # tunnels that lead into themselves"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained_once() {
        for (name, meaning, look) in TABLE {
            assert_eq!(TABLE.iter().filter(|(other, _, _)| other == name).count(), 1, "{name}");
            assert!(!meaning.is_empty() && !look.is_empty(), "{name}");
        }
        assert!(explain("NO_SUCH_REASON").is_none());
    }
}
