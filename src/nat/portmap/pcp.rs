//! PCP's MAP for UDP over IPv4: RFC 6887 §7 (header), §11.1 (payload).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::time::Duration;

use super::{Refusal, lifetime};

/// Protocol version; RFC 6887 §7.1.
const VERSION: u8 = 2;
/// Opcode MAP, and the bit that makes it a response; RFC 6887 §19.3, §7.2.
const MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
/// IANA's number of UDP.
const UDP: u8 = 17;
/// Result UNSUPP_VERSION; RFC 6887 §7.4.
const UNSUPP_VERSION: u8 = 1;

/// Which mapping: only who knows the nonce may change or delete it (RFC 6887 §11.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Our address, which is the source of the request.
    pub client: Ipv4Addr,
    /// Our port.
    pub port: u16,
    /// Random, made once a mapping.
    pub nonce: [u8; 12],
}

/// A mapping as granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Where the world reaches it.
    pub external: SocketAddrV4,
    /// How long it lasts.
    pub lifetime: Duration,
    /// Seconds since the server's mapping table was new; falls when it was lost.
    pub epoch: u32,
}

/// A request for `lifetime`, which zero makes a deletion. `suggested`: the external port and, where known, address to
/// be given again.
pub fn request(mapping: &Mapping, lifetime: Duration, suggested: SocketAddrV4) -> [u8; 60] {
    let mut bytes = [0; 60];
    (bytes[0], bytes[1]) = (VERSION, MAP);
    bytes[4..8].copy_from_slice(&(lifetime.as_secs() as u32).to_be_bytes());
    bytes[8..24].copy_from_slice(&mapping.client.to_ipv6_mapped().octets());
    bytes[24..36].copy_from_slice(&mapping.nonce);
    bytes[36] = UDP;
    bytes[40..42].copy_from_slice(&mapping.port.to_be_bytes());
    bytes[42..44].copy_from_slice(&suggested.port().to_be_bytes());
    bytes[44..60].copy_from_slice(&suggested.ip().to_ipv6_mapped().octets());
    bytes
}

/// Reads an answer: `None` where it does not answer a request for this mapping. A grant to a deletion has no lifetime.
pub fn answer(bytes: &[u8], mapping: &Mapping) -> Option<Result<Granted, Refusal>> {
    // RFC 6887 §8.3: at least a header, whole words, at most 1100 octets
    if !(24..=1100).contains(&bytes.len()) || !bytes.len().is_multiple_of(4) || bytes[..2] != [VERSION, RESPONSE | MAP]
    {
        return None;
    }
    let result = bytes[3];
    if result == UNSUPP_VERSION {
        // the server need not copy a payload that it could not read
        return Some(Err(refusal(result)));
    }
    let payload = bytes.get(24..60)?;
    let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
    if payload[..12] != mapping.nonce || payload[12] != UDP || port(16) != mapping.port {
        return None;
    }
    if result != 0 {
        return Some(Err(refusal(result)));
    }
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let address: [u8; 16] = payload[20..36].try_into().ok()?;
    let lifetime = lifetime(word(4));
    let external = Ipv6Addr::from(address).to_ipv4_mapped();
    Some(match external {
        _ if lifetime.is_zero() => {
            Ok(Granted { external: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), lifetime, epoch: word(8) })
        }
        Some(ip) if port(18) != 0 => {
            Ok(Granted { external: SocketAddrV4::new(ip, port(18)), lifetime, epoch: word(8) })
        }
        _ => Err(Refusal("granted no IPv4 endpoint".to_owned())),
    })
}

/// Names of the result codes; RFC 6887 §7.4.
fn refusal(code: u8) -> Refusal {
    const NAMES: [&str; 14] = [
        "SUCCESS",
        "UNSUPP_VERSION",
        "NOT_AUTHORIZED",
        "MALFORMED_REQUEST",
        "UNSUPP_OPCODE",
        "UNSUPP_OPTION",
        "MALFORMED_OPTION",
        "NETWORK_FAILURE",
        "NO_RESOURCES",
        "UNSUPP_PROTOCOL",
        "USER_EX_QUOTA",
        "CANNOT_PROVIDE_EXTERNAL",
        "ADDRESS_MISMATCH",
        "EXCESSIVE_REMOTE_PEERS",
    ];
    Refusal(NAMES.get(usize::from(code)).map_or_else(|| format!("result {code}"), |name| (*name).to_owned()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAPPING: Mapping = Mapping { client: Ipv4Addr::new(192, 168, 1, 2), port: 51820, nonce: *b"abcdefghijkl" };

    /// The answer a server would give.
    fn served(result: u8, lifetime: u32, external: &str) -> Vec<u8> {
        let external: SocketAddrV4 = external.parse().unwrap();
        let mut bytes = request(&MAPPING, Duration::from_secs(lifetime.into()), external).to_vec();
        bytes[1] |= RESPONSE;
        bytes[3] = result;
        bytes[8..24].fill(0);
        bytes[8..12].copy_from_slice(&77u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_request_is_drawn_as_in_the_rfc() {
        let bytes = request(&MAPPING, Duration::from_secs(7200), "0.0.0.0:51820".parse().unwrap());
        assert_eq!(bytes[..8], [2, 1, 0, 0, 0, 0, 0x1c, 0x20]);
        assert_eq!(bytes[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2]);
        assert_eq!(&bytes[24..36], b"abcdefghijkl");
        assert_eq!(bytes[36..44], [17, 0, 0, 0, 0xca, 0x6c, 0xca, 0x6c]);
        assert_eq!(bytes[44..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    }

    #[test]
    fn a_grant_is_read_and_others_mappings_are_not() {
        let bytes = served(0, 120, "203.0.113.20:4000");
        let granted = answer(&bytes, &MAPPING).unwrap().unwrap();
        assert_eq!(granted.external, "203.0.113.20:4000".parse().unwrap());
        assert_eq!((granted.lifetime, granted.epoch), (Duration::from_secs(120), 77));
        assert_eq!(answer(&bytes, &Mapping { nonce: [0; 12], ..MAPPING }), None);
        assert_eq!(answer(&bytes, &Mapping { port: 1, ..MAPPING }), None);
        assert_eq!(answer(&bytes[..56], &MAPPING), None);
        assert!(answer(&served(0, 0, "0.0.0.0:0"), &MAPPING).unwrap().unwrap().lifetime.is_zero());
    }

    #[test]
    fn a_refusal_has_its_name() {
        let refused = |bytes: &[u8]| answer(bytes, &MAPPING).unwrap().unwrap_err().0;
        assert_eq!(refused(&served(2, 0, "0.0.0.0:0")), "NOT_AUTHORIZED");
        assert_eq!(refused(&served(200, 0, "0.0.0.0:0")), "result 200");
        assert_eq!(refused(&served(1, 0, "0.0.0.0:0")[..24]), "UNSUPP_VERSION");
        assert_eq!(refused(&served(0, 120, "203.0.113.20:0")), "granted no IPv4 endpoint");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = answer(&bytes, &MAPPING);
            if bytes.len() > 2 {
                bytes[..2].copy_from_slice(&[2, 0x81]);
                let _ = answer(&bytes, &MAPPING);
            }
        }
    }
}
