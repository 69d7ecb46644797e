//! Calling peers until they answer.
//!
//! - Hole punching by hand: `peers add PUBKEY@ENDPOINT` makes our side call the peer, so that its NAT and ours are
//!   opened by packets that cross (RFC 5128 §3.3).
//! - Newcomers: installing a peer with its endpoint makes our WireGuard initiate. Should it also still see the newcomer's
//!   own initiation, both sides end up as responders and each ignores the other's response, until somebody initiates anew.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Exit;
use super::admit::device_peer;
use crate::error::Failure;
use crate::join::connect::{ConnectString, Endpoint};
use crate::join::peers::{How, Peer, check_name};
use crate::key::PublicKey;
use crate::node::apply::Applier;
use crate::node::control::{PeerStatus, Response};
use crate::node::event::Output;
use crate::node::state;
use crate::tunnel;

/// WireGuard repeats an unanswered initiation after 5 s only; removing and adding the peer makes it call at once, but
/// forgets the call under way, so the time between calls doubles until it is longer than any round trip.
const CALL_AGAIN: Duration = Duration::from_millis(250);
/// A newcomer whose own initiation WireGuard answers is left alone for so long, two round trips by satellite and more, since
/// it may ask once again itself: a call would forget the session that is being made.
const ANSWERING: Duration = Duration::from_secs(2);
/// The longest time between calls.
const CALL_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Where many are called at once, each waits this much longer for every one of them: calling again undoes the handshakes
/// that only wait for their turn, about 1 ms of arithmetic each on either side.
const EACH: Duration = Duration::from_millis(5);
/// How long a peer is called this often; WireGuard goes on by itself.
const CALL_FOR: Duration = Duration::from_secs(60);

/// A peer that is called until it answers.
pub struct Call {
    key: PublicKey,
    endpoints: Vec<SocketAddr>,
    turn: usize,
    next: Instant,
    gap: Duration,
    gap_max: Duration,
    until: Instant,
    /// Handshakes from here on count as an answer; since the Unix epoch.
    since: Duration,
}

impl Call {
    /// The first call has just been made, to the first endpoint, with that many others under way.
    pub fn new(key: PublicKey, endpoints: Vec<SocketAddr>, others: usize) -> Call {
        let now = Instant::now();
        let (gap, gap_max) = (CALL_AGAIN + EACH * others as u32, CALL_AGAIN_MAX + EACH * others as u32);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Call { key, endpoints, turn: 1, next: now + gap, gap, gap_max, until: now + CALL_FOR, since }
    }
}

impl Call {
    /// Nobody was called yet: the peer's own initiation is being answered.
    pub fn unless_answered(self) -> Call {
        Call { turn: 0, next: self.next.max(Instant::now() + ANSWERING), ..self }
    }

    /// It calls another peer than this.
    pub fn is_not(&self, key: &PublicKey) -> bool {
        self.key != *key
    }
}

/// When the next call is due.
pub async fn due(calls: &[Call]) {
    match calls.iter().map(|call| call.next).min() {
        Some(next) => tokio::time::sleep_until(next.into()).await,
        None => std::future::pending().await,
    }
}

impl Exit<'_> {
    /// `peers add PUBKEY[@ENDPOINT]`; names are resolved by the asker.
    pub(super) fn add(
        &mut self,
        target: &str,
        name: Option<&str>,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Result<Response, Failure> {
        let (key, endpoints) = if target.contains('@') {
            let target: ConnectString = target.parse()?;
            (target.key, target.endpoints.iter().filter_map(Endpoint::socket_addr).collect())
        } else {
            (target.parse::<PublicKey>()?, Vec::new())
        };
        if key == self.key.public() {
            return Err(Failure::usage("that is this exit's own key", "give the key of the peer's connect string"));
        }
        if let Some(name) = name {
            check_name(name)?;
        }
        let new = self.store.get(&key).is_none();
        match self.store.get(&key).map(|peer| peer.tunnel_addresses) {
            Some(_) => {
                if let Some(name) = name {
                    self.store.rename(&key, Some(name))?;
                    self.peers.keep(&mut self.store)?;
                }
            }
            None => {
                let addresses = crate::join::address::peer_addresses(&self.key.public(), &key);
                self.admission.collision(&key, addresses)?;
                let peer = Peer {
                    name: name.map(str::to_owned),
                    endpoint: endpoints.first().copied().map(Endpoint::from),
                    ..Peer::new(key, addresses, How::Added, state::now())
                };
                self.let_in(vec![peer], None, applier, out)?;
            }
        }
        self.calls.retain(|call| call.key != key);
        if !endpoints.is_empty() {
            let mut call = Call::new(key, endpoints, 0);
            if !new {
                (call.turn, call.next) = (0, Instant::now());
            }
            self.met = true;
            self.calls.push(call);
            self.call(applier);
        }
        self.peer_answer(&key, new, applier)
    }

    /// A peer as it stands, for an answer. The device is asked only where it can know more than we do: it tells about
    /// everybody, however many.
    fn peer_answer(&mut self, key: &PublicKey, new: bool, applier: &Applier) -> Result<Response, Failure> {
        let gone = || Failure::new("the device lost the peer at once", "peervpn status shows who is in");
        if new {
            return self.store.get(key).map(PeerStatus::at_rest).map(Response::Accepted).ok_or_else(gone);
        }
        let status = self.status(applier)?;
        status.peers.into_iter().find(|p| p.public_key == *key).map(Response::Accepted).ok_or_else(gone)
    }

    /// Calls every peer whose turn it is and who has not answered.
    pub(super) fn call(&mut self, applier: &mut Applier) {
        let now = Instant::now();
        let interface = applier.interface().to_owned();
        let Ok(state) = self.wireguard.state(&interface) else {
            self.calls.clear();
            return;
        };
        let sessions: HashMap<_, _> = state.peers.iter().map(|peer| (peer.public_key, peer.last_handshake)).collect();
        let answered =
            |call: &Call| sessions.get(&call.key.0).is_some_and(|session| session.is_some_and(|at| at >= call.since));
        let store = &self.store;
        self.calls.retain(|call| call.until > now && !answered(call) && store.get(&call.key).is_some());
        let (mut removals, mut again) = (Vec::new(), Vec::new());
        for call in self.calls.iter_mut().filter(|call| call.next <= now) {
            let endpoint = call.endpoints[call.turn % call.endpoints.len()];
            call.turn += 1;
            call.gap = (call.gap * 2).min(call.gap_max);
            call.next = now + call.gap;
            tracing::debug!(peer = %call.key.peer_id(), remote = %endpoint, "calling");
            let Some(peer) = self.store.get(&call.key) else { continue };
            removals.push(tunnel::removal(&call.key));
            again.push(device_peer(peer, Some(endpoint)));
            self.keepalives.called(&call.key);
        }
        if removals.is_empty() {
            return;
        }
        let called = self
            .wireguard
            .configure(&interface, &tunnel::peers(removals))
            .and_then(|()| self.wireguard.configure(&interface, &tunnel::peers(again)));
        if let Err(error) = called {
            tracing::warn!(%error, "cannot call");
        }
    }
}
