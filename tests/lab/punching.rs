//! Hole punching by hand: `peers add PUBKEY@ENDPOINT` on the exit, while the other side runs `connect`.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::count::{Counts, INITIATION};
use crate::node::Node;
use crate::record::patience;
use crate::topology::{Lab, Nat, Plan, Site};
use crate::{assert_leaves_through_exit, lab_tests, open_exit, text};

const STRICT: Nat = Nat::PortRestricted;
/// WireGuard repeats an unanswered initiation after this (REKEY_TIMEOUT of its paper, §6.1). Who waits for that has
/// missed the packet that crossed its own.
const RETRY: Duration = Duration::from_secs(5);
const SERVERS: [&str; 4] = ["--stun-server", "192.0.2.3:3478", "--stun-server", "192.0.2.4:3478"];

fn strict_lab() -> Lab {
    Lab::new(Plan::v4_only(STRICT), &[Plan::v4_only(STRICT)])
}

fn connect(site: &Site, ready: &Value, more: &[&str]) -> Node {
    let timeout = patience(60).as_secs().to_string();
    site.connect(text(ready, "connect"), &[&SERVERS[..], &["--timeout", &timeout], more].concat())
}

/// A site's own key; there is one once a node has run.
fn key(site: &Site) -> String {
    let info = site.run_ok(&["info", "--json"]).stdout;
    let info: Value = serde_json::from_str(&info).unwrap_or_else(|e| panic!("{e}: {info}"));
    text(&info, "public_key").to_owned()
}

/// What the peer's operator would be told to send to the exit's, with both NATs closed again afterwards.
fn own_connect_string(lab: &Lab, ready: &Value) -> String {
    let mut peer = connect(lab.peer(), ready, &["--port", "40001"]);
    let own = text(&peer.event("unreachable"), "own").to_owned();
    peer.stop(libc::SIGINT);
    close(lab);
    own
}

/// Both NATs forget what was sent.
fn close(lab: &Lab) {
    [&lab.exit, lab.peer()].into_iter().for_each(Site::forget_mappings);
}

lab_tests! {
    fn connect_says_its_own_connect_string_and_is_in_as_soon_as_the_exit_calls() {
        let lab = strict_lab();
        let (mut exit, ready) = open_exit(&lab, &SERVERS);
        let peer_counts = Counts::start(&lab.peer().host, &[("called", INITIATION)], &[("sent", INITIATION)]);
        let exit_counts = Counts::start(&lab.exit.host, &[("heard", INITIATION)], &[]);
        let mut peer = connect(lab.peer(), &ready, &["--port", "40001"]);

        let unreachable = peer.event("unreachable");
        assert_eq!(unreachable["since_s"], 3, "{unreachable}");
        let own = text(&unreachable, "own").to_owned();
        // its NAT keeps ports
        assert_eq!(own, format!("{}@{}:40001", key(lab.peer()), lab.peer().public4));
        assert!(text(&unreachable, "hint").contains(&format!("peers add \"{own}\"")), "{unreachable}");
        // it keeps trying, and nothing of it gets through
        let sent = peer_counts.packets("sent");
        assert!((2..=5).contains(&sent), "{sent} initiations in 3 s");
        // the pause between two is 5 s at most
        assert!(peer.try_event("connected", RETRY).is_err(), "connected without help");
        assert!(peer_counts.packets("sent") > sent, "it gave up");
        assert_eq!(exit_counts.packets("heard"), 0, "the exit's NAT is not port-restricted");
        assert_eq!(peer_counts.packets("called"), 0);

        let asked = Instant::now();
        lab.exit.run_ok(&["peers", "add", &own]);
        let joined = exit.event("joined");
        assert_eq!((text(&joined, "how"), &joined["public_key"]), ("added", &Value::from(key(lab.peer()))));
        peer.event("connected");
        let took = asked.elapsed();
        let calls = peer_counts.packets("called");
        println!("connected {took:?} after `peers add` began, {calls} calls arrived");
        // one call is enough: the peer's NAT has been open for it all the time
        assert!((1..=3).contains(&calls), "{calls} calls");
        assert!(took < patience(2), "{took:?}");
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// The exit calls first, against a closed NAT; the peer begins while it still calls.
    fn the_exit_may_have_been_told_before_the_peer_begins() {
        let lab = strict_lab();
        let (mut exit, ready) = open_exit(&lab, &SERVERS);
        let own = own_connect_string(&lab, &ready);
        lab.exit.run_ok(&["peers", "add", &own]);
        std::thread::sleep(Duration::from_secs(2));
        let mut peer = connect(lab.peer(), &ready, &["--port", "40001"]);
        let handshake = peer.event("connected")["handshake_ms"].as_u64().expect("a number");
        println!("handshake after {handshake} ms");
        // the exit's filter is open already: neither waits for a retry
        assert!(Duration::from_millis(handshake) < patience(2), "{handshake} ms");
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// Both begin within one second of each other, in either order, again and again: initiations cross on the way.
    fn initiations_that_cross_cost_no_retry() {
        let lab = strict_lab();
        let (mut exit, ready) = open_exit(&lab, &SERVERS);
        let own = own_connect_string(&lab, &ready);
        for round in 0..4u64 {
            let mut peer = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(300));
                    lab.exit.run_ok(&["peers", "add", &own]);
                });
                // a node dies with the thread that started it: this one
                std::thread::sleep(Duration::from_millis(200 * round));
                connect(lab.peer(), &ready, &["--port", "40001"])
            });
            let handshake = peer.event("connected")["handshake_ms"].as_u64().expect("a number");
            println!("round {round}: handshake after {handshake} ms");
            assert!(Duration::from_millis(handshake) < RETRY.max(patience(2)), "round {round}: {handshake} ms");
            assert_leaves_through_exit(&lab, lab.peer());
            peer.stop(libc::SIGINT);
            close(&lab);
        }
        exit.stop(libc::SIGINT);
    }
}
