//! Handshake initiations made by hand, so that any part of one can be wrong: WireGuard paper §5.4.2.

use blake2::digest::{FixedOutput, KeyInit, Update, consts::U16};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{Aead, Payload};
use peervpn::key::{PrivateKey, PublicKey};

/// Of an initiation, in bytes.
pub const LENGTH: usize = 148;
/// TAI64 label of the Unix epoch, and the leap seconds that WireGuard ignores.
const TAI64_EPOCH: u64 = 1 << 62;

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Blake2s256::new(), Digest::chain_update).finalize().into()
}

/// HMAC with BLAKE2s, RFC 2104; its block has 64 bytes.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let padded = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = hash(&[&[padded(0x36).as_slice()], parts].concat());
    hash(&[&padded(0x5c), &inner])
}

/// Chaining key and key out of a chaining key and a secret.
fn kdf(chaining: &[u8; 32], secret: &[u8; 32]) -> ([u8; 32], [u8; 32]) {
    let extracted = hmac(chaining, &[secret]);
    let first = hmac(&extracted, &[&[1]]);
    (first, hmac(&extracted, &[&first, &[2]]))
}

fn encrypted(key: &[u8; 32], plain: &[u8], beside: &[u8; 32]) -> Vec<u8> {
    let cipher = ChaCha20Poly1305::new(key.into());
    cipher.encrypt(&[0; 12].into(), Payload { msg: plain, aad: beside }).expect("it has room")
}

fn shared(own: &PrivateKey, theirs: &PublicKey) -> [u8; 32] {
    own.as_x25519().diffie_hellman(&x25519_dalek::PublicKey::from(theirs.0)).to_bytes()
}

/// An initiation to `exit` that names `claimed` and proves possession of `holder`: honest where that is its private
/// half. `seconds`: its timestamp, since the Unix epoch.
pub fn initiation(exit: &PublicKey, claimed: &PublicKey, holder: &PrivateKey, seconds: u64) -> Vec<u8> {
    let ephemeral = PrivateKey::generate();
    let construction = hash(&[b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"]);
    let transcript = hash(&[&hash(&[&construction, b"WireGuard v1 zx2c4 Jason@zx2c4.com"]), &exit.0]);
    let chaining = kdf(&construction, &ephemeral.public().0).0;
    let transcript = hash(&[&transcript, &ephemeral.public().0]);
    let (chaining, key) = kdf(&chaining, &shared(&ephemeral, exit));
    let named = encrypted(&key, &claimed.0, &transcript);
    let transcript = hash(&[&transcript, &named]);
    let (_, key) = kdf(&chaining, &shared(holder, exit));
    let stamp = [(TAI64_EPOCH + seconds).to_be_bytes().as_slice(), &[0; 4]].concat();
    let stamped = encrypted(&key, &stamp, &transcript);
    let mut packet = [&[1, 0, 0, 0, 7, 7, 7, 7], ephemeral.public().0.as_slice(), &named, &stamped, &[0; 32]].concat();
    seal(exit, &mut packet);
    packet
}

/// Puts the right mac1 on it, as everyone who knows the connect string can.
pub fn seal(exit: &PublicKey, packet: &mut [u8]) {
    let key = hash(&[b"mac1----", &exit.0]);
    let mac: Blake2sMac<U16> = KeyInit::new_from_slice(&key).expect("32 bytes");
    let (covered, rest) = packet.split_at_mut(116);
    rest[..16].copy_from_slice(&mac.chain(covered).finalize_fixed());
}
