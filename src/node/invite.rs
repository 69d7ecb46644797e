//! Making invites and wg-quick files, on a running exit or on its state directory; drawing and writing them.

use std::net::IpAddr;
use std::path::Path;

use peervpn_platform::files;
use peervpn_platform::types::Family;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::control::SecretText;
use super::{apply, state};
use crate::config::Places;
use crate::error::Failure;
use crate::join::address::{TunnelAddresses, door, exit_addresses, other_addresses, peer_addresses};
use crate::join::connect::Endpoint;
use crate::join::invite::Invite;
use crate::join::peers::{self, How, Peer, PeerStore};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::tunnel::{mtu, wgquick};

/// How many keys are tried for a free address: with 20,000 of 2^24 addresses taken, one in 800 collides.
const TRIES: u32 = 100;
/// Longest life of an invite: a year.
const MAX_EXPIRY: u64 = 365 * 86_400;

/// What is wanted: `peervpn invite`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Name for who joins.
    pub name: Option<String>,
    /// Seconds until it can't be used any more.
    pub expires_s: u64,
    /// Any number of peers may use it.
    pub reusable: bool,
    /// A wg-quick file for a stock app, instead of an invite.
    pub stock: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The invite.
    pub invite: Option<SecretText>,
    /// The wg-quick file.
    pub wg_quick: Option<SecretText>,
    /// Peer ID of the slot, by which `peers revoke` knows it.
    pub peer_id: String,
    /// Its name.
    pub name: Option<String>,
    /// When it expires, in seconds since 1970.
    pub expires_at: u64,
    /// Any number of peers may use it.
    pub reusable: bool,
}

/// What an exit's invites say about it.
pub struct Terms {
    /// Its key.
    pub exit: PublicKey,
    /// Where it is, best first.
    pub endpoints: Vec<Endpoint>,
    /// DNS servers for peers.
    pub dns: Vec<IpAddr>,
    /// MTU of the tunnel in bytes.
    pub mtu: u32,
}

/// Makes a slot in the store: a peer for a stock app, or an invite. The caller stores and installs it.
pub fn make(store: &mut PeerStore, terms: &Terms, wanted: &Wanted, now: u64) -> Result<(Made, PublicKey), Failure> {
    if wanted.stock && wanted.reusable {
        return Err(Failure::usage(
            "a wg-quick file carries one key, so only one device at a time can use it",
            "make one for each device, without --reusable",
        ));
    }
    if terms.endpoints.is_empty() {
        return Err(Failure::new(
            "this exit knows no endpoint under which it can be reached",
            "state one: --endpoint HOST:PORT",
        ));
    }
    let expires_at = now + wanted.expires_s.clamp(1, MAX_EXPIRY);
    let preshared_key = PresharedKey::generate();
    let (mut invite, mut wg_quick) = (None, None);
    let key = if wanted.stock {
        let (key, addresses) = free_key(store, &terms.exit)?;
        let peer = Peer {
            name: wanted.name.clone(),
            preshared_key: Some(preshared_key.clone()),
            stock: true,
            use_by: Some(expires_at),
            ..Peer::new(key.public(), addresses, How::Invite, now)
        };
        store.add(peer)?;
        let config = wgquick::Config {
            key: key.clone(),
            addresses: vec![addresses.v4.into(), addresses.v6.into()],
            dns: terms.dns.clone(),
            mtu: terms.mtu,
            listen_port: None,
            peers: vec![wgquick::Peer {
                public_key: terms.exit,
                preshared_key: Some(preshared_key),
                allowed_ips: Family::BOTH.map(Family::default_prefix).to_vec(),
                endpoint: terms.endpoints.first().map(ToString::to_string),
            }],
        };
        wg_quick = Some(SecretText::from(config.render(true)));
        key
    } else {
        let key = free_door(store)?;
        store.add_invite(peers::Invite {
            public_key: key.public(),
            name: wanted.name.clone(),
            door: door(&key.public()),
            preshared_key: preshared_key.clone(),
            made_at: now,
            expires_at,
            reusable: wanted.reusable,
            redeemed: Vec::new(),
            unconfirmed: Vec::new(),
        })?;
        let line = Invite {
            exit: terms.exit,
            door: door(&key.public()),
            key: key.clone(),
            preshared_key,
            expires_at,
            mtu: u16::try_from(terms.mtu).unwrap_or(u16::MAX),
            reusable: wanted.reusable,
            dns: terms.dns.clone(),
            endpoints: terms.endpoints.clone(),
        };
        invite = Some(SecretText::from(line.encode()));
        key
    };
    let made = Made {
        invite,
        wg_quick,
        peer_id: key.public().peer_id(),
        name: wanted.name.clone(),
        expires_at,
        reusable: wanted.reusable,
    };
    Ok((made, key.public()))
}

/// A key whose derived addresses nobody has.
fn free_key(store: &PeerStore, exit: &PublicKey) -> Result<(PrivateKey, TunnelAddresses), Failure> {
    let own = exit_addresses(exit);
    for _ in 0..TRIES {
        let key = PrivateKey::generate();
        let addresses = peer_addresses(exit, &key.public());
        if addresses.v4 != own.v4 && store.is_free(&addresses) {
            return Ok((key, addresses));
        }
    }
    Err(no_room())
}

/// A key whose door no other invite has.
fn free_door(store: &PeerStore) -> Result<PrivateKey, Failure> {
    (0..TRIES)
        .map(|_| PrivateKey::generate())
        .find(|key| store.invite_at(door(&key.public())).is_none())
        .ok_or_else(no_room)
}

/// The derived addresses of a key, or the first others that nobody has.
pub fn free_addresses(store: &PeerStore, exit: &PublicKey, key: &PublicKey) -> Option<TunnelAddresses> {
    let own = exit_addresses(exit);
    (0..TRIES)
        .map(|turn| other_addresses(exit, key, turn))
        .find(|addresses| addresses.v4 != own.v4 && store.is_free(addresses))
}

fn no_room() -> Failure {
    Failure::new("no tunnel address is free", "make room: peervpn peers revoke ID")
}

/// `peervpn invite` while no node runs. The endpoints have to be told, nobody measures them.
pub fn offline(places: &Places, wanted: &Wanted, endpoints: &[String], mtu: Option<u32>) -> Result<Made, Failure> {
    let (mut file, mut store) = state::PeersFile::own(places)?;
    let exit = state::key_or_new(places)?.public();
    let terms = Terms {
        exit,
        endpoints: endpoints.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        dns: exit_addresses(&exit).to_vec(),
        mtu: mtu.unwrap_or_else(|| mtu::inner(mtu::ETHERNET, Family::V6)),
    };
    let (made, _) = make(&mut store, &terms, wanted, state::now())?;
    file.keep(&mut store)?;
    Ok(made)
}

/// Writes a file that only its owner reads, whole or not at all.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    files::write_atomic(path, bytes, 0o600).map_err(|error| Failure {
        host: None,
        hint: Some("name another file".to_owned()),
        ..apply::unwritable(error)
    })
}

/// Reads a file with an invite in it.
pub fn read_private(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Failure::usage(
            format!("cannot read the invite from {}: {error}", path.display()),
            "name a file with one invite",
        )
    };
    match files::read_bounded(path, crate::join::invite::MAX_LENGTH) {
        Ok(Some(bytes)) => String::from_utf8(bytes).map(Zeroizing::new).map_err(|_| unreadable(&"it is not text")),
        Ok(None) => Err(unreadable(&"there is no such file")),
        Err(error) => Err(unreadable(&error)),
    }
}
