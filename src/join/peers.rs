//! The peers file: who was let in, and who was thrown out. Pure: text in, text out; the caller keeps the file.
//!
//! ```json
//! {"version":3,
//! "peers":[
//! {"public_key":"…","name":"phone","tunnel_addresses":{"v4":"10.3.93.123","v6":"fd…"},"how":"accepted","added_at":1767225600,"endpoint":"203.0.113.10:40001","preshared_key":"…","stock":true,"use_by":1767312000}],
//! "revoked":[
//! {"public_key":"…","name":"old laptop","revoked_at":1767225600}],
//! "invites":[
//! {"public_key":"…","name":"Ann","door":"169.254.7.9","preshared_key":"…","made_at":1767225600,"expires_at":1767312000,"reusable":false,"redeemed":["…"],"unconfirmed":["…"]}]}
//! ```
//!
//! Behind this text stand the changes since it was written, a line each (`changes.rs`).
//!
//! Times are seconds since 1970. `name`, `endpoint`, `preshared_key`, `stock`, `use_by`, `redeemed`, `unconfirmed` may be
//! absent. Any other field, a second record of the same key, name or address, or a version this program doesn't know is
//! an error: half-understood files would lose peers when written again. Whoever adds a field raises [`VERSION`] and goes
//! on reading the older ones: version 1 had no invites and nothing behind `endpoint`, version 2 no changes behind it. The
//! same peers always give the same bytes. The file holds preshared keys: mode 0600.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::address::TunnelAddresses;
use super::connect::Endpoint;
use crate::key::{PresharedKey, PublicKey};

mod changes;
mod error;
mod invites;
mod names;

pub use error::PeersError;
pub use invites::{Invite, MAX_INVITES, Redeemed};
pub use names::{MAX_NAME, check_name, designates};

use names::digits;

/// Version of the format that is written.
pub const VERSION: u64 = 3;
/// Oldest version that is read.
const OLDEST: u64 = 1;
/// Most peers, and most revoked keys.
pub const MAX_PEERS: usize = 20_000;
/// Longest file in bytes: [`MAX_PEERS`] of each kind with the longest names take less.
pub const MAX_FILE: usize = 32 << 20;

/// How a peer was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// The operator accepted it.
    Accepted,
    /// `--accept any`.
    Any,
    /// By an invite.
    Invite,
    /// `peervpn peers add`.
    Added,
}

impl How {
    /// The word of the JSON events (cli.md).
    pub fn as_str(self) -> &'static str {
        match self {
            How::Accepted => "accepted",
            How::Any => "any",
            How::Invite => "invite",
            How::Added => "added",
        }
    }
}

/// A peer that was let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its static public key.
    pub public_key: PublicKey,
    /// What the operator calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its addresses inside the tunnel.
    pub tunnel_addresses: TunnelAddresses,
    /// How it was let in.
    pub how: How,
    /// When, in seconds since 1970.
    pub added_at: u64,
    /// Where it was last known to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// Mixed into its handshakes; of those who came by an invite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
    /// Its key was made here and given out in a wg-quick file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stock: bool,
    /// Nobody has used it so far; it is forgotten at this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_by: Option<u64>,
}

impl Peer {
    /// A peer without a name, endpoint or preshared key.
    pub fn new(public_key: PublicKey, tunnel_addresses: TunnelAddresses, how: How, added_at: u64) -> Self {
        Peer {
            public_key,
            name: None,
            tunnel_addresses,
            how,
            added_at,
            endpoint: None,
            preshared_key: None,
            stock: false,
            use_by: None,
        }
    }
}

/// A key that is never let in again, unless the operator adds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// The key.
    pub public_key: PublicKey,
    /// What the operator called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When, in seconds since 1970.
    pub revoked_at: u64,
}

fn check_addresses(peer: &Peer) -> Result<(), PeersError> {
    let TunnelAddresses { v4, v6 } = peer.tunnel_addresses;
    let bad_v4 = v4.is_unspecified() || v4.is_loopback() || v4.is_multicast() || v4 == Ipv4Addr::BROADCAST;
    let bad_v6 = v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.to_ipv4_mapped().is_some();
    let address = match (bad_v4, bad_v6) {
        (true, _) => IpAddr::V4(v4),
        (_, true) => IpAddr::V6(v6),
        _ => return Ok(()),
    };
    Err(PeersError::Address { peer: peer.public_key, address })
}

#[derive(Deserialize)]
struct AnyVersion {
    version: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u64,
    peers: Vec<Peer>,
    revoked: Vec<Revoked>,
    #[serde(default)]
    invites: Vec<Invite>,
}

/// What is in a peers file.
pub struct Read {
    /// The peers.
    pub store: PeerStore,
    /// Where changes can be written behind it; `None`: the file has to be written anew with the first one, since an older
    /// program wrote it, or its last line is torn.
    pub extent: Option<Extent>,
}

/// Lengths in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Of the file without the changes behind it.
    pub whole: usize,
    /// Of all of it.
    pub all: usize,
}

/// The peers, the revoked keys and the invites. A key is at most one of the three; names and tunnel addresses are unique.
#[derive(Debug, Clone, Default)]
pub struct PeerStore {
    peers: BTreeMap<PublicKey, Peer>,
    revoked: BTreeMap<PublicKey, Revoked>,
    invites: BTreeMap<PublicKey, Invite>,
    /// Keys that the file says something else about.
    changed: BTreeSet<PublicKey>,
}

impl PartialEq for PeerStore {
    fn eq(&self, other: &Self) -> bool {
        (&self.peers, &self.revoked, &self.invites) == (&other.peers, &other.revoked, &other.invites)
    }
}

impl Eq for PeerStore {}

impl PeerStore {
    /// Reads a peers file.
    pub fn parse(text: &[u8]) -> Result<Self, PeersError> {
        Ok(Self::read(text)?.store)
    }

    /// Reads a peers file, and tells how it can be gone on with.
    pub fn read(text: &[u8]) -> Result<Read, PeersError> {
        if text.len() > MAX_FILE {
            return Err(PeersError::TooLong(text.len()));
        }
        let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<File>();
        let read = stream.next().unwrap_or_else(|| serde_json::from_slice(text));
        let whole = stream.byte_offset();
        let file = read.map_err(|error| match other_version(text) {
            Some(version) => PeersError::Version(version),
            None => PeersError::Json(error),
        })?;
        if !(OLDEST..=VERSION).contains(&file.version) {
            return Err(PeersError::Version(file.version));
        }
        let behind = &text[whole..];
        if file.version < VERSION && !behind.trim_ascii().is_empty() {
            return Err(PeersError::Json(serde::de::Error::custom("trailing characters")));
        }
        let mut store = PeerStore::default();
        for peer in file.peers {
            if let Some(twice) = store.peers.insert(peer.public_key, peer) {
                return Err(PeersError::DuplicateKey(twice.public_key));
            }
        }
        for revoked in file.revoked {
            if let Some(twice) = store.revoked.insert(revoked.public_key, revoked) {
                return Err(PeersError::DuplicateKey(twice.public_key));
            }
        }
        for invite in file.invites {
            if let Some(twice) = store.invites.insert(invite.public_key, invite) {
                return Err(PeersError::DuplicateKey(twice.public_key));
            }
        }
        let lines = text[..whole].iter().filter(|byte| **byte == b'\n').count() + 1;
        let torn = store.replay(behind, lines)?;
        store.check()?;
        let extent =
            (file.version == VERSION && !torn && text.ends_with(b"\n")).then_some(Extent { whole, all: text.len() });
        Ok(Read { store, extent })
    }

    /// Whether everything that is unique is, and within bounds.
    fn check(&self) -> Result<(), PeersError> {
        if self.peers.len() > MAX_PEERS || self.revoked.len() > MAX_PEERS {
            return Err(PeersError::Full);
        }
        let mut names = HashSet::new();
        let mut v4 = HashSet::with_capacity(self.peers.len());
        let mut v6 = HashSet::with_capacity(self.peers.len());
        for peer in self.peers.values() {
            check_addresses(peer)?;
            let addresses = peer.tunnel_addresses;
            let twice = |address: IpAddr| Err(PeersError::DuplicateAddress { peer: peer.public_key, address });
            if !v4.insert(addresses.v4) {
                return twice(addresses.v4.into());
            }
            if !v6.insert(addresses.v6) {
                return twice(addresses.v6.into());
            }
            if let Some(name) = &peer.name {
                check_name(name)?;
                if !names.insert(name.as_str()) {
                    return Err(PeersError::DuplicateName(name.clone()));
                }
            }
        }
        for (key, revoked) in &self.revoked {
            if let Some(name) = &revoked.name {
                check_name(name)?;
            }
            if self.peers.contains_key(key) {
                return Err(PeersError::DuplicateKey(*key));
            }
        }
        self.check_invites(names)
    }

    /// Writes a peers file: one record a line, sorted by key. Wiped when dropped.
    pub fn to_json(&self) -> Zeroizing<String> {
        // room for all at once: a growing buffer would leave copies of secrets behind
        let room = 512 * (1 + self.peers.len() + self.revoked.len() + self.invites.len());
        let mut text = Zeroizing::new(String::with_capacity(room));
        text.push_str(&format!("{{\"version\":{VERSION},\n\"peers\":["));
        write_records(&mut text, self.peers.values());
        text.push_str("],\n\"revoked\":[");
        write_records(&mut text, self.revoked.values());
        text.push_str("],\n\"invites\":[");
        write_records(&mut text, self.invites.values());
        text.push_str("]}\n");
        text
    }

    /// Every peer, sorted by key.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = &Peer> {
        self.peers.values()
    }

    /// Every revoked key, sorted.
    pub fn revoked(&self) -> impl ExactSizeIterator<Item = &Revoked> {
        self.revoked.values()
    }

    /// The peer with this key.
    pub fn get(&self, key: &PublicKey) -> Option<&Peer> {
        self.peers.get(key)
    }

    /// Whether this key was revoked.
    pub fn is_revoked(&self, key: &PublicKey) -> bool {
        self.revoked.contains_key(key)
    }

    /// The peer a person means: by public key, peer ID (with or without hyphens) or name.
    pub fn find(&self, text: &str) -> Result<&Peer, PeersError> {
        let text = text.trim();
        if let Ok(key) = text.parse() {
            return self.peers.get(&key).ok_or_else(|| PeersError::Unknown(text.to_owned()));
        }
        if digits(text).is_some() {
            let mut fitting = self.peers.values().filter(|peer| designates(text, &peer.public_key));
            return match (fitting.next(), fitting.next()) {
                (Some(_), Some(_)) => Err(PeersError::Ambiguous(text.to_owned())),
                (Some(peer), None) => Ok(peer),
                _ => Err(PeersError::Unknown(text.to_owned())),
            };
        }
        let named = self.peers.values().find(|peer| peer.name.as_deref() == Some(text));
        named.ok_or_else(|| PeersError::Unknown(text.chars().take(MAX_NAME).collect()))
    }

    /// The revoked key a person means: by public key, peer ID or the name it had.
    pub fn find_revoked(&self, text: &str) -> Option<&Revoked> {
        let text = text.trim();
        let means = |key: &PublicKey, name: Option<&str>| designates(text, key) || name == Some(text);
        let mut fitting = self.revoked.values().filter(|r| means(&r.public_key, r.name.as_deref()));
        match (fitting.next(), fitting.next()) {
            (found, None) => found,
            _ => None,
        }
    }

    /// Lifts a revocation without letting the key in: it may ask again.
    pub fn pardon(&mut self, key: &PublicKey) -> bool {
        let lifted = self.revoked.remove(key).is_some();
        if lifted {
            self.changed.insert(*key);
        }
        lifted
    }

    /// The first of the peers was heard of: it stays. `false` if there is no such peer, or it was known.
    pub fn used(&mut self, key: &PublicKey) -> bool {
        let news = self.peers.get_mut(key).is_some_and(|peer| peer.use_by.take().is_some());
        if news {
            self.changed.insert(*key);
        }
        news
    }

    /// Whether nobody has this tunnel address.
    pub fn is_free(&self, addresses: &TunnelAddresses) -> bool {
        !self.peers.values().any(|p| p.tunnel_addresses.v4 == addresses.v4 || p.tunnel_addresses.v6 == addresses.v6)
    }

    /// Adds a peer; lifts a revocation of its key. On an error nothing has changed.
    pub fn add(&mut self, peer: Peer) -> Result<(), PeersError> {
        let key = peer.public_key;
        if self.peers.contains_key(&key) || self.invites.contains_key(&key) {
            return Err(PeersError::DuplicateKey(key));
        }
        if self.peers.len() >= MAX_PEERS {
            return Err(PeersError::Full);
        }
        check_addresses(&peer)?;
        for other in self.peers.values() {
            let (ours, theirs) = (peer.tunnel_addresses, other.tunnel_addresses);
            let shared = if ours.v4 == theirs.v4 {
                IpAddr::V4(ours.v4)
            } else if ours.v6 == theirs.v6 {
                IpAddr::V6(ours.v6)
            } else {
                continue;
            };
            return Err(PeersError::DuplicateAddress { peer: key, address: shared });
        }
        self.check_new_name(&key, peer.name.as_deref())?;
        self.revoked.remove(&key);
        self.peers.insert(key, peer);
        self.changed.insert(key);
        Ok(())
    }

    /// Forgets a peer, which may ask again.
    pub fn remove(&mut self, key: &PublicKey) -> Option<Peer> {
        self.changed.insert(*key);
        self.peers.remove(key)
    }

    /// Forgets a peer and refuses its key from now on (`now` in seconds since 1970).
    pub fn revoke(&mut self, key: &PublicKey, now: u64) -> Result<Peer, PeersError> {
        if !self.peers.contains_key(key) {
            return Err(PeersError::Unknown(key.to_string()));
        }
        if self.revoked.len() >= MAX_PEERS {
            return Err(PeersError::Full);
        }
        let peer = self.peers.remove(key).expect("looked up above");
        self.confirm(key);
        self.changed.insert(*key);
        self.revoked.insert(*key, Revoked { public_key: *key, name: peer.name.clone(), revoked_at: now });
        Ok(peer)
    }

    /// Gives a peer a name, or takes it away.
    pub fn rename(&mut self, key: &PublicKey, name: Option<&str>) -> Result<(), PeersError> {
        self.check_new_name(key, name)?;
        let peer = self.peers.get_mut(key).ok_or_else(|| PeersError::Unknown(key.to_string()))?;
        peer.name = name.map(str::to_owned);
        self.changed.insert(*key);
        Ok(())
    }

    /// Notes where a peer is; `false` if there is no such peer.
    pub fn set_endpoint(&mut self, key: &PublicKey, endpoint: Endpoint) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        if peer.endpoint.as_ref() != Some(&endpoint) {
            peer.endpoint = Some(endpoint);
            self.changed.insert(*key);
        }
        true
    }

    fn check_new_name(&self, key: &PublicKey, name: Option<&str>) -> Result<(), PeersError> {
        let Some(name) = name else { return Ok(()) };
        check_name(name)?;
        let taken = self.peers.values().any(|other| other.public_key != *key && other.name.as_deref() == Some(name))
            || self.invites.values().any(|invite| invite.holds_name(name));
        if taken { Err(PeersError::DuplicateName(name.to_owned())) } else { Ok(()) }
    }
}

/// The version of a file that this program does not know.
fn other_version(text: &[u8]) -> Option<u64> {
    let first = serde_json::Deserializer::from_slice(text).into_iter::<AnyVersion>().next()?;
    first.ok().map(|any| any.version).filter(|version| !(OLDEST..=VERSION).contains(version))
}

fn write_records<'a, T: Serialize + 'a>(text: &mut String, records: impl Iterator<Item = &'a T>) {
    for (index, record) in records.enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        let record = serde_json::to_string(record).expect("plain records always serialize");
        text.push_str(&Zeroizing::new(record));
    }
}

#[cfg(test)]
mod tests;
