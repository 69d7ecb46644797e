//! What a node keeps between runs, in the state directory (0700): the identity key, the peers file, who waits; all
//! written whole, by rename, and synced. A file that does not read is never overwritten.

use std::path::PathBuf;

use peervpn_platform::files;
use zeroize::Zeroizing;

use super::apply::unwritable;
use crate::config::Places;
use crate::error::{Failure, chain};
use crate::join::exits::{self, Exits};
use crate::join::peers::{self, PeerStore};
use crate::join::waiting::{self, Waiting};
use crate::key::PrivateKey;

/// The key file: 44 characters of base64 and a newline.
const MAX_KEY_FILE: usize = 64;

fn key_path(places: &Places) -> PathBuf {
    places.state_dir.join("identity.key")
}

fn peers_path(places: &Places) -> PathBuf {
    places.state_dir.join("peers.json")
}

/// The identity key, if there is one; never makes one.
pub fn key(places: &Places) -> Result<Option<PrivateKey>, Failure> {
    let path = key_path(places);
    let damaged = |why: String| {
        Failure::new(
            format!("the key file {} is damaged: {why}", path.display()),
            "restore it from a backup; or move it away to get a new identity (everyone then needs the new connect string)",
        )
        .host("unchanged")
    };
    let Some(bytes) = files::read_bounded(&path, MAX_KEY_FILE).map_err(unreadable)? else { return Ok(None) };
    let text = Zeroizing::new(String::from_utf8(bytes).map_err(|_| damaged("it is not text".to_owned()))?);
    text.trim_end_matches('\n').parse().map(Some).map_err(|error| damaged(chain(&error)))
}

/// The identity key, made on the first run.
pub fn key_or_new(places: &Places) -> Result<PrivateKey, Failure> {
    if let Some(key) = key(places)? {
        return Ok(key);
    }
    let key = PrivateKey::generate();
    let mut text = key.to_base64();
    text.push('\n');
    files::write_atomic(&key_path(places), text.as_bytes(), 0o600).map_err(unwritable)?;
    Ok(key)
}

/// The peers file; empty if there is none.
pub fn peers(places: &Places) -> Result<PeerStore, Failure> {
    let path = peers_path(places);
    match files::read_bounded(&path, peers::MAX_FILE).map_err(unreadable)? {
        None => Ok(PeerStore::default()),
        Some(bytes) => PeerStore::parse(&bytes).map_err(|error| {
            let failure = Failure::from(error);
            Failure { message: format!("the peers file {}: {}", path.display(), failure.message), ..failure }
                .host("unchanged")
        }),
    }
}

/// Writes the peers file.
pub fn save_peers(places: &Places, store: &PeerStore) -> Result<(), Failure> {
    files::write_atomic(&peers_path(places), store.to_json().as_bytes(), 0o600).map_err(unwritable)
}

/// Takes the peers file, for as long as the lock is kept: a second exit, or a command while one runs, would write over
/// what the first one knows. A revocation could be lost that way.
pub fn own_peers(places: &Places) -> Result<files::Log, Failure> {
    files::private_dir(&places.state_dir).map_err(unwritable)?;
    match files::Log::open(&places.state_dir.join("exit.lock")).map_err(unwritable)? {
        files::LogOpen::Locked(lock) => Ok(lock),
        files::LogOpen::Busy(pid) => {
            let holder = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
            Err(Failure::new(
                format!("another exit{holder} keeps its key and peers in {}", places.state_dir.display()),
                "peervpn status shows it; give each exit a directory of its own with --state-dir DIR",
            )
            .host("unchanged"))
        }
    }
}

fn waiting_path(places: &Places) -> PathBuf {
    places.state_dir.join("waiting.json")
}

/// Who waited and who was denied when the last exit wrote it; nobody if it can't be read.
pub fn waiting(places: &Places) -> Waiting {
    let bytes = files::read_bounded(&waiting_path(places), waiting::MAX_FILE).ok().flatten();
    Waiting::parse(&bytes.unwrap_or_default())
}

/// Writes who waits and who was denied.
pub fn save_waiting(places: &Places, waiting: &Waiting) -> Result<(), Failure> {
    files::write_atomic(&waiting_path(places), waiting.to_json().as_bytes(), 0o600).map_err(unwritable)
}

fn exits_path(places: &Places) -> PathBuf {
    places.state_dir.join("exits.json")
}

/// The exits we have been connected to.
pub fn exits(places: &Places) -> Result<Exits, Failure> {
    let path = exits_path(places);
    match files::read_bounded(&path, exits::MAX_FILE).map_err(unreadable)? {
        None => Ok(Exits::default()),
        Some(bytes) => Exits::parse(&Zeroizing::new(bytes)).map_err(|error| Failure::from(error).host("unchanged")),
    }
}

/// Writes the exits file.
pub fn save_exits(places: &Places, exits: &Exits) -> Result<(), Failure> {
    files::write_atomic(&exits_path(places), exits.to_json().as_bytes(), 0o600).map_err(unwritable)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn unreadable(error: peervpn_platform::Error) -> Failure {
    Failure::from(error).host("unchanged")
}
