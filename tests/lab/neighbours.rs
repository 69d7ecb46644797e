//! Other programs' firewalls on the exit, as Docker, ufw and firewalld write them: peers' requests go through, what
//! they flush is put back, and they are as they were in the end.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::snapshot::assert_unchanged;
use crate::topology::{Lab, Nat, WEB};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, record};

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/firewall").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The rulesets with handles: even a rule that was taken out and put in again would show. Counters left out.
fn rules(lab: &Lab) -> String {
    lab.exit.host.output("nft", &["-a", "-s", "list", "ruleset"])
}

/// Waits until the exit has put something back.
#[track_caller]
fn eventually(what: &str, lab: &Lab, mut holds: impl FnMut(&str) -> bool) {
    let limit = Instant::now() + record::patience(5);
    while !holds(&rules(lab)) {
        assert!(Instant::now() < limit, "not within 5 s: {what}\n{}", rules(lab));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn neighbour(name: &str) {
    let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into()]);
    let text = fixture(name);
    lab.exit.host.nft(&text);
    let before = rules(&lab);
    let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
    let during = rules(&lab);
    assert!(during.contains("peervpn:peervpn0"), "{during}");
    let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
    assert_leaves_through_exit(&lab, lab.peer());

    // without our rules nothing comes through: the fixture does drop
    exit.signal(libc::SIGSTOP);
    let flush: String = text
        .lines()
        .filter(|line| line.starts_with("table "))
        .map(|line| {
            let table = line.trim_end_matches(['{', ' ']);
            format!("delete {table}\n")
        })
        .collect();
    lab.exit.host.nft(&format!("{flush}{text}"));
    for web in crate::topology::WEB {
        assert!(lab.peer().whoami(web).is_err(), "{name} lets {web} pass without our rules");
    }
    // the other program has loaded its rules anew, ours gone with the old ones
    exit.signal(libc::SIGCONT);
    eventually("our accepts", &lab, |now| {
        now.matches("peervpn:peervpn0").count() == during.matches("peervpn:peervpn0").count()
    });
    assert_leaves_through_exit(&lab, lab.peer());

    peer.stop(libc::SIGTERM);
    exit.stop(libc::SIGTERM);
    let plain = |text: &str| {
        text.lines().map(|line| line.split(" # handle").next().unwrap_or(line).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(plain(&before), plain(&rules(&lab)), "after flush and stop");

    // and once more without a flush between: handle by handle
    let before = rules(&lab);
    let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
    exit.stop(libc::SIGTERM);
    assert_eq!(before, rules(&lab), "after start and stop");
    // and after a crash, with and without the journal
    for journal in [true, false] {
        let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
        exit.kill();
        if !journal {
            std::fs::remove_file(lab.exit.dir.join("state/journal/peervpn0.journal")).expect("a journal");
        }
        lab.exit.run_ok(&["recover"]);
        assert_eq!(before, rules(&lab), "after kill -9 and recover, journal: {journal}");
    }
}

/// Whether a datagram with this mark gets to a host that has no such port, which says so.
fn refused_there(host: std::net::IpAddr, mark: u32) -> bool {
    use std::os::fd::AsRawFd as _;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let (value, length) = (&raw const mark, size_of::<u32>() as libc::socklen_t);
    // SAFETY: setsockopt(2) reads `length` bytes, the size of `mark`.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, value.cast(), length) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    socket.connect((host, 9)).expect("a route");
    socket.set_read_timeout(Some(record::patience(5))).expect("a time-out");
    let answer = socket.send(b"outer").and_then(|_| socket.recv(&mut [0; 16]));
    answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

lab_tests! {
    fn an_exit_beside_docker() { neighbour("docker.nft") }

    fn an_exit_beside_ufw() { neighbour("ufw.nft") }

    fn an_exit_beside_firewalld() { neighbour("firewalld.nft") }

    /// nftables can't see a firewall in legacy tables: the exit and doctor name the commands that let it pass, and they do.
    fn an_exit_beside_a_legacy_firewall("iptables-legacy", "ip6tables-legacy") {
        let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into()]);
        let host = &lab.exit.host;
        let drop = "iptables-legacy -P FORWARD DROP && ip6tables-legacy -P FORWARD DROP";
        if !host.command("sh").args(["-c", drop]).output().expect("start sh").status.success() {
            println!("SKIP: legacy iptables in this kernel");
            return;
        }
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        for web in crate::topology::WEB {
            assert!(lab.peer().whoami(web).is_err(), "{web} is reached without the mending command");
        }
        let log = exit.log();
        let mends: Vec<&str> = log.lines().filter_map(|line| line.split_once("let ours pass: ")).map(|(_, mend)| mend).collect();
        assert_eq!(mends.len(), 2, "{log}");
        let doctor = lab.exit.run(&["doctor", "--interface", "peervpn0"]).all();
        for mend in mends {
            assert!(doctor.contains(mend), "no “{mend}” in\n{doctor}");
            host.output("sh", &["-ec", mend]);
        }
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGTERM);
        exit.stop(libc::SIGTERM);
    }

    /// Their marks, tables and priorities stay theirs, and what only they reach is reached.
    fn connect_beside_the_rules_of_tailscale_and_mwan3() {
        let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into(), Nat::Open.into()]);
        let (peer, node) = (lab.peer(), &lab.peers[1].host);
        let far = Ipv4Addr::new(100, 100, 100, 100);
        peer.host.ip(&format!("link add name tailscale0 type veth peer name ts0 netns {}\n", node.name));
        peer.host.ip("addr add 100.101.102.103/32 dev tailscale0\nlink set tailscale0 up\n");
        node.ip(&format!("addr add {far}/32 dev ts0\nlink set ts0 up\nroute add 100.101.102.103/32 dev ts0\n"));
        let _far = crate::service::Web::start(node, [far.into()]);
        let gateway = peer.lan_router();
        let routes = format!("route add default via {gateway} dev eth0 table 1\nroute add 192.168.1.0/24 dev eth0 table 1\n");
        peer.host.ip(&format!("{}{}{routes}", fixture("tailscale.rules"), fixture("mwan3.rules")));
        let inside = || peer.whoami(far.into()).map(|us| us.to_string()).map_err(|e| e.to_string());
        assert_eq!(inside().as_deref(), Ok("100.101.102.103"), "alone");
        // each of our questions below is to be refused: by default six in a row are, and then one a second
        lab.internet.sysctl(&["net/ipv4/icmp_ratelimit=0"]);
        let before = peer.host.snapshot();
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let (mut connected, _) = join(peer, &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, peer);
        assert_eq!(inside().as_deref(), Ok("100.101.102.103"), "beside us");
        // its own packets to the internet carry its mark and would pass the tunnel by
        let own_packets = || peer.host.run(|| refused_there(WEB[0], 0x80000));
        assert!(!own_packets(), "the kill switch lets another VPN's packets out");
        connected.stop(libc::SIGTERM);
        for args in [["--exclude", "192.0.2.80/32"].as_slice(), &["--no-kill-switch"]] {
            let (mut connected, _) = join(peer, &ready, &[&["--no-stun"], args].concat());
            assert!(own_packets(), "{args:?}");
            connected.stop(libc::SIGTERM);
        }
        assert!(own_packets(), "after us");
        assert_unchanged("after connect", &before, &peer.host.snapshot());
        assert_eq!(inside().as_deref(), Ok("100.101.102.103"), "after us");
        exit.stop(libc::SIGTERM);
    }

    /// networkd and NetworkManager flush rules that they don't know; someone flushes our table: all of it comes back.
    fn what_others_flush_comes_back() {
        let lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into()]);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());
        // a host without the table has no such routes
        let all = "ip rule; ip -6 rule; ip route show table 51820 2>/dev/null || true; nft -s list ruleset";
        let shape = |host: &crate::net::Namespace| host.output("sh", &["-c", all]);
        let peer_shape = shape(&lab.peer().host);
        let exit_shape = shape(&lab.exit.host);
        let attacks = [
            "ip rule flush; ip rule add lookup main priority 32766; ip rule add lookup default priority 32767",
            "ip -6 rule flush; ip -6 rule add lookup main priority 32766",
            "ip route flush table 51820 2>/dev/null || true",
            "nft flush ruleset",
        ];
        for attack in attacks {
            for (host, before) in [(&lab.peer().host, &peer_shape), (&lab.exit.host, &exit_shape)] {
                host.output("sh", &["-c", attack]);
                let limit = Instant::now() + record::patience(5);
                while shape(host) != *before {
                    assert!(Instant::now() < limit, "“{attack}”: not as before:\n{}\n--- before\n{before}", shape(host));
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            assert_leaves_through_exit(&lab, lab.peer());
        }
        peer.stop(libc::SIGTERM);
        exit.stop(libc::SIGTERM);
    }
}
