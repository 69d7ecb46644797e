//! MTU of the tunnel from the MTU of the way to the endpoint.

use peervpn_platform::types::Family;

/// What WireGuard's data message adds: 16 bytes header and 16 bytes tag (wireguard.com/protocol), and UDP's 8
/// (RFC 768), inside an IP header of 20 bytes (RFC 791) or 40 (RFC 8200).
const fn overhead(outer: Family) -> u32 {
    match outer {
        Family::V4 => 60,
        Family::V6 => 80,
    }
}

/// Smallest MTU a link may have that carries IPv6; RFC 8200 §5.
pub const MIN: u32 = 1280;
/// What is assumed where nothing is known: Ethernet's.
pub const ETHERNET: u32 = 1500;

/// Tunnel MTU in bytes for outer packets of family `outer` on a way with MTU `way` bytes; never below [`MIN`].
pub fn inner(way: u32, outer: Family) -> u32 {
    way.min(65_535).saturating_sub(overhead(outer)).max(MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_and_pppoe() {
        assert_eq!((inner(1500, Family::V4), inner(1500, Family::V6)), (1440, 1420));
        assert_eq!(inner(1492, Family::V4), 1432);
        assert_eq!(inner(576, Family::V4), MIN);
        assert_eq!(inner(u32::MAX, Family::V6), 65_455);
    }
}
