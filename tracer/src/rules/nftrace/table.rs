//! The temporary table: it belongs to a netlink socket (`NFT_TABLE_F_OWNER`), so it goes when that socket does, and
//! nobody else can change it. Its rules switch tracing on for packets of the filter and do nothing else.

use std::io;

use tracer_common::{filter::Filter, tuple::IPV6};

use super::{
    condition::{Condition, alternatives},
    netlink::{Attributes, Fields, Message, Socket},
};

/// `NFNL_SUBSYS_NFTABLES`; `NFNL_MSG_BATCH_*`; `NFT_MSG_NEW*` (include/uapi/linux/netfilter/nf_tables.h).
const NFTABLES: u8 = 10;
const BATCH_BEGIN: u8 = 16;
const BATCH_END: u8 = 17;
const NEW_TABLE: u8 = 0;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_F_OWNER: u32 = 2;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `enum nft_registers`, `enum nft_payload_bases`, `enum nft_meta_keys`, `enum nft_cmp_ops`.
const REGISTER: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_NFTRACE: u32 = 12;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CMP_EQ: u32 = 0;
const CMP_LTE: u32 = 3;
const CMP_GTE: u32 = 5;
/// `NF_INET_PRE_ROUTING`, `NF_INET_LOCAL_OUT` (include/uapi/linux/netfilter.h).
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
/// Before the raw tables, and right after destination NAT for packets that match only when it is done.
const PRIORITIES: [i32; 2] = [-400, -99];

/// Creates the table; it lives as long as the socket.
pub(super) fn create(socket: &mut Socket, name: &str, filter: &Filter) -> io::Result<()> {
    let inet = libc::NFPROTO_INET as u8;
    let request = |kind| Message::new(NFTABLES, kind, libc::NLM_F_CREATE | libc::NLM_F_ACK, inet, 0);
    let batch = |kind| Message::new(0, kind, 0, 0, NFTABLES.into());
    let mut messages = vec![
        batch(BATCH_BEGIN),
        request(NEW_TABLE).text(TABLE_NAME, name).number(TABLE_FLAGS, TABLE_F_OWNER),
    ];
    for (hook, hook_name) in [(PREROUTING, "prerouting"), (OUTPUT, "output")] {
        for priority in PRIORITIES {
            let chain = format!("{hook_name}_{}", priority.unsigned_abs());
            let place = Attributes::default()
                .number(HOOK_NUMBER, hook)
                .number(HOOK_PRIORITY, priority.cast_unsigned());
            let base = request(NEW_CHAIN).text(CHAIN_TABLE, name).text(CHAIN_NAME, &chain);
            messages.push(base.nested(CHAIN_HOOK, &place).text(CHAIN_TYPE, "filter"));
            for conditions in alternatives(filter) {
                let rule = Message::new(
                    NFTABLES,
                    NEW_RULE,
                    libc::NLM_F_CREATE | libc::NLM_F_APPEND | libc::NLM_F_ACK,
                    inet,
                    0,
                );
                let rule = rule.text(RULE_TABLE, name).text(RULE_CHAIN, &chain);
                messages.push(rule.nested(RULE_EXPRESSIONS, &rule_expressions(&conditions)));
            }
        }
    }
    messages.push(batch(BATCH_END));
    socket.transact(messages)
}

/// `CONDITIONS meta nftrace set 1`
fn rule_expressions(conditions: &[Condition]) -> Attributes {
    let mut list = Attributes::default();
    for expression in conditions.iter().flat_map(condition) {
        list = list.nested(LIST_ELEMENT, &expression);
    }
    let one = Attributes::default().nested(2, &Attributes::default().bytes(1, &1u8.to_ne_bytes()));
    let immediate = expression("immediate", &one.number(1, REGISTER));
    let set = expression("meta", &Attributes::default().number(2, META_NFTRACE).number(3, REGISTER));
    list.nested(LIST_ELEMENT, &immediate).nested(LIST_ELEMENT, &set)
}

fn condition(condition: &Condition) -> Vec<Attributes> {
    match condition {
        Condition::Family(family) => {
            let number = if *family == IPV6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
            vec![load_meta(META_NFPROTO), compare(CMP_EQ, &[number as u8])]
        }
        Condition::Protocol(protocol) => vec![load_meta(META_L4PROTO), compare(CMP_EQ, &[*protocol])],
        Condition::Address { offset, address, mask } => {
            let load = load_payload(NETWORK_HEADER, *offset, address.len() as u32);
            vec![load, apply_mask(mask), compare(CMP_EQ, address)]
        }
        Condition::Port { offset, range: [low, high] } => {
            let load = load_payload(TRANSPORT_HEADER, *offset, 2);
            vec![load, compare(CMP_GTE, &low.to_be_bytes()), compare(CMP_LTE, &high.to_be_bytes())]
        }
    }
}

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default().text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, data)
}

/// `NFTA_META_DREG`, `NFTA_META_KEY`
fn load_meta(key: u32) -> Attributes {
    expression("meta", &Attributes::default().number(1, REGISTER).number(2, key))
}

/// `NFTA_PAYLOAD_DREG`, `_BASE`, `_OFFSET`, `_LEN`
fn load_payload(base: u32, offset: u32, length: u32) -> Attributes {
    let data = Attributes::default().number(1, REGISTER).number(2, base).number(3, offset).number(4, length);
    expression("payload", &data)
}

/// `NFTA_BITWISE_SREG`, `_DREG`, `_LEN`, `_MASK`, `_XOR`
fn apply_mask(mask: &[u8]) -> Attributes {
    let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
    let data = Attributes::default().number(1, REGISTER).number(2, REGISTER).number(3, mask.len() as u32);
    let zero = vec![0; mask.len()];
    expression("bitwise", &data.nested(4, &value(mask)).nested(5, &value(&zero)))
}

/// `NFTA_CMP_SREG`, `_OP`, `_DATA`
fn compare(operation: u32, value: &[u8]) -> Attributes {
    let value = Attributes::default().bytes(1, value);
    expression("cmp", &Attributes::default().number(1, REGISTER).number(2, operation).nested(3, &value))
}
