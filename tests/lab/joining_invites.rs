//! How people come in by invites, and how peers are denied, renamed and revoked.

use std::time::{Duration, Instant};

use serde_json::Value;

use peervpn::join::invite::Invite;

use crate::joining::stock_interface;
use crate::node::Node;
use crate::record::patience;
use crate::service::Web;
use crate::topology::{Lab, Nat, Site, WEB};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

const HOME: Nat = Nat::PortRestricted;

/// An exit that lets nobody in but by invite.
pub fn closed_exit(lab: &Lab) -> (Node, Value) {
    let mut exit = lab.exit.exit(&["--accept", "none"]);
    let ready = exit.event("ready");
    (exit, ready)
}

/// Has the exit make an invite; the line.
pub fn invite(lab: &Lab, args: &[&str]) -> String {
    let made = lab.exit.run_ok(&[&["invite"], args].concat());
    let line = made.stdout.trim().to_owned();
    assert!(line.starts_with("peervpn1") && !line.contains(char::is_whitespace), "{}", made.all());
    line
}

/// Starts `connect` with an invite from a file, as a careful person does.
pub fn connect_by(site: &Site, invite: &str, args: &[&str]) -> Node {
    let file = site.dir.join("invite");
    std::fs::write(&file, format!("{invite}\n")).expect("write the invite");
    site.connect_with(&[&["--invite-file", &file.to_string_lossy()], args].concat())
}

/// Connects with an invite that is to be refused; what it said.
fn refused(site: &Site, invite: &str) -> String {
    let before = site.host.snapshot();
    let mut peer = connect_by(site, invite, &["--timeout", "6"]);
    let code = peer.wait();
    let said = peer.log();
    assert!(matches!(code, Some(1 | 2)), "{said}");
    assert!(said.contains("error: ") && said.contains("hint: ") && said.contains("host: "), "{said}");
    crate::snapshot::assert_unchanged("after a refused invite", &before, &site.host.snapshot());
    said
}

fn peers(lab: &Lab) -> Vec<Value> {
    let list = lab.exit.run_ok(&["peers", "list", "--json"]).stdout;
    list.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn own_key(site: &Site) -> String {
    let own = site.run_ok(&["info", "--json"]).stdout;
    let own: Value = serde_json::from_str(&own).unwrap_or_else(|e| panic!("{e}: {own}"));
    text(&own, "public_key").to_owned()
}

lab_tests! {
    /// The whole life of an invite: joined by, spent, remembered by both sides through restarts.
    fn an_invite_lets_one_in_and_is_spent() {
        let lab = Lab::new(Nat::Open, &[HOME.into(), Nat::Symmetric.into()]);
        let (mut exit, ready) = closed_exit(&lab);
        let line = invite(&lab, &["--name", "Ann"]);
        let [ann, bob] = &lab.peers[..] else { panic!("two peers") };
        let mut peer = connect_by(ann, &line, &[]);
        let connected = peer.event("connected");
        let joined = exit.event("joined");
        assert_eq!(text(&joined, "how"), "invite");
        assert_eq!(text(&joined, "public_key"), own_key(ann), "its own key, not the invite's");
        assert_eq!(texts(&joined, "tunnel_addresses"), texts(&connected, "tunnel_addresses"));
        assert_leaves_through_exit(&lab, ann);
        let list = peers(&lab);
        assert!(list.iter().any(|p| p["name"] == "Ann" && p["public_key"] == joined["public_key"]), "{list:?}");

        let said = refused(bob, &line);
        assert!(said.contains("the invite is spent"), "{said}");
        assert_leaves_through_exit(&lab, ann);

        // again by the same line, and by the connect string: known, with the preshared key
        peer.stop(libc::SIGINT);
        let mut peer = connect_by(ann, &line, &[]);
        peer.event("connected");
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
        let (mut exit, _) = closed_exit(&lab);
        let (mut peer, again) = join(ann, &ready, &[]);
        assert_eq!(again["tunnel_addresses"], connected["tunnel_addresses"]);
        assert_leaves_through_exit(&lab, ann);
        let secret = &line[60..100];
        for log in [peer.log(), exit.log()] {
            assert!(!log.contains(secret), "an invite in the log: {log}");
        }
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn a_reusable_invite_gives_each_a_slot() {
        let lab = Lab::new(Nat::FullCone, &[HOME.into(), HOME.into()]);
        let (mut exit, _) = closed_exit(&lab);
        let line = invite(&lab, &["--name", "guest", "--reusable", "--expires", "1h"]);
        // at the same time, through the same slot
        let mut nodes: Vec<Node> = lab.peers.iter().map(|site| connect_by(site, &line, &["--timeout", "40"])).collect();
        for node in &mut nodes {
            node.event_within("connected", patience(45));
        }
        lab.peers.iter().for_each(|site| assert_leaves_through_exit(&lab, site));
        let mut names: Vec<String> = peers(&lab).iter().filter_map(|p| p["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        assert_eq!(names, ["guest", "guest", "guest-2"], "two peers and the open invite");
        nodes.iter_mut().for_each(|node| node.stop(libc::SIGINT));
        exit.stop(libc::SIGINT);
    }

    /// Whoever has an invite without `peervpn connect` reaches the control service with it, before and after it is
    /// spent, and nothing else: not the internet, not the exit's own services.
    fn an_invites_key_opens_nothing_but_the_control_service("wg", "wireguard-go") {
        let lab = Lab::new(Nat::Open, &[HOME.into(), Nat::Open.into()]);
        for args in [&["--accept", "none"][..], &["--accept", "none", "--allow-lan", "--allow-peers"]] {
            let mut exit = lab.exit.exit(args);
            let ready = exit.event("ready");
            let line = invite(&lab, &[]);
            let secrets: Invite = line.parse().expect("an invite");
            let site = lab.peer();
            let (_, _device) = stock_interface(site);
            let own = texts(&ready, "tunnel_addresses").into_iter().find(|a| !a.contains(':')).expect("a v4");
            let endpoint = format!("{}:{}", lab.exit.public4, ready["port"]);
            for (name, secret) in [("slot.key", secrets.key.to_base64()), ("slot.psk", secrets.preshared_key.to_base64())] {
                std::fs::write(site.dir.join(name), secret.as_bytes()).expect("write a key");
            }
            let (key, psk) = (site.dir.join("slot.key"), site.dir.join("slot.psk"));
            site.host.output("wg", &["set", "wg0", "private-key", &key.to_string_lossy(), "peer",
                text(&ready, "public_key"), "preshared-key", &psk.to_string_lossy(), "endpoint", &endpoint,
                "allowed-ips", "0.0.0.0/0"]);
            site.host.ip(&format!(
                "addr add {}/32 dev wg0\nlink set wg0 mtu 1280 up\nroute add {own} dev wg0 src {door}\nroute add {web} dev wg0 src {door}\n",
                secrets.door, door = secrets.door, web = WEB[0],
            ));
            let _services = Web::start(&lab.exit.host, [std::net::Ipv4Addr::UNSPECIFIED.into()]);
            let reach = |address: std::net::IpAddr, port: u16| {
                let connect = || std::net::TcpStream::connect_timeout(&(address, port).into(), patience(12)).is_ok();
                site.host.run(connect)
            };
            let only_the_service = |when: &str| {
                assert!(reach(own.parse().expect("an address"), 51820), "{when}: the control service is not there");
                assert!(!reach(own.parse().expect("an address"), 80), "{when}: a service of the exit's");
                assert!(!reach(WEB[0], 80), "{when}: the internet");
            };
            only_the_service("open");
            if args.len() == 2 {
                site.host.ip("link del wg0\n");
                exit.stop(libc::SIGINT);
                continue;
            }
            let mut peer = connect_by(&lab.peers[1], &line, &[]);
            peer.event("connected");
            // the other device took the slot's session over
            let peer_key = text(&ready, "public_key");
            let args = ["set", "wg0", "peer", peer_key, "remove"];
            site.host.output("wg", &args);
            site.host.output("wg", &["set", "wg0", "peer", peer_key, "preshared-key", &psk.to_string_lossy(),
                "endpoint", &endpoint, "allowed-ips", "0.0.0.0/0"]);
            // gotatun's clock is 27 s ahead of other WireGuards' (TAI64N with and without leap seconds): after it has used
            // a key, their initiations with the same key are replays for that long
            let deadline = Instant::now() + patience(45);
            while !reach(own.parse().expect("an address"), 51820) && Instant::now() < deadline {}
            only_the_service("spent");
            assert_leaves_through_exit(&lab, &lab.peers[1]);
            peer.stop(libc::SIGINT);
            site.host.ip("link del wg0\n");
            exit.stop(libc::SIGINT);
        }
    }

    /// Each kind of broken invite is refused with its reason, the host untouched.
    fn an_invite_that_cannot_be_used_says_why() {
        let lab = Lab::new(Nat::Open, &[HOME.into()]);
        let (mut exit, _) = closed_exit(&lab);
        let line = invite(&lab, &[]);
        let site = lab.peer();
        let mut typed = line.clone();
        let at = line.len() / 2;
        typed.replace_range(at..=at, if line.as_bytes()[at] == b'A' { "B" } else { "A" });
        for (broken, reason) in [
            (line[..line.len() - 9].to_owned(), "the invite is cut off"),
            (format!("{line}x"), "characters too many"),
            (typed, "the invite is mistyped"),
            (line.replacen("peervpn1", "peervpn2", 1), "made by a newer peervpn"),
        ] {
            let said = refused(site, &broken);
            assert!(said.contains(reason), "{reason}: {said}");
        }
        let short = invite(&lab, &["--expires", "1s"]);
        std::thread::sleep(Duration::from_millis(2100));
        let said = refused(site, &short);
        assert!(said.contains("the invite expired"), "{said}");
        let withdrawn = invite(&lab, &["--name", "nobody"]);
        lab.exit.run_ok(&["peers", "revoke", "nobody"]);
        let said = refused(site, &withdrawn);
        assert!(said.contains("no handshake") && said.contains("the invite was taken back"), "{said}");
        // after a restart its holder is no newcomer to be asked about
        exit.stop(libc::SIGINT);
        let mut exit = lab.exit.exit(&["--accept", "ask"]);
        exit.event("ready");
        refused(site, &withdrawn);
        let pending = lab.exit.run_ok(&["peers", "pending", "--json"]).stdout;
        assert_eq!(pending.matches("public_key").count(), 0, "{pending}");
        // on the exit itself
        exit.stop(libc::SIGINT);
        let said = refused(&lab.exit, &line);
        assert!(said.contains("leads to this very machine"), "{said}");
        assert_leaves_directly(site);
    }

    /// An invite made while no exit runs, from standard input, and never in the list of processes.
    fn an_invite_made_at_rest_and_read_from_standard_input() {
        let lab = Lab::without_stun(Nat::Open, &[HOME.into()]);
        let nowhere = lab.exit.run(&["invite"]);
        assert_eq!(nowhere.code, Some(1), "{}", nowhere.all());
        assert!(nowhere.stderr.contains("--endpoint HOST:PORT"), "{}", nowhere.all());
        let endpoint = format!("{}:51820", lab.exit.public4);
        let line = invite(&lab, &["--name", "Ann", "--endpoint", &endpoint]);
        let mut exit = lab.exit.exit(&["--accept", "none", "--no-stun", "--port", "51820"]);
        exit.event("ready");
        let site = lab.peer();
        let mut peer = site.connect_reading(&line, &["--no-stun"]);
        peer.event("connected");
        assert_leaves_through_exit(&lab, site);
        peer.stop(libc::SIGINT);

        // given as an argument after all: gone from where ps(1) looks
        let mut peer = site.connect(&line, &["--no-stun"]);
        peer.event("connected");
        let processes = std::process::Command::new("ps").args(["axww", "-o", "args"]).output().expect("ps");
        let processes = String::from_utf8_lossy(&processes.stdout).into_owned();
        assert!(processes.contains("peervpn") && !processes.contains(&line[8..40]), "an invite in ps");
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// The last packet of a revoked peer is before the command's end; accept lets it in again.
    fn revoke_during_traffic() {
        let lab = Lab::new(Nat::Open, &[HOME.into()]);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        let id = own_id(lab.peer());
        let sink = lab.sink();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| lab.peer().host.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = socket.send_to(b"traffic", (WEB[0], 9));
                    std::thread::sleep(Duration::from_micros(300));
                }
            }));
            let start = Instant::now();
            while sink.count() < 300 {
                assert!(start.elapsed() < patience(10), "no traffic through the tunnel");
                std::thread::sleep(Duration::from_millis(20));
            }
            lab.exit.run_ok(&["peers", "revoke", &id]);
            let returned = Instant::now();
            std::thread::sleep(Duration::from_millis(1500));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            sender.join().expect("no panic");
            let last = sink.last().expect("packets came");
            println!("last packet {:?} before the command's end, of {}", returned.saturating_duration_since(last), sink.count());
            assert!(last <= returned, "a packet of a revoked peer {:?} late", last - returned);
        });
        assert!(lab.peer().whoami(WEB[0]).is_err());
        peer.stop(libc::SIGINT);
        // known, but not wanted: neither connects nor waits
        let mut peer = lab.peer().connect(text(&ready, "connect"), &["--timeout", "3"]);
        assert_eq!(peer.wait(), Some(1), "{}", peer.log());
        assert!(lab.exit.run_ok(&["peers", "pending", "--json"]).stdout.is_empty());
        assert!(peers(&lab).is_empty());
        // it stays out through a restart
        exit.stop(libc::SIGINT);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let mut peer = lab.peer().connect(text(&ready, "connect"), &["--timeout", "3"]);
        assert_eq!(peer.wait(), Some(1), "{}", peer.log());
        lab.exit.run_ok(&["peers", "accept", &id, "--name", "forgiven"]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        assert_eq!(peers(&lab)[0]["name"], "forgiven");
        lab.exit.run_ok(&["peers", "rename", "forgiven", "again"]);
        assert_eq!(peers(&lab)[0]["name"], "again");
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
        assert_eq!(peers(&lab)[0]["name"], "again", "no node runs: read from the state directory");
    }

    /// Who waits is there after a restart, can be accepted while no exit runs, and a denied one is silent.
    fn pending_and_denied_survive_a_restart() {
        let lab = Lab::new(Nat::Open, &[HOME.into(), HOME.into()]);
        let mut exit = lab.exit.exit(&["--accept", "ask"]);
        let ready = exit.event("ready");
        let mut nodes: Vec<Node> =
            lab.peers.iter().map(|site| site.connect(text(&ready, "connect"), &["--timeout", "60"])).collect();
        for _ in &nodes {
            exit.event("pending");
        }
        let ids: Vec<String> = lab.peers.iter().map(own_id).collect();
        lab.exit.run_ok(&["peers", "deny", &ids[1]]);
        // from here on nobody asks: what is known is what was remembered
        nodes.iter_mut().for_each(|node| node.stop(libc::SIGINT));
        exit.kill();
        let waiting = || lab.exit.run_ok(&["peers", "pending", "--json"]).stdout;
        assert!(waiting().contains(&ids[0]) && !waiting().contains(&ids[1]), "{}", waiting());
        let mut exit = lab.exit.exit(&["--accept", "ask"]);
        exit.event("ready");
        assert!(waiting().contains(&ids[0]) && !waiting().contains(&ids[1]), "{}", waiting());
        exit.stop(libc::SIGINT);
        lab.exit.run_ok(&["peers", "accept", &ids[0], "--name", "first"]);
        let mut exit = lab.exit.exit(&["--accept", "ask"]);
        exit.event("ready");
        let mut first = lab.peer().connect(text(&ready, "connect"), &[]);
        first.event("connected");
        let mut second = lab.peers[1].connect(text(&ready, "connect"), &["--timeout", "4"]);
        assert_eq!(second.wait(), Some(1), "{}", second.log());
        assert!(exit.try_event("pending", Duration::from_millis(200)).is_err(), "a denied key asked again");
        assert!(waiting().is_empty(), "{}", waiting());
        first.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }
}

fn own_id(site: &Site) -> String {
    let own = site.run_ok(&["info", "--json"]).stdout;
    let own: Value = serde_json::from_str(&own).unwrap_or_else(|e| panic!("{e}: {own}"));
    text(&own, "peer_id").to_owned()
}
