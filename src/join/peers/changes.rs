//! Changes behind the whole text of a peers file: a line each time, so that to keep one peer more among thousands is to
//! write one line. A line is a list of what has become of each key that was concerned, in JSON:
//!
//! ```json
//! [{"peer":{"public_key":"…",…}},{"revoked":{…}},{"invite":{…}},{"forgotten":"PUBKEY"}]
//! ```
//!
//! A line says everything about its keys, whatever stood before. One write is one line, and each is on the disk before
//! the next is written, so that only the last one can be torn.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Invite, Peer, PeerStore, PeersError, Revoked};
use crate::key::PublicKey;

/// What has become of a key.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Standing<'a> {
    Peer(Cow<'a, Peer>),
    Revoked(Cow<'a, Revoked>),
    Invite(Cow<'a, Invite>),
    Forgotten(PublicKey),
}

impl Standing<'_> {
    fn key(&self) -> PublicKey {
        match self {
            Standing::Peer(peer) => peer.public_key,
            Standing::Revoked(revoked) => revoked.public_key,
            Standing::Invite(invite) => invite.public_key,
            Standing::Forgotten(key) => *key,
        }
    }
}

impl PeerStore {
    /// The line to write behind the file for what has changed since it was [`PeerStore::kept`]; `None` if nothing has.
    pub fn changes(&self) -> Option<Zeroizing<String>> {
        if self.changed.is_empty() {
            return None;
        }
        let standings: Vec<Standing<'_>> = self.changed.iter().map(|key| self.standing(key)).collect();
        // room for all at once: a growing buffer would leave copies of secrets behind
        let redeemed: usize =
            self.changed.iter().filter_map(|key| self.invites.get(key)).map(|i| i.redeemed.len()).sum();
        let mut line = Zeroizing::new(Vec::with_capacity(640 * standings.len() + 2 * 48 * redeemed));
        serde_json::to_writer(&mut *line, &standings).expect("plain records always serialize");
        line.push(b'\n');
        let line = String::from_utf8(std::mem::take(&mut *line)).expect("JSON is UTF-8");
        Some(Zeroizing::new(line))
    }

    /// What [`PeerStore::changes`] tells is in the file.
    pub fn kept(&mut self) {
        self.changed.clear();
    }

    fn standing(&self, key: &PublicKey) -> Standing<'_> {
        if let Some(peer) = self.peers.get(key) {
            Standing::Peer(Cow::Borrowed(peer))
        } else if let Some(revoked) = self.revoked.get(key) {
            Standing::Revoked(Cow::Borrowed(revoked))
        } else if let Some(invite) = self.invites.get(key) {
            Standing::Invite(Cow::Borrowed(invite))
        } else {
            Standing::Forgotten(*key)
        }
    }

    /// Makes the changes that stand behind the whole text, whose last line has this number. Whether the last one was torn:
    /// then it is as if it had never been written, and nobody was told of it.
    pub(super) fn replay(&mut self, text: &[u8], mut line_number: usize) -> Result<bool, PeersError> {
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            let last = lines.peek().is_none();
            // a power failure may leave a hole, which reads as zeros
            if last && (!line.ends_with(b"\n") && !line.trim_ascii().is_empty() || line.contains(&0)) {
                return Ok(true);
            }
            if !line.trim_ascii().is_empty() {
                let standings: Vec<Standing<'static>> =
                    serde_json::from_slice(line).map_err(|source| PeersError::Change { line: line_number, source })?;
                standings.into_iter().for_each(|standing| self.stand(standing));
            }
            line_number += 1;
        }
        Ok(false)
    }

    fn stand(&mut self, standing: Standing<'_>) {
        let key = standing.key();
        self.peers.remove(&key);
        self.revoked.remove(&key);
        self.invites.remove(&key);
        match standing {
            Standing::Peer(peer) => drop(self.peers.insert(key, peer.into_owned())),
            Standing::Revoked(revoked) => drop(self.revoked.insert(key, revoked.into_owned())),
            Standing::Invite(invite) => drop(self.invites.insert(key, invite.into_owned())),
            Standing::Forgotten(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::join::address::TunnelAddresses;
    use crate::join::peers::{Extent, How};
    use crate::key::PresharedKey;

    fn key(number: u16) -> PublicKey {
        let mut key = PublicKey([3; 32]);
        key.0[..2].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn peer(number: u16) -> Peer {
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 1, high, low);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number);
        let peer = Peer::new(key(number), TunnelAddresses { v4, v6 }, How::Added, 1_767_225_600);
        Peer { preshared_key: number.is_multiple_of(3).then(|| PresharedKey::from_bytes([7; 32])), ..peer }
    }

    fn invite(number: u16) -> Invite {
        Invite {
            public_key: key(number),
            name: Some(format!("guest {}", number % 4)),
            door: Ipv4Addr::new(169, 254, 8, number as u8),
            preshared_key: PresharedKey::from_bytes([9; 32]),
            made_at: 100,
            expires_at: 200,
            reusable: number.is_multiple_of(2),
            redeemed: vec![],
            unconfirmed: vec![],
        }
    }

    /// A file as it grows: the text, and what it says after each write.
    struct Grown {
        store: PeerStore,
        text: String,
        /// Length in bytes, and the peers then.
        writes: Vec<(usize, PeerStore)>,
    }

    impl Grown {
        fn new(store: PeerStore) -> Grown {
            let text = store.to_json().to_string();
            let mut grown = Grown { writes: vec![(text.len(), store.clone())], store, text };
            grown.store.kept();
            grown
        }

        fn keep(&mut self) {
            if let Some(line) = self.store.changes() {
                self.text.push_str(&line);
                self.store.kept();
                self.writes.push((self.text.len(), self.store.clone()));
            }
        }
    }

    #[test]
    fn the_lines_are_what_is_documented() {
        let mut grown = Grown::new(PeerStore::default());
        grown.store.add(peer(1)).unwrap();
        grown.store.add(Peer { name: Some("phone".into()), ..peer(2) }).unwrap();
        grown.keep();
        grown.store.revoke(&key(2), 5).unwrap();
        grown.store.remove(&key(1));
        grown.keep();
        grown.keep();
        let record = |number| format!("{{\"public_key\":\"{}\"", key(number));
        let addresses = |n| format!("\"tunnel_addresses\":{{\"v4\":\"10.1.0.{n}\",\"v6\":\"fd00::{n}\"}}");
        assert_eq!(
            grown.text,
            format!(
                "{{\"version\":3,\n\"peers\":[],\n\"revoked\":[],\n\"invites\":[]}}\n\
                 [{{\"peer\":{},{},\"how\":\"added\",\"added_at\":1767225600}}}},\
                 {{\"peer\":{},\"name\":\"phone\",{},\"how\":\"added\",\"added_at\":1767225600}}}}]\n\
                 [{{\"forgotten\":\"{}\"}},{{\"revoked\":{},\"name\":\"phone\",\"revoked_at\":5}}}}]\n",
                record(1),
                addresses(1),
                record(2),
                addresses(2),
                key(1),
                record(2),
            )
        );
        let read = PeerStore::read(grown.text.as_bytes()).unwrap();
        assert_eq!(read.store, grown.store);
        assert_eq!(read.extent, Some(Extent { whole: grown.writes[0].0 - 1, all: grown.text.len() }));
    }

    #[test]
    fn a_damaged_line_is_an_error_but_a_torn_last_one_is_not() {
        let mut grown = Grown::new(PeerStore::default());
        for number in 1..=3 {
            grown.store.add(peer(number)).unwrap();
            grown.keep();
        }
        let second = grown.writes[1].0 + 1;
        let damaged = format!("{}x{}", &grown.text[..second], &grown.text[second + 1..]);
        let error = PeerStore::parse(damaged.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "the change in line 6 of the peers file cannot be read");
        // a last line that is whole was acknowledged
        let third = grown.writes[2].0 + 1;
        let damaged = format!("{}x{}", &grown.text[..third], &grown.text[third + 1..]);
        assert!(matches!(PeerStore::parse(damaged.as_bytes()), Err(PeersError::Change { line: 7, .. })));
        let hole = format!("{}\0{}", &grown.text[..third], &grown.text[third + 1..]);
        let read = PeerStore::read(hole.as_bytes()).unwrap();
        assert_eq!((&read.store, read.extent), (&grown.writes[2].1, None));
        // a line that says what cannot be
        let twice = format!(
            "{}[{{\"peer\":{}}}]\n",
            grown.text,
            serde_json::to_string(&Peer { public_key: key(9), ..peer(1) }).unwrap()
        );
        assert!(matches!(PeerStore::parse(twice.as_bytes()), Err(PeersError::DuplicateAddress { .. })));
        // no older program wrote lines
        let older = grown.text.replace("\"version\":3", "\"version\":2");
        assert!(matches!(PeerStore::parse(older.as_bytes()), Err(PeersError::Json(_))));
        // and a newer one's are its own affair
        let newer = grown.text.replace("\"version\":3", "\"version\":4");
        assert!(matches!(PeerStore::parse(newer.as_bytes()), Err(PeersError::Version(4))));
        let mended = format!("{}\n  \n", grown.text);
        assert_eq!(PeerStore::parse(mended.as_bytes()).unwrap(), grown.store, "blank lines are no changes");
    }

    /// Every byte at which a write of one of three hundred peers may break off.
    #[test]
    fn a_write_that_breaks_off_anywhere_leaves_what_was_there_before() {
        let mut store = PeerStore::default();
        store.peers.extend((0..300).map(|number| (key(number), peer(number))));
        let mut grown = Grown::new(store);
        grown.store.add(Peer { name: Some("büro".into()), ..peer(302) }).unwrap();
        grown.keep();
        grown.store.revoke(&key(302), 5).unwrap();
        grown.store.add(peer(305)).unwrap();
        grown.keep();
        let (whole, last) = (grown.writes[0].0, grown.text.len());
        let base = PeerStore::parse(&grown.text.as_bytes()[..whole]).unwrap();
        for end in whole..=last {
            let mut read = base.clone();
            let torn = read.replay(&grown.text.as_bytes()[whole..end], 1).unwrap();
            let (length, expected) = grown.writes.iter().rfind(|(length, _)| *length <= end).unwrap();
            assert!(read.peers.len() == expected.peers.len() && read.revoked == expected.revoked, "cut at {end}");
            assert!(expected.get(&key(302)) == read.get(&key(302)), "cut at {end}");
            assert_eq!(torn, end != *length, "cut at {end}");
        }
        assert_eq!(PeerStore::parse(grown.text.as_bytes()).unwrap(), grown.store);
        assert!(last - whole < 1000, "{} bytes for two changes", last - whole);
    }

    #[test]
    fn a_line_does_not_grow_with_the_peers() {
        let line = |peers: u16| {
            let mut store = PeerStore::default();
            store.peers.extend((0..peers).map(|number| (key(number), peer(number))));
            store.add(peer(30_000)).unwrap();
            store.changes().unwrap().len()
        };
        assert_eq!(line(0), line(10_000));
    }

    proptest::proptest! {
        #[test]
        fn what_was_written_line_by_line_reads_as_what_was_done(
            steps in proptest::collection::vec((0u8..12, 0u16..12, proptest::bool::ANY), 1..60),
            cut in 0usize..100_000,
        ) {
            let mut grown = Grown::new(PeerStore::default());
            for (what, number, keep) in steps {
                let store = &mut grown.store;
                // refused ones change nothing
                match what {
                    0 | 1 => drop(store.add(peer(number))),
                    2 => drop(store.revoke(&key(number), u64::from(number))),
                    3 => drop(store.rename(&key(number), Some(&format!("name {}", number % 5)))),
                    4 => drop(store.remove(&key(number))),
                    5 => drop(store.set_endpoint(&key(number), "[2001:db8::1]:9".parse().unwrap())),
                    6 => drop(store.add_invite(invite(number))),
                    7 => drop(store.redeem(&key(number), peer(number + 5))),
                    8 => drop(store.close_slot(&key(number), 7)),
                    9 => drop(store.confirm(&key(number))),
                    10 => drop(store.pardon(&key(number))),
                    _ => drop(store.used(&key(number))),
                }
                if keep {
                    grown.keep();
                }
            }
            grown.keep();
            let read = PeerStore::read(grown.text.as_bytes()).unwrap();
            proptest::prop_assert_eq!(&read.store, &grown.store);
            proptest::prop_assert_eq!(read.extent.map(|extent| extent.all), Some(grown.text.len()));
            let whole = grown.writes[0].0;
            let cut = whole + cut % (grown.text.len() - whole + 1);
            let before = &grown.writes.iter().rfind(|(length, _)| *length <= cut).unwrap().1;
            proptest::prop_assert_eq!(&PeerStore::parse(&grown.text.as_bytes()[..cut]).unwrap(), before);
        }
    }
}
