//! The journal's format: one line a record, `CHECKSUM JSON\n`, where CHECKSUM is the first eight hex digits of SHA-256
//! over the JSON. Append-only; `platform::files::Log` writes and syncs it.
//!
//! A record [`Record::Undo`] is on disk before its change is made, [`Record::Done`] after. A torn last line is what a
//! power cut leaves and is ignored: its change was not made yet. Anything else that does not read is damage: the
//! records before it still count, and the caller is told.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Undo;

/// Format version; a journal of another version is damage to us, and is reported as such.
pub const VERSION: u32 = 1;

/// Longest line in bytes; a firewall table's undo is its name, so records are small.
const MAX_LINE: usize = 64 << 10;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// First line: who writes.
    Open {
        /// Format version.
        version: u32,
        /// The boot in which the changes were made (Linux: `/proc/sys/kernel/random/boot_id`); empty where the
        /// system would not say.
        boot: String,
        /// The network namespace in which they were made, where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        namespace: Option<u64>,
        /// `exit` or `connect`.
        mode: String,
        /// Interface name.
        interface: String,
    },
    /// This is about to be done; undo it so.
    Undo {
        /// Number, counted from 0.
        n: u32,
        /// What takes it back.
        undo: Undo,
    },
    /// The change of number `n` was made.
    Done {
        /// Number.
        n: u32,
    },
    /// Everything up to here is undone but this.
    Undone {
        /// What is left to undo.
        but: Vec<Undo>,
    },
    /// Our firewall rules are, or are not, a kill switch from here on.
    Closes(bool),
    /// What names stood for when they were looked up. Replaces the record before.
    Names(Vec<(String, std::net::IpAddr)>),
}

/// What a journal says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Journal {
    /// Boot ID of the writer.
    pub boot: Option<String>,
    /// Network namespace of the writer.
    pub namespace: Option<u64>,
    /// `exit` or `connect`.
    pub mode: Option<String>,
    /// Undos in the order their changes were made.
    pub undos: Vec<Undo>,
    /// Our firewall rules are a kill switch.
    pub closes: bool,
    /// Names and what they stood for.
    pub names: Vec<(String, std::net::IpAddr)>,
    /// The last line was torn (ignored).
    pub torn: bool,
    /// Length in bytes of the lines before it.
    pub whole: usize,
    /// Number of the first line that does not read, counted from 1, if any before the last.
    pub damaged_at: Option<usize>,
}

/// One record as it stands in the file.
pub fn encode(record: &Record) -> Vec<u8> {
    let json = serde_json::to_string(record).expect("records have string keys only");
    format!("{} {json}\n", checksum(json.as_bytes())).into_bytes()
}

/// Reads a journal. Never fails: what cannot be read is said in the result.
pub fn decode(bytes: &[u8]) -> Journal {
    let mut journal = Journal::default();
    let mut lines = bytes.split_inclusive(|b| *b == b'\n').enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        match decode_line(line, number == 0) {
            Some(Record::Open { boot, namespace, mode, .. }) => {
                journal.boot = Some(boot);
                journal.namespace = namespace;
                journal.mode = Some(mode);
            }
            Some(Record::Undo { undo, .. }) => journal.undos.push(undo),
            Some(Record::Done { .. }) => {}
            Some(Record::Undone { but }) => journal.undos = but,
            Some(Record::Closes(closes)) => journal.closes = closes,
            Some(Record::Names(names)) => journal.names = names,
            None if lines.peek().is_none() => {
                journal.torn = true;
                continue;
            }
            None => {
                journal.damaged_at.get_or_insert(number + 1);
            }
        }
        journal.whole += line.len();
    }
    journal
}

fn decode_line(line: &[u8], first: bool) -> Option<Record> {
    let line = line.strip_suffix(b"\n")?;
    if line.len() > MAX_LINE || line.len() < 9 || line[8] != b' ' {
        return None;
    }
    let (sum, json) = (&line[..8], &line[9..]);
    if checksum(json).as_bytes() != sum {
        return None;
    }
    let record: Record = serde_json::from_slice(json).ok()?;
    match &record {
        Record::Open { version, .. } if *version != VERSION => None,
        Record::Open { .. } if !first => None,
        _ => Some(record),
    }
}

fn checksum(json: &[u8]) -> String {
    Sha256::digest(json)[..4].iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str) -> Undo {
        Undo::Link { name: name.to_owned() }
    }

    fn sample() -> Vec<Vec<u8>> {
        vec![
            encode(&Record::Open {
                version: VERSION,
                boot: "b".into(),
                namespace: None,
                mode: "exit".into(),
                interface: "peervpn0".into(),
            }),
            encode(&Record::Undo { n: 0, undo: link("one") }),
            encode(&Record::Done { n: 0 }),
            encode(&Record::Undo { n: 1, undo: link("two") }),
        ]
    }

    #[test]
    fn round_trip() {
        let journal = decode(&sample().concat());
        assert_eq!(journal.undos, [link("one"), link("two")]);
        assert_eq!((journal.boot.as_deref(), journal.mode.as_deref()), (Some("b"), Some("exit")));
        assert!(!journal.torn && journal.damaged_at.is_none());
    }

    #[test]
    fn every_undo_is_read_as_it_was_written() {
        use peervpn_platform::nft::foreign::{Place, Position, TableFamily};
        use peervpn_platform::types::*;

        use crate::host::change::PortMapping;

        let (name, address) = (|| "one".to_owned(), "192.0.2.1".parse().unwrap());
        let resolvconf = Resolvconf { program: "/sbin/resolvconf".into(), kind: ResolvconfKind::Openresolv };
        let undos = [
            Undo::Sysctl { key: name(), was: "0".into(), set: "1".into(), beside: vec![(name(), "0".into())] },
            Undo::Settings { values: vec![(name(), "0".into())] },
            link("one"),
            Undo::Process { id: ProcessId { pid: 7, started: 8 }, interface: name() },
            Undo::Firewall { name: name() },
            Undo::Route {
                route: Route {
                    table: 254,
                    destination: "0.0.0.0/1".parse().unwrap(),
                    kind: RouteKind::Other(7),
                    oif: Some(name()),
                    gateway: Some(std::net::IpAddr::V4(address)),
                    metric: None,
                    protocol: 80,
                    mtu: Some(1420),
                },
            },
            Undo::Rule(Rule {
                family: Family::V6,
                priority: 5180,
                fwmark: Some((1, 2)),
                invert: true,
                table: 51820,
                suppress_prefixlen: Some(0),
                protocol: 80,
            }),
            Undo::ForeignAccept {
                place: Place { family: TableFamily::Ip, table: name(), chain: name(), position: Position::Before(3) },
                comment: name(),
            },
            Undo::PortMapping(PortMapping::Pcp { gateway: address, client: address, port: 1, nonce: [9; 12] }),
            Undo::PortMapping(PortMapping::NatPmp { gateway: address, client: address, port: 1 }),
            Undo::PortMapping(PortMapping::Upnp {
                server: "192.0.2.1:80".parse().unwrap(),
                path: "/".into(),
                service: name(),
                external_port: 1,
                client: address,
                port: 2,
                permanent: true,
            }),
            Undo::File {
                path: "/etc/resolv.conf".into(),
                was: FileState::Link { target: "../run/x".into() },
                set: name(),
                in_place: false,
            },
            Undo::ResolvedLink { interface: name() },
            Undo::SystemDns { interface: name() },
            Undo::Resolvconf { resolvconf, record: name() },
        ];
        for undo in undos {
            let line = encode(&Record::Undo { n: 1, undo: undo.clone() });
            assert_eq!(decode_line(&line, false), Some(Record::Undo { n: 1, undo }));
        }
    }

    #[test]
    fn what_is_undone_is_not_undone_again() {
        let names = vec![("exit.test".to_owned(), "192.0.2.1".parse().unwrap())];
        let more = [
            encode(&Record::Names(names.clone())),
            encode(&Record::Undone { but: vec![link("two")] }),
            encode(&Record::Undo { n: 1, undo: link("three") }),
        ];
        let bytes = [sample(), more.to_vec()].concat().concat();
        let journal = decode(&bytes);
        assert_eq!((journal.undos, journal.names), (vec![link("two"), link("three")], names));
        assert_eq!(journal.damaged_at, None);
    }

    #[test]
    fn every_cut_loses_only_the_record_it_tears() {
        let lines = sample();
        let whole = lines.concat();
        for cut in 0..whole.len() {
            let journal = decode(&whole[..cut]);
            let complete = whole[..cut].iter().filter(|b| **b == b'\n').count();
            let expected = lines[..complete]
                .iter()
                .filter(|l| decode_line(l, false).is_some_and(|r| matches!(r, Record::Undo { .. })))
                .count();
            assert_eq!(journal.undos.len(), expected, "cut at {cut}");
            assert_eq!(journal.damaged_at, None, "a cut at {cut} is no damage");
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed_and_the_rest_still_counts() {
        let whole = sample().concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            let journal = decode(&bytes);
            assert!(journal.torn || journal.damaged_at.is_some(), "flip at {at} unnoticed");
            assert!(journal.undos.iter().all(|u| *u == link("one") || *u == link("two")));
        }
    }

    #[test]
    fn another_version_is_damage_not_a_guess() {
        let open = encode(&Record::Open {
            version: VERSION + 1,
            boot: "b".into(),
            namespace: None,
            mode: "exit".into(),
            interface: "x".into(),
        });
        assert_eq!(decode(&[open, encode(&Record::Done { n: 0 })].concat()).damaged_at, Some(1));
    }
}
