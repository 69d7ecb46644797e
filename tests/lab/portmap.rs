//! Port mapping asked of a real router, miniupnpd: each protocol, its lease, its end, and what it is worth.

use std::io;
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
            eprintln!("--- miniupnpd\n{}--- leases\n{}", self.log(), self.leases());
        }
    }
}

/// The mapped endpoint.
fn mapped(ready: &serde_json::Value) -> String {
    format!("{EXTERNAL}:{}", ready["port"])
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
        let (mut exit, ready) = open_exit(&home.lab, &[]);
        // behind this NAT the reflexive endpoint has the same port or another; the mapped one stands first
        let first = texts(&ready, "endpoints")[0].clone();
        if first != mapped(&ready) {
            // a slow machine: it came after the start
            let mapping = exit.event("mapping");
            assert_eq!(text(&mapping, "new"), mapped(&ready), "{ready}");
        }
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

lab_tests! {
    fn a_port_is_mapped_by_pcp_and_unmapped("miniupnpd") { comes_and_goes(Speaks::Pcp, "PCP MAP") }

    fn a_port_is_mapped_by_nat_pmp_and_unmapped("miniupnpd") { comes_and_goes(Speaks::NatPmp, "NAT-PMP") }

    fn a_port_is_mapped_by_upnp_and_unmapped("miniupnpd") { comes_and_goes(Speaks::Upnp, "PeerVPN") }

    fn of_all_protocols_the_best_is_taken("miniupnpd") { comes_and_goes(Speaks::All, "PCP MAP") }
}
