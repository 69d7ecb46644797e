//! Invites as the exit keeps them: the public half of a slot's key, its preshared key, until when, and who came by it.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::{MAX_PEERS, Peer, PeerStore, PeersError, Revoked, check_name};
use crate::join::address;
use crate::key::{PresharedKey, PublicKey};

/// Most invites at a time, redeemed and expired ones that are still kept among them.
pub const MAX_INVITES: usize = 1000;

/// A slot that `peervpn connect` can redeem. Until then, and after it, its key opens nothing but the way to the control
/// service, from the address `door`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// Public half of the key in the invite.
    pub public_key: PublicKey,
    /// Name for whoever redeems it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The slot's own address, link-local: [`crate::join::address::door`].
    pub door: Ipv4Addr,
    /// Mixed into the slot's handshakes.
    pub preshared_key: PresharedKey,
    /// When it was made, in seconds since 1970.
    pub made_at: u64,
    /// When it stops being redeemable, in seconds since 1970.
    pub expires_at: u64,
    /// Any number of peers may redeem it.
    pub reusable: bool,
    /// Who came by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redeemed: Vec<PublicKey>,
    /// Those of `redeemed` that have not been heard with their own key yet: they may have to ask again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<PublicKey>,
}

impl Invite {
    /// Someone has redeemed it and nobody else can.
    pub fn is_spent(&self) -> bool {
        !self.reusable && !self.redeemed.is_empty()
    }

    /// Nothing can come of it any more: the slot may go.
    pub fn is_over(&self, now: u64) -> bool {
        now >= self.expires_at && self.unconfirmed.is_empty()
    }

    /// Whether it keeps this name for who will redeem it.
    pub(super) fn holds_name(&self, name: &str) -> bool {
        !self.reusable && self.redeemed.is_empty() && self.name.as_deref() == Some(name)
    }
}

/// What became of a redemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeemed {
    /// The key is a peer from now on.
    New,
    /// It was one before: the same answer again.
    Before,
}

impl PeerStore {
    /// Whether the invites that were read are as they may be; `names` has those of the peers.
    pub(super) fn check_invites<'a>(&'a self, mut names: HashSet<&'a str>) -> Result<(), PeersError> {
        if self.invites.len() > MAX_INVITES {
            return Err(PeersError::FullOfInvites);
        }
        let mut doors = HashSet::new();
        for (key, invite) in &self.invites {
            if invite.redeemed.len() > MAX_PEERS || invite.unconfirmed.iter().any(|k| !invite.redeemed.contains(k)) {
                return Err(PeersError::Invite(*key));
            }
            if self.peers.contains_key(key) || self.revoked.contains_key(key) {
                return Err(PeersError::DuplicateKey(*key));
            }
            if !address::is_door(invite.door) || !doors.insert(invite.door) {
                return Err(PeersError::Invite(*key));
            }
            if let Some(name) = &invite.name {
                check_name(name)?;
                if invite.holds_name(name) && !names.insert(name) {
                    return Err(PeersError::DuplicateName(name.clone()));
                }
            }
        }
        Ok(())
    }

    /// Every invite, sorted by key.
    pub fn invites(&self) -> impl ExactSizeIterator<Item = &Invite> {
        self.invites.values()
    }

    /// The invite with this slot key.
    pub fn invite(&self, slot: &PublicKey) -> Option<&Invite> {
        self.invites.get(slot)
    }

    /// The invite whose slot has this address.
    pub fn invite_at(&self, door: Ipv4Addr) -> Option<&Invite> {
        self.invites.values().find(|invite| invite.door == door)
    }

    /// The invite a person means: by peer ID or key of the slot, or by name.
    pub fn find_invite(&self, text: &str) -> Option<&Invite> {
        let text = text.trim();
        let means =
            |i: &&Invite| super::designates(text, &i.public_key) || (!i.is_spent() && i.name.as_deref() == Some(text));
        let mut fitting = self.invites.values().filter(means);
        match (fitting.next(), fitting.next()) {
            (found, None) => found,
            _ => None,
        }
    }

    /// Adds an invite. On an error nothing has changed.
    pub fn add_invite(&mut self, invite: Invite) -> Result<(), PeersError> {
        let key = invite.public_key;
        if self.peers.contains_key(&key) || self.revoked.contains_key(&key) || self.invites.contains_key(&key) {
            return Err(PeersError::DuplicateKey(key));
        }
        if self.invites.len() >= MAX_INVITES {
            return Err(PeersError::FullOfInvites);
        }
        if !address::is_door(invite.door) || self.invite_at(invite.door).is_some() {
            return Err(PeersError::Invite(key));
        }
        if let Some(name) = &invite.name {
            check_name(name)?;
            if invite.holds_name(name) {
                self.check_new_name(&key, Some(name))?;
            }
        }
        self.invites.insert(key, invite);
        self.changed.insert(key);
        Ok(())
    }

    /// Takes a slot back, an invite or a stock app's, and refuses its key from now on, as far as there is room to
    /// remember it: whoever holds it may knock for years. `now` in seconds since 1970.
    pub fn close_slot(&mut self, key: &PublicKey, now: u64) -> (Option<Invite>, Option<Peer>) {
        let slot = (self.invites.remove(key), self.peers.remove(key));
        if slot != (None, None) && self.revoked.len() < MAX_PEERS {
            self.revoked.insert(*key, Revoked { public_key: *key, name: None, revoked_at: now });
        }
        self.changed.insert(*key);
        slot
    }

    /// Makes `peer` a peer by this invite, in one step: the caller writes the file before it tells anyone. The peer's
    /// name is the invite's, numbered where that is taken. On an error nothing has changed.
    pub fn redeem(&mut self, slot: &PublicKey, mut peer: Peer) -> Result<(), PeersError> {
        let invite = self.invites.get(slot).ok_or_else(|| PeersError::Unknown(slot.to_string()))?.clone();
        let key = peer.public_key;
        if key == *slot {
            return Err(PeersError::DuplicateKey(key));
        }
        // its own name is free for it
        self.invites.remove(slot);
        peer.name = invite.name.as_deref().and_then(|name| self.free_name(name));
        let added = self.add(peer);
        let mut after = invite;
        if added.is_ok() {
            after.redeemed.push(key);
            after.unconfirmed.push(key);
        }
        self.invites.insert(*slot, after);
        self.changed.insert(*slot);
        added
    }

    /// `name`, or with a number behind it the first that is free.
    fn free_name(&self, name: &str) -> Option<String> {
        let numbered = (2..1000).map(|number| format!("{name}-{number}"));
        std::iter::once(name.to_owned())
            .chain(numbered)
            .find(|name| self.check_new_name(&PublicKey([0; 32]), Some(name)).is_ok())
    }

    /// A peer was heard with its own key: its redemption is complete. `true` if that was news.
    pub fn confirm(&mut self, key: &PublicKey) -> bool {
        let mut news = false;
        for (slot, invite) in &mut self.invites {
            let before = invite.unconfirmed.len();
            invite.unconfirmed.retain(|other| other != key);
            if invite.unconfirmed.len() != before {
                self.changed.insert(*slot);
                news = true;
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::address::peer_addresses;
    use crate::join::peers::How;

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn invite(number: u8, name: Option<&str>) -> Invite {
        Invite {
            public_key: key(number),
            name: name.map(str::to_owned),
            door: Ipv4Addr::new(169, 254, 7, number),
            preshared_key: PresharedKey::from_bytes([number; 32]),
            made_at: 100,
            expires_at: 200,
            reusable: false,
            redeemed: vec![],
            unconfirmed: vec![],
        }
    }

    fn peer(number: u8) -> Peer {
        Peer::new(key(number), peer_addresses(&key(1), &key(number)), How::Invite, 150)
    }

    #[test]
    fn an_invite_is_redeemed_once_and_survives_the_file() {
        let mut store = PeerStore::default();
        store.add_invite(invite(9, Some("Ann"))).unwrap();
        assert!(matches!(store.add_invite(invite(10, Some("Ann"))), Err(PeersError::DuplicateName(_))));
        assert!(matches!(store.add_invite(invite(9, None)), Err(PeersError::DuplicateKey(_))));
        let twice = Invite { public_key: key(11), ..invite(9, None) };
        assert!(matches!(store.add_invite(twice), Err(PeersError::Invite(_))), "two slots with one door");
        assert_eq!(PeerStore::parse(store.to_json().as_bytes()).unwrap(), store);

        store.redeem(&key(9), peer(20)).unwrap();
        assert_eq!(store.get(&key(20)).unwrap().name.as_deref(), Some("Ann"));
        let spent = store.invite_at(Ipv4Addr::new(169, 254, 7, 9)).unwrap();
        assert!(spent.is_spent() && !spent.is_over(300), "its peer may have to ask again");
        assert!(store.confirm(&key(20)) && !store.confirm(&key(20)));
        assert!(store.invite(&key(9)).unwrap().is_over(300) && !store.invite(&key(9)).unwrap().is_over(199));
        assert_eq!(PeerStore::parse(store.to_json().as_bytes()).unwrap(), store);
    }

    #[test]
    fn a_slot_that_was_taken_back_is_refused_from_then_on() {
        let mut store = PeerStore::default();
        store.add_invite(invite(9, Some("Ann"))).unwrap();
        store.add(peer(20)).unwrap();
        let before = store.clone();
        assert_eq!(store.close_slot(&key(30), 300), (None, None));
        assert_eq!(store, before, "no slot of ours");
        assert_eq!(store.close_slot(&key(9), 300).0, Some(invite(9, Some("Ann"))));
        assert_eq!(store.close_slot(&key(20), 300).1, Some(peer(20)));
        let store = PeerStore::parse(store.to_json().as_bytes()).unwrap();
        assert!(store.is_revoked(&key(9)) && store.is_revoked(&key(20)) && store.find_revoked("Ann").is_none());
    }

    #[test]
    fn a_refused_redemption_changes_nothing() {
        let mut store = PeerStore::default();
        store.add(peer(20)).unwrap();
        store.add_invite(invite(9, Some("Ann"))).unwrap();
        let before = store.clone();
        assert!(matches!(store.redeem(&key(9), peer(20)), Err(PeersError::DuplicateKey(_))));
        let same_address = Peer { tunnel_addresses: peer(20).tunnel_addresses, ..peer(21) };
        assert!(matches!(store.redeem(&key(9), same_address), Err(PeersError::DuplicateAddress { .. })));
        assert_eq!(store, before);
    }

    #[test]
    fn users_of_a_reusable_invite_are_numbered() {
        let mut store = PeerStore::default();
        store.add_invite(Invite { reusable: true, ..invite(9, Some("guest")) }).unwrap();
        for number in 20..23 {
            store.redeem(&key(9), peer(number)).unwrap();
        }
        let names: Vec<_> = store.peers().filter_map(|p| p.name.clone()).collect();
        assert_eq!(names, ["guest", "guest-2", "guest-3"]);
        assert!(!store.invite(&key(9)).unwrap().is_spent());
    }

    /// Version 1, as the first release wrote it.
    #[test]
    fn version_1_is_read() {
        let store = PeerStore::parse(include_bytes!("../../../tests/fixtures/peers-1.json")).unwrap();
        assert_eq!((store.peers().len(), store.revoked().len(), store.invites().len()), (2, 1, 0));
        let phone = store.find("phone").unwrap();
        assert_eq!((phone.how, phone.stock, &phone.preshared_key), (How::Accepted, false, &None));
        let text = store.to_json();
        assert!(text.starts_with("{\"version\":3,"));
        assert_eq!(PeerStore::parse(text.as_bytes()).unwrap(), store);
        // version 2 is version 3 without changes behind it, and gets none
        let second = text.replace("\"version\":3", "\"version\":2");
        let read = PeerStore::read(second.as_bytes()).unwrap();
        assert_eq!((read.store, read.extent), (store, None));
    }
}
