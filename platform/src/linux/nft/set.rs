//! Prefixes of one family as a set of a rule's own, in which the kernel looks an address up in one step, however many they
//! are. Anonymous: it goes with its rule. Numbers: `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::batch::Batch;
use super::encode::{DATA_VALUE, LIST_ELEM, bytes, nest, number, octets, string};
use crate::nft::{Match, Rule};

/// The kernel puts a number in; within a batch the ID names it.
pub(super) const NAME: &str = "__set%d";

/// `NFT_SET_ANONYMOUS | NFT_SET_CONSTANT | NFT_SET_INTERVAL`.
const FLAGS: u32 = 1 | 2 | 4;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// nft's own numbers of what a key is, `TYPE_IPADDR` and `TYPE_IP6ADDR` of its `datatype.h`: by them `nft list` shows it.
const TYPE_V4: u32 = 7;
const TYPE_V6: u32 = 8;

/// Adds the sets of a rule to the batch, before the rule itself; the number of the first one.
pub(super) fn push(batch: &mut Batch, family: i32, table: &str, rule: &Rule) -> u32 {
    let first = batch.sets;
    for prefixes in rule.matches.iter().filter_map(Match::prefixes) {
        let id = batch.sets;
        batch.push_of(family, libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, "set", |buf| encode(buf, table, id, prefixes));
        batch.push_of(family, libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, "prefixes of a set", |buf| {
            encode_elements(buf, table, id, prefixes);
        });
        batch.sets += 1;
    }
    first
}

/// The set's attributes; prefixes of one family, at least one.
fn encode(buf: &mut Vec<u8>, table: &str, id: u32, prefixes: &[IpNetwork]) {
    let v4 = prefixes.iter().all(IpNetwork::is_ipv4);
    string(buf, 1, table);
    string(buf, 2, NAME);
    number(buf, 3, FLAGS);
    number(buf, 4, if v4 { TYPE_V4 } else { TYPE_V6 });
    number(buf, 5, if v4 { 4 } else { 16 });
    number(buf, 10, id);
}

/// Its elements: where each interval begins and, unless it reaches the last address, the first one behind it.
fn encode_elements(buf: &mut Vec<u8>, table: &str, id: u32, prefixes: &[IpNetwork]) {
    let element = |buf: &mut Vec<u8>, address: IpAddr, flags: u32| {
        nest(buf, LIST_ELEM, |buf| {
            nest(buf, 1, |buf| bytes(buf, DATA_VALUE, &octets(address)));
            if flags != 0 {
                number(buf, 3, flags);
            }
        });
    };
    string(buf, 1, table);
    string(buf, 2, NAME);
    nest(buf, 3, |buf| {
        for (first, last) in intervals(prefixes) {
            element(buf, first, 0);
            if let Some(end) = next(last) {
                element(buf, end, INTERVAL_END);
            }
        }
    });
    number(buf, 4, id);
}

/// First and last addresses, ascending, those that touch or overlap made one: the kernel wants them apart.
fn intervals(prefixes: &[IpNetwork]) -> Vec<(IpAddr, IpAddr)> {
    let mut all: Vec<(IpAddr, IpAddr)> = prefixes.iter().map(|p| (p.network(), p.broadcast())).collect();
    all.sort_unstable();
    let mut apart: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in all {
        match apart.last_mut() {
            Some((_, end)) if next(*end).is_none_or(|next| first <= next) => *end = last.max(*end),
            _ => apart.push((first, last)),
        }
    }
    apart
}

/// `None` behind the last one of the family.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|n| IpAddr::V6(n.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prefixes: &[&str]) -> Vec<String> {
        let prefixes: Vec<IpNetwork> = prefixes.iter().map(|p| p.parse().unwrap()).collect();
        intervals(&prefixes).iter().map(|(first, last)| format!("{first}-{last}")).collect()
    }

    #[test]
    fn intervals_are_apart() {
        assert_eq!(of(&["192.168.0.0/16", "10.0.0.0/8"]), ["10.0.0.0-10.255.255.255", "192.168.0.0-192.168.255.255"]);
        assert_eq!(of(&["224.0.0.0/4", "240.0.0.0/4"]), ["224.0.0.0-255.255.255.255"]);
        assert_eq!(of(&["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8"]), ["10.0.0.0-11.255.255.255"]);
        assert_eq!(of(&["fe80::/10", "::1/128"]), ["::1-::1", "fe80::-febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]);
        assert_eq!(of(&["0.0.0.0/0", "255.255.255.255/32"]), ["0.0.0.0-255.255.255.255"]);
    }

    #[test]
    fn there_is_nothing_behind_the_last_address() {
        assert_eq!(next("255.255.255.255".parse().unwrap()), None);
        assert_eq!(next("9.255.255.255".parse().unwrap()), Some("10.0.0.0".parse().unwrap()));
    }
}
