//! Matches and statements as nf_tables expressions: the bytes that nft itself would send, so that `nft list` shows
//! them in its own words. Names and numbers: `linux/netfilter/nf_tables.h`. Everything is in network byte order but
//! what a packet register holds in host order (marks, states, MTU).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_bindings::utils::{align, finalize_nested_header, push_header, push_nested_header};

use super::set;
use crate::nft::{Match, Rule, Statement};
use crate::types::Family;

/// The one packet register we use: 16 bytes, the verdict register's first neighbour.
const REGISTER: u32 = libc::NFT_REG_1 as u32;

const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_ICMPV6: u8 = 58;

/// `ct state` bits, `NF_CT_STATE_BIT` in `linux/netfilter/nf_conntrack_common.h`.
const STATE_INVALID: u32 = 1;
/// `IPS_DST_NAT` of linux/netfilter/nf_conntrack_common.h.
const STATUS_DNAT: u32 = 1 << 5;
const STATE_ESTABLISHED: u32 = 1 << 1;
const STATE_RELATED: u32 = 1 << 2;
const STATE_NEW: u32 = 1 << 3;

const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;

/// `RTN_LOCAL`, rtnetlink(7).
const ROUTE_TYPE_LOCAL: u32 = 2;
/// `NFT_FIB_RESULT_ADDRTYPE`; netlink-bindings' own enumeration of these is off by one.
const FIB_ADDRESS_TYPE: u32 = 3;
/// `NFTA_FIB_F_DADDR`.
const FIB_DESTINATION: u32 = 1 << 1;
/// `NFT_LIMIT_PKTS`.
const LIMIT_PACKETS: u32 = 0;
/// `NFT_LIMIT_F_INV`.
const LIMIT_OVER: u32 = 1;
/// `NFT_RT_TCPMSS`.
const RT_TCPMSS: u32 = 3;
/// `NFT_EXTHDR_OP_TCPOPT`.
const EXTHDR_TCP_OPTION: u32 = 1;
/// TCP option kind "maximum segment size", RFC 9293 §3.1; its value starts at byte 2.
const TCP_OPTION_MSS: u8 = 2;

// Attribute numbers, by their NFTA_ names.
pub(super) const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// Appends an attribute.
pub(super) fn bytes(buf: &mut Vec<u8>, kind: u16, value: &[u8]) {
    push_header(buf, kind, value.len() as u16);
    buf.extend_from_slice(value);
    align(buf);
}

/// Appends a 32-bit attribute.
pub(super) fn number(buf: &mut Vec<u8>, kind: u16, value: u32) {
    bytes(buf, kind, &value.to_be_bytes());
}

/// Appends a NUL-terminated string attribute.
pub(super) fn string(buf: &mut Vec<u8>, kind: u16, value: &str) {
    push_header(buf, kind, value.len() as u16 + 1);
    buf.extend_from_slice(value.as_bytes());
    buf.push(0);
    align(buf);
}

/// Appends an attribute that holds others.
pub(super) fn nest(buf: &mut Vec<u8>, kind: u16, inside: impl FnOnce(&mut Vec<u8>)) {
    let header = push_nested_header(buf, kind);
    inside(buf);
    finalize_nested_header(buf, header);
}

/// Appends a rule's expressions, in order. `first_set`: number of the first of its [`set`]s.
pub(super) fn expressions(buf: &mut Vec<u8>, rule: &Rule, first_set: u32) {
    let mut sets = first_set..;
    for condition in &rule.matches {
        match condition.prefixes() {
            Some(prefixes) => lookup(buf, prefixes, sets.next().expect("there is no last one")),
            None => condition_expressions(buf, condition),
        }
    }
    for statement in &rule.statements {
        statement_expressions(buf, statement);
    }
}

fn condition_expressions(buf: &mut Vec<u8>, condition: &Match) {
    match condition {
        Match::Iif { name, not } => {
            meta(buf, libc::NFT_META_IIFNAME);
            compare(buf, equality(*not), &interface_name(name));
        }
        Match::Oif { name, not } => {
            meta(buf, libc::NFT_META_OIFNAME);
            compare(buf, equality(*not), &interface_name(name));
        }
        Match::Family(family) => {
            meta(buf, libc::NFT_META_NFPROTO);
            compare(buf, libc::NFT_CMP_EQ, &[protocol_family(*family)]);
        }
        Match::L4Proto(protocol) => l4_protocol(buf, *protocol),
        Match::Source { prefix, not } => address(buf, prefix, *not, Side::Source),
        Match::Destination { prefix, not } => address(buf, prefix, *not, Side::Destination),
        Match::DestinationIn(_) => unreachable!("needs its set's number"),
        Match::SourcePort(first, last) => ports(buf, Side::Source, *first, *last),
        Match::DestinationPort(first, last) => ports(buf, Side::Destination, *first, *last),
        Match::UdpLength(length) => {
            payload(buf, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 4, 2);
            compare(buf, libc::NFT_CMP_EQ, &length.to_be_bytes());
        }
        Match::UdpPayload(value) => {
            payload(buf, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 8, 4);
            compare(buf, libc::NFT_CMP_EQ, &value.to_be_bytes());
        }
        Match::IcmpType(kind) => {
            condition_expressions(buf, &Match::Family(Family::V4));
            l4_protocol(buf, IPPROTO_ICMP);
            payload(buf, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
            compare(buf, libc::NFT_CMP_EQ, &[*kind]);
        }
        Match::Icmp6Type(kind) => {
            condition_expressions(buf, &Match::Family(Family::V6));
            l4_protocol(buf, IPPROTO_ICMPV6);
            payload(buf, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
            compare(buf, libc::NFT_CMP_EQ, &[*kind]);
        }
        Match::Mark { value, not } => {
            meta(buf, libc::NFT_META_MARK);
            compare(buf, equality(*not), &value.to_ne_bytes());
        }
        Match::CtMark { value, not } => {
            conntrack(buf, libc::NFT_CT_MARK);
            compare(buf, equality(*not), &value.to_ne_bytes());
        }
        Match::CtEstablished => connection_state(buf, STATE_ESTABLISHED | STATE_RELATED),
        Match::CtNotRelated => connection_state(buf, STATE_ESTABLISHED | STATE_NEW),
        Match::CtNew => connection_state(buf, STATE_NEW),
        Match::CtInvalid => connection_state(buf, STATE_INVALID),
        Match::CtDnat => {
            conntrack(buf, libc::NFT_CT_STATUS);
            mask(buf, &STATUS_DNAT.to_ne_bytes());
            compare(buf, libc::NFT_CMP_NEQ, &0u32.to_ne_bytes());
        }
        Match::CtOriginal => {
            conntrack(buf, libc::NFT_CT_DIRECTION);
            compare(buf, libc::NFT_CMP_EQ, &[0]);
        }
        Match::CtReply => {
            conntrack(buf, libc::NFT_CT_DIRECTION);
            compare(buf, libc::NFT_CMP_EQ, &[1]);
        }
        Match::DestinationLocal { not } => {
            expression(buf, "fib", |buf| {
                number(buf, 1, REGISTER);
                number(buf, 2, FIB_ADDRESS_TYPE);
                number(buf, 3, FIB_DESTINATION);
            });
            compare(buf, equality(*not), &ROUTE_TYPE_LOCAL.to_ne_bytes());
        }
        Match::TcpSyn => tcp_flags(buf, TCP_SYN | TCP_RST, TCP_SYN),
        Match::TcpNotSyn => tcp_flags(buf, TCP_SYN, 0),
    }
}

fn statement_expressions(buf: &mut Vec<u8>, statement: &Statement) {
    match statement {
        Statement::Counter => expression(buf, "counter", |buf| {
            bytes(buf, 1, &0u64.to_be_bytes());
            bytes(buf, 2, &0u64.to_be_bytes());
        }),
        Statement::Over { per_second, burst } => expression(buf, "limit", |buf| {
            bytes(buf, 1, &u64::from(*per_second).to_be_bytes());
            // the unit: a second
            bytes(buf, 2, &1u64.to_be_bytes());
            number(buf, 3, *burst);
            number(buf, 4, LIMIT_PACKETS);
            number(buf, 5, LIMIT_OVER);
        }),
        Statement::Accept => verdict(buf, libc::NF_ACCEPT),
        Statement::Drop => verdict(buf, libc::NF_DROP),
        Statement::Reject => expression(buf, "reject", |buf| {
            number(buf, 1, libc::NFT_REJECT_ICMPX_UNREACH as u32);
            bytes(buf, 2, &[libc::NFT_REJECT_ICMPX_ADMIN_PROHIBITED as u8]);
        }),
        Statement::Reset => expression(buf, "reject", |buf| {
            number(buf, 1, libc::NFT_REJECT_TCP_RST as u32);
            bytes(buf, 2, &[0]);
        }),
        Statement::Jump(chain) => verdict_expression(buf, |buf| {
            number(buf, VERDICT_CODE, libc::NFT_JUMP as u32);
            string(buf, VERDICT_CHAIN, chain);
        }),
        Statement::Masquerade => expression(buf, "masq", |_| {}),
        Statement::Dnat(address) => {
            load(buf, &octets(*address));
            expression(buf, "nat", |buf| {
                number(buf, 1, libc::NFT_NAT_DNAT as u32);
                number(buf, 2, protocol_family(Family::of(address)).into());
                number(buf, 3, REGISTER);
            });
        }
        Statement::SetMark(value) => {
            load(buf, &value.to_ne_bytes());
            expression(buf, "meta", |buf| {
                number(buf, 2, libc::NFT_META_MARK as u32);
                number(buf, 3, REGISTER);
            });
        }
        Statement::SetCtMark(value) => {
            load(buf, &value.to_ne_bytes());
            expression(buf, "ct", |buf| {
                number(buf, 2, libc::NFT_CT_MARK as u32);
                number(buf, 4, REGISTER);
            });
        }
        Statement::ClampMss => {
            expression(buf, "rt", |buf| {
                number(buf, 1, REGISTER);
                number(buf, 2, RT_TCPMSS);
            });
            expression(buf, "byteorder", |buf| {
                number(buf, 1, REGISTER);
                number(buf, 2, REGISTER);
                number(buf, 3, libc::NFT_BYTEORDER_HTON as u32);
                number(buf, 4, 2);
                number(buf, 5, 2);
            });
            // The kernel only ever lowers the value and skips packets without the option.
            expression(buf, "exthdr", |buf| {
                bytes(buf, 2, &[TCP_OPTION_MSS]);
                number(buf, 3, 2);
                number(buf, 4, 2);
                number(buf, 6, EXTHDR_TCP_OPTION);
                number(buf, 7, REGISTER);
            });
        }
    }
}

fn expression(buf: &mut Vec<u8>, name: &str, data: impl FnOnce(&mut Vec<u8>)) {
    nest(buf, LIST_ELEM, |buf| {
        string(buf, EXPR_NAME, name);
        nest(buf, EXPR_DATA, data);
    });
}

fn meta(buf: &mut Vec<u8>, key: i32) {
    expression(buf, "meta", |buf| {
        number(buf, 1, REGISTER);
        number(buf, 2, key as u32);
    });
}

fn conntrack(buf: &mut Vec<u8>, key: i32) {
    expression(buf, "ct", |buf| {
        number(buf, 1, REGISTER);
        number(buf, 2, key as u32);
    });
}

fn payload(buf: &mut Vec<u8>, base: i32, offset: u32, length: u32) {
    expression(buf, "payload", |buf| {
        number(buf, 1, REGISTER);
        number(buf, 2, base as u32);
        number(buf, 3, offset);
        number(buf, 4, length);
    });
}

fn compare(buf: &mut Vec<u8>, operation: i32, value: &[u8]) {
    expression(buf, "cmp", |buf| {
        number(buf, 1, REGISTER);
        number(buf, 2, operation as u32);
        nest(buf, 3, |buf| bytes(buf, DATA_VALUE, value));
    });
}

/// Keeps the bits of `mask`.
fn mask(buf: &mut Vec<u8>, mask: &[u8]) {
    expression(buf, "bitwise", |buf| {
        number(buf, 1, REGISTER);
        number(buf, 2, REGISTER);
        number(buf, 3, mask.len() as u32);
        nest(buf, 4, |buf| bytes(buf, DATA_VALUE, mask));
        nest(buf, 5, |buf| bytes(buf, DATA_VALUE, &vec![0; mask.len()]));
    });
}

fn load(buf: &mut Vec<u8>, value: &[u8]) {
    expression(buf, "immediate", |buf| {
        number(buf, 1, REGISTER);
        nest(buf, 2, |buf| bytes(buf, DATA_VALUE, value));
    });
}

fn verdict(buf: &mut Vec<u8>, code: i32) {
    verdict_expression(buf, |buf| number(buf, VERDICT_CODE, code as u32));
}

fn verdict_expression(buf: &mut Vec<u8>, verdict: impl FnOnce(&mut Vec<u8>)) {
    expression(buf, "immediate", |buf| {
        number(buf, 1, libc::NFT_REG_VERDICT as u32);
        nest(buf, 2, |buf| nest(buf, DATA_VERDICT, verdict));
    });
}

fn l4_protocol(buf: &mut Vec<u8>, protocol: u8) {
    meta(buf, libc::NFT_META_L4PROTO);
    compare(buf, libc::NFT_CMP_EQ, &[protocol]);
}

fn connection_state(buf: &mut Vec<u8>, states: u32) {
    conntrack(buf, libc::NFT_CT_STATE);
    mask(buf, &states.to_ne_bytes());
    compare(buf, libc::NFT_CMP_NEQ, &0u32.to_ne_bytes());
}

/// Flags are byte 13 of the TCP header, RFC 9293 §3.1.
fn tcp_flags(buf: &mut Vec<u8>, of: u8, value: u8) {
    l4_protocol(buf, IPPROTO_TCP);
    payload(buf, libc::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1);
    mask(buf, &[of]);
    compare(buf, libc::NFT_CMP_EQ, &[value]);
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Address fields: RFC 791 §3.1 bytes 12 and 16, RFC 8200 §3 bytes 8 and 24.
fn address(buf: &mut Vec<u8>, prefix: &IpNetwork, not: bool, side: Side) {
    let network = octets(prefix.network());
    address_field(buf, Family::of(&prefix.ip()), side);
    if usize::from(prefix.prefix()) < network.len() * 8 {
        mask(buf, &octets(prefix.mask()));
    }
    compare(buf, equality(not), &network);
}

/// One of the prefixes in that set.
fn lookup(buf: &mut Vec<u8>, prefixes: &[IpNetwork], number_of_set: u32) {
    let Some(first) = prefixes.first() else { return };
    address_field(buf, Family::of(&first.ip()), Side::Destination);
    expression(buf, "lookup", |buf| {
        string(buf, 1, set::NAME);
        number(buf, 2, REGISTER);
        number(buf, 4, number_of_set);
    });
}

/// Loads it, of packets of that family.
fn address_field(buf: &mut Vec<u8>, family: Family, side: Side) {
    let (offset, length) = match (family, side) {
        (Family::V4, Side::Source) => (12, 4),
        (Family::V4, Side::Destination) => (16, 4),
        (Family::V6, Side::Source) => (8, 16),
        (Family::V6, Side::Destination) => (24, 16),
    };
    condition_expressions(buf, &Match::Family(family));
    payload(buf, libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length);
}

/// Ports are the first two fields of TCP's, UDP's, SCTP's and DCCP's headers.
fn ports(buf: &mut Vec<u8>, side: Side, first: u16, last: u16) {
    let offset = match side {
        Side::Source => 0,
        Side::Destination => 2,
    };
    payload(buf, libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2);
    if first == last {
        compare(buf, libc::NFT_CMP_EQ, &first.to_be_bytes());
    } else {
        compare(buf, libc::NFT_CMP_GTE, &first.to_be_bytes());
        compare(buf, libc::NFT_CMP_LTE, &last.to_be_bytes());
    }
}

fn equality(not: bool) -> i32 {
    if not { libc::NFT_CMP_NEQ } else { libc::NFT_CMP_EQ }
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
fn protocol_family(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Compared over the whole `IFNAMSIZ` bytes, so that a longer name with the same beginning doesn't match.
fn interface_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut field = [0; libc::IFNAMSIZ];
    field[..name.len()].copy_from_slice(name.as_bytes());
    field
}
