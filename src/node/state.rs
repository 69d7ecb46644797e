//! What a node keeps between runs, in the state directory (0700): the identity key, the peers file, who waits; all
//! written whole, by rename, and synced, and changes to the peers also behind the file. A file that does not read is never
//! overwritten.

use std::path::{Path, PathBuf};

use peervpn_platform::files;
use zeroize::Zeroizing;

use super::apply::unwritable;
use crate::config::Places;
use crate::error::{Failure, chain};
use crate::join::exits::{self, Exits};
use crate::join::peers::{self, Extent, PeerStore};
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
    Ok(read_peers(&peers_path(places))?.0)
}

fn read_peers(path: &Path) -> Result<(PeerStore, Option<Extent>), Failure> {
    let Some(bytes) = files::read_bounded(path, peers::MAX_FILE).map_err(unreadable)? else {
        return Ok(Default::default());
    };
    let read = PeerStore::read(&Zeroizing::new(bytes)).map_err(|error| {
        let failure = Failure::from(error);
        Failure { message: format!("the peers file {}: {}", path.display(), failure.message), ..failure }
            .host("unchanged")
    })?;
    Ok((read.store, read.extent))
}

/// Changes behind a peers file may take this many bytes, or half of what stands before them, until it is written anew.
const CHANGES: usize = 64 << 10;

/// The peers file, for those who change it: one at a time.
pub struct PeersFile {
    path: PathBuf,
    /// Of its owner. Not the peers file itself, in whose place another one is put.
    _lock: files::Log,
    /// What is known to be in the file; `None`: it is written anew the next time.
    extent: Option<Extent>,
    /// Open from the first change on.
    log: Option<files::Log>,
}

impl PeersFile {
    /// Takes the peers file and reads it. A second exit, or a command while one runs, would write over what the first one
    /// knows, and a revocation could be lost that way.
    pub fn own(places: &Places) -> Result<(PeersFile, PeerStore), Failure> {
        let lock = own_state(places)?;
        let path = peers_path(places);
        let (store, extent) = read_peers(&path)?;
        Ok((PeersFile { path, _lock: lock, extent, log: None }, store))
    }

    /// Keeps what has changed: in a line behind the rest, or the whole file anew. On the disk when it returns.
    pub fn keep(&mut self, store: &mut PeerStore) -> Result<(), Failure> {
        let Some(line) = store.changes() else { return Ok(()) };
        if !self.append(line.as_bytes()) {
            self.write(store)?;
        }
        store.kept();
        Ok(())
    }

    /// Whether it could be: with enough room behind the file, and the file as we left it.
    fn append(&mut self, line: &[u8]) -> bool {
        let Some(extent) = self.extent else { return false };
        let all = extent.all + line.len();
        if all > extent.whole + CHANGES.max(extent.whole / 2) || all > peers::MAX_FILE {
            return false;
        }
        if self.log.is_none()
            && let Ok(files::LogOpen::Locked(log)) = files::Log::open(&self.path)
        {
            self.log = Some(log);
        }
        let Some(log) = &mut self.log else { return false };
        // someone may have mended it by hand while we ran: what we know is put in its place
        let ours = log.is_named().unwrap_or(false) && log.len().is_ok_and(|len| len == extent.all as u64);
        if !ours || log.append(line).is_err() {
            return false;
        }
        self.extent = Some(Extent { all, ..extent });
        true
    }

    fn write(&mut self, store: &PeerStore) -> Result<(), Failure> {
        // Windows replaces no file that is open
        self.log = None;
        self.extent = None;
        let text = store.to_json();
        files::write_atomic(&self.path, text.as_bytes(), 0o600).map_err(unwritable)?;
        self.extent = Some(Extent { whole: text.len(), all: text.len() });
        Ok(())
    }
}

/// Takes the key and the peers in the state directory, for as long as the lock is kept.
fn own_state(places: &Places) -> Result<files::Log, Failure> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::address::peer_addresses;
    use crate::join::peers::{How, Peer};
    use crate::key::PublicKey;
    use crate::node::fake::Scratch;

    impl Scratch {
        fn own(&self) -> (PeersFile, PeerStore) {
            PeersFile::own(&self.0).unwrap()
        }

        fn text(&self) -> String {
            std::fs::read_to_string(peers_path(&self.0)).unwrap()
        }

        #[track_caller]
        fn says(&self, store: &PeerStore) {
            assert_eq!(peers(&self.0).unwrap(), *store);
        }
    }

    fn key(number: u32) -> PublicKey {
        let mut key = PublicKey([7; 32]);
        key.0[..4].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn add(store: &mut PeerStore, number: u32) {
        let addresses = peer_addresses(&PublicKey([1; 32]), &key(number));
        store.add(Peer::new(key(number), addresses, How::Added, 1)).unwrap();
    }

    #[test]
    fn changes_are_written_behind_the_file_until_it_is_worth_writing_anew() {
        let scratch = Scratch::new("changes");
        let (mut file, mut store) = scratch.own();
        file.keep(&mut store).unwrap();
        assert!(!peers_path(&scratch.0).exists(), "nothing has changed");
        add(&mut store, 0);
        file.keep(&mut store).unwrap();
        let whole = scratch.text();
        assert_eq!(whole, *store.to_json());
        let (mut longest, mut anew) = (0, 0);
        let mut before = whole;
        for number in 1..=500 {
            add(&mut store, number);
            file.keep(&mut store).unwrap();
            let after = scratch.text();
            match after.strip_prefix(&before) {
                Some(line) => assert!(line.len() < 400 && line.ends_with('\n') && line.lines().count() == 1, "{line}"),
                None => {
                    assert_eq!(after, *store.to_json());
                    anew += 1;
                }
            }
            if number % 20 == 0 {
                longest = longest.max(after.len() - store.to_json().len().min(after.len()));
            }
            before = after;
        }
        assert!((1..10).contains(&anew), "written anew {anew} times");
        assert!(longest < 2 * CHANGES, "{longest} bytes too long");
        scratch.says(&store);
        drop(file);
        // the next owner goes on where the last one stopped
        let (mut file, mut store) = scratch.own();
        let before = scratch.text();
        store.revoke(&key(3), 2).unwrap();
        file.keep(&mut store).unwrap();
        assert!(scratch.text().starts_with(&before) && scratch.text() != before);
        scratch.says(&store);
    }

    #[test]
    fn whoever_else_changed_the_file_meanwhile_is_written_over() {
        let scratch = Scratch::new("others");
        let (mut file, mut store) = scratch.own();
        add(&mut store, 1);
        file.keep(&mut store).unwrap();
        let path = peers_path(&scratch.0);
        let append = |_: &str| std::fs::write(&path, format!("{}[]\n", std::fs::read_to_string(&path).unwrap()));
        let replace = |old: &str| {
            std::fs::write(path.with_extension("new"), old).unwrap();
            std::fs::rename(path.with_extension("new"), &path)
        };
        let remove = |_: &str| std::fs::remove_file(&path);
        type Other<'a> = &'a dyn Fn(&str) -> std::io::Result<()>;
        let others: [Other<'_>; 3] = [&append, &replace, &remove];
        for (number, other) in (2..).step_by(2).zip(others) {
            add(&mut store, number);
            file.keep(&mut store).unwrap();
            // Windows lets nobody replace or remove an open file
            let done = other(&scratch.text());
            assert!(done.is_ok() || cfg!(windows), "{done:?}");
            add(&mut store, number + 1);
            file.keep(&mut store).unwrap();
            scratch.says(&store);
            assert!(done.is_err() || scratch.text() == *store.to_json());
        }
    }

    #[test]
    fn a_torn_line_is_written_over_and_a_second_owner_refused() {
        let scratch = Scratch::new("torn");
        let (mut file, mut store) = scratch.own();
        for number in 1..=3 {
            add(&mut store, number);
            file.keep(&mut store).unwrap();
        }
        let second = PeersFile::own(&scratch.0).map(drop).unwrap_err();
        assert!(second.message.starts_with("another exit"), "{}", second.message);
        drop(file);
        let text = scratch.text();
        std::fs::write(peers_path(&scratch.0), &text[..text.len() - 1]).unwrap();
        let (mut file, mut store) = scratch.own();
        assert_eq!(store.peers().len(), 2);
        add(&mut store, 4);
        file.keep(&mut store).unwrap();
        assert_eq!(scratch.text(), *store.to_json());
        scratch.says(&store);
    }
}
