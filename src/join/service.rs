//! The control service of an exit: what its peers can ask it, inside the tunnel.
//!
//! TCP, port [`PORT`], on the exit's tunnel addresses only. Each connection carries one request and one answer, each
//! one line of JSON that ends with `\n`; then the exit closes it. A request has at most [`MAX_REQUEST`] bytes, an answer
//! [`MAX_ANSWER`]. Who asks is known by the source address, which WireGuard lets only the holder of that address's key
//! use. A reader ignores fields that it doesn't know; a request with another `v`, or another `ask`, is answered with
//! `{"v":1,"answer":"refused","why":"newer"}`.
//!
//! | request | from | answer |
//! |---|---|---|
//! | `{"v":1,"ask":"about"}` | a peer | `you` |
//! | `{"v":1,"ask":"redeem","exit":KEY,"key":KEY,"proof":HEX}` | the door of an invite | `you`, with `preshared_key` |
//!
//! ```json
//! {"v":1,"answer":"you","tunnel_addresses":{"v4":"10.3.93.123","v6":"fd…"},"preshared_key":"…","dns":["10.9.8.7"],"mtu":1420,"endpoints":["203.0.113.20:51820"],"ipv6":true}
//! {"v":1,"answer":"refused","why":"spent"}
//! ```
//!
//! `redeem` makes `key` a peer of `exit` in place of the invite's key. `proof` shows that the asker holds the private half
//! of `key`: SHA-256 over `"peervpn redeem v1"`, X25519 of that half and the exit's key, and the public keys of exit, slot
//! and peer, in hex. Asking again with the same key gives the same answer; with another key, `spent`.
//! `why` is `expired`, `spent`, `other-exit`, `revoked`, `full`, `proof`, `unknown` (the source is no peer), `failed` (the
//! exit could not store it; nothing has changed) or `newer`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::address::TunnelAddresses;
use super::connect::{Endpoint, MAX_ENDPOINTS};
use super::invite::InviteError;
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// TCP port of the service.
pub const PORT: u16 = 51820;
/// Longest request in bytes, with its newline.
pub const MAX_REQUEST: usize = 512;
/// Longest answer in bytes, with its newline: as many endpoints as a connect string has, names of the greatest length.
pub const MAX_ANSWER: usize = 8192;

const VERSION: u32 = 1;
const PROOF_LABEL: &[u8] = b"peervpn redeem v1";
const MAX_DNS: usize = 8;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Request {
    /// How do I stand?
    About,
    /// Take this key in place of the invite's.
    Redeem {
        /// The exit that the invite is for.
        exit: PublicKey,
        /// The joining side's own key.
        key: PublicKey,
        /// That it holds the private half; [`proof`].
        proof: String,
    },
}

/// How the one who asks stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its tunnel addresses.
    pub tunnel_addresses: TunnelAddresses,
    /// Mixed into its handshakes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
    /// DNS servers inside the tunnel.
    pub dns: Vec<IpAddr>,
    /// MTU of the tunnel in bytes.
    pub mtu: u32,
    /// Where the exit is, best first.
    pub endpoints: Vec<Endpoint>,
    /// The exit has IPv6 to the internet.
    pub ipv6: bool,
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The invite's time is over.
    #[error("the invite has expired")]
    Expired,
    /// Another key came by it.
    #[error("the invite is spent")]
    Spent,
    /// The invite is for another exit.
    #[error("the invite is for another exit")]
    OtherExit,
    /// The key was thrown out.
    #[error("the exit has revoked this key")]
    Revoked,
    /// No room for another peer.
    #[error("the exit has no room for another peer")]
    Full,
    /// The proof is wrong.
    #[error("the exit did not believe that we hold our own key")]
    Proof,
    /// The source is no peer and no invite's.
    #[error("the exit does not know us")]
    Unknown,
    /// The exit could not store it.
    #[error("the exit could not remember us")]
    Failed,
    /// The exit doesn't understand.
    #[error("the exit does not understand: one of the two peervpn is older")]
    #[serde(other)]
    Newer,
}

impl Refusal {
    /// The error to show, if it is about the invite itself.
    pub fn about_invite(self, own: &PublicKey) -> Option<InviteError> {
        match self {
            Refusal::Expired => Some(InviteError::Expired(0)),
            Refusal::Spent => Some(InviteError::Spent),
            Refusal::OtherExit => Some(InviteError::OtherExit),
            Refusal::Revoked => Some(InviteError::Revoked(own.peer_id())),
            _ => None,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// How the one who asks stands.
    You(Settings),
    /// Not done.
    Refused {
        /// Why not.
        why: Refusal,
    },
}

/// A line that is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the exit's control service gave no sensible answer")]
pub struct Garbled;

#[derive(Serialize, Deserialize)]
struct Line<T> {
    v: u32,
    #[serde(flatten)]
    content: T,
}

fn line<T: Serialize>(content: &T) -> Zeroizing<Vec<u8>> {
    // room for all at once: a growing buffer would leave copies of the secrets behind
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
    serde_json::to_writer(&mut *bytes, &Line { v: VERSION, content }).expect("string keys only");
    bytes.push(b'\n');
    bytes
}

impl Request {
    /// The line.
    pub fn encode(&self) -> Vec<u8> {
        line(self).to_vec()
    }

    /// Reads a line; why it is refused if it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_REQUEST {
            return Err(Refusal::Newer);
        }
        match serde_json::from_slice::<Line<Request>>(bytes) {
            Ok(Line { v: VERSION, content }) => Ok(content),
            _ => Err(Refusal::Newer),
        }
    }
}

impl Answer {
    /// The line; wiped when dropped.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        line(self)
    }

    /// Reads a line.
    pub fn parse(bytes: &[u8]) -> Result<Self, Garbled> {
        if bytes.len() > MAX_ANSWER {
            return Err(Garbled);
        }
        let answer = serde_json::from_slice::<Line<Answer>>(bytes).map_err(|_| Garbled)?.content;
        if let Answer::You(settings) = &answer {
            let sensible = (1280..=65_535).contains(&settings.mtu)
                && settings.dns.len() <= MAX_DNS
                && settings.endpoints.len() <= MAX_ENDPOINTS
                && settings.tunnel_addresses.are_usable();
            if !sensible {
                return Err(Garbled);
            }
        }
        Ok(answer)
    }
}

/// The joining side's proof that it holds `own`.
pub fn proof(own: &PrivateKey, exit: &PublicKey, slot: &PublicKey) -> String {
    let shared = own.as_x25519().diffie_hellman(&x25519_dalek::PublicKey::from(exit.0));
    proof_of(shared.as_bytes(), exit, slot, &own.public())
}

/// Whether the proof is right, on the exit's side.
pub fn is_proven(exit: &PrivateKey, slot: &PublicKey, key: &PublicKey, proof: &str) -> bool {
    let shared = exit.as_x25519().diffie_hellman(&x25519_dalek::PublicKey::from(key.0));
    // a point of small order would make the shared secret known to everyone; RFC 7748 §6.1
    shared.was_contributory() && proof_of(shared.as_bytes(), &exit.public(), slot, key) == proof
}

fn proof_of(shared: &[u8; 32], exit: &PublicKey, slot: &PublicKey, key: &PublicKey) -> String {
    let hash = Sha256::new()
        .chain_update(PROOF_LABEL)
        .chain_update(shared)
        .chain_update(exit.0)
        .chain_update(slot.0)
        .chain_update(key.0)
        .finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::address::peer_addresses;

    fn key(number: u8) -> PublicKey {
        PublicKey([number; 32])
    }

    fn settings() -> Settings {
        Settings {
            tunnel_addresses: peer_addresses(&key(1), &key(2)),
            preshared_key: Some(PresharedKey::from_bytes([9; 32])),
            dns: vec!["10.9.8.7".parse().unwrap()],
            mtu: 1420,
            endpoints: vec!["203.0.113.20:51820".parse().unwrap()],
            ipv6: true,
        }
    }

    #[test]
    fn lines_read_back() {
        let redeem = Request::Redeem { exit: key(1), key: key(2), proof: "00".repeat(32) };
        for request in [Request::About, redeem] {
            let line = request.encode();
            assert!(line.len() < MAX_REQUEST && line.ends_with(b"\n"));
            assert_eq!(Request::parse(&line), Ok(request));
        }
        assert_eq!(Request::About.encode(), b"{\"v\":1,\"ask\":\"about\"}\n");
        let spent = Answer::Refused { why: Refusal::Spent };
        assert_eq!(**spent.encode(), *b"{\"v\":1,\"answer\":\"refused\",\"why\":\"spent\"}\n");
        for answer in [spent, Answer::You(settings()), Answer::You(Settings { preshared_key: None, ..settings() })] {
            assert_eq!(Answer::parse(&answer.encode()), Ok(answer));
        }
        let later = b"{\"v\":1,\"answer\":\"refused\",\"why\":\"bad-weather\",\"more\":[1]}\n";
        assert_eq!(Answer::parse(later), Ok(Answer::Refused { why: Refusal::Newer }));
    }

    #[test]
    fn the_longest_answer_fits() {
        let name = format!("{}:65535", ["a"; 126].join("."));
        let endpoints = vec![name.parse().unwrap(); MAX_ENDPOINTS];
        let dns = vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap(); MAX_DNS];
        let answer = Answer::You(Settings { endpoints, dns, ..settings() });
        assert_eq!(Answer::parse(&answer.encode()), Ok(answer));
    }

    #[test]
    fn other_versions_and_nonsense_are_refused() {
        for bad in ["", "\n", "{}", "{\"v\":2,\"ask\":\"about\"}", "{\"v\":1,\"ask\":\"dance\"}", "[1]", "{\"v\":1}"] {
            assert_eq!(Request::parse(bad.as_bytes()), Err(Refusal::Newer), "{bad}");
            assert_eq!(Answer::parse(bad.as_bytes()), Err(Garbled), "{bad}");
        }
        let unusable = Answer::You(Settings { mtu: 100, ..settings() });
        assert_eq!(Answer::parse(&unusable.encode()), Err(Garbled));
        assert_eq!(Request::parse(&vec![b' '; MAX_REQUEST + 1]), Err(Refusal::Newer));
    }

    #[test]
    fn only_the_holder_of_the_key_can_prove_it() {
        let (exit, own, slot) = (PrivateKey::generate(), PrivateKey::generate(), key(7));
        let proof = proof(&own, &exit.public(), &slot);
        assert!(is_proven(&exit, &slot, &own.public(), &proof));
        assert!(!is_proven(&exit, &key(8), &own.public(), &proof), "another invite");
        assert!(!is_proven(&exit, &slot, &key(3), &proof), "another key");
        assert!(!is_proven(&PrivateKey::generate(), &slot, &own.public(), &proof), "another exit");
        let zero = PublicKey([0; 32]);
        let known = proof_of(&[0; 32], &exit.public(), &slot, &zero);
        assert!(!is_proven(&exit, &slot, &zero, &known), "a point of small order");
    }
}
