//! Another VPN on the same host, a real wg-quick(8) tunnel with a default route: there before us or coming while we run,
//! it works as it did, what goes through us goes through us, and it is untouched in the end.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::net::Namespace;
use crate::record::patience;
use crate::service::{Web, get};
use crate::snapshot::assert_unchanged;
use crate::stock_clients::wg_quick;
use crate::topology::{Lab, Nat, Site, WEB};
use crate::wire::{Allowed, Capture};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

/// The other VPN's server on its own tunnel, which a client reaches whatever carries the rest.
const INSIDE: [&str; 2] = ["10.66.0.1", "fd66::1"];
/// Its port, none that we would choose.
const PORT: u16 = 51999;

/// The other VPN: its server at a site of its own, its client on one of our hosts.
struct Other {
    client: Namespace,
    /// Its server's public addresses, v4 and v6.
    seen: [IpAddr; 2],
    file: PathBuf,
    _inside: Web,
}

impl Other {
    /// Starts the server; the client is not up yet. `allowed`: what the client sends there.
    fn new(server: &Site, client: &Site, allowed: &str) -> Other {
        let keys: Vec<[String; 2]> = (0..2)
            .map(|_| {
                let script = "key=$(wg genkey); echo $key; echo $key | wg pubkey";
                let output = Command::new("sh").args(["-c", script]).output().expect("start wg");
                let text = String::from_utf8(output.stdout).expect("text");
                let mut lines = text.lines().map(str::to_owned);
                [lines.next().expect("a private key"), lines.next().expect("a public key")]
            })
            .collect();
        let write = |site: &Site, name: &str, text: String| {
            let file = site.dir.join(name);
            std::fs::write(&file, text).expect("write a configuration");
            std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
            file
        };
        let its = write(
            server,
            "other-s.conf",
            format!(
                "[Interface]\nPrivateKey = {}\nAddress = 10.66.0.1/24, fd66::1/64\nListenPort = {PORT}\n\
                 [Peer]\nPublicKey = {}\nAllowedIPs = 10.66.0.2/32, fd66::2/128\n",
                keys[0][0], keys[1][1]
            ),
        );
        let file = write(
            client,
            "other.conf",
            format!(
                "[Interface]\nPrivateKey = {}\nAddress = 10.66.0.2/24, fd66::2/64\n\
                 [Peer]\nPublicKey = {}\nEndpoint = {}:{PORT}\nAllowedIPs = {allowed}\nPersistentKeepalive = 25\n",
                keys[1][0], keys[0][1], server.public4
            ),
        );
        server.host.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"]);
        server.host.nft(
            "table inet nat {
  chain inward { type nat hook prerouting priority -100; iifname eth0 udp dport 51820 dnat ip to 10.66.0.2; }
  chain outward { type nat hook postrouting priority 100; oifname eth0 masquerade; }
}
",
        );
        wg_quick(&server.host, "up", &its);
        let inside = Web::start(&server.host, INSIDE.map(|a| a.parse().expect("an address")));
        let seen = [server.public4.into(), server.host6.expect("v6").into()];
        Other { client: client.host.clone(), seen, file, _inside: inside }
    }

    fn up(&self) {
        wg_quick(&self.client, "up", &self.file);
    }

    fn down(&self) {
        wg_quick(&self.client, "down", &self.file);
    }

    /// Its server answers on its own tunnel.
    #[track_caller]
    fn assert_works(&self, when: &str) {
        let limit = Instant::now() + patience(10);
        for inside in INSIDE {
            let ask = || self.client.run(|| get(inside.parse().expect("an address"), Duration::from_secs(2)));
            let mut answer = ask();
            while answer.is_err() && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(100));
                answer = ask();
            }
            let us = answer.unwrap_or_else(|e| panic!("{when}: {inside} does not answer: {e}"));
            assert_eq!(us.to_string(), inside.replace("0.1", "0.2").replace("::1", "::2"), "{when}");
        }
    }

    /// It carries the host's traffic.
    #[track_caller]
    fn assert_carries(&self, site: &Site, when: &str) {
        self.assert_works(when);
        for (web, seen) in WEB.into_iter().zip(self.seen) {
            assert_eq!(
                site.whoami(web).unwrap_or_else(|e| panic!("{when}: no answer from {web}: {e}")),
                seen,
                "{when}"
            );
        }
    }
}

/// Waits until the exit carries the site's traffic (again), then holds it.
#[track_caller]
fn eventually_through_exit(lab: &Lab, site: &Site, log: impl Fn() -> String) {
    let limit = Instant::now() + patience(15);
    let through = || WEB.into_iter().all(|web| site.whoami(web).ok() == lab.exit.public(web));
    while !through() {
        let rules = || site.host.output("sh", &["-c", "ip rule; ip -6 rule; ip route get 192.0.2.80; wg show"]);
        assert!(Instant::now() < limit, "not through the exit:\n{}\n{}", rules(), log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_leaves_through_exit(lab, site);
}

const EVERYTHING: &str = "0.0.0.0/0, ::/0";

fn lab() -> Lab {
    Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into(), Nat::Open.into()])
}

lab_tests! {
    /// It carries our outer packets, as it carries everything; nothing passes it by.
    fn a_wg_quick_tunnel_that_was_there_before_connect("wg-quick", "wireguard-go") {
        let lab = lab();
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let other = Other::new(&lab.peers[1], lab.peer(), EVERYTHING);
        other.up();
        other.assert_carries(lab.peer(), "alone");
        let before = lab.peer().host.snapshot();
        let endpoints = vec![SocketAddr::new(lab.peers[1].public4.into(), PORT)];
        let router = lab.peer().router.as_ref().expect("a NAT has a router");
        let wire = Capture::start(router, "lan0", Allowed { endpoints, lan: vec!["192.168.1.0/24".parse().unwrap()] });
        for args in [&[][..], &["--lockdown"]] {
            let (mut peer, _) = join(lab.peer(), &ready, &[&["--no-stun"], args].concat());
            assert_leaves_through_exit(&lab, lab.peer());
            other.assert_works("beside us");
            peer.stop(libc::SIGTERM);
            assert_unchanged(&format!("after connect {args:?}"), &before, &lab.peer().host.snapshot());
            other.assert_carries(lab.peer(), "after us");
        }
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        peer.kill();
        assert_leaves_through_exit(&lab, lab.peer());
        other.assert_works("beside our dead node");
        lab.peer().run_ok(&["recover"]);
        assert_unchanged("after kill -9 and recover", &before, &lab.peer().host.snapshot());
        other.assert_carries(lab.peer(), "after recover");
        let passed = wire.take();
        assert!(passed.outer > 0 && passed.leaked() == 0, "{passed:#?}");
        other.down();
        exit.stop(libc::SIGTERM);
    }

    /// wg-quick puts its rules before ours, and takes some of ours along when it goes: we stay in front.
    fn a_wg_quick_tunnel_that_comes_and_goes_while_connected("wg-quick", "wireguard-go") {
        let lab = lab();
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let other = Other::new(&lab.peers[1], lab.peer(), EVERYTHING);
        // it leaves a setting behind (src_valid_mark)
        other.up();
        other.down();
        let plain = lab.peer().host.snapshot();
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());
        let mtu = || -> u32 {
            let text = lab.peer().host.output("ip", &["link", "show", "peervpn0"]);
            text.split_once("mtu ").and_then(|(_, mtu)| mtu[..4].parse().ok()).expect("an MTU")
        };
        let wide = mtu();
        for round in 0..2 {
            other.up();
            eventually_through_exit(&lab, lab.peer(), || peer.log());
            other.assert_works(&format!("beside us, round {round}"));
            if round == 0 {
                other.down();
                eventually_through_exit(&lab, lab.peer(), || peer.log());
                let limit = Instant::now() + patience(5);
                while mtu() < wide {
                    assert!(Instant::now() < limit, "the MTU stays at {} instead of {wide}\n{}", mtu(), peer.log());
                    std::thread::sleep(Duration::from_millis(50));
                }
                assert!(lab.peer().host.run(|| crate::service::knock(lab.peer().lan_router().into(), patience(2)))
                    .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused), "the LAN is not reached");
            }
        }
        peer.stop(libc::SIGTERM);
        other.assert_carries(lab.peer(), "after us");
        other.down();
        assert_unchanged("after both", &plain, &lab.peer().host.snapshot());
        assert_leaves_directly(lab.peer());
        exit.stop(libc::SIGTERM);
    }

    /// Peers leave by the VPN that the exit's host uses, and reach it by the port that its provider forwards.
    fn a_wg_quick_tunnel_that_was_there_before_exit("wg-quick", "wireguard-go") {
        let lab = lab();
        let other = Other::new(&lab.peers[1], &lab.exit, EVERYTHING);
        other.up();
        other.assert_carries(&lab.exit, "alone");
        let before = lab.exit.host.snapshot();
        let endpoint = format!("{}:51820", lab.peers[1].public4);
        let (mut exit, ready) = open_exit(&lab, &["--no-stun", "--endpoint", &endpoint]);
        let (mut peer, connected) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_eq!(connected["endpoint"], endpoint.as_str());
        for (web, seen) in WEB.into_iter().zip(other.seen) {
            assert_eq!(lab.peer().whoami(web).unwrap_or_else(|e| panic!("no answer from {web}: {e}")), seen);
        }
        other.assert_carries(&lab.exit, "beside us");
        peer.stop(libc::SIGTERM);
        exit.stop(libc::SIGTERM);
        assert_unchanged("after exit", &before, &lab.exit.host.snapshot());
        let (mut exit, _) = open_exit(&lab, &["--no-stun"]);
        exit.kill();
        lab.exit.run_ok(&["recover"]);
        assert_unchanged("after kill -9 and recover", &before, &lab.exit.host.snapshot());
        other.assert_carries(&lab.exit, "after us");
        other.down();
    }

    /// A tunnel to somewhere in particular comes and goes beside a running exit.
    fn a_wg_quick_tunnel_that_comes_while_the_exit_runs("wg-quick", "wireguard-go") {
        let lab = lab();
        let other = Other::new(&lab.peers[1], &lab.exit, "10.66.0.0/24, fd66::/64");
        let plain = lab.exit.host.snapshot();
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        other.up();
        other.assert_works("beside us");
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGTERM);
        exit.stop(libc::SIGTERM);
        other.assert_works("after us");
        other.down();
        assert_unchanged("after both", &plain, &lab.exit.host.snapshot());
    }

    /// One with a default route comes and goes: peers still reach the exit where they knew it, whatever looks at the way
    /// back, and leave as the host itself does.
    fn a_full_wg_quick_tunnel_that_comes_while_the_exit_runs("wg-quick", "wireguard-go") {
        let lab = lab();
        let other = Other::new(&lab.peers[1], &lab.exit, EVERYTHING);
        lab.exit.host.sysctl(&["net/ipv4/conf/all/rp_filter=1"]);
        // it leaves a setting behind (src_valid_mark)
        other.up();
        other.down();
        let plain = lab.exit.host.snapshot();
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        assert_leaves_through_exit(&lab, lab.peer());
        let through_both = |log: &dyn Fn() -> String| {
            let limit = Instant::now() + patience(15);
            for (web, seen) in WEB.into_iter().zip(other.seen) {
                while lab.peer().whoami(web).ok() != Some(seen) {
                    let rules = || lab.exit.host.output("sh", &["-c", "ip rule; ip -6 rule; wg show; nft list ruleset"]);
                    assert!(Instant::now() < limit, "{web} not through both:\n{}\n{}", rules(), log());
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        };
        for round in 0..2 {
            other.up();
            through_both(&|| exit.log());
            other.assert_carries(&lab.exit, &format!("round {round}"));
            // who comes now finds the exit where it said
            peer.stop(libc::SIGTERM);
            let connected;
            (peer, connected) = join(lab.peer(), &ready, &["--no-stun"]);
            assert!(texts(&ready, "endpoints").contains(&text(&connected, "endpoint").to_owned()), "{connected}");
            through_both(&|| exit.log());
            if round == 0 {
                other.down();
                eventually_through_exit(&lab, lab.peer(), || exit.log());
                let rules = || lab.exit.host.output("sh", &["-c", "ip rule; ip -6 rule"]);
                let limit = Instant::now() + patience(5);
                while rules().contains("fwmark") {
                    assert!(Instant::now() < limit, "our rules stay:\n{}", rules());
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        exit.stop(libc::SIGTERM);
        other.assert_carries(&lab.exit, "after us");
        other.down();
        assert_unchanged("after both", &plain, &lab.exit.host.snapshot());
        peer.kill();
        lab.peer().run_ok(&["recover"]);
    }
}
