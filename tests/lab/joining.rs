//! How peers come in, come back, and are kept out.

use std::time::{Duration, Instant};

use serde_json::Value;

use peervpn::key::PrivateKey;
use peervpn_platform::types::Family;

use crate::count::{Counts, INITIATION};
use crate::record::{self, patience};
use crate::snapshot::assert_unchanged;
use crate::topology::{DEAD, Lab, Nat, Plan, Site, V6, WEB};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

const HOME: Nat = Nat::PortRestricted;

/// Makes `wg0` at a site the way its owner would without PeerVPN; the key it has.
pub fn stock_interface(site: &Site) -> (String, Option<Helper>) {
    let mut helper = None;
    if record::backend() == "kernel" {
        site.host.ip("link add name wg0 type wireguard\n");
    } else {
        let mut command = site.host.command("wireguard-go");
        command.args(["-f", "wg0"]).env("WG_SUDO", "1").env("LOG_LEVEL", "error");
        helper = Some(Helper(command.spawn().expect("start wireguard-go")));
        let socket = site.host.sockets.join("wg0.sock");
        let start = Instant::now();
        while !socket.exists() {
            assert!(start.elapsed() < patience(10), "wireguard-go makes no socket");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let script = "umask 077; wg genkey > \"$1\"; wg set wg0 private-key \"$1\"; wg pubkey < \"$1\"";
    let key = site.host.output("sh", &["-ec", script, "sh", &site.dir.join("stock.key").to_string_lossy()]);
    (key.trim().to_owned(), helper)
}

/// A program that dies with the test.
pub struct Helper(std::process::Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Polls `check` until it holds or the bound is over.
#[track_caller]
fn eventually(what: &str, seconds: u64, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience(seconds);
    while !check() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

lab_tests! {
    fn two_peers_at_once() {
        let lab = Lab::new(Nat::Open, &[HOME.into(), Nat::Symmetric.into()]);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let mut nodes: Vec<_> = lab.peers.iter().map(|site| site.connect(text(&ready, "connect"), &[])).collect();
        let connected: Vec<Value> = nodes.iter_mut().map(|node| node.event("connected")).collect();
        assert_ne!(connected[0]["tunnel_addresses"], connected[1]["tunnel_addresses"]);
        for _ in 0..3 {
            lab.peers.iter().for_each(|site| assert_leaves_through_exit(&lab, site));
        }
        // one leaving does not disturb the other
        nodes[0].stop(libc::SIGINT);
        assert_leaves_directly(lab.peer());
        assert_leaves_through_exit(&lab, &lab.peers[1]);
        nodes[1].stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn a_peer_comes_back_after_its_nat_got_another_address("conntrack") {
        let mut lab = Lab::new(Nat::Open, &[HOME.into()]);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        let before = lab.exit.run_ok(&["status", "--json"]).stdout;
        lab.peers[0].renumber();
        eventually("a request through the exit after renumbering", 40, || lab.peer().whoami(WEB[0]).is_ok());
        assert_leaves_through_exit(&lab, lab.peer());
        let after = lab.exit.run_ok(&["status", "--json"]).stdout;
        let endpoint = |status: &str| {
            let status: Value = serde_json::from_str(status).unwrap_or_else(|e| panic!("{e}: {status}"));
            text(&status["peers"][0], "endpoint").to_owned()
        };
        assert_ne!(endpoint(&before), endpoint(&after));
        assert!(endpoint(&after).starts_with(&lab.peer().public4.to_string()), "{after}");
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn a_peer_comes_back_after_its_symmetric_nat_forgot_it("conntrack") {
        let lab = Lab::new(Nat::Open, &[Nat::Symmetric.into()]);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        for _ in 0..2 {
            lab.peer().forget_mappings();
            eventually("a request through the exit after the flush", 40, || lab.peer().whoami(WEB[0]).is_ok());
            assert_leaves_through_exit(&lab, lab.peer());
        }
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// A peer that stopped and connects again: same key, same addresses, no second admission.
    fn a_peer_connects_again() {
        let lab = Lab::new(Nat::FullCone, &[HOME.into()]);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, first) = join(lab.peer(), &ready, &[]);
        peer.stop(libc::SIGINT);
        let (mut peer, second) = join(lab.peer(), &ready, &[]);
        assert_eq!(first["tunnel_addresses"], second["tunnel_addresses"]);
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// gotatun by itself looks four times a second whom to call: too seldom for peers that come and go faster.
    fn who_is_set_with_a_keepalive_is_called_at_once("wg") {
        let lab = Lab::new(Nat::Open, &[]);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let counts = Counts::start(&lab.exit.host, &[], &[("called", &format!("oifname != lo {INITIATION}"))]);
        let endpoint = format!("{}:9", WEB[0]);
        let (interface, peer) = (text(&ready, "interface"), PrivateKey::generate().public().to_string());
        let set = |words: &[&str]| {
            lab.exit.host.output("wg", &[&["set", interface, "peer", &peer], words].concat());
        };
        const TIMES: u64 = 15;
        for _ in 0..TIMES {
            set(&["endpoint", &endpoint, "persistent-keepalive", "25"]);
            std::thread::sleep(Duration::from_millis(100));
            set(&["remove"]);
        }
        // a machine that is busy may be late now and then
        let called = counts.packets("called");
        assert!(called >= TIMES * 4 / 5, "{called} initiations\n{}", exit.log());
        exit.stop(libc::SIGINT);
    }

    /// The kernel's WireGuard is handed the newcomer's own initiation; another one has to call it.
    fn a_newcomer_is_answered_by_the_kernel_and_called_by_others() {
        for family in [Family::V4, Family::V6] {
            let lab = Lab::new(Nat::Open, &[HOME.into()]);
            let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
            let calls = format!("oifname != lo {INITIATION}");
            let counts = Counts::start(&lab.exit.host, &[], &[("called", &calls)]);
            let connect = text(&ready, "connect");
            let (key, endpoints) = connect.split_once('@').expect("a connect string");
            let endpoint = endpoints.split(',').find(|endpoint| endpoint.starts_with('[') == (family == Family::V6));
            let target = format!("{key}@{}", endpoint.unwrap_or_else(|| panic!("no {family:?} in {connect}")));
            let mut peer = lab.peer().connect(&target, &["--no-stun"]);
            peer.event("connected");
            let called = counts.packets("called");
            assert_eq!(called == 0, record::backend() == "kernel", "{called} initiations\n{}", exit.log());
            assert_leaves_through_exit(&lab, lab.peer());
            peer.stop(libc::SIGINT);
            exit.stop(libc::SIGINT);
        }
    }

    /// What only the exit knows: its MTU, that it has no IPv6, that it answers no DNS, and where else it is.
    fn a_connect_string_is_completed_by_what_the_exit_says() {
        let lab = Lab::new(Plan::v4_only(Nat::Open), &[HOME.into()]);
        let (mut exit, ready) = open_exit(&lab, &["--mtu", "1300", "--dns", "none"]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        let table = || lab.peer().host.output("nft", &["list", "table", "inet", "peervpn"]);
        let refuses_v6 = || table().contains("the exit has no IPv6");
        let link = || lab.peer().host.output("ip", &["link", "show", "peervpn0"]);
        let exits = lab.peer().dir.join("state/exits.json");
        eventually("the exit says that it has no IPv6", 20, refuses_v6);
        eventually("the exit says its MTU", 20, || link().contains("mtu 1300"));
        eventually("it is remembered", 20, || exits.exists());
        eventually("the exit says that it answers no DNS", 20, || peer.log().contains("answers no DNS queries"));
        assert!(lab.peer().whoami(WEB[0]).is_ok());
        let start = Instant::now();
        assert!(lab.peer().whoami(WEB[1]).is_err());
        println!("IPv6 through an exit without it: refused after {:?}", start.elapsed());
        peer.stop(libc::SIGINT);
        // the next time it is known before the first packet, and so is where the exit is
        let elsewhere = format!("{}@{DEAD}:9", text(&ready, "public_key"));
        let mut peer = lab.peer().connect(&elsewhere, &[]);
        let connected = peer.event("connected");
        assert_eq!(text(&connected, "endpoint"), format!("{}:{}", lab.exit.public4, ready["port"]));
        assert!(refuses_v6() && link().contains("mtu 1300"), "{}", table());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn a_stock_wireguard_peer_joins_by_its_key("wg", "wireguard-go") {
        let lab = Lab::new(Nat::FullCone, &[HOME.into()]);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let site = lab.peer();
        let (key, _device) = stock_interface(site);
        let endpoint = format!("{}:{}", lab.exit.public4, ready["port"]);
        // the link first: with it down, the keepalive sends nothing
        site.host.ip("link set wg0 up\n");
        site.host.output("wg", &["set", "wg0", "peer", text(&ready, "public_key"), "endpoint", &endpoint,
            "persistent-keepalive", "5", "allowed-ips", "0.0.0.0/0,::/0"]);
        let joined = exit.event("joined");
        assert_eq!(text(&joined, "public_key"), key);
        assert_eq!(text(&joined, "how"), "any");
        let mut lines = String::new();
        for address in texts(&joined, "tunnel_addresses") {
            let bits = if address.contains(':') { 128 } else { 32 };
            lines += &format!("addr add {address}/{bits} dev wg0\n");
        }
        lines += &format!("route add {} dev wg0\nroute add {} dev wg0\n", WEB[0], WEB[1]);
        site.host.ip(&lines);
        eventually("a request of a stock peer through the exit", 15, || site.whoami(WEB[0]).is_ok());
        assert_leaves_through_exit(&lab, site);
        exit.stop(libc::SIGINT);
    }

    fn a_dead_stun_server_beside_a_live_one_does_not_matter() {
        let lab = Lab::new(Nat::FullCone, &[HOME.into()]);
        let dead = format!("{DEAD}:3478");
        let servers = ["--stun-server", dead.as_str(), "--stun-server", "192.0.2.3:3478"];
        let (mut exit, ready) = open_exit(&lab, &servers);
        let reflexive = format!("{}:{}", lab.exit.public4, ready["port"]);
        assert!(texts(&ready, "endpoints").contains(&reflexive), "no {reflexive} in {ready}");
        let (mut peer, _) = join(lab.peer(), &ready, &servers);
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// No answer from any server: the exit still starts and offers its local addresses.
    fn every_stun_server_dead() {
        let lab = Lab::without_stun(Nat::Open, &[HOME.into()]);
        let dead = format!("{DEAD}:3478");
        let servers = ["--stun-server", dead.as_str(), "--stun-server", "192.0.2.3:3478"];
        let (mut exit, ready) = open_exit(&lab, &servers);
        let local = format!("{}:{}", lab.exit.host4, ready["port"]);
        assert!(texts(&ready, "endpoints").contains(&local), "no {local} in {ready}");
        let (mut peer, _) = join(lab.peer(), &ready, &servers);
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn without_stun_the_local_addresses_are_offered() {
        let lab = Lab::without_stun(Nat::Open, &[HOME.into()]);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let endpoints = texts(&ready, "endpoints");
        for local in [format!("{}:{}", lab.exit.host4, ready["port"]), format!("[{}]:{}", lab.exit.host6.expect("v6"), ready["port"])] {
            assert!(endpoints.contains(&local), "no {local} in {endpoints:?}");
        }
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// Behind a NAT that only its owner knows how to open, the endpoint is stated by hand.
    fn an_endpoint_stated_by_hand_is_offered_first() {
        let lab = Lab::without_stun(Nat::FullCone, &[HOME.into()]);
        let stated = format!("{}:51820", lab.exit.public4);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun", "--port", "51820", "--endpoint", &stated]);
        assert_eq!(texts(&ready, "endpoints").first(), Some(&stated), "{ready}");
        let (mut peer, connected) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_eq!(text(&connected, "endpoint"), stated);
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn without_a_terminal_a_peer_waits_until_it_is_accepted() {
        let lab = Lab::new(Nat::Open, &[HOME.into()]);
        let mut exit = lab.exit.exit(&["--accept", "ask"]);
        let ready = exit.event("ready");
        let site = lab.peer();
        let timeout = patience(30).as_secs().to_string();
        let mut peer = site.connect(text(&ready, "connect"), &["--timeout", &timeout]);
        let pending = exit.event("pending");
        assert!(text(&pending, "endpoint").starts_with(&format!("{}:", site.public4)), "{pending}");
        let id = text(&pending, "peer_id");
        // the peer's operator sees the same ID and key
        let own = site.run_ok(&["info", "--json"]).stdout;
        let own: Value = serde_json::from_str(&own).unwrap_or_else(|e| panic!("{e}: {own}"));
        assert_eq!((text(&own, "peer_id"), &own["public_key"]), (id, &pending["public_key"]));
        let list = lab.exit.run_ok(&["peers", "pending", "--json"]).stdout;
        assert!(list.contains(id), "{id} is not in {list}");
        assert!(peer.try_event("connected", Duration::from_millis(500)).is_err(), "connected before it was accepted");

        lab.exit.run_ok(&["peers", "accept", id]);
        let joined = exit.event("joined");
        assert_eq!((text(&joined, "peer_id"), text(&joined, "how")), (id, "accepted"));
        peer.event("connected");
        assert_leaves_through_exit(&lab, site);
        let list = lab.exit.run_ok(&["peers", "pending", "--json"]).stdout;
        assert!(!list.contains(id), "{id} is still in {list}");
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn accept_none_lets_nobody_in() {
        let lab = Lab::new(Nat::Open, &[HOME.into()]);
        let mut exit = lab.exit.exit(&["--accept", "none"]);
        let ready = exit.event("ready");
        let before = lab.peer().host.snapshot();
        let mut peer = lab.peer().connect(text(&ready, "connect"), &["--timeout", &patience(4).as_secs().to_string()]);
        assert_eq!(peer.wait(), Some(1), "{}", peer.log());
        assert!(exit.try_event("joined", Duration::from_millis(100)).is_err());
        assert_unchanged("after a refused connect", &before, &lab.peer().host.snapshot());
        assert_leaves_directly(lab.peer());
        exit.stop(libc::SIGINT);
    }

    /// The exit's provider has no IPv6: a peer that has some must be refused at once, and nothing may leave beside the
    /// tunnel.
    fn where_the_exit_has_no_v6_the_peers_v6_is_refused_at_once() { v6_refused_at_once(V6::None) }

    /// The same where the exit's owner switched IPv6 off.
    fn where_the_exit_disabled_v6_the_peers_v6_is_refused_at_once() { v6_refused_at_once(V6::Disabled) }
}

fn v6_refused_at_once(v6: V6) {
    let lab = Lab::new(Plan { nat: Nat::Open, v6 }, &[HOME.into()]);
    let (mut exit, ready) = open_exit(&lab, &[]);
    let (mut peer, _) = join(lab.peer(), &ready, &[]);
    lab.web.take_callers();
    let start = Instant::now();
    let refused = lab.peer().whoami(WEB[1]);
    assert!(refused.is_err(), "a v6 request arrived from {refused:?}");
    // a request without an answer gives up after 5 s
    assert!(start.elapsed() < Duration::from_secs(4), "refused only after {:?}", start.elapsed());
    assert_leaves_through_exit(&lab, lab.peer());
    let own: Vec<_> = WEB.iter().filter_map(|web| lab.peer().public(*web)).collect();
    let callers = lab.web.take_callers();
    assert!(!callers.iter().any(|caller| own.contains(caller)), "leaked: {callers:?}");
    peer.stop(libc::SIGINT);
    exit.stop(libc::SIGINT);
}
