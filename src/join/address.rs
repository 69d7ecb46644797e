//! Tunnel addresses: both sides compute them from the two public keys, so nothing is negotiated.
//!
//! # Derivation, version 1
//!
//! `K` is a static public key as 32 raw bytes, `||` joins bytes, `H[a..b]` are bytes `a` to `b - 1` counted from 0.
//! Labels are ASCII, without a terminator.
//!
//! | part | value |
//! |---|---|
//! | network hash `N` | `SHA-256("peervpn network v1" \|\| K of the exit)` |
//! | address hash `H` | `SHA-256("peervpn address v1" \|\| K of the node itself)` |
//! | IPv6 prefix, 64 bits | `fd`, `N[0..5]`, `00 00` (a unique local prefix, RFC 4193 §3.1, with subnet 0) |
//! | IPv6 address of the exit | prefix, then the number 1 in 64 bits |
//! | IPv6 address of a peer | prefix, then `H[0..8]`; while that is the number 0 or 1: `H := SHA-256(H)` and again |
//! | IPv4 address of either | `0a`, `H[8..11]`; while it lies in 10.0.0.0/16 or its last byte is 0 or 255: `H := SHA-256(H)` and again |
//!
//! The two loops are independent: each starts from the first `H`. A prefix is always /32 or /128. Two peers of one exit
//! may share an IPv4 address (24 bits); [`crate::join::admission`] refuses the second one.
//!
//! # Doors
//!
//! The key of an invite has one IPv4 address of another kind, its door: `a9 fe` (169.254.0.0/16, link-local, RFC 3927),
//! then `H[8..10]`; while it lies in the first or last 256 of them (reserved, RFC 3927 §2.1), in 169.254.169.0/24 (cloud
//! metadata services) or ends in 0 or 255: `H := SHA-256(H)` and again. Like every link-local address it is good for this
//! link only: the exit forwards nothing from it. It leads to the control service ([`super::service`]).
//!
//! # Test vectors
//!
//! The exit's key is the bytes `00 01 … 1f`; its addresses are `10.3.93.123` and `fdd9:205e:e6c4::1`. More, made with
//! another implementation, stand in this file's tests, among them keys that must be hashed again once and twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::key::PublicKey;

const NETWORK_LABEL: &[u8] = b"peervpn network v1";
const ADDRESS_LABEL: &[u8] = b"peervpn address v1";

/// A node's addresses inside the tunnel, one a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelAddresses {
    /// IPv4 address.
    pub v4: Ipv4Addr,
    /// IPv6 address.
    pub v6: Ipv6Addr,
}

impl TunnelAddresses {
    /// The addresses as host prefixes, /128 and /32: a peer's allowed IPs on the exit, and what a node puts on its own
    /// interface.
    pub fn allowed_ips(&self) -> [IpNetwork; 2] {
        [IpNetwork::from(IpAddr::V6(self.v6)), IpNetwork::from(IpAddr::V4(self.v4))]
    }

    /// Whether a host can have them on an interface and nothing else has them.
    pub fn are_usable(&self) -> bool {
        let bad_v4 =
            self.v4.is_unspecified() || self.v4.is_loopback() || self.v4.is_multicast() || self.v4.is_broadcast();
        let bad_v6 = self.v6.is_unspecified() || self.v6.is_loopback() || self.v6.is_multicast();
        !bad_v4 && !bad_v6 && self.v6.to_ipv4_mapped().is_none()
    }

    /// Both addresses, v6 first, as the JSON events print them.
    pub fn to_vec(&self) -> Vec<IpAddr> {
        vec![IpAddr::V6(self.v6), IpAddr::V4(self.v4)]
    }
}

/// The exit's own tunnel addresses.
pub fn exit_addresses(exit: &PublicKey) -> TunnelAddresses {
    TunnelAddresses { v4: v4(exit), v6: v6(exit, 1) }
}

/// A peer's tunnel addresses on this exit.
pub fn peer_addresses(exit: &PublicKey, peer: &PublicKey) -> TunnelAddresses {
    TunnelAddresses { v4: v4(peer), v6: v6(exit, identifier(address_hash(peer))) }
}

/// The address of an invite's slot, from the public half of the invite's key.
pub fn door(slot: &PublicKey) -> Ipv4Addr {
    let mut hash = address_hash(slot);
    loop {
        let door = Ipv4Addr::new(169, 254, hash[8], hash[9]);
        if is_door(door) {
            return door;
        }
        hash = Sha256::digest(hash).into();
    }
}

/// Whether a slot can have this address.
pub fn is_door(address: Ipv4Addr) -> bool {
    let [_, _, third, last] = address.octets();
    address.is_link_local() && !matches!(third, 0 | 169 | 255) && !matches!(last, 0 | 255)
}

/// Other tunnel addresses for a peer whose derived ones are taken: as if `H` had been hashed `turn` times before.
pub fn other_addresses(exit: &PublicKey, peer: &PublicKey, turn: u32) -> TunnelAddresses {
    let mut hash = address_hash(peer);
    for _ in 0..turn {
        hash = Sha256::digest(hash).into();
    }
    TunnelAddresses { v4: v4_of(hash), v6: v6(exit, identifier(hash)) }
}

fn address_hash(key: &PublicKey) -> [u8; 32] {
    Sha256::new().chain_update(ADDRESS_LABEL).chain_update(key.0).finalize().into()
}

fn v4(key: &PublicKey) -> Ipv4Addr {
    v4_of(address_hash(key))
}

fn v4_of(mut hash: [u8; 32]) -> Ipv4Addr {
    while hash[8] == 0 || matches!(hash[10], 0 | 255) {
        hash = Sha256::digest(hash).into();
    }
    Ipv4Addr::new(10, hash[8], hash[9], hash[10])
}

/// 0 is the subnet-router anycast address (RFC 4291 §2.6.1), 1 is the exit.
fn identifier(mut hash: [u8; 32]) -> u64 {
    loop {
        let number = u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"));
        if number > 1 {
            return number;
        }
        hash = Sha256::digest(hash).into();
    }
}

fn v6(exit: &PublicKey, identifier: u64) -> Ipv6Addr {
    let network = Sha256::new().chain_update(NETWORK_LABEL).chain_update(exit.0).finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&network[..5]);
    octets[8..].copy_from_slice(&identifier.to_be_bytes());
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    const VECTORS: [[&str; 4]; 8] = [
        [
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "10.153.24.244",
            "fde6:8524:805e::1",
            "fdd9:205e:e6c4:0:695b:735d:f78f:7f29",
        ],
        [EXIT, "10.3.93.123", "fdd9:205e:e6c4::1", "fdd9:205e:e6c4:0:209e:16fe:65b0:fef6"],
        [
            "//////////////////////////////////////////8=",
            "10.25.30.21",
            "fd41:5e8:30ca::1",
            "fdd9:205e:e6c4:0:dfc8:db47:e74a:a791",
        ],
        [
            "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
            "10.184.51.125",
            "fd34:d3f6:8692::1",
            "fdd9:205e:e6c4:0:d4db:2cf7:f9a6:5ea",
        ],
        [
            "AAAAFgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "10.9.100.39",
            "fd13:3f71:8025::1",
            "fdd9:205e:e6c4:0:6f40:4126:5432:b621",
        ],
        [
            "AAAAQQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "10.85.124.222",
            "fd13:10e9:e43b::1",
            "fdd9:205e:e6c4:0:f0d0:6d9c:bdb5:2e11",
        ],
        [
            "AAAATQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "10.172.192.207",
            "fdae:bfab:1b51::1",
            "fdd9:205e:e6c4:0:179b:cef:a684:e20a",
        ],
        [
            "AAAQiQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "10.230.125.150",
            "fdb6:841e:737c::1",
            "fdd9:205e:e6c4:0:5b71:d068:df0:dcd4",
        ],
    ];

    #[test]
    fn the_published_vectors_hold() {
        let exit: PublicKey = EXIT.parse().unwrap();
        for [key, v4, own, peer] in VECTORS {
            let key: PublicKey = key.parse().unwrap();
            let (v4, own, peer) = (v4.parse().unwrap(), own.parse().unwrap(), peer.parse().unwrap());
            assert_eq!(exit_addresses(&key), TunnelAddresses { v4, v6: own }, "{key}");
            assert_eq!(peer_addresses(&exit, &key), TunnelAddresses { v4, v6: peer }, "{key}");
        }
    }

    #[test]
    fn addresses_stay_where_they_belong() {
        let exit: PublicKey = EXIT.parse().unwrap();
        for number in 0..20_000u32 {
            let mut key = PublicKey([7; 32]);
            key.0[..4].copy_from_slice(&number.to_be_bytes());
            let addresses = peer_addresses(&exit, &key);
            let [ten, second, _, last] = addresses.v4.octets();
            assert!(ten == 10 && second != 0 && last != 0 && last != 255, "{addresses:?}");
            assert_eq!(addresses.v6.octets()[..8], exit_addresses(&exit).v6.octets()[..8]);
            assert_ne!(addresses.v6, exit_addresses(&exit).v6);
        }
    }

    #[test]
    fn other_addresses_are_others() {
        let exit: PublicKey = EXIT.parse().unwrap();
        assert_eq!(other_addresses(&exit, &exit, 0), peer_addresses(&exit, &exit));
        let several: std::collections::HashSet<_> = (0..20).map(|turn| other_addresses(&exit, &exit, turn)).collect();
        assert_eq!(several.len(), 20);
    }

    #[test]
    fn doors_are_link_local_and_nobodys() {
        for number in 0..20_000u32 {
            let mut key = PublicKey([7; 32]);
            key.0[..4].copy_from_slice(&number.to_be_bytes());
            assert!(is_door(door(&key)), "{}", door(&key));
        }
        assert_eq!(door(&EXIT.parse().unwrap()), "169.254.3.93".parse::<Ipv4Addr>().unwrap());
        for no in ["169.254.0.7", "169.254.255.7", "169.254.169.254", "169.254.7.0", "169.254.7.255", "10.3.93.123"] {
            assert!(!is_door(no.parse().unwrap()), "{no}");
        }
    }

    #[test]
    fn the_identifiers_0_and_1_are_hashed_again() {
        for reserved in [0u64, 1] {
            let mut hash = [9; 32];
            hash[..8].copy_from_slice(&reserved.to_be_bytes());
            let again = Sha256::digest(hash);
            assert_eq!(identifier(hash).to_be_bytes(), again[..8]);
        }
    }

    #[test]
    fn allowed_ips_are_host_prefixes() {
        let addresses = exit_addresses(&EXIT.parse().unwrap());
        assert_eq!(addresses.allowed_ips().map(|p| p.to_string()), ["fdd9:205e:e6c4::1/128", "10.3.93.123/32"]);
    }
}
