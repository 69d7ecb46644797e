//! Port mapping asked of a real router, miniupnpd: each protocol, its lease, its end, and what it is worth.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::node::Node;
use crate::record::patience;
use crate::snapshot::assert_unchanged;
use crate::topology::{Lab, Nat, Plan};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

/// The router's external address in these tests: miniupnpd refuses the lab's own, since they are reserved.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(192, 1, 2, 3);

/// What a router speaks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Speaks {
    Pcp,
    NatPmp,
    Upnp,
    All,
}

/// The exit's home: a router behind whose NAT nobody gets in, and miniupnpd on it.
struct Home {
    daemon: Option<Child>,
    speaks: Speaks,
    /// More lines of configuration; `allow` and `deny` rules among them.
    settings: &'static str,
    lab: Lab,
}

const ALLOW: &str = "allow 1024-65535 0.0.0.0/0 1024-65535\n";

impl Home {
    fn new(speaks: Speaks, nat: Nat, peers: &[Plan], settings: &'static str) -> Home {
        let lab = Lab::new(nat, peers);
        let router = lab.exit.router.as_ref().expect("a NAT");
        lab.internet.ip(&format!("route add {EXTERNAL}/32 via {}\n", lab.exit.public4));
        router.ip(&format!("addr add {EXTERNAL}/32 dev eth0\n"));
        let how = if nat == Nat::Symmetric { "fully-random" } else { "" };
        // one protocol alone: requests of the other version are dropped (first byte of the payload)
        let only = match speaks {
            Speaks::Pcp => "udp dport 5351 @th,64,8 != 2 drop",
            Speaks::NatPmp => "udp dport 5351 @th,64,8 != 0 drop",
            Speaks::Upnp => "udp dport 5351 reject",
            Speaks::All => "",
        };
        router.nft(&format!(
            "table inet igd {{
  chain forwarded {{ }}
  chain inward {{ }}
  chain outward {{ }}
  chain asked {{ type filter hook input priority -10; {only}
  }}
  chain entering {{ type nat hook prerouting priority -110; jump inward
  }}
  chain leaving {{ type nat hook postrouting priority 90; jump outward
    oifname eth0 snat ip to {EXTERNAL} {how}
  }}
}}
insert rule inet edge passing ct status dnat accept
"
        ));
        let mut home = Home { daemon: None, speaks, settings, lab };
        home.start();
        home
    }

    fn file(&self, name: &str) -> PathBuf {
        self.lab.exit.dir.join(name)
    }

    /// Starts the daemon and waits until it listens.
    fn start(&mut self) {
        let router = self.lab.exit.router.as_ref().expect("a NAT");
        let (pmp, upnp) = match self.speaks {
            Speaks::Pcp | Speaks::NatPmp => ("yes", "no"),
            Speaks::Upnp => ("no", "yes"),
            Speaks::All => ("yes", "yes"),
        };
        let leases = self.file("leases");
        if !leases.exists() {
            std::fs::write(&leases, "").expect("a lease file");
        }
        let config = format!(
            "ext_ifname=eth0\next_ip={EXTERNAL}\nlistening_ip=lan0\nhttp_port=0\nenable_natpmp={pmp}\nenable_upnp={upnp}\n\
             secure_mode=yes\nuuid=00000000-0000-4000-8000-000000000001\nlease_file={}\n\
             upnp_table_name=igd\nupnp_nat_table_name=igd\nupnp_forward_chain=forwarded\nupnp_nat_chain=inward\n\
             upnp_nat_postrouting_chain=outward\n{}",
            leases.display(),
            self.settings,
        );
        std::fs::write(self.file("miniupnpd.conf"), config).expect("a configuration");
        let log = std::fs::File::create(self.file("miniupnpd.log")).expect("a log");
        let mut command = router.command("miniupnpd");
        command.arg("-d").arg("-f").arg(self.file("miniupnpd.conf")).arg("-P").arg(self.file("miniupnpd.pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.daemon = Some(command.spawn().expect("start miniupnpd"));
        let ready = if self.speaks == Speaks::Upnp { "HTTP listening" } else { "Listening for NAT-PMP/PCP" };
        let start = Instant::now();
        while !self.log().contains(ready) {
            assert!(start.elapsed() < patience(10), "miniupnpd does not listen: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends the daemon as a power cut would.
    fn cut(&mut self) {
        let mut daemon = self.daemon.take().expect("running");
        daemon.kill().expect("our child");
        daemon.wait().expect("our child");
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.file("miniupnpd.log")).unwrap_or_default()
    }

    /// The router's leases, one a line.
    fn leases(&self) -> String {
        std::fs::read_to_string(self.file("leases")).unwrap_or_default()
    }

    /// The router's rules that lead inwards.
    fn rules(&self) -> String {
        let router = self.lab.exit.router.as_ref().expect("a NAT");
        let rules = router.output("nft", &["list", "chain", "inet", "igd", "inward"]);
        rules.lines().filter(|line| line.contains("dnat")).map(|line| line.trim().to_owned() + "\n").collect()
    }

    #[track_caller]
    fn assert_nothing_mapped(&self, when: &str) {
        assert_eq!(self.leases(), "", "{when}: leases are left\n{}", self.log());
        assert_eq!(self.rules(), "", "{when}: rules are left\n{}", self.log());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if std::thread::panicking() {
            // it writes a line for each port that it tries
            let mut log: Vec<String> = self.log().lines().map(str::to_owned).collect();
            log.dedup();
            eprintln!("--- miniupnpd\n{}\n--- leases\n{}", log.join("\n"), self.leases());
        }
    }
}

/// The mapped endpoint.
fn mapped(ready: &serde_json::Value) -> String {
    format!("{EXTERNAL}:{}", ready["port"])
}

/// An exit whose mapping stands first, as it said when it was ready or, on a slow machine, a little later.
#[track_caller]
fn mapped_exit(lab: &Lab) -> (Node, serde_json::Value, bool) {
    let (mut exit, mut ready) = open_exit(lab, &[]);
    let late = texts(&ready, "endpoints")[0] != mapped(&ready);
    if late {
        assert_eq!(text(&exit.event("mapping"), "new"), mapped(&ready), "{ready}");
        ready["connect"] = format!("{}@{}", text(&ready, "public_key"), mapped(&ready)).into();
    }
    (exit, ready, late)
}

#[track_caller]
fn eventually(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Start, look, stop; start, kill, recover: the router holds the mapping and then no more.
fn comes_and_goes(speaks: Speaks, by: &str) {
    let home = Home::new(speaks, Nat::PortRestricted, &[], ALLOW);
    let before = home.lab.exit.host.snapshot();
    let start = |home: &Home| -> Node {
        // behind this NAT the reflexive endpoint has the same port or another; the mapped one stands first
        let (exit, ready, _) = mapped_exit(&home.lab);
        // where the NAT keeps the port, the mapped endpoint is the reflexive one, too, and shows before it is mapped
        eventually("a lease", patience(10), || !home.leases().is_empty());
        let leases = home.leases();
        assert_eq!(leases.lines().count(), 1, "one mapping, not one a protocol: {leases}");
        assert!(leases.contains(by), "not by {by}: {leases}");
        assert!(
            home.rules().contains(&format!("dnat ip to {}:{}", home.lab.exit.host4, ready["port"])),
            "{}",
            home.rules()
        );
        exit
    };
    start(&home).stop(libc::SIGINT);
    home.assert_nothing_mapped("after a stop");

    start(&home).kill();
    assert_eq!(home.leases().lines().count(), 1, "kill -9 left a lease for recover to remove");
    home.lab.exit.run_ok(&["recover"]);
    home.assert_nothing_mapped("after kill -9 and recover");

    start(&home).kill();
    // the next start finds the journal, and maps anew
    let mut exit = start(&home);
    home.lab.exit.run_ok(&["down"]);
    exit.stopped();
    home.assert_nothing_mapped("after down");
    assert_unchanged("after port mapping", &before, &home.lab.exit.host.snapshot());
}

/// The end of the router's lease, in seconds since the epoch; `None` if it has none.
fn lease_end(home: &Home) -> Option<u64> {
    // PROTOCOL:EXTERNAL:ADDRESS:PORT:END:DESCRIPTION
    home.leases().lines().next().map(|line| line.split(':').nth(4).and_then(|end| end.parse().ok()).expect(line))
}

/// A router that speaks NAT-PMP, has this external address, and gives this result (RFC 6886 §3.5; 0: grants everything).
/// It notes the lifetimes asked for.
struct NatPmp {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<u32>>>,
}

impl NatPmp {
    fn start(lab: &Lab, external: Ipv4Addr, result: u8) -> NatPmp {
        let router = lab.exit.router.as_ref().expect("a NAT");
        let socket = router.run(|| UdpSocket::bind((lab.exit.lan_router(), 5351))).expect("the router's port");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                // RFC 6886 §3.2, §3.3
                let answer = match (&buffer[..length], length) {
                    ([0, 0], 2) => [&[0, 128, 0, 0, 0, 0, 0, 9][..], &external.octets()].concat(),
                    ([0, 1, ..], 12) => {
                        let lifetime: [u8; 4] = buffer[8..12].try_into().expect("four bytes");
                        asked.push(u32::from_be_bytes(lifetime));
                        [&[0, 129, 0, result, 0, 0, 0, 9][..], &buffer[4..12]].concat()
                    }
                    _ => continue,
                };
                // a stray packet before the answer is passed over
                let _ = socket.send_to(&answer[..3], from);
                let _ = socket.send_to(&answer, from);
            }
            asked
        });
        NatPmp { stop, thread: Some(thread) }
    }

    fn asked(mut self) -> Vec<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("running").join().expect("no panic")
    }
}

const SHORT: &str = "min_lifetime=2\nmax_lifetime=10\nallow 1024-65535 0.0.0.0/0 1024-65535\n";

lab_tests! {
    fn a_port_is_mapped_by_pcp_and_unmapped("miniupnpd") { comes_and_goes(Speaks::Pcp, "PCP MAP") }

    fn a_port_is_mapped_by_nat_pmp_and_unmapped("miniupnpd") { comes_and_goes(Speaks::NatPmp, "NAT-PMP") }

    fn a_port_is_mapped_by_upnp_and_unmapped("miniupnpd") { comes_and_goes(Speaks::Upnp, "PeerVPN") }

    fn of_all_protocols_the_best_is_taken("miniupnpd") { comes_and_goes(Speaks::All, "PCP MAP") }

    /// Neither side's NAT lets the other in; with a mapping the exit is there for everyone.
    fn a_mapped_exit_is_reachable_from_a_symmetric_nat("miniupnpd") {
        let peers = [Plan::v4_only(Nat::Symmetric), Plan::v4_only(Nat::PortRestricted)];
        let mut home = Home::new(Speaks::All, Nat::PortRestricted, &peers, ALLOW);
        home.lab.exit.public4 = EXTERNAL;
        let lab = &home.lab;
        let (mut exit, ready) = open_exit(lab, &["--no-portmap"]);
        let mut peer = lab.peer().connect(text(&ready, "connect"), &["--timeout", &patience(4).as_secs().to_string()]);
        assert_eq!(peer.wait(), Some(1), "the control: without a mapping it must not work\n{}", peer.log());
        exit.stop(libc::SIGINT);
        home.assert_nothing_mapped("with --no-portmap");

        let (mut exit, ready) = open_exit(lab, &[]);
        for site in &lab.peers {
            let (mut peer, connected) = join(site, &ready, &[]);
            assert_eq!(text(&connected, "endpoint"), mapped(&ready));
            assert_leaves_through_exit(lab, site);
            peer.stop(libc::SIGINT);
        }
        exit.stop(libc::SIGINT);
        home.assert_nothing_mapped("after a stop");
    }

    /// Its own NAT maps each destination to another port: the reflexive endpoint is no use, the mapped one is.
    fn an_exit_behind_a_symmetric_nat_is_reachable_by_its_mapping("miniupnpd") {
        let mut home = Home::new(Speaks::Pcp, Nat::Symmetric, &[Plan::v4_only(Nat::Symmetric)], ALLOW);
        home.lab.exit.public4 = EXTERNAL;
        let lab = &home.lab;
        let (mut exit, ready, late) = mapped_exit(lab);
        assert!(late || !exit.log().contains("will not work for"), "warned of an endpoint that works\n{}", exit.log());
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
        home.assert_nothing_mapped("after a stop");
    }

    fn a_lease_is_renewed_and_ends_by_itself_when_nobody_does("miniupnpd") {
        let home = Home::new(Speaks::Pcp, Nat::PortRestricted, &[], SHORT);
        let (mut exit, _) = open_exit(&home.lab, &[]);
        eventually("a lease", patience(10), || !home.leases().is_empty());
        let first = lease_end(&home).expect("a lease");
        let (start, mut missed) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_secs(14) {
            // the daemon renews a rule by deleting it and adding it again
            missed = if home.rules().is_empty() { missed + 1 } else { 0 };
            assert!(missed < 3, "lost after {:?}", start.elapsed());
            std::thread::sleep(Duration::from_millis(250));
        }
        let last = lease_end(&home).expect("a lease");
        assert!(last >= first + 8, "renewed from {first} to {last} only");
        exit.kill();
        eventually("the lease ends", patience(20), || home.rules().is_empty() && home.leases().is_empty());
        home.lab.exit.run_ok(&["recover"]);
        home.assert_nothing_mapped("after recover");
    }

    /// The daemon dies with the lease running and comes back empty: the exit says so, falls back, and maps anew.
    fn a_gateway_that_forgot_everything_is_asked_again("miniupnpd") {
        let mut home = Home::new(Speaks::Pcp, Nat::Symmetric, &[], SHORT);
        let (mut exit, ready, _) = mapped_exit(&home.lab);
        let endpoint = mapped(&ready);
        home.cut();
        home.lab.exit.router.as_ref().expect("a NAT").nft("flush chain inet igd inward\nflush chain inet igd outward\n");
        std::fs::write(home.file("leases"), "").expect("a lease file");
        let lost = exit.event_within("mapping", patience(20));
        assert_eq!(text(&lost, "old"), endpoint);
        let warning = format!("the port mapping {endpoint} is lost");
        eventually("a warning", patience(5), || exit.log().contains(&warning));
        let status = home.lab.exit.run_ok(&["status", "--json"]).stdout;
        assert!(!status.contains(&endpoint), "a lost endpoint is still offered: {status}");
        home.start();
        let again = exit.event_within("mapping", patience(60));
        assert_eq!(text(&again, "new"), endpoint);
        assert_eq!(home.leases().lines().count(), 1);
        exit.stop(libc::SIGINT);
        home.assert_nothing_mapped("after a stop");
    }

    /// A gateway that is gone keeps nobody from stopping or recovering, and is told of.
    fn a_gateway_that_is_gone_holds_up_no_recovery("miniupnpd") {
        for speaks in [Speaks::Pcp, Speaks::NatPmp, Speaks::Upnp] {
            let home = Home::new(speaks, Nat::PortRestricted, &[], ALLOW);
            let (mut exit, _) = open_exit(&home.lab, &[]);
            eventually("a lease", patience(5), || home.leases().lines().count() == 1);
            exit.kill();
            home.lab.exit.router.as_ref().expect("a NAT").ip("link set lan0 down\n");
            let start = Instant::now();
            let recovered = home.lab.exit.run_ok(&["recover"]);
            assert!(start.elapsed() < patience(4), "{speaks:?}: {:?}", start.elapsed());
            assert!(recovered.stderr.contains("it ends by itself"), "{speaks:?}: {}", recovered.all());
        }
    }

    /// The port is mapped to another host: that mapping stays, and ours gets another external port.
    fn anothers_mapping_is_left_alone("miniupnpd") {
        for speaks in [Speaks::Pcp, Speaks::NatPmp, Speaks::Upnp] {
            let mut home = Home::new(speaks, Nat::PortRestricted, &[], ALLOW);
            home.cut();
            let others = "UDP:51820:192.168.1.99:51820:0:game\n";
            std::fs::write(home.file("leases"), others).expect("a lease file");
            home.start();
            eventually("the other host's rule", patience(5), || home.rules().contains("192.168.1.99"));
            let (mut exit, _) = open_exit(&home.lab, &["--port", "51820"]);
            let own = format!("dnat ip to {}:51820", home.lab.exit.host4);
            eventually("a mapping by another port", patience(10), || home.rules().contains(&own));
            let leases = home.leases();
            assert!(leases.contains(others.trim_end()) && leases.lines().count() == 2, "{speaks:?}: {leases}");
            let line = leases.lines().find(|line| !line.contains("game")).expect("ours");
            let port = line.split(':').nth(1).expect("a port");
            let endpoint = format!("{EXTERNAL}:{port}");
            eventually("the mapped endpoint in the connect string", patience(10), || {
                home.lab.exit.run_ok(&["status", "--json"]).stdout.contains(&endpoint)
            });
            exit.stop(libc::SIGINT);
            assert_eq!(home.leases(), others, "{speaks:?}");
        }
    }

    fn a_router_that_refuses_by_upnp_is_told_of("miniupnpd") {
        // by the other protocols this daemon tries every port before it refuses
        let home = Home::new(Speaks::Upnp, Nat::PortRestricted, &[], "deny 0-65535 0.0.0.0/0 0-65535\n");
        let (mut exit, _) = open_exit(&home.lab, &[]);
        eventually("a warning", patience(15), || exit.log().contains("does not map our port (UPnP IGD: error "));
        exit.stop(libc::SIGINT);
        home.assert_nothing_mapped("after a refusal");
    }

    fn a_router_that_refuses_by_nat_pmp_is_told_of_once() {
        let lab = Lab::new(Nat::PortRestricted, &[]);
        let router = NatPmp::start(&lab, EXTERNAL, 2);
        let (mut exit, _) = open_exit(&lab, &[]);
        let warning = "the router does not map our port (NAT-PMP: not authorized)";
        eventually("a warning", patience(15), || exit.log().contains(warning));
        exit.stop(libc::SIGINT);
        assert_eq!(exit.log().matches(warning).count(), 1, "{}", exit.log());
        drop(router.asked());
    }

    /// The router's own address is a shared one: its mapping leads nowhere, and is not offered.
    fn a_mapping_behind_another_nat_is_not_offered() {
        let lab = Lab::new(Nat::PortRestricted, &[]);
        let external = Ipv4Addr::new(100, 64, 0, 7);
        let router = NatPmp::start(&lab, external, 0);
        let (mut exit, ready) = open_exit(&lab, &[]);
        assert!(!text(&ready, "connect").contains(&external.to_string()), "{ready}");
        eventually("a warning", patience(5), || exit.log().contains("there is another NAT in front of it"));
        exit.stop(libc::SIGINT);
        let asked = router.asked();
        assert_eq!((asked.first(), asked.last()), (Some(&7200), Some(&0)), "asked for {asked:?}");
    }

    /// STUN sees another address than the one that is mapped: it is offered, but last.
    fn a_mapping_that_stun_does_not_confirm_stands_last() {
        let lab = Lab::new(Nat::PortRestricted, &[]);
        let external = Ipv4Addr::new(192, 1, 2, 9);
        let router = NatPmp::start(&lab, external, 0);
        let (mut exit, ready) = open_exit(&lab, &[]);
        // on a busy machine the router's answer comes after the exit is ready
        let endpoints = || {
            let status = lab.exit.run_ok(&["status", "--json"]).stdout;
            texts(&serde_json::from_str(&status).expect("JSON"), "endpoints")
        };
        let mapped = format!("{external}:{}", ready["port"]);
        eventually("the mapped endpoint, last", patience(10), || endpoints().last() == Some(&mapped));
        assert_eq!(endpoints().first(), Some(&format!("{}:{}", lab.exit.public4, ready["port"])), "{ready}");
        exit.stop(libc::SIGINT);
        drop(router.asked());
    }
}
