//! The mapping keeper at work: an idle exit stays reachable, a changed mapping is told and healed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::count::{Counts, INITIATION, PORT_UNREACHABLE};
use crate::node::Node;
use crate::record::{self, patience};
use crate::topology::{Lab, Nat, Plan, Site, WEB};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

/// Several servers, so that one can confirm what another saw.
const SERVERS: [&str; 4] = ["--stun-server", "192.0.2.3:3478", "--stun-server", "192.0.2.4:3478"];
/// How long the routers' mappings live, in seconds.
const LIFETIME: u32 = 5;

/// Lifetime of the routers' mappings in seconds, how often it is refreshed, and how long the exit is left alone: four
/// lifetimes; with `PEERVPN_LONG_IDLE=1` a minute.
fn pace() -> (u32, &'static str, Duration) {
    match std::env::var_os("PEERVPN_LONG_IDLE") {
        None => (LIFETIME, "2s", Duration::from_secs(20)),
        Some(_) => (10, "4s", Duration::from_secs(60)),
    }
}

/// How long the keeper waits for an answer before it asks elsewhere.
const ANSWER: Duration = Duration::from_millis(1500);

fn cone_lab(peers: &[Nat], lifetime: u32) -> Lab {
    let peers: Vec<Plan> = peers.iter().map(|nat| Plan::v4_only(*nat)).collect();
    let mut lab = Lab::new(Plan::v4_only(Nat::FullCone), &peers);
    lab.exit.mappings_live(lifetime);
    lab
}

/// An exit left alone as [`pace`] says, then a peer: the `connected` event if there is one, the initiations that the peer
/// sent, and those that the exit heard.
fn join_after_idling(keeper: bool) -> (Option<Value>, u64, u64) {
    let (lifetime, interval, idle) = pace();
    let keeper_interval = if keeper { interval } else { "1h" };
    let lab = cone_lab(&[Nat::PortRestricted], lifetime);
    let (mut exit, ready) = open_exit(&lab, &[&SERVERS[..], &["--keeper-interval", keeper_interval]].concat());
    let router = lab.exit.router.as_ref().expect("a NAT");
    let port = ready["port"].to_string();
    std::thread::sleep(idle);
    let live = router.output("nft", &["list", "set", "ip", "nat", "live"]).contains(&port);
    let sent = Counts::start(&lab.peer().host, &[], &[("sent", INITIATION)]);
    let heard = Counts::start(&lab.exit.host, &[("heard", INITIATION)], &[]);
    let mut peer = lab.peer().connect(text(&ready, "connect"), &["--no-stun"]);
    let connected = peer.try_event("connected", patience(5)).ok();
    assert_eq!(live, connected.is_some(), "the port was reachable: {live}\n{}\n{}", exit.log(), peer.log());
    let counts = (sent.packets("sent"), heard.packets("heard"));
    println!(
        "mappings live {lifetime} s, refreshed every {keeper_interval}, exit idle for {idle:?}: {}",
        connected.as_ref().map_or("not joined".to_owned(), |c| format!(
            "joined in {} ms, {} initiation",
            c["handshake_ms"], counts.0
        ))
    );
    if connected.is_some() {
        assert_leaves_through_exit(&lab, lab.peer());
    }
    peer.signal(libc::SIGINT);
    peer.wait();
    exit.stop(libc::SIGINT);
    (connected, counts.0, counts.1)
}

/// What `status` says the exit's endpoints are.
fn endpoints(site: &Site) -> Vec<String> {
    let status = site.run_ok(&["status", "--json"]).stdout;
    texts(&serde_json::from_str(&status).unwrap_or_else(|e| panic!("{e}: {status}")), "endpoints")
}

#[track_caller]
fn wait_for_words(node: &Node, words: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !node.log().contains(words) {
        assert!(Instant::now() < deadline, "not within {limit:?}: {words:?}\n{}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A node as a person runs it: its stdout by lines.
struct Spoken {
    child: Child,
    lines: Receiver<String>,
}

impl Spoken {
    fn start(site: &Site, words: &[&str]) -> Spoken {
        let mut command = site.peervpn(&[words, &SERVERS, &["--backend", record::backend()]].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start peervpn");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (send, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Spoken { child, lines }
    }

    /// The next line of `--monitor-nat`, behind its time; every line of it must have the form of design §3.
    #[track_caller]
    fn monitored(&self) -> String {
        loop {
            let line = self.lines.recv_timeout(patience(20)).expect("a line within 20 s");
            let Some(rest) = line.strip_prefix('[') else { continue };
            let (time, rest) = rest.split_once("] ").unwrap_or_else(|| panic!("{line:?}"));
            let digits: Vec<&str> = time.split(':').collect();
            let two = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
            assert!(digits.len() == 3 && digits.iter().all(two), "no time in {line:?}");
            return rest.to_owned();
        }
    }

    fn stop(mut self) {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        assert!(self.child.wait().expect("our child").success());
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

lab_tests! {
    fn an_idle_exit_is_joined_at_the_first_try("conntrack") {
        let (connected, sent, _) = join_after_idling(true);
        let took = connected.expect("reachable")["handshake_ms"].as_u64().expect("a number");
        // an unanswered initiation is repeated after a second: none was, but on a machine that took that long to answer
        assert!(sent <= 1 + took / 1000, "{sent} initiations in {took} ms");
    }

    /// The control: the same without refreshes.
    fn an_idle_exit_without_the_keeper_is_not_joined("conntrack") {
        let (connected, sent, heard) = join_after_idling(false);
        assert_eq!(connected, None);
        assert!(sent >= 2, "the peer tried {sent} times");
        assert_eq!(heard, 0);
    }

    /// The exit's router restarts with another address. (A peer behind a strict NAT is out of reach then: nothing that
    /// comes from the new address gets through to it, and it doesn't know that one.)
    fn a_reboot_of_the_exits_router_is_announced_and_healed("conntrack") {
        let mut lab = cone_lab(&[Nat::Open, Nat::PortRestricted], LIFETIME);
        let interval = Duration::from_secs(2);
        let (mut exit, ready) = open_exit(&lab, &[&SERVERS[..], &["--keeper-interval", "2s"]].concat());
        let port = &ready["port"];
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());
        let old = format!("{}:{port}", lab.exit.public4);
        lab.exit.renumber();
        let new = format!("{}:{port}", lab.exit.public4);
        // a probe that was under way is lost with the router
        let mapping = exit.event_within("mapping", interval + ANSWER + patience(1));
        let healing = Instant::now();
        assert_eq!((text(&mapping, "old"), text(&mapping, "new")), (old.as_str(), new.as_str()));

        // the kernel is made to send at once; a userspace device does by its keepalive, every 25 s
        let limit = if record::backend() == "kernel" { patience(5) } else { patience(30) };
        while lab.peer().whoami(WEB[0]).is_err() {
            assert!(healing.elapsed() < limit, "the peer has not recovered after {limit:?}");
        }
        println!("the peer that was connected is back {:?} after the announcement", healing.elapsed());
        assert_leaves_through_exit(&lab, lab.peer());

        assert_eq!(endpoints(&lab.exit), std::slice::from_ref(&new));
        let target = format!("{}@{new}", text(&ready, "public_key"));
        let mut second = lab.peers[1].connect(&target, &["--no-stun"]);
        second.event("connected");
        assert_leaves_through_exit(&lab, &lab.peers[1]);
        second.stop(libc::SIGINT);
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn an_exit_behind_a_nat_that_maps_by_destination_warns("conntrack") {
        let mut lab = Lab::new(Plan::v4_only(Nat::Symmetric), &[]);
        let said = "maps each destination to another port (IPv4)";
        let args = [&SERVERS[..], &["--keeper-interval", "2s"]].concat();
        let (mut exit, _) = open_exit(&lab, &args);
        wait_for_words(&exit, said, Duration::ZERO);
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(exit.log().matches(said).count(), 1, "said once\n{}", exit.log());
        exit.stop(libc::SIGINT);
        // and one that begins to do so
        lab.exit.change_nat(Nat::PortRestricted);
        let (mut exit, _) = open_exit(&lab, &args);
        std::thread::sleep(Duration::from_secs(3));
        assert!(!exit.log().contains(said), "{}", exit.log());
        lab.exit.change_nat(Nat::Symmetric);
        wait_for_words(&exit, said, Duration::from_secs(4) + ANSWER + patience(2));
        assert!(exit.log().contains("--endpoint HOST:PORT"), "{}", exit.log());
        exit.stop(libc::SIGINT);
    }

    fn monitor_nat_prints_the_lines_of_the_design("conntrack") {
        let mut lab = cone_lab(&[], LIFETIME);
        let exit = Spoken::start(&lab.exit, &["exit", "--accept", "none", "--monitor-nat", "--port", "51820", "--keeper-interval", "2s"]);
        let old = lab.exit.public4;
        assert_eq!(exit.monitored(), format!("✅ NAT port persistent: {old}:51820 (unchanged)"));
        let first = Instant::now();
        lab.exit.renumber();
        let new = lab.exit.public4;
        assert_eq!(exit.monitored(), format!("⚠️  NAT port changed: {old}:51820 -> {new}:51820"));
        let apart = first.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(10) + patience(2)).contains(&apart), "{apart:?}");
        assert_eq!(exit.monitored(), format!("✅ NAT port persistent: {new}:51820 (unchanged)"));
        exit.stop();
    }

    /// STUN after the handoff goes the way of WireGuard's own packets, not through the tunnel.
    fn under_a_full_tunnel_a_peer_measures_its_own_nat("conntrack") {
        let mut lab = Lab::new(Plan::v4_only(Nat::Open), &[Plan::v4_only(Nat::PortRestricted)]);
        let (mut exit, ready) = open_exit(&lab, &SERVERS);
        let peer = Spoken::start(lab.peer(), &["connect", text(&ready, "connect"), "--monitor-nat", "--port", "40001"]);
        let own = lab.peer().public4;
        assert_eq!(peer.monitored(), format!("✅ NAT port persistent: {own}:40001 (unchanged)"));
        assert_leaves_through_exit(&lab, lab.peer());
        lab.peers[0].renumber();
        let new = lab.peer().public4;
        // the router may restart just before a line: at most one more of the old
        let line = Some(peer.monitored()).filter(|line| !line.starts_with('✅')).unwrap_or_else(|| peer.monitored());
        assert_eq!(line, format!("⚠️  NAT port changed: {own}:40001 -> {new}:40001"));
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop();
        exit.stop(libc::SIGINT);
    }

    /// WireGuard holds the port, and answers to our raw socket's questions come to it: the host refuses none of them.
    fn stun_answers_after_the_handoff_cause_no_icmp() {
        let lab = Lab::new(Nat::PortRestricted, &[]);
        let [v4, v6] = PORT_UNREACHABLE;
        let six = ["--stun-server", "[2001:db8:ff::3]:3478"];
        let (mut exit, ready) = open_exit(&lab, &[&SERVERS[..], &six, &["--keeper-interval", "1s"]].concat());
        let answers = format!("udp sport 3478 udp dport {}", ready["port"]);
        let (answers4, answers6) = (format!("ip version 4 {answers}"), format!("ip6 version 6 {answers}"));
        let counts = Counts::start(&lab.exit.host, &[("answers4", &answers4), ("answers6", &answers6)], &[("icmp4", v4), ("icmp6", v6)]);
        std::thread::sleep(Duration::from_secs(6));
        // two servers at once, or the only one
        for (family, most) in [("4", 16), ("6", 8)] {
            let answers = counts.packets(&format!("answers{family}"));
            assert!((3..=most).contains(&answers), "{answers} answers by IPv{family}");
            assert_eq!(counts.packets(&format!("icmp{family}")), 0);
        }
        exit.stop(libc::SIGINT);
        // the counter-proof: without a holder of the port, the same question is refused, and counted
        let deadline = Instant::now() + patience(5);
        while counts.packets("icmp4") == 0 {
            assert!(Instant::now() < deadline, "the counter counts nothing");
            lab.exit.host.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:40002").expect("a socket");
                let mut request = [0; 20];
                request[1] = 1;
                request[4..8].copy_from_slice(&0x2112_A442u32.to_be_bytes());
                socket.send_to(&request, "192.0.2.3:3478").expect("routed");
            });
        }
    }
}
