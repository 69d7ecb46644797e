//! The exits file: what a peer remembers of the exits it has been connected to. Pure: text in, text out.
//!
//! ```json
//! {"version":1,"exits":[{"exit":"…","asking":"…","slot":"…","settings":{…}}]}
//! ```
//!
//! A redemption has two steps here, each written before the next is taken: `asking` (the invite's public key), then
//! `slot` with the `settings` that the exit answered ([`super::service::Settings`]). A record with `asking` alone means
//! that the exit may or may not have taken our key: asking again with the invite tells. `settings` alone: we came by a
//! connect string. The file holds preshared keys: mode 0600.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::service::Settings;
use crate::error::Hint;
use crate::key::PublicKey;

const VERSION: u64 = 1;
/// Longest file in bytes.
pub const MAX_FILE: usize = 4 << 20;
/// Most exits that are remembered; the oldest goes.
const MAX_EXITS: usize = 256;

/// One exit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exit {
    exit: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asking: Option<PublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slot: Option<PublicKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    settings: Option<Settings>,
}

/// The exits we know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exits {
    version: u64,
    exits: Vec<Exit>,
}

impl Default for Exits {
    fn default() -> Self {
        Exits { version: VERSION, exits: Vec::new() }
    }
}

/// What is wrong with an exits file.
#[derive(Debug, thiserror::Error)]
pub enum ExitsError {
    /// Not the JSON described above.
    #[error("the exits file cannot be read")]
    Json(#[source] serde_json::Error),
    /// Written by a later program.
    #[error("the exits file has version {0}, this program knows {VERSION}")]
    Version(u64),
}

impl Hint for ExitsError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            ExitsError::Json(_) => {
                "mend exits.json in the state directory, or move it away and ask for new invites".to_owned()
            }
            ExitsError::Version(_) => "a newer peervpn wrote it: use that one, or move exits.json away".to_owned(),
        })
    }
}

impl Exits {
    /// Reads an exits file.
    pub fn parse(text: &[u8]) -> Result<Self, ExitsError> {
        #[derive(Deserialize)]
        struct AnyVersion {
            version: u64,
        }
        let AnyVersion { version } = serde_json::from_slice(text).map_err(ExitsError::Json)?;
        if version != VERSION {
            return Err(ExitsError::Version(version));
        }
        serde_json::from_slice(text).map_err(ExitsError::Json)
    }

    /// Writes it; wiped when dropped.
    pub fn to_json(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(serde_json::to_string(self).expect("plain records always serialize"));
        text.push('\n');
        text
    }

    /// How we stand with an exit, if it has told us.
    pub fn settings(&self, exit: &PublicKey) -> Option<&Settings> {
        self.find(exit)?.settings.as_ref()
    }

    /// How we stand with an exit, if we joined it by this very invite.
    pub fn joined_by(&self, exit: &PublicKey, slot: &PublicKey) -> Option<&Settings> {
        self.find(exit).filter(|e| e.slot == Some(*slot))?.settings.as_ref()
    }

    /// Whether we asked the exit to redeem this invite and never heard the answer.
    pub fn is_asking(&self, exit: &PublicKey, slot: &PublicKey) -> bool {
        self.find(exit).is_some_and(|e| e.asking == Some(*slot))
    }

    /// First step: we are going to ask.
    pub fn ask(&mut self, exit: PublicKey, slot: PublicKey) {
        match self.exits.iter_mut().find(|e| e.exit == exit) {
            Some(known) => known.asking = Some(slot),
            None => {
                self.push(Exit { exit, asking: Some(slot), slot: None, settings: None });
            }
        }
    }

    fn push(&mut self, exit: Exit) {
        if self.exits.len() >= MAX_EXITS {
            // what came by an invite can't be asked for again
            let plain = self.exits.iter().position(|e| e.slot.is_none() && e.asking.is_none());
            self.exits.remove(plain.unwrap_or(0));
        }
        self.exits.push(exit);
    }

    /// What the exit says of itself and of us now; whether that is news. The preshared key stays: it is told once.
    pub fn learn(&mut self, exit: &PublicKey, settings: Settings) -> bool {
        let Some(known) = self.exits.iter_mut().find(|e| e.exit == *exit) else {
            self.push(Exit { exit: *exit, asking: None, slot: None, settings: Some(settings) });
            return true;
        };
        let preshared_key = known.settings.as_ref().and_then(|known| known.preshared_key.clone());
        let settings = Some(Settings { preshared_key, ..settings });
        let news = known.settings != settings;
        known.settings = settings;
        news
    }

    /// Second step: the exit has taken our key.
    pub fn join(&mut self, exit: &PublicKey, slot: PublicKey, settings: Settings) {
        self.ask(*exit, slot);
        let known = self.exits.iter_mut().find(|e| e.exit == *exit).expect("made above");
        *known = Exit { exit: *exit, asking: None, slot: Some(slot), settings: Some(settings) };
    }

    /// Instead of it: the exit has refused.
    pub fn refused(&mut self, exit: &PublicKey) {
        if let Some(known) = self.exits.iter_mut().find(|e| e.exit == *exit) {
            known.asking = None;
        }
        self.exits.retain(|e| e.asking.is_some() || e.settings.is_some());
    }

    fn find(&self, exit: &PublicKey) -> Option<&Exit> {
        self.exits.iter().find(|e| e.exit == *exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::address::peer_addresses;
    use crate::key::PresharedKey;

    #[test]
    fn the_steps_are_remembered_and_a_refusal_keeps_what_was() {
        let key = |number| PublicKey([number; 32]);
        let settings = Settings {
            tunnel_addresses: peer_addresses(&key(1), &key(2)),
            preshared_key: Some(PresharedKey::from_bytes([9; 32])),
            dns: vec![],
            mtu: 1420,
            endpoints: vec![],
            ipv6: false,
        };
        let read = |exits: &Exits| Exits::parse(exits.to_json().as_bytes()).unwrap();
        let mut exits = Exits::default();
        exits.ask(key(1), key(7));
        exits = read(&exits);
        assert!(exits.is_asking(&key(1), &key(7)) && exits.settings(&key(1)).is_none());
        exits.join(&key(1), key(7), settings.clone());
        exits = read(&exits);
        assert!(!exits.is_asking(&key(1), &key(7)));
        assert_eq!(exits.joined_by(&key(1), &key(7)), Some(&settings));
        exits.ask(key(1), key(8));
        assert_eq!(exits.joined_by(&key(1), &key(8)), None);
        exits.refused(&key(1));
        assert_eq!(read(&exits).settings(&key(1)), Some(&settings), "a spent second invite spoils nothing");
        exits.ask(key(2), key(9));
        exits.refused(&key(2));
        assert_eq!(exits.exits.len(), 1);
        // what it says later: all but the preshared key, and no invite is needed to be told
        let told = Settings { preshared_key: None, mtu: 1300, ..settings.clone() };
        assert!(exits.learn(&key(1), told.clone()) && !exits.learn(&key(1), told.clone()));
        let now = Settings { mtu: 1300, ..settings.clone() };
        assert_eq!(read(&exits).joined_by(&key(1), &key(7)), Some(&now));
        for number in 0..=MAX_EXITS as u32 {
            let mut other = PublicKey([5; 32]);
            other.0[..4].copy_from_slice(&number.to_be_bytes());
            assert!(exits.learn(&other, told.clone()));
        }
        assert_eq!(read(&exits).exits.len(), MAX_EXITS);
        assert_eq!(exits.settings(&key(1)), Some(&now), "the plain ones go first");
        assert!(matches!(Exits::parse(b"{\"version\":2}"), Err(ExitsError::Version(2))));
        assert!(matches!(Exits::parse(b"{\"version\":1,\"exit\":[]}"), Err(ExitsError::Json(_))));
    }
}
