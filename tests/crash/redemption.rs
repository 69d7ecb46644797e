//! SIGKILL on either side at every step of an invite's redemption: asking again with the same invite always ends it.

use std::fs;
use std::time::{Duration, Instant};

use peervpn::join::peers::PeerStore;

use crate::lab_tests;
use crate::node::Node;
use crate::record::patience;
use crate::topology::{Lab, Nat};
use crate::victim::{Tracer, killer};

/// The joining side: files, UAPI and netlink, the control service's connection.
const PEER_CALLS: [&str; 7] = ["fsync", "rename", "connect", "sendto", "sendmsg", "recvfrom", "write"];
/// The exit, from the moment at which its invite is used.
const EXIT_CALLS: [&str; 8] = ["fsync", "rename", "openat", "sendmsg", "sendto", "recvfrom", "write", "accept4"];
/// So many kills after the join in a row, and the rest of a run is the ordinary `connect`, which `matrix.rs` kills.
const ENOUGH: u32 = 2;

fn open(lab: &Lab) -> Node {
    let mut exit = lab.exit.exit(&["--no-stun", "--accept", "none"]);
    exit.event("ready");
    exit
}

/// A fresh invite in a file, and a peer that has never been here.
fn prepare(lab: &Lab) -> String {
    let _ = fs::remove_dir_all(lab.peer().dir.join("state"));
    let file = lab.peer().dir.join("invite").to_string_lossy().into_owned();
    fs::write(&file, lab.exit.run_ok(&["invite"]).stdout).expect("write the invite");
    file
}

fn connect(lab: &Lab, invite: &str) -> Node {
    let limit = patience(40).as_secs().to_string();
    lab.peer().connect_with(&["--no-stun", "--timeout", &limit, "--invite-file", invite])
}

/// What the peer's own files say of the join: nothing yet, asking, joined.
fn remembered(lab: &Lab) -> &'static str {
    match fs::read_to_string(lab.peer().dir.join("state/exits.json")) {
        Ok(text) if text.contains("\"settings\"") => "joined",
        Ok(_) => "asking",
        Err(_) => "nothing",
    }
}

/// How the exit sees the newest join: the peer's own key, or the invite still open.
fn known_to_exit(lab: &Lab) -> (usize, usize) {
    let file = fs::read(lab.exit.dir.join("state/peers.json")).expect("a peers file");
    let store = PeerStore::parse(&file).expect("a peers file that reads");
    (store.peers().len(), store.invites().filter(|invite| invite.redeemed.is_empty()).count())
}

lab_tests! {
    fn the_joining_side_killed_at_every_step_of_a_redemption("strace") {
        let mut lab = Lab::without_stun(Nat::Open, &[Nat::Open.into()]);
        let mut exit = open(&lab);
        let mut kills = 0;
        println!("redemption crash matrix, the joining side: killed at (call, number) | its file | exit's file | then");
        for call in PEER_CALLS {
            let mut after = 0;
            for n in 1.. {
                let file = prepare(&lab);
                let (peers, _) = known_to_exit(&lab);
                lab.peers[0].under = killer(call, n);
                let mut node = connect(&lab, &file);
                lab.peers[0].under.clear();
                let survived = node.try_event("connected", patience(40)).is_ok();
                if survived {
                    node.signal(libc::SIGTERM);
                }
                let end = node.wait();
                assert!(end.is_none() || survived, "neither killed nor connected\n{}", node.log());
                let file_says = remembered(&lab);
                let exit_says = if known_to_exit(&lab).0 > peers { "new key" } else { "old key" };
                assert!(file_says != "joined" || exit_says == "new key", "the peer is ahead of the exit");
                let mut node = connect(&lab, &file);
                node.event_within("connected", patience(45));
                node.stop(libc::SIGTERM);
                assert_eq!(known_to_exit(&lab), (peers + 1, 0), "one peer more, no open invite");
                assert_eq!(remembered(&lab), "joined");
                if survived && end.is_some() {
                    break;
                }
                kills += 1;
                println!("  {call} {n} | {file_says} | {exit_says} | connected");
                after = if file_says == "joined" { after + 1 } else { 0 };
                if after >= ENOUGH {
                    break;
                }
            }
        }
        assert!(kills > 15, "only {kills} kills");
        println!("  {kills} kills; each time the same invite then connected");
        exit.stop(libc::SIGTERM);
    }

    fn the_exit_killed_at_every_step_of_a_redemption("strace") {
        let lab = Lab::without_stun(Nat::Open, &[Nat::Open.into()]);
        let mut exit = open(&lab);
        let mut kills = 0;
        println!("redemption crash matrix, the exit: killed at (call, number) | its file | peer's file | then");
        for call in EXIT_CALLS {
            let mut after = 0;
            for n in 1..=12 {
                let file = prepare(&lab);
                let (peers, _) = known_to_exit(&lab);
                let tracer = Tracer::attach(exit.id(), call, n);
                let mut node = connect(&lab, &file);
                // the exit dies, or the peer connects: whichever comes first
                let limit = Instant::now() + patience(20);
                let mut connected = false;
                while exit.runs() && !connected && Instant::now() < limit {
                    connected = node.try_event("connected", Duration::from_millis(50)).is_ok();
                }
                drop(tracer);
                let killed = !exit.runs();
                let exit_says = if known_to_exit(&lab).0 > peers { "new key" } else { "old key" };
                let file_says = remembered(&lab);
                if killed {
                    kills += 1;
                    exit = open(&lab);
                }
                if !connected {
                    node.event_within("connected", patience(45));
                }
                node.stop(libc::SIGTERM);
                assert_eq!(known_to_exit(&lab), (peers + 1, 0), "one peer more, no open invite");
                if !killed {
                    break;
                }
                println!("  {call} {n} | {exit_says} | {file_says} | connected");
                after = if file_says == "joined" { after + 1 } else { 0 };
                if after >= ENOUGH {
                    break;
                }
            }
        }
        assert!(kills > 10, "only {kills} kills");
        println!("  {kills} kills; each time the exit was started again and the waiting peer connected");
        exit.stop(libc::SIGTERM);
    }
}
