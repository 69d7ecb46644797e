//! The waiting file: who waits for admission and who was told no, for the next run. Pure: text in, text out.
//!
//! ```json
//! {"version":1,
//! "pending":[{"public_key":"…","endpoint":"203.0.113.10:40001","since":1767225600,"last":1767225700}],
//! "denied":[{"public_key":"…","until":1767229200}]}
//! ```
//!
//! Times are seconds since 1970. It is only a convenience: whoever still wants in asks again within 5 s. So a file that
//! is damaged, too long or of another version counts as empty.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::admission::MAX_PENDING;
use crate::key::PublicKey;

const VERSION: u64 = 1;
/// Longest file in bytes: all records with the longest endpoints take half.
pub const MAX_FILE: usize = 256 << 10;
/// Most denied keys that are read.
const MAX_DENIED: usize = 1024;

/// Who waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its static public key.
    pub public_key: PublicKey,
    /// The source of its newest initiation.
    pub endpoint: SocketAddr,
    /// When it first asked, in seconds since 1970.
    pub since: u64,
    /// When it last asked, in seconds since 1970.
    pub last: u64,
}

/// Who was told no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// Its static public key.
    pub public_key: PublicKey,
    /// It is ignored until then, in seconds since 1970.
    pub until: u64,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    version: u64,
    /// Who waits.
    pub pending: Vec<Pending>,
    /// Who was told no.
    pub denied: Vec<Denied>,
}

impl Waiting {
    /// What is to be written.
    pub fn new(pending: Vec<Pending>, denied: Vec<Denied>) -> Self {
        Waiting { version: VERSION, pending, denied }
    }

    /// Reads the file; nobody waits if it can't be understood.
    pub fn parse(text: &[u8]) -> Self {
        let nobody = Waiting::new(Vec::new(), Vec::new());
        if text.len() > MAX_FILE {
            return nobody;
        }
        let read = serde_json::from_slice(text).unwrap_or_else(|_| nobody.clone());
        let sensible = read.version == VERSION && read.pending.len() <= MAX_PENDING && read.denied.len() <= MAX_DENIED;
        if sensible { read } else { nobody }
    }

    /// Writes the file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string(self).expect("plain records always serialize");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_the_rest_is_nobody() {
        let key = |number| PublicKey([number; 32]);
        let endpoint = "[2001:db8::1]:40001".parse().unwrap();
        let waiting = Waiting::new(
            vec![Pending { public_key: key(1), endpoint, since: 5, last: 6 }],
            vec![Denied { public_key: key(2), until: 7 }],
        );
        let text = waiting.to_json();
        assert_eq!(Waiting::parse(text.as_bytes()), waiting);
        let nobody = Waiting::parse(b"");
        assert_eq!((nobody.pending.len(), nobody.denied.len()), (0, 0));
        for bad in
            [&text[..text.len() / 2], &text.replace("\"version\":1", "\"version\":2"), &text.replace("last", "l")]
        {
            assert_eq!(Waiting::parse(bad.as_bytes()), nobody, "{bad}");
        }
        assert_eq!(Waiting::parse(include_bytes!("../../tests/fixtures/waiting-1.json")).pending.len(), 1);
    }

    #[test]
    fn the_fullest_list_fits() {
        let endpoint = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let pending = Pending { public_key: PublicKey([255; 32]), endpoint, since: u64::MAX, last: u64::MAX };
        let denied = Denied { public_key: PublicKey([255; 32]), until: u64::MAX };
        let full = Waiting::new(vec![pending; MAX_PENDING], vec![denied; MAX_DENIED]);
        assert_eq!(Waiting::parse(full.to_json().as_bytes()), full);
    }
}
