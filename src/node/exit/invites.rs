//! Invites on a running exit: making them, the control service's answers, and their end.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use peervpn_platform::Host as _;
use peervpn_platform::types::{PeerConfig, RouteKind};

use super::Exit;
use super::admit::{device_peer, routes};
use crate::config::ExitDns;
use crate::error::Failure;
use crate::join::address::{TunnelAddresses, exit_addresses};
use crate::join::admission::Admission;
use crate::join::peers::{How, Invite, MAX_PEERS, Peer, PeerStore};
use crate::join::service::{self, Answer, Refusal, Request, Settings};
use crate::key::{PresharedKey, PublicKey};
use crate::node::alarm::Alarm;
use crate::node::apply::Applier;
use crate::node::control::Response;
use crate::node::event::{Event, Output};
use crate::node::invite::{self, Terms, Wanted};
use crate::node::state;
use crate::tunnel;

/// After an initiation by someone who has an invite, the device shall have had the packet that completes the handshake.
const COMPLETE: Duration = Duration::from_secs(2);

/// When to look who has used an invite, and what has expired.
pub struct Tending {
    alarm: Alarm,
    /// The next one expires.
    over: Option<Instant>,
    /// Someone may have used one.
    heard: Option<Instant>,
}

impl Tending {
    /// Nothing to look for yet.
    pub fn new() -> Tending {
        Tending { alarm: Alarm::new(), over: None, heard: None }
    }

    /// Look now. Can be dropped and called again at any time.
    pub async fn due(&mut self) {
        match self.over.into_iter().chain(self.heard).min() {
            Some(due) => drop(self.alarm.until(due).await),
            None => std::future::pending().await,
        }
    }
}

/// A slot as the device is to have it: its key opens the way from its door to us, and nothing else.
pub fn device_slot(invite: &Invite) -> PeerConfig {
    PeerConfig {
        public_key: invite.public_key.0,
        preshared_key: Some(invite.preshared_key.secret()),
        replace_allowed_ips: true,
        allowed_ips: vec![IpAddr::V4(invite.door).into()],
        ..PeerConfig::default()
    }
}

/// The route to a slot's door.
pub fn route_to_door(interface: &str, invite: &Invite) -> peervpn_platform::types::Route {
    // v6 is not asked for: a door has none
    let addresses = TunnelAddresses { v4: invite.door, v6: std::net::Ipv6Addr::UNSPECIFIED };
    let route = routes(interface, &addresses, false).into_iter().next().expect("one for the v4");
    debug_assert_eq!(route.kind, RouteKind::Unicast);
    route
}

/// Nothing need be decided about the keys of slots.
pub fn know_slots(admission: &mut Admission, store: &PeerStore) {
    for invite in store.invites() {
        know_slot(admission, invite);
    }
}

fn know_slot(admission: &mut Admission, invite: &Invite) {
    let v6 = invite.door.to_ipv6_mapped();
    admission.know(invite.public_key, TunnelAddresses { v4: invite.door, v6 });
}

impl Exit<'_> {
    /// `peervpn invite`.
    pub(super) fn invite(&mut self, wanted: &Wanted, applier: &mut Applier) -> Result<Response, Failure> {
        let before = self.store.clone();
        let terms = Terms {
            exit: self.key.public(),
            endpoints: self.endpoints.iter().filter_map(|text| text.parse().ok()).collect(),
            dns: self.dns_for_peers(),
            mtu: self.mtu,
        };
        let (made, key) = invite::make(&mut self.store, &terms, wanted, state::now())?;
        let installed = self.install_slot(&key, applier).and_then(|()| self.peers.keep(&mut self.store));
        if let Err(failure) = installed {
            self.store = before;
            let _ = self.wireguard.configure(applier.interface(), &tunnel::peers(vec![tunnel::removal(&key)]));
            self.admission.forget(&key);
            return Err(failure);
        }
        Ok(Response::Invite(Box::new(made)))
    }

    fn install_slot(&mut self, key: &PublicKey, applier: &mut Applier) -> Result<(), Failure> {
        let interface = applier.interface().to_owned();
        if let Some(peer) = self.store.get(key) {
            self.wireguard.configure(&interface, &tunnel::peers(vec![device_peer(peer, None)]))?;
            applier.host.add_routes(&routes(&interface, &peer.tunnel_addresses, applier.ipv6))?;
            self.admission.know(*key, peer.tunnel_addresses);
        } else if let Some(invite) = self.store.invite(key) {
            self.wireguard.configure(&interface, &tunnel::peers(vec![device_slot(invite)]))?;
            applier.host.add_route(&route_to_door(&interface, invite))?;
            know_slot(&mut self.admission, invite);
        }
        Ok(())
    }

    fn dns_for_peers(&self) -> Vec<IpAddr> {
        match &self.options.dns {
            ExitDns::None => Vec::new(),
            _ => {
                let own = exit_addresses(&self.key.public());
                vec![own.v4.into(), own.v6.into()]
            }
        }
    }

    /// What the control service answers to whoever has this tunnel address.
    pub(super) fn service(
        &mut self,
        from: IpAddr,
        request: &Request,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Answer {
        let answer = match request {
            Request::About => self.about(from),
            Request::Redeem { exit, key, proof } => self.redeem(from, exit, key, proof, applier, out),
        };
        match answer {
            Ok(settings) => Answer::You(settings),
            Err(why) => Answer::Refused { why },
        }
    }

    fn about(&self, from: IpAddr) -> Result<Settings, Refusal> {
        let peer = self.store.peers().find(|p| p.tunnel_addresses.to_vec().contains(&from)).ok_or(Refusal::Unknown)?;
        Ok(Settings { preshared_key: None, ..self.settings(peer) })
    }

    fn settings(&self, peer: &Peer) -> Settings {
        Settings {
            tunnel_addresses: peer.tunnel_addresses,
            preshared_key: peer.preshared_key.clone(),
            dns: self.dns_for_peers(),
            mtu: self.mtu,
            endpoints: self.endpoints.iter().filter_map(|text| text.parse().ok()).collect(),
            ipv6: self.ipv6,
        }
    }

    /// Puts the asker's own key in the invite's place. Writing the peers file is the moment from which it is a peer:
    /// before it nothing has changed; after it a restart installs it even if we die before the device knows it. Asking
    /// again with the same key gives the same answer.
    fn redeem(
        &mut self,
        from: IpAddr,
        exit: &PublicKey,
        key: &PublicKey,
        proof: &str,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Result<Settings, Refusal> {
        let IpAddr::V4(door) = from else { return Err(Refusal::Unknown) };
        let invite = self.store.invite_at(door).ok_or(Refusal::Unknown)?;
        let slot = invite.public_key;
        if *exit != self.key.public() {
            return Err(Refusal::OtherExit);
        }
        if !service::is_proven(&self.key, &slot, key, proof) {
            return Err(Refusal::Proof);
        }
        if self.store.is_revoked(key) {
            return Err(Refusal::Revoked);
        }
        if let Some(peer) = self.store.get(key) {
            // once more, in case that the device refused it before
            let config = tunnel::peers(vec![device_peer(peer, None)]);
            self.wireguard.configure(applier.interface(), &config).map_err(|_| Refusal::Failed)?;
            return Ok(self.settings(peer));
        }
        if invite.is_spent() {
            return Err(Refusal::Spent);
        }
        let now = state::now();
        if now >= invite.expires_at {
            return Err(Refusal::Expired);
        }
        if self.store.peers().len() >= MAX_PEERS {
            return Err(Refusal::Full);
        }
        let addresses = invite::free_addresses(&self.store, exit, key).ok_or(Refusal::Full)?;
        let peer =
            Peer { preshared_key: Some(PresharedKey::generate()), ..Peer::new(*key, addresses, How::Invite, now) };
        let before = self.store.clone();
        let stored =
            self.store.redeem(&slot, peer).map_err(Failure::from).and_then(|()| self.peers.keep(&mut self.store));
        if let Err(failure) = stored {
            tracing::warn!(%failure, "an invite could not be redeemed");
            self.store = before;
            return Err(Refusal::Failed);
        }
        if let Err(failure) = self.install_slot(key, applier) {
            // the file says it is a peer, so it must not be forgotten again: the asker may have heard of it before a
            // crash. It is one from the next start on.
            out.event(&Event::Warning(format!(
                "{} joined, but not the device yet: {}",
                key.peer_id(),
                failure.message
            )));
            return Err(Refusal::Failed);
        }
        self.decided(key, Instant::now(), out);
        out.event(&Event::Joined {
            peer_id: key.peer_id(),
            public_key: *key,
            tunnel_addresses: addresses.to_vec(),
            how: How::Invite.as_str(),
        });
        self.store.get(key).map(|peer| self.settings(peer)).ok_or(Refusal::Failed)
    }

    /// Looks again when the next invite or unused slot expires. To be called when the store has changed.
    pub(super) fn plan_tending(&mut self) {
        let now = state::now();
        let invites = self.store.invites().filter(|invite| invite.unconfirmed.is_empty()).map(|i| i.expires_at);
        let next = invites.chain(self.store.peers().filter_map(|peer| peer.use_by)).min();
        self.tending.over = next.map(|at| Instant::now() + Duration::from_secs(at.saturating_sub(now)));
    }

    /// Someone known has initiated: perhaps the first use of a slot, or of a redeemed invite.
    pub(super) fn heard(&mut self, key: &PublicKey, now: Instant) {
        let slot = self.store.get(key).is_some_and(|peer| peer.use_by.is_some());
        if slot || self.store.invites().any(|invite| invite.unconfirmed.contains(key)) {
            self.tending.heard.get_or_insert(now + COMPLETE);
        }
    }

    /// Looks who has used an invite, and takes away what is over.
    pub(super) fn tend_invites(&mut self, applier: &mut Applier) {
        let now = state::now();
        let Ok(state) = self.wireguard.state(applier.interface()) else {
            self.tending.heard = Some(Instant::now() + COMPLETE);
            return;
        };
        self.tending.heard = None;
        let mut news = false;
        for heard in state.peers.iter().filter(|peer| peer.last_handshake.is_some()) {
            let key = PublicKey(heard.public_key);
            news |= self.store.used(&key) | self.store.confirm(&key);
        }
        let over = self.store.invites().filter(|invite| invite.is_over(now)).map(|invite| invite.public_key);
        let unused = self.store.peers().filter(|peer| peer.use_by.is_some_and(|until| now >= until));
        let over: Vec<PublicKey> = over.chain(unused.map(|peer| peer.public_key)).collect();
        for key in &over {
            self.forget_slot(key, applier);
        }
        if (news || !over.is_empty())
            && let Err(failure) = self.peers.keep(&mut self.store)
        {
            tracing::warn!(%failure, "what became of invites is not remembered");
        }
        self.plan_tending();
    }

    /// Takes a slot off the device and out of the store. Nobody is asked about its key again.
    pub(super) fn forget_slot(&mut self, key: &PublicKey, applier: &mut Applier) {
        let interface = applier.interface().to_owned();
        if let Err(error) = self.wireguard.configure(&interface, &tunnel::peers(vec![tunnel::removal(key)])) {
            tracing::warn!(%error, "an expired slot stays on the device");
        }
        let gone = match self.store.close_slot(key, state::now()) {
            (Some(invite), _) => vec![route_to_door(&interface, &invite)],
            (None, Some(peer)) => routes(&interface, &peer.tunnel_addresses, applier.ipv6),
            (None, None) => Vec::new(),
        };
        for route in gone {
            if let Err(error) = applier.host.delete_route(&route) {
                tracing::warn!(%error, "a route of an expired slot stays");
            }
        }
        self.keepalives.forget(key);
        self.admission.revoke(*key);
    }
}
