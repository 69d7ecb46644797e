//! UDP datagrams as bytes: what packet taps hand over, and what raw sockets send. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;

use crate::types::Family;

/// UDP header, RFC 768.
pub const UDP_HEADER: usize = 8;
/// Shortest IPv4 header, RFC 791 §3.1.
pub const IPV4_HEADER_MIN: usize = 20;
/// Longest one.
pub const IPV4_HEADER_MAX: usize = 60;
/// IPv6 header without extensions, RFC 8200 §3.
pub const IPV6_HEADER: usize = 40;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// Source and payload of a UDP packet that begins with its IP header. The payload may be cut short by the filter, or
/// because a header claims more than came, down to nothing. `ifindex` is where it came in. `None`: not a packet of that
/// shape.
pub fn parse(family: Family, packet: &[u8], ifindex: u32) -> Option<(SocketAddr, Range<usize>)> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let first = *packet.first()?;
    let (udp, ip_payload_len) = match family {
        Family::V4 => {
            let header = usize::from(first & 0xf) * 4;
            if first >> 4 != 4 || header < IPV4_HEADER_MIN {
                return None;
            }
            (header, usize::from(word(2)?).checked_sub(header)?)
        }
        Family::V6 if first >> 4 == 6 => (IPV6_HEADER, usize::from(word(4)?)),
        Family::V6 => return None,
    };
    let port = word(udp)?;
    let udp_len = usize::from(word(udp + 4)?);
    if udp_len < UDP_HEADER {
        return None;
    }
    let end = packet.len().min(udp + udp_len.min(ip_payload_len));
    let payload = end.min(udp + UDP_HEADER)..end;
    let source = match family {
        Family::V4 => {
            let ip: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(ip), port))
        }
        Family::V6 => {
            let ip: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            let ip = Ipv6Addr::from(ip);
            let scope = if ip.is_unicast_link_local() { ifindex } else { 0 };
            SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))
        }
    };
    Some((source, payload))
}

/// UDP header and payload, checksummed with its pseudo-header (RFC 768, RFC 8200 §8.1); `None` if it is too long.
pub fn encode(source: IpAddr, port: u16, to: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut bytes = Vec::with_capacity(usize::from(length));
    for word in [port, to.port(), length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    let mut sum = u32::from(length) + u32::from(UDP);
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    };
    for address in [source, to.ip()] {
        match address {
            IpAddr::V4(v4) => add(&v4.octets()),
            IpAddr::V6(v6) => add(&v6.octets()),
        }
    }
    add(&bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // 0 means "no checksum"; all ones is the same number (RFC 768)
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    };
    bytes[6..8].copy_from_slice(&checksum.to_be_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over pseudo-header and datagram, checksum included, is all ones; RFC 1071 §1.
    fn verifies(source: IpAddr, to: IpAddr, datagram: &[u8]) -> bool {
        let mut bytes = Vec::new();
        for address in [source, to] {
            match address {
                IpAddr::V4(v4) => bytes.extend(v4.octets()),
                IpAddr::V6(v6) => bytes.extend(v6.octets()),
            }
        }
        bytes.extend((datagram.len() as u32).to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        bytes.extend(datagram);
        let mut sum: u32 = bytes.chunks(2).map(|p| u32::from(p[0]) << 8 | p.get(1).map_or(0, |b| u32::from(*b))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum == 0xffff
    }

    /// An IPv4 packet of 160 bytes of payload, whose IP and UDP headers claim so many bytes.
    fn claiming(ip: u16, udp: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7];
        packet[2..4].copy_from_slice(&ip.to_be_bytes());
        packet.extend([0xca, 0x6c, 0x0d, 0x96]);
        packet.extend(udp.to_be_bytes());
        packet.extend([0; 2 + 160]);
        packet
    }

    #[test]
    fn what_claims_more_than_came_is_seen_and_cut() {
        let source = "192.0.2.1:51820".parse().unwrap();
        let payload = |packet: &[u8]| parse(Family::V4, packet, 0).map(|(from, at)| (from == source, at));
        assert_eq!(payload(&claiming(176, 156)), Some((true, 28..176)));
        assert_eq!(payload(&claiming(176, 168)), Some((true, 28..176)), "behind the IP packet's end is padding");
        assert_eq!(payload(&claiming(60, 156)), Some((true, 28..60)));
        assert_eq!(payload(&claiming(28, 156)), Some((true, 28..28)));
        assert_eq!(payload(&claiming(20, 156)), Some((true, 20..20)));
        assert_eq!(payload(&claiming(176, 156)[..100]), Some((true, 28..100)));
        assert_eq!(payload(&claiming(176, 156)[..26]), Some((true, 26..26)));
        assert_eq!(payload(&claiming(19, 156)), None);
        assert_eq!(payload(&claiming(176, 7)), None);
    }

    proptest::proptest! {
        #[test]
        fn a_payload_lies_in_its_packet(packet in proptest::collection::vec(proptest::num::u8::ANY, 0..300), v6: bool) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            if let Some((_, payload)) = parse(family, &packet, 1) {
                proptest::prop_assert!(packet.get(payload).is_some());
            }
        }
    }

    #[test]
    fn checksums_verify_for_both_families_and_odd_lengths() {
        for (source, to) in [("192.0.2.1", "198.51.100.7:3478"), ("2001:db8::1", "[2001:db8::2]:3478")] {
            let (source, to): (IpAddr, SocketAddr) = (source.parse().unwrap(), to.parse().unwrap());
            for length in 0..40 {
                let payload: Vec<u8> = (0..length).map(|n| (n * 37) as u8).collect();
                let datagram = encode(source, 51820, to, &payload).unwrap();
                assert!(verifies(source, to.ip(), &datagram), "{to} {length}");
                assert_eq!(&datagram[..4], [0xca, 0x6c, 0x0d, 0x96]);
            }
            assert_eq!(encode(source, 1, to, &[0; 70_000]), None);
        }
    }
}
