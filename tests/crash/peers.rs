//! SIGKILL of an exit while peers are added and revoked: whoever was acknowledged is in, or out, when it starts again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;

use peervpn::join::address::peer_addresses;
use peervpn::join::peers::{How, Peer, PeerStore};
use peervpn::key::PublicKey;
use serde_json::Value;

use crate::lab_tests;
use crate::node::Node;
use crate::topology::{Lab, Nat};
use crate::victim::Tracer;

/// The calls by which an exit keeps a change, and those around it.
const CALLS: [&str; 9] = ["write", "fdatasync", "openat", "lseek", "flock", "fsync", "rename", "sendto", "recvfrom"];
/// Of these, those by which the whole file is written: for them it is made one of version 2 first.
const WHOLE: [&str; 2] = ["fsync", "rename"];
/// Peers that are there from the beginning.
const MANY: u32 = 1000;
/// Kills at one call at most; changes are asked for until one is.
const KILLS: u32 = 6;
const CHANGES: u32 = 9;

fn key(number: u32) -> PublicKey {
    let mut key = PublicKey([11; 32]);
    key.0[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn open(lab: &Lab) -> Node {
    let mut exit = lab.exit.exit(&["--no-stun", "--accept", "none"]);
    exit.event("ready");
    exit
}

/// The file as a stopped exit left it.
fn read(lab: &Lab) -> PeerStore {
    let file = fs::read(lab.exit.dir.join("state/peers.json")).expect("a peers file");
    PeerStore::parse(&file).expect("a peers file that reads")
}

fn write(lab: &Lab, store: &PeerStore, version: u64) {
    let text = store.to_json().replacen("\"version\":3", &format!("\"version\":{version}"), 1);
    fs::write(lab.exit.dir.join("state/peers.json"), text).expect("write the peers file");
}

/// Where a peer stands by the file: in, out, or unheard of.
fn stands(store: &PeerStore, key: &PublicKey) -> Option<bool> {
    store.get(key).map(|_| true).or(store.is_revoked(key).then_some(false))
}

lab_tests! {
    fn an_exit_killed_while_its_peers_change_forgets_nothing_it_said("strace") {
        let lab = Lab::without_stun(Nat::Open, &[]);
        fs::DirBuilder::new().mode(0o700).create(lab.exit.dir.join("state")).expect("a state directory");
        let mut store = PeerStore::default();
        for number in 0..MANY {
            let addresses = peer_addresses(&PublicKey([1; 32]), &key(number));
            // two of a thousand may collide
            let _ = store.add(Peer::new(key(number), addresses, How::Added, 1));
        }
        let many = store.peers().len();
        write(&lab, &store, 3);
        let (mut said, mut next) = (BTreeMap::new(), MANY);
        let (mut kills, mut kept, mut lost) = (0, 0, 0);
        for call in CALLS {
            for n in 1..=KILLS {
                if WHOLE.contains(&call) {
                    write(&lab, &read(&lab), 2);
                }
                let mut exit = open(&lab);
                let tracer = Tracer::attach(exit.id(), call, n);
                let mut doubtful = None;
                for turn in 0..CHANGES {
                    // every third change throws out the peer before
                    let (word, number) = if turn % 3 == 2 { ("revoke", next - 1) } else { ("add", next) };
                    let change = (key(number), word == "add");
                    next += u32::from(change.1);
                    let finished = lab.exit.run(&["peers", word, &change.0.to_string()]);
                    if finished.code != Some(0) {
                        assert!(!exit.runs() || exit.wait().is_none(), "{}\n{}", finished.all(), exit.log());
                        doubtful = Some(change);
                        break;
                    }
                    said.insert(change.0, change.1);
                }
                drop(tracer);
                if doubtful.is_none() && exit.runs() {
                    exit.stop(libc::SIGTERM);
                    break;
                }
                exit.wait();
                kills += 1;
                let store = read(&lab);
                if let Some((key, wanted)) = doubtful {
                    // nobody was told, so either will do
                    let stands = stands(&store, &key);
                    if stands == Some(wanted) { kept += 1 } else { lost += 1 }
                    match stands {
                        Some(now) => drop(said.insert(key, now)),
                        None => assert_eq!(said.remove(&key), None, "it was said to be in: {key}"),
                    }
                }
                for (key, wanted) in &said {
                    assert_eq!(stands(&store, key), Some(*wanted), "{key} after a kill at {call} {n}");
                }
                let inside = said.values().filter(|inside| **inside).count();
                assert_eq!(store.peers().len(), many + inside, "after a kill at {call} {n}");
            }
        }
        println!("{kills} kills while {} peers changed: {kept} changes under way were kept, {lost} not", said.len());
        assert!(kills > 15, "only {kills} kills");
        assert!(kept > 0 && lost > 0, "no kill before a write, or none after");
        // and the exit itself says the same
        let mut exit = open(&lab);
        let list = lab.exit.run_ok(&["peers", "list", "--json"]).stdout;
        let list: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        for (key, inside) in &said {
            assert_eq!(list.iter().any(|peer| peer["public_key"] == key.to_string()), *inside, "{key}");
        }
        exit.stop(libc::SIGTERM);
    }
}
