//! The peers file: who was let in, and who was thrown out. Pure: text in, text out; the caller keeps the file.
//!
//! ```json
//! {"version":2,
//! "peers":[
//! {"public_key":"…","name":"phone","tunnel_addresses":{"v4":"10.3.93.123","v6":"fd…"},"how":"accepted","added_at":1767225600,"endpoint":"203.0.113.10:40001","preshared_key":"…","stock":true,"use_by":1767312000}],
//! "revoked":[
//! {"public_key":"…","name":"old laptop","revoked_at":1767225600}],
//! "invites":[
//! {"public_key":"…","name":"Ann","door":"169.254.7.9","preshared_key":"…","made_at":1767225600,"expires_at":1767312000,"reusable":false,"redeemed":["…"],"unconfirmed":["…"]}]}
//! ```
//!
//! Times are seconds since 1970. `name`, `endpoint`, `preshared_key`, `stock`, `use_by`, `redeemed`, `unconfirmed` may be
//! absent. Any other field, a second record of the same key, name or address, or a version this program doesn't know is
//! an error: half-understood files would lose peers when written again. Whoever adds a field raises [`VERSION`] and goes
//! on reading the older ones: version 1 had no invites and nothing behind `endpoint`. The same peers always give the
//! same bytes. The file holds preshared keys: mode 0600.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::address::TunnelAddresses;
use super::connect::Endpoint;
use crate::key::{PresharedKey, PublicKey};

mod error;
mod invites;
mod names;

pub use error::PeersError;
pub use invites::{Invite, MAX_INVITES, Redeemed};
pub use names::{MAX_NAME, check_name, designates};

use names::digits;

/// Version of the format that is written.
pub const VERSION: u64 = 2;
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
    #[serde(rename = "version")]
    _version: u64,
    peers: Vec<Peer>,
    revoked: Vec<Revoked>,
    #[serde(default)]
    invites: Vec<Invite>,
}

/// The peers and the revoked keys. A key is at most one of the two; names and tunnel addresses are unique.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStore {
    peers: BTreeMap<PublicKey, Peer>,
    revoked: BTreeMap<PublicKey, Revoked>,
    invites: BTreeMap<PublicKey, Invite>,
}

impl PeerStore {
    /// Reads a peers file.
    pub fn parse(text: &[u8]) -> Result<Self, PeersError> {
        if text.len() > MAX_FILE {
            return Err(PeersError::TooLong(text.len()));
        }
        let AnyVersion { version } = serde_json::from_slice(text).map_err(PeersError::Json)?;
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(PeersError::Version(version));
        }
        let file: File = serde_json::from_slice(text).map_err(PeersError::Json)?;
        if file.peers.len() > MAX_PEERS || file.revoked.len() > MAX_PEERS {
            return Err(PeersError::Full);
        }
        let mut store = PeerStore::default();
        let mut names = HashSet::new();
        let mut addresses = HashSet::new();
        for peer in file.peers {
            check_addresses(&peer)?;
            for address in peer.tunnel_addresses.to_vec() {
                if !addresses.insert(address) {
                    return Err(PeersError::DuplicateAddress { peer: peer.public_key, address });
                }
            }
            if let Some(name) = &peer.name {
                check_name(name)?;
                if !names.insert(name.clone()) {
                    return Err(PeersError::DuplicateName(name.clone()));
                }
            }
            if let Some(twice) = store.peers.insert(peer.public_key, peer) {
                return Err(PeersError::DuplicateKey(twice.public_key));
            }
        }
        for revoked in file.revoked {
            if let Some(name) = &revoked.name {
                check_name(name)?;
            }
            let key = revoked.public_key;
            if store.peers.contains_key(&key) || store.revoked.insert(key, revoked).is_some() {
                return Err(PeersError::DuplicateKey(key));
            }
        }
        store.read_invites(file.invites)?;
        Ok(store)
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
        self.revoked.remove(key).is_some()
    }

    /// The first of the peers was heard of: it stays. `false` if there is no such peer, or it was known.
    pub fn used(&mut self, key: &PublicKey) -> bool {
        self.peers.get_mut(key).is_some_and(|peer| peer.use_by.take().is_some())
    }

    /// Whether nobody has this tunnel address.
    pub fn is_free(&self, addresses: &TunnelAddresses) -> bool {
        !self.peers.values().any(|p| p.tunnel_addresses.v4 == addresses.v4 || p.tunnel_addresses.v6 == addresses.v6)
    }

    /// Adds a peer; lifts a revocation of its key. On an error nothing has changed.
    pub fn add(&mut self, peer: Peer) -> Result<(), PeersError> {
        let key = peer.public_key;
        if self.peers.contains_key(&key) {
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
        Ok(())
    }

    /// Forgets a peer, which may ask again.
    pub fn remove(&mut self, key: &PublicKey) -> Option<Peer> {
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
        self.revoked.insert(*key, Revoked { public_key: *key, name: peer.name.clone(), revoked_at: now });
        Ok(peer)
    }

    /// Gives a peer a name, or takes it away.
    pub fn rename(&mut self, key: &PublicKey, name: Option<&str>) -> Result<(), PeersError> {
        self.check_new_name(key, name)?;
        let peer = self.peers.get_mut(key).ok_or_else(|| PeersError::Unknown(key.to_string()))?;
        peer.name = name.map(str::to_owned);
        Ok(())
    }

    /// Notes where a peer is; `false` if there is no such peer.
    pub fn set_endpoint(&mut self, key: &PublicKey, endpoint: Endpoint) -> bool {
        match self.peers.get_mut(key) {
            Some(peer) => {
                peer.endpoint = Some(endpoint);
                true
            }
            None => false,
        }
    }

    fn check_new_name(&self, key: &PublicKey, name: Option<&str>) -> Result<(), PeersError> {
        let Some(name) = name else { return Ok(()) };
        check_name(name)?;
        let taken = self.peers.values().any(|other| other.public_key != *key && other.name.as_deref() == Some(name))
            || self.invites.values().any(|invite| invite.holds_name(name));
        if taken { Err(PeersError::DuplicateName(name.to_owned())) } else { Ok(()) }
    }
}

fn write_records<'a, T: Serialize + 'a>(text: &mut String, records: impl Iterator<Item = &'a T>) {
    for (index, record) in records.enumerate() {
        text.push_str(if index == 0 { "\n" } else { ",\n" });
        let record = serde_json::to_string(record).expect("plain records always serialize");
        text.push_str(&Zeroizing::new(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Failure;
    use crate::error::{Hint as _, Status};
    use crate::join::address::peer_addresses;

    fn key(number: u32) -> PublicKey {
        let mut key = PublicKey([7; 32]);
        key.0[..4].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn peer(number: u32) -> Peer {
        Peer {
            public_key: key(number),
            name: None,
            tunnel_addresses: peer_addresses(&PublicKey([1; 32]), &key(number)),
            how: How::Accepted,
            added_at: 1_767_225_600,
            endpoint: Some("[2001:db8::1]:40001".parse().unwrap()),
            preshared_key: None,
            stock: false,
            use_by: None,
        }
    }

    fn store(peers: impl IntoIterator<Item = Peer>) -> PeerStore {
        let mut store = PeerStore::default();
        peers.into_iter().for_each(|peer| store.add(peer).unwrap());
        store
    }

    #[test]
    fn the_format_is_what_is_documented() {
        let mut store = store([Peer { name: Some("phone".into()), ..peer(2) }, Peer { endpoint: None, ..peer(1) }]);
        store.revoke(&key(1), 1_767_225_601).unwrap();
        let text = store.to_json();
        let (v4, v6) = (peer(2).tunnel_addresses.v4, peer(2).tunnel_addresses.v6);
        assert_eq!(
            *text,
            format!(
                "{{\"version\":2,\n\"peers\":[\n{{\"public_key\":\"{}\",\"name\":\"phone\",\"tunnel_addresses\":\
                 {{\"v4\":\"{v4}\",\"v6\":\"{v6}\"}},\"how\":\"accepted\",\"added_at\":1767225600,\
                 \"endpoint\":\"[2001:db8::1]:40001\"}}],\n\"revoked\":[\n{{\"public_key\":\"{}\",\
                 \"revoked_at\":1767225601}}],\n\"invites\":[]}}\n",
                key(2),
                key(1)
            )
        );
        assert_eq!(PeerStore::parse(text.as_bytes()).unwrap(), store);
        let empty = PeerStore::default();
        assert_eq!(PeerStore::parse(empty.to_json().as_bytes()).unwrap(), empty);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        assert_eq!(store([peer(1), peer(2), peer(3)]).to_json(), store([peer(3), peer(1), peer(2)]).to_json());
    }

    #[test]
    fn ten_thousand_peers_are_read_and_written() {
        let mut many = PeerStore::default();
        // straight into the map: adding one by one compares each with all others
        let mut taken = HashSet::new();
        for peer in (0..10_100).map(peer).filter(|peer| taken.insert(peer.tunnel_addresses.v4)).take(10_000) {
            many.peers.insert(peer.public_key, peer);
        }
        for (number, peer) in many.peers.values_mut().enumerate() {
            peer.name = Some(format!("peer number {number}"));
        }
        assert_eq!(many.peers.len(), 10_000);
        let text = many.to_json();
        let read = PeerStore::parse(text.as_bytes()).unwrap();
        assert_eq!(read, many);
        assert_eq!(read.find("peer number 9999").unwrap().name.as_deref(), Some("peer number 9999"));
    }

    #[test]
    fn bad_files_are_refused_with_a_hint() {
        let good = store([Peer { name: Some("a".into()), ..peer(1) }, Peer { name: Some("b".into()), ..peer(2) }]);
        let good = good.to_json();
        let v4 = |number| peer(number).tunnel_addresses.v4.to_string();
        let cases = [
            ("", "the peers file cannot be read: EOF", "mend peers.json"),
            ("[]", "the peers file cannot be read: ", "mend peers.json"),
            (&good[..good.len() / 2], "the peers file cannot be read: ", "mend peers.json"),
            ("{\"version\":3,\"what\":0}", "the peers file has version 3, this program knows 2", "a newer peervpn"),
            (&good.replace("\"how\"", "\"who\""), "the peers file cannot be read: unknown field `who`", "mend"),
            (&good.replace("accepted", "guessed"), "the peers file cannot be read: unknown variant", "mend"),
            (&good.replace(&key(1).to_string(), "AAAA"), "the peers file cannot be read: a key has 44", "mend"),
            (&good.replace(&key(1).to_string(), &key(2).to_string()), "peer ", "peervpn peers list"),
            (&good.replace("\"a\"", "\"b\""), "another peer has the name \"b\"", "choose another name"),
            (&good.replace("\"a\"", "\"a\\u0007\""), "\"a\\u{7}\" is no peer name: it has a character", "choose"),
            (&good.replace(&v4(1), &v4(2)), "peer ", "let the new peer connect with an invite"),
            (&good.replace(&v4(1), "127.0.0.1"), "peer ", "mend its tunnel_addresses"),
            (&good.replace(&v4(1), "10.0.0"), "the peers file cannot be read: invalid IPv4", "mend"),
            (
                &good.replace(
                    "\"revoked\":[",
                    &format!("\"revoked\":[{{\"public_key\":\"{}\",\"revoked_at\":1}}", key(1)),
                ),
                "peer ",
                "peervpn peers list",
            ),
            (&good.replace("[2001:db8::1]", "2001:db8::1"), "the peers file cannot be read: endpoint", "mend"),
            (&format!("{}x", *good), "the peers file cannot be read: trailing characters", "mend"),
        ];
        for (text, message, hint) in cases {
            let failure = Failure::from(PeerStore::parse(text.as_bytes()).expect_err(text));
            assert!(failure.message.starts_with(message), "{}", failure.message);
            assert!(failure.hint.as_deref().unwrap().starts_with(hint), "{} {:?}", failure.message, failure.hint);
        }
        assert!(matches!(PeerStore::parse(&vec![b' '; MAX_FILE + 1]), Err(PeersError::TooLong(_))));
    }

    #[test]
    fn a_peer_is_found_by_key_id_and_name() {
        let store = store([Peer { name: Some("Ann's phone".into()), ..peer(1) }, peer(2)]);
        let id = key(1).peer_id();
        for text in [key(1).to_string(), id.clone(), id.replace('-', ""), format!(" {id} "), "Ann's phone".to_owned()] {
            assert_eq!(store.find(&text).unwrap().public_key, key(1), "{text}");
        }
        for text in ["", "ann's phone", &key(3).to_string(), &key(3).peer_id(), &id[..13]] {
            assert!(matches!(store.find(text), Err(PeersError::Unknown(_))), "{text}");
        }
    }

    #[test]
    fn adding_revoking_and_renaming_keep_everything_unique() {
        let mut store = store([Peer { name: Some("a".into()), ..peer(1) }, peer(2)]);
        let before = store.clone();
        assert!(matches!(store.add(peer(1)), Err(PeersError::DuplicateKey(_))));
        let same_name = Peer { name: Some("a".into()), ..peer(3) };
        assert!(matches!(store.add(same_name), Err(PeersError::DuplicateName(_))));
        let same_address = Peer { tunnel_addresses: peer(2).tunnel_addresses, ..peer(3) };
        assert!(matches!(store.add(same_address), Err(PeersError::DuplicateAddress { .. })));
        assert!(matches!(store.rename(&key(2), Some("a")), Err(PeersError::DuplicateName(_))));
        assert!(matches!(store.rename(&key(9), Some("z")), Err(PeersError::Unknown(_))));
        assert!(matches!(store.revoke(&key(9), 0), Err(PeersError::Unknown(_))));
        assert_eq!(store, before, "a refused change changed something");

        store.rename(&key(1), Some("a")).unwrap();
        store.rename(&key(2), Some("b")).unwrap();
        assert_eq!(store.revoke(&key(2), 5).unwrap().name.as_deref(), Some("b"));
        assert!(store.is_revoked(&key(2)) && store.get(&key(2)).is_none());
        store.rename(&key(1), Some("b")).unwrap();
        store.add(peer(2)).unwrap();
        assert!(!store.is_revoked(&key(2)), "added by the operator again");
        assert_eq!(store.remove(&key(2)), Some(peer(2)));
        assert!(!store.is_revoked(&key(2)));
    }

    #[test]
    fn names_are_printable() {
        let long = "ä".repeat(MAX_NAME);
        for name in ["a", "Ann's phone", "büro 2", "电话", &long] {
            check_name(name).unwrap();
        }
        let (key_like, id_like, longer) = (key(1).to_string(), key(1).peer_id(), format!("{long}a"));
        for name in ["", " a", "a\n", "a\tb", "\u{1b}[31m", "a\u{202e}b", "\u{feff}", &key_like, &id_like, &longer] {
            let error = check_name(name).expect_err(name);
            assert_eq!(error.status(), Status::Usage);
            assert!(!error.to_string().contains(['\n', '\u{1b}', '\u{202e}']), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            proptest::prop_assert!(PeerStore::parse(text.as_bytes()).is_err());
        }

        #[test]
        fn a_changed_byte_never_reads_as_something_else_silently(at in 0usize..600, byte in 0u8..=255) {
            let text = store([peer(1), peer(2)]).to_json();
            let mut bytes = text.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(read) = PeerStore::parse(&bytes) {
                proptest::prop_assert_eq!(PeerStore::parse(read.to_json().as_bytes()).unwrap(), read);
            }
        }
    }
}
