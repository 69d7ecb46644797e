//! Keepalives of an exit's peers: on for those that are there, off for the crowd of those that are not.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use peervpn_platform::types::{Backend, PeerConfig};

use super::Exit;
use crate::join::peers::Peer;
use crate::key::PublicKey;
use crate::node::apply::Applier;
use crate::node::control;
use crate::tunnel::{self, keepalive};

/// A peer's initiation reaches us before WireGuard has answered it: a keepalive switched on before that would start a
/// handshake of our own, and the two would undo each other (see `call`).
const ANSWERED: Duration = Duration::from_secs(1);
/// How often it is looked who has gone silent, where anybody has a keepalive.
const LOOK: Duration = keepalive::SILENT;

/// Whose keepalive is on.
pub struct Keepalives {
    /// Userspace devices lose a peer's session by any setting of it: there, what a peer came with stays.
    switchable: bool,
    on: HashSet<[u8; 32]>,
    coming: Vec<(PublicKey, Instant)>,
    look: Instant,
}

impl Keepalives {
    /// At the start those whose endpoint is known are called.
    pub fn new<'a>(backend: &Backend, peers: impl Iterator<Item = &'a Peer>) -> Keepalives {
        let on = peers.filter(|peer| peer.endpoint.is_some()).map(|peer| peer.public_key.0).collect();
        Keepalives { switchable: *backend == Backend::Kernel, on, coming: Vec::new(), look: Instant::now() + LOOK }
    }

    /// The device has this peer with its endpoint, and a keepalive.
    pub fn called(&mut self, key: &PublicKey) {
        self.on.insert(key.0);
    }

    /// The device has this peer no more.
    pub fn forget(&mut self, key: &PublicKey) {
        self.on.remove(&key.0);
    }

    /// Whether a keepalive can be switched on later.
    pub fn switchable(&self) -> bool {
        self.switchable
    }

    /// A known peer has initiated a handshake.
    pub fn heard(&mut self, key: PublicKey, now: Instant) {
        if self.switchable && !self.on.contains(&key.0) && self.coming.iter().all(|(coming, _)| *coming != key) {
            self.coming.push((key, now + ANSWERED));
        }
    }

    /// Everyone whose keepalive is on and can be switched.
    pub fn on(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.on.iter().filter(|_| self.switchable)
    }

    fn next(&self) -> Option<Instant> {
        let look = (self.switchable && !self.on.is_empty()).then_some(self.look);
        self.coming.iter().map(|(_, due)| *due).chain(look).min()
    }
}

/// When [`Exit::tend_keepalives`] has something to do.
pub async fn due(keepalives: &Keepalives) {
    match keepalives.next() {
        Some(next) => tokio::time::sleep_until(next.into()).await,
        None => std::future::pending().await,
    }
}

impl Exit<'_> {
    /// Switches keepalives on for those who came, off for those who went silent.
    pub(super) fn tend_keepalives(&mut self, now: Instant, applier: &Applier) {
        let came: Vec<[u8; 32]> =
            self.keepalives.coming.extract_if(.., |(_, due)| *due <= now).map(|(key, _)| key.0).collect();
        // whoever was revoked meanwhile is not on the device, which ignores it
        self.set_keepalives(&came, tunnel::KEEPALIVE, applier);
        self.keepalives.on.extend(came);
        if now < self.keepalives.look {
            return;
        }
        self.keepalives.look = now + LOOK;
        let Ok(state) = self.wireguard.state(applier.interface()) else { return };
        let epoch = control::epoch();
        let gone = keepalive::given_up(&state.peers, &self.keepalives.on, epoch);
        tracing::debug!(peers = gone.len(), "silent peers are called no more");
        self.set_keepalives(&gone, 0, applier);
        for key in gone {
            self.keepalives.on.remove(&key);
        }
    }

    /// Sets the keepalive of these peers, in seconds.
    pub(super) fn set_keepalives(&mut self, keys: &[[u8; 32]], seconds: u16, applier: &Applier) {
        if keys.is_empty() {
            return;
        }
        let peer = |key: &[u8; 32]| PeerConfig {
            public_key: *key,
            update_only: true,
            keepalive: Some(seconds),
            ..PeerConfig::default()
        };
        let config = tunnel::peers(keys.iter().map(peer).collect());
        if let Err(error) = self.wireguard.configure(applier.interface(), &config) {
            tracing::warn!(%error, seconds, "peers' keepalives stay as they are");
        }
    }
}
