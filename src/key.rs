//! Static and preshared keys, their base64 text form, and the peer ID. Secrets are wiped when dropped and never printed.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peervpn_platform::types::Secret;
use sha2::{Digest, Sha256};
use x25519_dalek::StaticSecret;
use zeroize::{Zeroize, Zeroizing};

use crate::error::Hint;

/// A text that is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Wrong number of characters.
    #[error("a key has 44 characters, this has {0}")]
    Length(usize),
    /// Right length, but not 32 bytes of base64.
    #[error("a key is 32 bytes in base64, this is something else")]
    Base64,
}

impl Hint for KeyError {
    fn hint(&self) -> Option<String> {
        Some("copy the whole connect string that `peervpn exit` printed".to_owned())
    }
    fn status(&self) -> crate::error::Status {
        crate::error::Status::Usage
    }
}

/// A peer's identity: its static public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Stable short name that two people compare: the first six bytes of SHA-256 over the base64 key, three decimal
    /// digits each, in three groups (design §4), e.g. `012255-093004-201117`.
    pub fn peer_id(&self) -> String {
        let hash = Sha256::digest(self.to_string().as_bytes());
        format!("{:03}{:03}-{:03}{:03}-{:03}{:03}", hash[0], hash[1], hash[2], hash[3], hash[4], hash[5])
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(PublicKey(*decode(text)?))
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Our static private key.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// From raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        PrivateKey(StaticSecret::from(bytes))
    }

    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Self {
        PrivateKey(StaticSecret::random())
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519_dalek::PublicKey::from(&self.0).to_bytes())
    }

    /// The raw bytes, for the device.
    pub fn secret(&self) -> Secret {
        Secret(self.0.to_bytes())
    }

    /// For the Noise opening in `join`.
    pub fn as_x25519(&self) -> &StaticSecret {
        &self.0
    }

    /// Base64 text, wiped when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        let mut bytes = self.0.to_bytes();
        let text = Zeroizing::new(STANDARD.encode(bytes));
        bytes.zeroize();
        text
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(PrivateKey(StaticSecret::from(*decode(text)?)))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public())
    }
}

/// A symmetric key that two peers share on top of their static keys.
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey(Secret);

impl PresharedKey {
    /// A fresh key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut secret = Secret([0; 32]);
        getrandom::fill(&mut secret.0).expect("the operating system has randomness");
        PresharedKey(secret)
    }

    /// From raw bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        PresharedKey(Secret(bytes))
    }

    /// The raw bytes, for the device.
    pub fn secret(&self) -> Secret {
        self.0.clone()
    }

    /// Base64 text, wiped when dropped.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0.0))
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

impl FromStr for PresharedKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Ok(PresharedKey(Secret(*decode(text)?)))
    }
}

/// For files of mode 0600 and for what goes through the tunnel; nowhere else.
impl serde::Serialize for PresharedKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> serde::Deserialize<'de> for PresharedKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        // the error must not repeat the text
        text.parse().map_err(|_| serde::de::Error::custom("not a preshared key"))
    }
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    if text.len() != 44 {
        return Err(KeyError::Length(text.chars().count()));
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| KeyError::Base64)?);
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() != 32 {
        return Err(KeyError::Base64);
    }
    key.copy_from_slice(&bytes);
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_id_is_six_bytes_of_sha256_over_the_base64_text() {
        // printf %s AAAA…AAA= | sha256sum → a0 e6 b1 98 9b cd …? computed by coreutils, see `tests/vectors`
        let key = PublicKey([0; 32]);
        let id = key.peer_id();
        let hash = Sha256::digest(b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!(id.replace('-', ""), hash[..6].iter().map(|b| format!("{b:03}")).collect::<String>());
        assert_eq!(id.len(), 20);
    }

    #[test]
    fn keys_round_trip_and_bad_ones_are_refused() {
        let key = PrivateKey::generate();
        let again: PrivateKey = key.to_base64().parse().unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse::<PublicKey>().unwrap(), key.public());
        assert_eq!("short".parse::<PublicKey>(), Err(KeyError::Length(5)));
        assert_eq!("!".repeat(44).parse::<PublicKey>(), Err(KeyError::Base64));
        // 33 bytes also take 44 characters
        assert_eq!(STANDARD.encode([1; 33]).parse::<PublicKey>(), Err(KeyError::Base64));
    }

    #[test]
    fn a_private_key_never_prints_itself() {
        let key = PrivateKey::generate();
        assert!(!format!("{key:?} {:?}", key.secret()).contains(key.to_base64().as_str()));
    }
}
