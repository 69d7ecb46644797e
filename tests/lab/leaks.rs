//! The leak matrix: a capture on the wire outside the peer, while everything that can go wrong does. What is neither for
//! the exit's endpoint nor DHCP, neighbour discovery or the LAN has leaked.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::joining_invites::{closed_exit, connect_by, invite};
use crate::node::Node;
use crate::record::patience;
use crate::topology::{DEAD, Lab, Nat, Site};
use crate::wire::{Allowed, Capture, Noise};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

/// How long each state lasts.
const STATE: Duration = Duration::from_millis(1500);

/// A peer behind its router, an exit, a capture between peer and router, and noise on the peer.
struct Scene {
    noise: Noise,
    capture: Capture,
    exit: Node,
    ready: Value,
    lab: Lab,
    /// Attempts and leaks of the states that had to be tight.
    tight: (u64, u64, u64),
}

impl Scene {
    fn new(lan: bool) -> Scene {
        let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into()]);
        let (exit, ready) = open_exit(&lab, &[]);
        let mut endpoints: Vec<SocketAddr> =
            texts(&ready, "endpoints").iter().map(|e| e.parse().expect("an address and a port")).collect();
        endpoints.push((DEAD, 51820).into());
        let lan =
            if lan { ["192.168.1.0/24", "2001:db8:1:1::/64"].map(|p| p.parse().unwrap()).to_vec() } else { vec![] };
        let capture = Capture::start(router(&lab), "lan0", Allowed { endpoints, lan });
        let noise = Noise::start(&lab.peer().host, lab.peer().lan_router().into());
        Scene { noise, capture, exit, ready, lab, tight: (0, 0, 0) }
    }

    fn peer(&self) -> &Site {
        self.lab.peer()
    }

    fn connect(&self, args: &[&str]) -> Node {
        join(self.peer(), &self.ready, args).0
    }

    /// Forgets what passed until now.
    fn begin(&self) {
        self.capture.take();
        self.noise.take();
    }

    /// Waits until the node has closed the host, then begins.
    #[track_caller]
    fn closes(&self, node: &mut Node) {
        let since = Instant::now();
        let table = || self.peer().host.command("nft").args(["list", "table", "inet", "peervpn"]).output();
        while !table().is_ok_and(|output| output.status.success()) {
            assert!(since.elapsed() < patience(10) && node.runs(), "no table: {}", node.log());
        }
        self.begin();
    }

    /// Lets time pass, then holds what passed the wire against what may.
    #[track_caller]
    fn tight(&mut self, state: &str) {
        std::thread::sleep(STATE);
        self.tight_now(state);
    }

    #[track_caller]
    fn tight_now(&mut self, state: &str) {
        let (counts, tries) = (self.capture.take(), self.noise.take());
        println!(
            "{state}: {tries} attempts, {} outer, {} link, {} LAN, {} STUN, {} leaked",
            counts.outer,
            counts.link,
            counts.lan,
            counts.stun,
            counts.leaked()
        );
        self.tight = (self.tight.0 + 1, self.tight.1 + tries, self.tight.2 + counts.leaked());
        assert!(tries > 0, "{state}: nobody tried");
        assert_eq!(counts.leaked(), 0, "{state}: {:#?}", counts.leaks);
    }

    /// The control: here it must show.
    #[track_caller]
    fn open(&self, state: &str) {
        std::thread::sleep(STATE);
        let (counts, tries) = (self.capture.take(), self.noise.take());
        println!("{state}: {tries} attempts, {} leaked (control)", counts.leaked());
        assert!(counts.leaked() > 0, "{state}: the capture is blind");
    }

    fn sum(&self) {
        let (states, tries, leaked) = self.tight;
        println!("LEAK MATRIX: {states} states, {tries} attempts, {leaked} leaked");
    }
}

fn router(lab: &Lab) -> &crate::net::Namespace {
    lab.peer().router.as_ref().expect("a NAT has a router")
}

lab_tests! {
    fn nothing_leaks_whatever_breaks() {
        let mut scene = Scene::new(true);
        scene.open("before connect");
        let mut peer = scene.connect(&[]);
        scene.begin();
        scene.tight("connected");

        for _ in 0..3 {
            scene.peer().host.ip("link set eth0 down\n");
            std::thread::sleep(Duration::from_millis(300));
            // the kernel took the v6 address and both default routes along
            scene.peer().host.ip(&format!(
                "link set eth0 up\naddr replace {}/64 dev eth0 nodad\nroute replace default via {}\n\
                 route replace default via 2001:db8:1:1::1\n",
                scene.peer().host6.expect("v6"),
                scene.peer().lan_router(),
            ));
        }
        scene.tight("link flapped three times");

        let rules = scene.peer().host.output("ip", &["rule"]);
        let table = rules.lines().find_map(|l| l.split_once("fwmark").and_then(|(_, r)| r.split("lookup ").nth(1)));
        let table = table.and_then(|rest| rest.split_whitespace().next()).expect("our rule").to_owned();
        scene.peer().host.output("ip", &["route", "flush", "table", &table]);
        scene.peer().host.output("ip", &["-6", "route", "flush", "table", &table]);
        scene.tight("routes of our table flushed");
        scene.peer().host.ip("rule flush\nrule add pref 32766 lookup main\nrule add pref 32767 lookup default\n");
        scene.tight("policy rules flushed");

        scene.exit.kill();
        scene.tight("exit killed");
        peer.kill();
        scene.tight("node killed");
        scene.peer().host.ip("link del peervpn0\n");
        scene.tight("interface deleted");
        // the way of a program that asks the resolver it was told of
        let _ = scene.peer().host.command("getent").args(["ahosts", "web.test"]).output();
        scene.tight("name looked up");
        let status = scene.peer().run(&["status"]);
        assert!(status.stderr.contains("traffic is blocked") && status.stderr.contains("peervpn recover"), "{}", status.all());
        scene.sum();
        scene.peer().run_ok(&["recover"]);
        scene.begin();
        scene.open("after recover");
        assert_leaves_directly(scene.peer());
    }

    fn nothing_leaks_from_connect_to_down_over_and_over() {
        let mut scene = Scene::new(true);
        for round in 1..=5 {
            let mut peer = scene.connect(&[]);
            scene.begin();
            std::thread::sleep(Duration::from_millis(500));
            assert_leaves_through_exit(&scene.lab, scene.peer());
            scene.tight_now(&format!("round {round}"));
            peer.stop(if round % 2 == 0 { libc::SIGINT } else { libc::SIGTERM });
            assert_leaves_directly(scene.peer());
        }
        scene.sum();
        scene.exit.stop(libc::SIGINT);
    }

    fn lockdown_is_tight_before_the_first_handshake_and_without_the_lan() {
        let mut scene = Scene::new(false);
        let target = text(&scene.ready, "connect").split_once('@').map(|(key, _)| format!("{key}@{DEAD}:51820")).expect("a connect string");
        let mut silent = scene.peer().connect(&target, &["--lockdown", "--no-lan", "--timeout", "1"]);
        scene.closes(&mut silent);
        scene.tight("lockdown, no handshake");
        std::thread::sleep(Duration::from_secs(1));
        assert!(silent.runs(), "it gave up: {}", silent.log());
        silent.kill();
        scene.tight("lockdown, node killed");
        scene.peer().run_ok(&["down"]);
        assert_leaves_directly(scene.peer());
        let mut peer = scene.connect(&["--lockdown", "--no-lan"]);
        scene.begin();
        scene.tight("lockdown, connected");
        assert_leaves_through_exit(&scene.lab, scene.peer());
        scene.sum();
        peer.stop(libc::SIGINT);
        scene.exit.stop(libc::SIGINT);
    }

    /// Closed before the exit is asked to redeem the invite, for as long as it says nothing, and from there to the end.
    fn lockdown_is_tight_while_an_invite_is_redeemed() {
        let mut scene = Scene::new(false);
        let line = invite(&scene.lab, &[]);
        scene.exit.stop(libc::SIGINT);
        let mut peer = connect_by(scene.peer(), &line, &["--lockdown", "--no-lan", "--timeout", "1"]);
        scene.closes(&mut peer);
        scene.tight("lockdown, invite, no exit");
        std::thread::sleep(Duration::from_secs(1));
        assert!(peer.runs(), "it gave up: {}", peer.log());
        scene.exit = closed_exit(&scene.lab).0;
        peer.event_within("connected", patience(40));
        scene.tight("lockdown, joined by the invite");
        assert_leaves_through_exit(&scene.lab, scene.peer());
        peer.kill();
        scene.peer().host.ip("link del peervpn0\n");
        scene.begin();
        scene.tight("node and device killed");
        // a new invite, through the kill switch that the dead one left
        let line = invite(&scene.lab, &[]);
        let mut peer = connect_by(scene.peer(), &line, &["--no-lan"]);
        peer.event_within("connected", patience(40));
        scene.tight("joined again");
        scene.sum();
        peer.stop(libc::SIGINT);
        assert_leaves_directly(scene.peer());
        scene.exit.stop(libc::SIGINT);
    }

    /// A node that was killed left its kill switch: whoever takes over, and fails, and takes over, opens nothing.
    fn nothing_leaks_when_a_node_takes_over_from_a_dead_one() {
        let mut scene = Scene::new(true);
        let mut peer = scene.connect(&[]);
        scene.begin();
        peer.kill();
        let mut peer = scene.connect(&[]);
        scene.tight("connected anew");
        // as a service manager does: the device is killed, too
        peer.kill();
        scene.peer().host.ip("link del peervpn0\n");
        scene.tight("node and device killed");
        let mut peer = scene.connect(&["--lockdown"]);
        assert_leaves_through_exit(&scene.lab, scene.peer());
        scene.tight("connected anew, lockdown");
        peer.kill();
        scene.peer().host.ip("link del peervpn0\n");
        // the key of nobody here: our exit would call us, wherever we ask
        let target = format!("bRlipg7Esg2ahj44hO1FJssLUvcm6QXcRWHTu9r/ryg=@{DEAD}:51820");
        for round in 1..=3 {
            let mut silent = scene.peer().connect(&target, &["--timeout", "1"]);
            assert_eq!(silent.wait(), Some(1), "{}", silent.log());
            assert!(silent.log().contains("host: restored, but its kill switch is on"), "{}", silent.log());
            scene.tight(&format!("no exit, attempt {round}"));
        }
        let mut killed = scene.peer().connect(&target, &[]);
        std::thread::sleep(Duration::from_millis(700));
        killed.kill();
        scene.tight("killed while it asked");
        let refused = scene.peer().run(&["exit", "--no-stun"]);
        assert!(refused.code == Some(1) && refused.stderr.contains("peervpn recover lifts it"), "{}", refused.all());
        scene.tight("an exit was refused");
        let mut peer = scene.connect(&[]);
        assert_leaves_through_exit(&scene.lab, scene.peer());
        scene.tight("connected at last");
        scene.sum();
        // who stops it means it
        peer.stop(libc::SIGTERM);
        assert_leaves_directly(scene.peer());
        let mut peer = scene.connect(&[]);
        peer.kill();
        let mut silent = scene.peer().connect(&target, &[]);
        std::thread::sleep(Duration::from_millis(700));
        silent.stop(libc::SIGINT);
        assert_leaves_directly(scene.peer());
        scene.exit.stop(libc::SIGINT);
    }

    /// What a damaged journal says of the kill switch can't be trusted: whoever takes over looks at the rules themselves.
    fn nothing_leaks_when_the_dead_nodes_journal_is_damaged() {
        let mut scene = Scene::new(true);
        let journal = scene.peer().dir.join("state/journal/peervpn0.journal");
        let flipped = |lines: &[Vec<u8>], wanted: &dyn Fn(usize, &str) -> bool| -> Vec<u8> {
            let line = |(number, line): (usize, &Vec<u8>)| {
                let mut line = line.clone();
                if wanted(number, &String::from_utf8_lossy(&line)) {
                    line[12] ^= 1;
                }
                line
            };
            lines.iter().enumerate().flat_map(line).collect()
        };
        for damage in ["head", "what says that it closes", "tail", "every line", "cut off after the head", "torn head"] {
            let mut peer = scene.connect(&[]);
            scene.begin();
            peer.kill();
            let whole = std::fs::read(&journal).expect("a journal");
            let lines: Vec<Vec<u8>> = whole.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            let last = lines.len() - 1;
            let damaged = match damage {
                "head" => flipped(&lines, &|number, _| number == 0),
                "what says that it closes" => flipped(&lines, &|_, line| line.contains("\"closes\"")),
                "tail" => flipped(&lines, &|number, line| number == last || line.contains("\"closes\"")),
                "every line" => flipped(&lines, &|_, _| true),
                "cut off after the head" => [&lines[0][..], &lines[1][..20]].concat(),
                _ => lines[0][..20].to_vec(),
            };
            assert_ne!(damaged, whole, "{damage}");
            std::fs::write(&journal, damaged).expect("write the journal");
            for attempt in 1..=2 {
                let target = format!("bRlipg7Esg2ahj44hO1FJssLUvcm6QXcRWHTu9r/ryg=@{DEAD}:51820");
                let mut silent = scene.peer().connect(&target, &["--timeout", "1"]);
                assert_eq!(silent.wait(), Some(1), "{}", silent.log());
                assert!(silent.log().contains("its kill switch is on"), "{damage}: {}", silent.log());
                scene.tight_now(&format!("damaged: {damage}, attempt {attempt}"));
            }
            let refused = scene.peer().run(&["exit", "--no-stun"]);
            assert!(refused.code == Some(1) && refused.stderr.contains("peervpn recover lifts it"), "{}", refused.all());
            let mut peer = scene.connect(&[]);
            assert_leaves_through_exit(&scene.lab, scene.peer());
            scene.tight_now(&format!("damaged: {damage}, connected anew"));
            peer.stop(libc::SIGTERM);
            assert_leaves_directly(scene.peer());
        }
        scene.sum();
        scene.exit.stop(libc::SIGINT);
    }

    /// The control run: what the kill switch holds back is there.
    fn without_the_kill_switch_it_shows() {
        let scene = Scene::new(true);
        let mut peer = scene.connect(&["--no-kill-switch", "--dns", "none"]);
        peer.kill();
        scene.peer().host.ip("link del peervpn0\n");
        scene.begin();
        scene.open("no kill switch, node killed, interface deleted");
        scene.peer().run_ok(&["recover"]);
    }

    fn a_split_tunnel_closes_its_prefixes_only() {
        let scene = Scene::new(true);
        let web = "192.0.2.80/32,2001:db8:ff::80/128";
        let mut peer = scene.connect(&["--allowed-ips", web]);
        assert_leaves_through_exit(&scene.lab, scene.peer());
        peer.kill();
        scene.peer().host.ip("link del peervpn0\n");
        scene.begin();
        std::thread::sleep(STATE);
        let counts = scene.capture.take();
        let closed = counts.leaks.keys().filter(|what| what.contains("to 192.0.2.80 ") || what.contains("::80 ")).count();
        assert_eq!(closed, 0, "{:#?}", counts.leaks);
        let dns = counts.leaks.keys().filter(|what| what.ends_with("port 53") || what.ends_with("port 853")).count();
        assert_eq!(dns, 0, "{:#?}", counts.leaks);
        scene.peer().run_ok(&["recover"]);
    }
}
