//! `peers deny`, `rename` and `revoke`, lifting a revocation, and who waits from one run to the next.

use std::time::{Duration, Instant};

use peervpn_platform::Host as _;

use super::Exit;
use super::admit::routes;
use crate::error::{Failure, chain};
use crate::join::address::{exit_addresses, peer_addresses};
use crate::join::admission::{Admission, PENDING_FOR};
use crate::join::peers::{How, Peer};
use crate::join::waiting::{Denied, Pending, Waiting};
use crate::key::PublicKey;
use crate::node::apply::Applier;
use crate::node::control::{Changed, Response};
use crate::node::event::Output;
use crate::node::state;
use crate::tunnel::{self, wgquick};

/// Those who waited and who were denied, as the last run left them; its clock times become ours.
pub fn recall_waiting(admission: &mut Admission, waiting: &Waiting) {
    let (now, epoch) = (Instant::now(), state::now());
    for denied in &waiting.denied {
        let left = denied.until.saturating_sub(epoch).min(crate::join::admission::DENIED_FOR.as_secs());
        if left > 0 {
            admission.deny_until(denied.public_key, now + Duration::from_secs(left));
        }
    }
    for pending in &waiting.pending {
        if epoch.saturating_sub(pending.last) < PENDING_FOR.as_secs() {
            let since = now.checked_sub(Duration::from_secs(epoch.saturating_sub(pending.since))).unwrap_or(now);
            admission.wait_again(pending.public_key, pending.endpoint, since, now);
        }
    }
}

impl Exit<'_> {
    /// `peers deny`.
    pub(super) fn deny(&mut self, id: &str, now: Instant, out: &mut dyn Output) -> Result<Response, Failure> {
        let pending = self.admission.deny(id, now)?;
        self.decided(&pending.key, now, out);
        Ok(Response::Changed(Changed::new("denied", pending.key, None)))
    }

    /// `peers rename`.
    pub(super) fn rename(&mut self, id: &str, name: Option<&str>) -> Result<Response, Failure> {
        let peer = self.store.find(id)?;
        let (key, before) = (peer.public_key, peer.name.clone());
        self.store.rename(&key, name)?;
        if let Err(failure) = self.peers.keep(&mut self.store) {
            self.store.rename(&key, before.as_deref()).expect("the name it had is still free");
            return Err(failure);
        }
        Ok(Response::Changed(Changed::new("renamed", key, name.map(str::to_owned))))
    }

    /// `peers revoke`: when it returns, the device has no such peer. Someone who only waits is refused for good, too.
    pub(super) fn revoke(
        &mut self,
        id: &str,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Result<Response, Failure> {
        let peer = match self.store.find(id) {
            Ok(peer) => peer.clone(),
            Err(error) => return self.withdraw(id, applier).unwrap_or(Err(error.into())),
        };
        let key = peer.public_key;
        self.store.revoke(&key, state::now())?;
        self.admission.revoke(key);
        self.calls.retain(|call| call.is_not(&key));
        self.keepalives.forget(&key);
        // out first, remembered second: a full disk must not keep it in
        let interface = applier.interface().to_owned();
        let removed = self.wireguard.configure(&interface, &tunnel::peers(vec![tunnel::removal(&key)]));
        for route in routes(&interface, &peer.tunnel_addresses, applier.ipv6) {
            if let Err(error) = applier.host.delete_route(&route) {
                tracing::warn!(%error, "a route of a revoked peer stays");
            }
        }
        self.decided(&key, Instant::now(), out);
        self.peers.keep(&mut self.store).map_err(|failure| Failure {
            message: format!("{} is out, but would be in again after a restart: {}", key.peer_id(), failure.message),
            ..failure
        })?;
        removed.map_err(|error| {
            Failure::new(
                format!("{} is revoked, but its tunnel is still there: {}", key.peer_id(), chain(&error)),
                "start the exit anew: it will not let it in",
            )
        })?;
        Ok(Response::Changed(Changed::new("revoked", key, peer.name)))
    }

    /// `peers revoke` of an invite; `None` if there is no such invite.
    fn withdraw(&mut self, id: &str, applier: &mut Applier) -> Option<Result<Response, Failure>> {
        let invite = self.store.find_invite(id)?.clone();
        let key = invite.public_key;
        self.forget_slot(&key, applier);
        let saved = self.peers.keep(&mut self.store);
        Some(saved.map(|()| Response::Changed(Changed::new("withdrawn", key, invite.name))))
    }

    /// `peervpn export`.
    pub(super) fn export(&self, show_keys: bool) -> Response {
        let own = exit_addresses(&self.key.public());
        let peer = |peer: &Peer| wgquick::Peer {
            public_key: peer.public_key,
            preshared_key: peer.preshared_key.clone(),
            allowed_ips: peer.tunnel_addresses.allowed_ips().to_vec(),
            endpoint: peer.endpoint.as_ref().map(ToString::to_string),
        };
        let config = wgquick::Config {
            key: self.key.clone(),
            addresses: vec![own.v4.into(), own.v6.into()],
            dns: Vec::new(),
            mtu: self.mtu,
            listen_port: Some(self.port),
            peers: self.store.peers().map(peer).collect(),
        };
        Response::Export { wg_quick: config.render(show_keys).into() }
    }

    /// The peer that an accepted revoked key becomes.
    pub(super) fn pardoned(&self, id: &str) -> Option<Peer> {
        let revoked = self.store.find_revoked(id)?;
        let key = revoked.public_key;
        let addresses = peer_addresses(&self.key.public(), &key);
        let name = revoked.name.clone();
        Some(Peer { name, ..Peer::new(key, addresses, How::Accepted, state::now()) })
    }

    /// Remembers who waits and who was denied; that it can't is no reason to stop.
    pub(super) fn save_waiting(&mut self, now: Instant) {
        let epoch = state::now();
        let ago = |at: Instant| epoch.saturating_sub(now.saturating_duration_since(at).as_secs());
        let pending = self.admission.pending(now);
        let pending = pending.iter().map(|p| Pending {
            public_key: p.key,
            endpoint: p.source,
            since: ago(p.first_seen),
            last: ago(p.last_seen),
        });
        let denied = self.admission.denied(now).map(|(public_key, until): (PublicKey, Instant)| Denied {
            public_key,
            until: epoch + until.saturating_duration_since(now).as_secs(),
        });
        let waiting = Waiting::new(pending.collect(), denied.collect());
        if waiting == self.waiting {
            return;
        }
        match state::save_waiting(self.places, &waiting) {
            Ok(()) => self.waiting = waiting,
            Err(failure) => tracing::warn!(%failure, "who waits is not remembered"),
        }
    }
}
