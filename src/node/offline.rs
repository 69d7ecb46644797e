//! `peervpn peers` while no node runs: the same requests, answered from the state directory. What is changed holds from
//! the next start of the exit.

use std::net::SocketAddr;

use peervpn_platform::os;

use super::control::{self, Changed, PeerStatus, PendingPeer, Request, Response};
use super::state;
use crate::config::Places;
use crate::error::Failure;
use crate::join::address::peer_addresses;
use crate::join::admission::{DENIED_FOR, PENDING_FOR};
use crate::join::peers::{How, Peer, PeerStore, PeersError, check_name, designates};
use crate::join::waiting::{Denied, Pending, Waiting};

/// Asks the running node, or where none runs, the state directory.
pub fn request(places: &Places, interface: Option<&str>, request: &Request) -> Result<Response, Failure> {
    if matches!(request, Request::PeersAdd { .. }) {
        return control::request(places, interface, request);
    }
    if let Some(answer) = control::request_if_running(places, interface, request)? {
        return Ok(answer);
    }
    // without a state directory there is nothing to answer from: let the usual error say so
    if !places.state_dir.is_dir() || !os::privileged() {
        return control::request(places, interface, request);
    }
    match request {
        Request::PeersList => Ok(Response::Peers { peers: State::new(places, state::peers(places)?).list() }),
        Request::PeersPending => Ok(Response::Pending { pending: State::new(places, state::peers(places)?).pending() }),
        _ => {
            let (mut file, peers) = state::PeersFile::own(places)?;
            State::new(places, peers).change(&mut file, places, request)
        }
    }
}

struct State {
    peers: PeerStore,
    waiting: Waiting,
    now: u64,
}

impl State {
    fn new(places: &Places, peers: PeerStore) -> State {
        let now = state::now();
        let mut waiting = state::waiting(places);
        waiting.pending.retain(|pending| now.saturating_sub(pending.last) < PENDING_FOR.as_secs());
        waiting.denied.retain(|denied| denied.until > now);
        State { peers, waiting, now }
    }

    fn list(&self) -> Vec<PeerStatus> {
        let invites = self.peers.invites().map(PeerStatus::of_invite);
        self.peers.peers().map(PeerStatus::at_rest).chain(invites).collect()
    }

    fn pending(&self) -> Vec<PendingPeer> {
        let mut pending: Vec<&Pending> = self.waiting.pending.iter().collect();
        pending.sort_by_key(|p| (p.since, p.public_key));
        let one = |p: &Pending| PendingPeer {
            peer_id: p.public_key.peer_id(),
            public_key: p.public_key,
            endpoint: p.endpoint.to_string(),
            since_s: self.now.saturating_sub(p.since),
        };
        pending.into_iter().map(one).collect()
    }

    fn change(mut self, file: &mut state::PeersFile, places: &Places, request: &Request) -> Result<Response, Failure> {
        let answer = match request {
            Request::PeersAccept { id, name } => self.accept(places, id, name.clone())?,
            Request::PeersDeny { id } => {
                let pending = self.take_pending(id)?;
                let until = self.now + DENIED_FOR.as_secs();
                self.waiting.denied.push(Denied { public_key: pending.public_key, until });
                Response::Changed(Changed::new("denied", pending.public_key, None))
            }
            Request::PeersRename { id, name } => {
                let key = self.peers.find(id)?.public_key;
                self.peers.rename(&key, name.as_deref())?;
                Response::Changed(Changed::new("renamed", key, name.clone()))
            }
            Request::PeersRevoke { id } => match self.peers.find(id).map(|peer| peer.public_key) {
                Ok(key) => {
                    let peer = self.peers.revoke(&key, self.now)?;
                    Response::Changed(Changed::new("revoked", key, peer.name))
                }
                Err(error) => {
                    let invite = self.peers.find_invite(id).ok_or(error)?.clone();
                    self.peers.close_slot(&invite.public_key, self.now);
                    Response::Changed(Changed::new("withdrawn", invite.public_key, invite.name))
                }
            },
            _ => return control::request(places, None, request),
        };
        file.keep(&mut self.peers)?;
        state::save_waiting(places, &self.waiting)?;
        Ok(answer)
    }

    /// A waiting peer, or one that was revoked.
    fn accept(&mut self, places: &Places, id: &str, name: Option<String>) -> Result<Response, Failure> {
        if let Some(name) = &name {
            check_name(name)?;
        }
        let exit = state::key_or_new(places)?.public();
        let (key, name, endpoint): (_, _, Option<SocketAddr>) = match self.take_pending(id) {
            Ok(pending) => (pending.public_key, name, Some(pending.endpoint)),
            Err(failure) => {
                let revoked = self.peers.find_revoked(id).ok_or(failure)?;
                (revoked.public_key, name.or_else(|| revoked.name.clone()), None)
            }
        };
        let addresses = peer_addresses(&exit, &key);
        let peer =
            Peer { name, endpoint: endpoint.map(Into::into), ..Peer::new(key, addresses, How::Accepted, self.now) };
        let status = PeerStatus::at_rest(&peer);
        self.peers.add(peer)?;
        Ok(Response::Accepted(status))
    }

    fn take_pending(&mut self, id: &str) -> Result<Pending, Failure> {
        let fitting: Vec<usize> = (0..self.waiting.pending.len())
            .filter(|index| designates(id.trim(), &self.waiting.pending[*index].public_key))
            .collect();
        match fitting[..] {
            [index] => Ok(self.waiting.pending.remove(index)),
            [] => Err(crate::join::admission::AdmissionError::NotPending(id.chars().take(64).collect()).into()),
            _ => Err(PeersError::Ambiguous(id.to_owned()).into()),
        }
    }
}
