//! The configuration of WireGuardNT as `wireguard.h` lays it out: an interface, then each peer, followed by its allowed
//! IPs. Bytes only, so every system can test it; `windows/wireguard.rs` gives them to the DLL.
//!
//! The DLL takes a configuration as a change, not as the whole: what a flag does not name stays, peers that are not in it
//! stay, and flags of a peer remove it or touch it only if it is there.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use ipnetwork::IpNetwork;
use zeroize::Zeroizing;

use crate::types::{DeviceConfig, DeviceState, PeerConfig, PeerState};

/// `WIREGUARD_INTERFACE`.
#[repr(C, align(8))]
struct Interface {
    flags: u32,
    listen_port: u16,
    private_key: [u8; 32],
    public_key: [u8; 32],
    peers_count: u32,
}

/// `WIREGUARD_PEER`.
#[repr(C, align(8))]
struct Peer {
    flags: u32,
    reserved: u32,
    public_key: [u8; 32],
    preshared_key: [u8; 32],
    persistent_keepalive: u16,
    endpoint: SockaddrInet,
    tx_bytes: u64,
    rx_bytes: u64,
    last_handshake: u64,
    allowed_ips_count: u32,
}

/// `WIREGUARD_ALLOWED_IP`.
#[repr(C, align(8))]
struct AllowedIp {
    address: [u8; 16],
    address_family: u16,
    cidr: u8,
}

/// `SOCKADDR_INET` of `ws2ipdef.h`, with the fields of its longer half, `sockaddr_in6`. `sockaddr_in` has its address
/// where `flow_info` is.
#[repr(C)]
struct SockaddrInet {
    family: u16,
    port: u16,
    flow_info: u32,
    address: [u8; 16],
    scope_id: u32,
}

// the same numbers as in tests/cross/layout.c, which holds them against the published header
const _: () = {
    assert!(size_of::<Interface>() == 80 && align_of::<Interface>() == 8);
    assert!(offset_of!(Interface, flags) == 0 && offset_of!(Interface, listen_port) == 4);
    assert!(offset_of!(Interface, private_key) == 6 && offset_of!(Interface, public_key) == 38);
    assert!(offset_of!(Interface, peers_count) == 72);

    assert!(size_of::<Peer>() == 136 && align_of::<Peer>() == 8);
    assert!(offset_of!(Peer, flags) == 0 && offset_of!(Peer, reserved) == 4 && offset_of!(Peer, public_key) == 8);
    assert!(offset_of!(Peer, preshared_key) == 40 && offset_of!(Peer, persistent_keepalive) == 72);
    assert!(offset_of!(Peer, endpoint) == 76 && offset_of!(Peer, tx_bytes) == 104);
    assert!(offset_of!(Peer, rx_bytes) == 112 && offset_of!(Peer, last_handshake) == 120);
    assert!(offset_of!(Peer, allowed_ips_count) == 128);

    assert!(size_of::<AllowedIp>() == 24 && align_of::<AllowedIp>() == 8);
    assert!(offset_of!(AllowedIp, address) == 0 && offset_of!(AllowedIp, address_family) == 16);
    assert!(offset_of!(AllowedIp, cidr) == 18);

    assert!(size_of::<SockaddrInet>() == 28 && offset_of!(SockaddrInet, port) == 2);
    assert!(offset_of!(SockaddrInet, flow_info) == 4 && offset_of!(SockaddrInet, address) == 8);
    assert!(offset_of!(SockaddrInet, scope_id) == 24);
};

/// Windows' `AF_INET`.
const AF_INET: u16 = 2;
/// Windows' `AF_INET6`.
const AF_INET6: u16 = 23;

// WIREGUARD_INTERFACE_FLAG
const INTERFACE_HAS_PUBLIC_KEY: u32 = 1;
const INTERFACE_HAS_PRIVATE_KEY: u32 = 2;
const INTERFACE_HAS_LISTEN_PORT: u32 = 4;
const INTERFACE_REPLACE_PEERS: u32 = 8;

// WIREGUARD_PEER_FLAG
const PEER_HAS_PUBLIC_KEY: u32 = 1;
const PEER_HAS_PRESHARED_KEY: u32 = 2;
const PEER_HAS_PERSISTENT_KEEPALIVE: u32 = 4;
const PEER_HAS_ENDPOINT: u32 = 8;
const PEER_REPLACE_ALLOWED_IPS: u32 = 32;
const PEER_REMOVE: u32 = 64;
const PEER_UPDATE: u32 = 128;

/// From 1601-01-01, where Windows counts from, to the Unix epoch, in its units of 100 ns.
const EPOCH: u64 = 116_444_736_000_000_000;

/// A buffer that grows by whole structures and never moves: it may hold keys.
struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// Appends a zeroed structure; where it starts.
    fn structure(&mut self, size: usize) -> usize {
        let at = self.0.len();
        self.0.resize(at + size, 0);
        at
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The change for `WireGuardSetConfiguration`, a multiple of 8 bytes. WireGuardNT has no fwmark: it finds its way around
/// its own adapter by itself, so `config.fwmark` is not in here.
pub fn encode(config: &DeviceConfig) -> Zeroizing<Vec<u8>> {
    let peers = config.peers.iter().map(|p| size_of::<Peer>() + p.allowed_ips.len() * size_of::<AllowedIp>());
    let mut out = Writer(Zeroizing::new(Vec::with_capacity(size_of::<Interface>() + peers.sum::<usize>())));
    let at = out.structure(size_of::<Interface>());
    let mut flags = 0;
    if let Some(key) = &config.private_key {
        flags |= INTERFACE_HAS_PRIVATE_KEY;
        out.put(at + offset_of!(Interface, private_key), &key.0);
    }
    if let Some(port) = config.listen_port {
        flags |= INTERFACE_HAS_LISTEN_PORT;
        out.put(at + offset_of!(Interface, listen_port), &port.to_le_bytes());
    }
    if config.replace_peers {
        flags |= INTERFACE_REPLACE_PEERS;
    }
    out.put(at + offset_of!(Interface, flags), &flags.to_le_bytes());
    out.put(at + offset_of!(Interface, peers_count), &(config.peers.len() as u32).to_le_bytes());
    for peer in &config.peers {
        encode_peer(&mut out, peer);
    }
    out.0
}

fn encode_peer(out: &mut Writer, peer: &PeerConfig) {
    let at = out.structure(size_of::<Peer>());
    let mut flags = PEER_HAS_PUBLIC_KEY;
    out.put(at + offset_of!(Peer, public_key), &peer.public_key);
    if peer.remove {
        out.put(at + offset_of!(Peer, flags), &(flags | PEER_REMOVE).to_le_bytes());
        return;
    }
    if peer.update_only {
        flags |= PEER_UPDATE;
    }
    if let Some(key) = &peer.preshared_key {
        flags |= PEER_HAS_PRESHARED_KEY;
        out.put(at + offset_of!(Peer, preshared_key), &key.0);
    }
    if let Some(keepalive) = peer.keepalive {
        flags |= PEER_HAS_PERSISTENT_KEEPALIVE;
        out.put(at + offset_of!(Peer, persistent_keepalive), &keepalive.to_le_bytes());
    }
    if let Some(endpoint) = peer.endpoint {
        flags |= PEER_HAS_ENDPOINT;
        out.put(at + offset_of!(Peer, endpoint), &sockaddr(endpoint));
    }
    if peer.replace_allowed_ips {
        flags |= PEER_REPLACE_ALLOWED_IPS;
    }
    out.put(at + offset_of!(Peer, flags), &flags.to_le_bytes());
    out.put(at + offset_of!(Peer, allowed_ips_count), &(peer.allowed_ips.len() as u32).to_le_bytes());
    for prefix in &peer.allowed_ips {
        let at = out.structure(size_of::<AllowedIp>());
        let family = match prefix.network() {
            IpAddr::V4(address) => {
                out.put(at + offset_of!(AllowedIp, address), &address.octets());
                AF_INET
            }
            IpAddr::V6(address) => {
                out.put(at + offset_of!(AllowedIp, address), &address.octets());
                AF_INET6
            }
        };
        out.put(at + offset_of!(AllowedIp, address_family), &family.to_le_bytes());
        out.put(at + offset_of!(AllowedIp, cidr), &[prefix.prefix()]);
    }
}

/// `SOCKADDR_INET`; port and address in network byte order.
pub fn sockaddr(address: SocketAddr) -> [u8; 28] {
    let mut bytes = [0; size_of::<SockaddrInet>()];
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            bytes[..2].copy_from_slice(&AF_INET.to_le_bytes());
            bytes[4..8].copy_from_slice(&v4.ip().octets());
        }
        SocketAddr::V6(v6) => {
            bytes[..2].copy_from_slice(&AF_INET6.to_le_bytes());
            bytes[8..24].copy_from_slice(&v6.ip().octets());
            bytes[24..28].copy_from_slice(&v6.scope_id().to_le_bytes());
        }
    }
    bytes
}

/// The address in a `SOCKADDR_INET`; `None` for one that is not set.
pub fn address(bytes: &[u8; 28]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([bytes[2], bytes[3]]);
    match u16::from_le_bytes([bytes[0], bytes[1]]) {
        AF_INET => {
            let octets: [u8; 4] = bytes[4..8].try_into().ok()?;
            Some(SocketAddr::from((Ipv4Addr::from(octets), port)))
        }
        AF_INET6 => {
            let octets: [u8; 16] = bytes[8..24].try_into().ok()?;
            let scope = u32::from_le_bytes(bytes[24..28].try_into().ok()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Takes structures off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn structure(&mut self, size: usize) -> Option<&'a [u8]> {
        let (structure, rest) = self.0.split_at_checked(size)?;
        self.0 = rest;
        Some(structure)
    }
}

fn field<const N: usize>(structure: &[u8], at: usize) -> Option<[u8; N]> {
    structure.get(at..at + N)?.try_into().ok()
}

/// What `WireGuardGetConfiguration` answered; `None` if it ends too early or names an unknown address family.
pub fn decode(bytes: &[u8]) -> Option<DeviceState> {
    let mut reader = Reader(bytes);
    let interface = reader.structure(size_of::<Interface>())?;
    let flags = u32::from_le_bytes(field(interface, offset_of!(Interface, flags))?);
    let public_key = field(interface, offset_of!(Interface, public_key))?;
    let count = u32::from_le_bytes(field(interface, offset_of!(Interface, peers_count))?);
    let mut state = DeviceState {
        public_key: (flags & INTERFACE_HAS_PUBLIC_KEY != 0).then_some(public_key),
        listen_port: u16::from_le_bytes(field(interface, offset_of!(Interface, listen_port))?),
        fwmark: 0,
        peers: Vec::new(),
    };
    for _ in 0..count {
        state.peers.push(decode_peer(&mut reader)?);
    }
    Some(state)
}

fn decode_peer(reader: &mut Reader) -> Option<PeerState> {
    let peer = reader.structure(size_of::<Peer>())?;
    let flags = u32::from_le_bytes(field(peer, offset_of!(Peer, flags))?);
    let number = |at| field(peer, at).map(u64::from_le_bytes);
    let last = number(offset_of!(Peer, last_handshake))?;
    let mut allowed_ips = Vec::new();
    for _ in 0..u32::from_le_bytes(field(peer, offset_of!(Peer, allowed_ips_count))?) {
        let allowed = reader.structure(size_of::<AllowedIp>())?;
        let octets: [u8; 16] = field(allowed, offset_of!(AllowedIp, address))?;
        let address = match u16::from_le_bytes(field(allowed, offset_of!(AllowedIp, address_family))?) {
            AF_INET => IpAddr::from(<[u8; 4]>::try_from(&octets[..4]).ok()?),
            AF_INET6 => IpAddr::from(octets),
            _ => return None,
        };
        allowed_ips.push(IpNetwork::new(address, allowed[offset_of!(AllowedIp, cidr)]).ok()?);
    }
    Some(PeerState {
        public_key: field(peer, offset_of!(Peer, public_key))?,
        endpoint: if flags & PEER_HAS_ENDPOINT == 0 {
            None
        } else {
            address(&field(peer, offset_of!(Peer, endpoint))?)
        },
        keepalive: u16::from_le_bytes(field(peer, offset_of!(Peer, persistent_keepalive))?),
        // 0 before the first one
        last_handshake: last.checked_sub(EPOCH).map(|units| Duration::from_nanos(units.saturating_mul(100))),
        rx_bytes: number(offset_of!(Peer, rx_bytes))?,
        tx_bytes: number(offset_of!(Peer, tx_bytes))?,
        allowed_ips,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Secret;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_change_is_laid_out_as_the_header_says() {
        let config = DeviceConfig {
            private_key: Some(Secret([0x11; 32])),
            listen_port: Some(51820),
            fwmark: None,
            replace_peers: true,
            peers: vec![
                PeerConfig {
                    public_key: [0x22; 32],
                    preshared_key: Some(Secret([0x33; 32])),
                    endpoint: Some("203.0.113.20:443".parse().unwrap()),
                    keepalive: Some(25),
                    replace_allowed_ips: true,
                    allowed_ips: vec!["0.0.0.0/0".parse().unwrap(), "2001:db8::/32".parse().unwrap()],
                    ..PeerConfig::default()
                },
                PeerConfig { public_key: [0x44; 32], remove: true, ..PeerConfig::default() },
            ],
        };
        let z = |n| "00".repeat(n);
        let k = |b: &str| b.repeat(32);
        let expected = [
            // flags 2|4|8, port 0xca6c, keys, 2 peers
            format!("0e000000{}{}{}{}02000000{}", "6cca", k("11"), k("00"), z(2), z(4)),
            // flags 1|2|4|8|32
            format!("2f000000{}{}{}{}", z(4), k("22"), k("33"), "1900"),
            // padding, AF_INET, port 443, address; to the end of the SOCKADDR_INET
            format!("{}{}{}{}{}", z(2), "0200", "01bb", "cb007114", z(20)),
            format!("{}02000000{}", z(24), z(4)),
            format!("{}0200{}{}", z(16), "00", z(5)),
            format!("20010db8{}1700{}{}", z(12), "20", z(5)),
            // flags 1|64
            format!("41000000{}{}{}", z(4), k("44"), z(96)),
        ];
        assert_eq!(hex(&encode(&config)), expected.concat());
        assert_eq!(encode(&config).len(), 80 + 136 + 2 * 24 + 136);
    }

    #[test]
    fn an_incremental_change_names_only_what_changes() {
        let toggled =
            PeerConfig { public_key: [9; 32], update_only: true, keepalive: Some(0), ..PeerConfig::default() };
        let bytes = encode(&DeviceConfig { peers: vec![toggled], ..DeviceConfig::default() });
        assert_eq!(bytes[..4], [0; 4], "nothing of the interface, no replacement of peers");
        assert_eq!(bytes[80..84], (1u32 | 4 | 128).to_le_bytes());
    }

    /// An answer of the driver: as a change, but with what only the driver sets.
    fn answer() -> Vec<u8> {
        let peer = PeerConfig {
            public_key: [5; 32],
            endpoint: Some("[2001:db8::9]:51820".parse().unwrap()),
            keepalive: Some(25),
            allowed_ips: vec!["10.1.2.3/32".parse().unwrap(), "fd00::1/128".parse().unwrap()],
            ..PeerConfig::default()
        };
        let silent = PeerConfig { public_key: [6; 32], ..PeerConfig::default() };
        let config = DeviceConfig { listen_port: Some(40_000), peers: vec![peer, silent], ..DeviceConfig::default() };
        let mut bytes = encode(&config).to_vec();
        bytes[0] |= 1;
        bytes[38..70].copy_from_slice(&[7; 32]);
        bytes[80 + 104..80 + 112].copy_from_slice(&1000u64.to_le_bytes());
        bytes[80 + 112..80 + 120].copy_from_slice(&2000u64.to_le_bytes());
        // 2026-11-23 00:00:00.5 UTC
        let units = EPOCH + 1_795_392_000 * 10_000_000 + 5_000_000;
        bytes[80 + 120..80 + 128].copy_from_slice(&units.to_le_bytes());
        bytes
    }

    #[test]
    fn an_answer_is_read() {
        let state = decode(&answer()).unwrap();
        assert_eq!((state.public_key, state.listen_port), (Some([7; 32]), 40_000));
        let [peer, silent] = &state.peers[..] else { panic!("{state:?}") };
        assert_eq!(peer.endpoint, Some("[2001:db8::9]:51820".parse().unwrap()));
        assert_eq!((peer.tx_bytes, peer.rx_bytes, peer.keepalive), (1000, 2000, 25));
        assert_eq!(peer.last_handshake, Some(Duration::from_millis(1_795_392_000_500)));
        assert_eq!(peer.allowed_ips, ["10.1.2.3/32".parse().unwrap(), "fd00::1/128".parse().unwrap()]);
        assert_eq!((silent.endpoint, silent.last_handshake, silent.allowed_ips.len()), (None, None, 0));
    }

    #[test]
    fn an_answer_that_is_cut_short_or_odd_is_refused() {
        let whole = answer();
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), None, "{length} bytes");
        }
        let mut odd = whole;
        odd[80 + 136 + 16] = 99;
        assert_eq!(decode(&odd), None);
    }
}
