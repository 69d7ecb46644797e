//! The desired WireGuard state: device and peer settings, MTU arithmetic, what is routed into the tunnel. Pure.

pub mod keepalive;
pub mod mtu;
pub mod qr;
pub mod routes;
pub mod wgquick;

use std::net::SocketAddr;

use ipnetwork::IpNetwork;
use peervpn_platform::types::{DeviceConfig, PeerConfig};

use crate::key::{PrivateKey, PublicKey};

/// Persistent keepalive in seconds; wireguard.com/quickstart: "a sensible interval that works with a wide variety of
/// firewalls is 25 seconds".
pub const KEEPALIVE: u16 = 25;

/// A device without peers.
pub fn device(key: &PrivateKey, listen_port: u16, fwmark: u32) -> DeviceConfig {
    DeviceConfig {
        private_key: Some(key.secret()),
        listen_port: Some(listen_port),
        fwmark: Some(fwmark),
        replace_peers: true,
        peers: Vec::new(),
    }
}

/// A peer, complete. With endpoint and keepalive in one request, a device that is up initiates at once; where the endpoint
/// is not known, a keepalive would only cost (see [`keepalive`]).
pub fn peer(key: &PublicKey, endpoint: Option<SocketAddr>, allowed_ips: Vec<IpNetwork>) -> PeerConfig {
    PeerConfig {
        public_key: key.0,
        endpoint,
        keepalive: endpoint.map(|_| KEEPALIVE),
        replace_allowed_ips: true,
        allowed_ips,
        ..PeerConfig::default()
    }
}

/// Removes a peer.
pub fn removal(key: &PublicKey) -> PeerConfig {
    PeerConfig { public_key: key.0, remove: true, ..PeerConfig::default() }
}

/// Settings of peers only; the device's own stay as they are.
pub fn peers(peers: Vec<PeerConfig>) -> DeviceConfig {
    DeviceConfig { peers, ..DeviceConfig::default() }
}
