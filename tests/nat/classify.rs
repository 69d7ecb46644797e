//! `nattest` behind every NAT of the lab.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peervpn::nat::discovery::Behaviour::{
    AddressAndPortDependent as Apd, AddressDependent as Ad, EndpointIndependent as Ei, Unknown,
};
use peervpn::nat::verdict::{CanBeExit, NatType};
use peervpn::node::nattest::{Options, Report, measure};

use crate::net::Namespaces;
use crate::topology::{Lab, Nat, Plan, STUN4, STUN6, Site, WEB};
use crate::{block_on, lab_runs};

fn servers() -> Vec<String> {
    let v4 = STUN4.map(|ip| format!("{ip}:3478"));
    let v6 = STUN6.map(|ip| format!("[{ip}]:3478"));
    v4.into_iter().chain(v6).collect()
}

fn test(site: &Site) -> Report {
    let options = Options { servers: servers(), port: None, lifetime: false };
    site.host.run(|| block_on(measure(&options, &mut |_| ()))).expect("servers have addresses")
}

#[test]
fn every_kind_is_told_by_its_name_within_1200_ms() {
    if !lab_runs() {
        return;
    }
    let cases = [
        (Nat::Open, (Ei, Ei, NatType::Open), NatType::Open, CanBeExit::Yes),
        (Nat::UdpFirewall, (Ei, Apd, NatType::UdpFirewall), NatType::UdpFirewall, CanBeExit::WithHelp),
        // the lab's full cone lets in high ports by v6, too
        (Nat::FullCone, (Ei, Ei, NatType::FullCone), NatType::Open, CanBeExit::Yes),
        (Nat::RestrictedCone, (Ei, Ad, NatType::RestrictedCone), NatType::UdpFirewall, CanBeExit::WithHelp),
        (Nat::PortRestricted, (Ei, Apd, NatType::PortRestrictedCone), NatType::UdpFirewall, CanBeExit::WithHelp),
        (Nat::Symmetric, (Apd, Apd, NatType::Symmetric), NatType::UdpFirewall, CanBeExit::WithHelp),
        (Nat::Blocked, (Unknown, Unknown, NatType::Blocked), NatType::Blocked, CanBeExit::No),
    ];
    println!("{:16} {:28} {:28} {:22} {:14} ms", "kind", "mapping", "filtering", "type", "v6");
    for (nat, expected, v6, can_be_exit) in cases {
        let lab = Lab::new(nat, &[]);
        // the router's own v6 may still be under duplicate address detection
        let _ = lab.exit.whoami(WEB[1]);
        let report = test(&lab.exit);
        let ipv4 = report.ipv4.as_ref().expect("v4 has a route");
        let ipv6 = report.ipv6.as_ref().expect("v6 has a route");
        println!(
            "{:16} {:28} {:28} {:22} {:14} {}",
            format!("{nat:?}"),
            ipv4.mapping.name(),
            ipv4.filtering.name(),
            ipv4.nat_type.name(),
            format!("{:?}", ipv6.nat_type),
            report.elapsed_ms
        );
        assert_eq!((ipv4.mapping, ipv4.filtering, ipv4.nat_type), expected, "{nat:?}: {ipv4:?}");
        assert_eq!(ipv6.nat_type, v6, "{nat:?}: {ipv6:?}");
        assert_eq!(report.can_be_exit, can_be_exit, "{nat:?}");
        assert!(report.elapsed_ms <= 1200, "{nat:?}: {} ms", report.elapsed_ms);
        assert!(!report.port_mapping.any());
        assert_eq!(ipv4.local.map(|local| local.ip()), Some(lab.exit.host4.into()));
        assert_eq!(ipv4.udp, nat != Nat::Blocked);
        if ipv4.udp {
            assert_eq!(ipv4.reflexive.map(|reflexive| reflexive.ip()), Some(lab.exit.public4.into()));
            assert_eq!(ipv4.port_preserved, Some(nat != Nat::Symmetric), "{nat:?}");
            let natted = !matches!(nat, Nat::Open | Nat::UdpFirewall);
            assert_eq!(ipv4.hairpin, natted.then_some(false), "{nat:?}");
            assert_eq!(ipv4.cgn, (!natted).then_some(false), "{nat:?}: the gateway doesn't tell");
        }
    }
}

#[test]
fn hairpinning_is_seen_where_the_router_does_it() {
    if !lab_runs() {
        return;
    }
    let lab = Lab::new(Plan::v4_only(Nat::FullCone), &[]);
    let router = lab.exit.router.as_ref().expect("a NAT");
    let (public, host, own) = (lab.exit.public4, lab.exit.host4, lab.exit.lan_router());
    router.nft(&format!(
        "table ip hairpin {{
  chain back {{ type nat hook prerouting priority -99; iifname lan0 ip daddr {public} udp dport 1024-65535 dnat to {host}; }}
  chain out {{ type nat hook postrouting priority 99; iifname lan0 oifname lan0 ip saddr != {own} snat to {public}; }}
}}"
    ));
    let report = test(&lab.exit);
    let ipv4 = report.ipv4.expect("v4");
    assert_eq!((ipv4.nat_type, ipv4.hairpin), (NatType::FullCone, Some(true)));
    assert!(report.ipv6.is_none(), "a site without v6");
}

/// A home router behind another NAT: of each behaviour the stricter one of the two is what a host behind both has.
#[test]
fn two_nats_in_a_row_are_as_strict_as_the_stricter_one() {
    if !lab_runs() {
        return;
    }
    let port_restricted = (Ei, Apd, NatType::PortRestrictedCone, CanBeExit::WithHelp);
    let symmetric = (Apd, Apd, NatType::Symmetric, CanBeExit::WithHelp);
    for (outer, inner, expected) in [
        (Nat::FullCone, "masquerade", port_restricted),
        (Nat::PortRestricted, "masquerade", port_restricted),
        (Nat::FullCone, "masquerade fully-random", symmetric),
        (Nat::Symmetric, "masquerade", symmetric),
    ] {
        let lab = Lab::new(Plan::v4_only(outer), &[]);
        let (_spaces, home) = Namespaces::new(&["home"]);
        let (home, router) = (&home[0], &lab.exit.host);
        router.ip(&format!(
            "link add name lan1 type veth peer name eth0 netns {}\naddr add 10.77.0.1/24 dev lan1\nlink set lan1 up\n",
            home.name
        ));
        home.ip("link set lo up\naddr add 10.77.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.77.0.1\n");
        router.sysctl(&["net/ipv4/ip_forward=1"]);
        router.nft(&format!(
            "table ip inner {{
  chain outward {{ type nat hook postrouting priority 100; oifname eth0 {inner}; }}
  chain through {{ type filter hook forward priority 0; policy drop; iifname lan1 accept; ct state established accept; }}
}}"
        ));
        let options = Options { servers: servers(), port: None, lifetime: false };
        let report = home.run(|| block_on(measure(&options, &mut |_| ()))).expect("servers have addresses");
        let ipv4 = report.ipv4.as_ref().expect("v4");
        let told = (ipv4.mapping, ipv4.filtering, ipv4.nat_type, report.can_be_exit);
        assert_eq!(told, expected, "{outer:?} outside, {inner} inside: {ipv4:?}");
        assert_eq!(ipv4.reflexive.map(|seen| seen.ip()), Some(lab.exit.public4.into()));
        assert_eq!(ipv4.local.map(|local| local.ip()), Some([10, 77, 0, 2].into()));
    }
}

#[test]
fn a_port_that_another_host_holds_outside_is_named_and_not_taken_for_symmetric() {
    if !lab_runs() {
        return;
    }
    let lab = Lab::new(Plan::v4_only(Nat::PortRestricted), &[]);
    let router = lab.exit.router.as_ref().expect("a NAT");
    // another host behind the router (here: the router's own LAN address) talks to one server from that port
    let holder = router.run(|| {
        let socket = std::net::UdpSocket::bind((lab.exit.lan_router(), 51820)).expect("free");
        socket.send_to(b"hold", (STUN4[1], 3478)).expect("routed");
        socket
    });
    let options = Options { servers: servers(), port: Some(51820), lifetime: false };
    let report = lab.exit.host.run(|| block_on(measure(&options, &mut |_| ()))).expect("servers have addresses");
    drop(holder);
    let ipv4 = report.ipv4.expect("v4");
    assert_eq!((ipv4.mapping, ipv4.filtering), (Ei, Apd), "{ipv4:?}");
    assert!(ipv4.measured.port_taken, "{ipv4:?}");
    assert!(report.explanation.iter().any(|line| line.contains("--port N")), "{:?}", report.explanation);
}

#[test]
fn servers_without_other_address_leave_the_filtering_unknown() {
    if !lab_runs() {
        return;
    }
    let open = Plan::v4_only(Nat::Open);
    let lab = Lab::without_stun(Plan::v4_only(Nat::PortRestricted), &[open, open]);
    let servers: Vec<PlainServer> = lab.peers.iter().map(PlainServer::start).collect();
    let options =
        Options { servers: servers.iter().map(|s| s.address.to_string()).collect(), port: None, lifetime: false };
    let report = lab.exit.host.run(|| block_on(measure(&options, &mut |_| ()))).expect("servers have addresses");
    let ipv4 = report.ipv4.expect("v4");
    assert_eq!((ipv4.mapping, ipv4.filtering, ipv4.nat_type), (Ei, Unknown, NatType::Unknown), "{ipv4:?}");
    assert!(report.explanation.iter().any(|line| line.contains("OTHER-ADDRESS")), "{:?}", report.explanation);
    assert!(report.elapsed_ms <= 1200, "{}", report.elapsed_ms);
}

#[test]
fn a_wrong_verdict_never_appears_under_10_percent_loss() {
    if !lab_runs() {
        return;
    }
    const RUNS: usize = 50;
    /// Side by side, each on ports of its own.
    const BATCH: usize = 10;
    println!("{:16} runs  right  partly unknown  wrong", "kind");
    for (nat, (mapping, filtering, nat_type)) in [
        (Nat::Open, (Ei, Ei, NatType::Open)),
        (Nat::UdpFirewall, (Ei, Apd, NatType::UdpFirewall)),
        (Nat::FullCone, (Ei, Ei, NatType::FullCone)),
        (Nat::RestrictedCone, (Ei, Ad, NatType::RestrictedCone)),
        (Nat::PortRestricted, (Ei, Apd, NatType::PortRestrictedCone)),
        (Nat::Symmetric, (Apd, Apd, NatType::Symmetric)),
    ] {
        let lab = Lab::new(Plan::v4_only(nat), &[]);
        lose_a_tenth(lab.exit.router.as_ref().unwrap_or(&lab.exit.host));
        let options = Options { servers: servers(), port: None, lifetime: false };
        let mut reports = Vec::new();
        while reports.len() < RUNS {
            reports.extend(lab.exit.host.run(|| {
                block_on(async {
                    let mut set = tokio::task::JoinSet::new();
                    for _ in 0..BATCH {
                        let options = options.clone();
                        set.spawn(async move { measure(&options, &mut |_| ()).await.expect("servers have addresses") });
                    }
                    set.join_all().await
                })
            }));
        }
        let mut right = 0;
        for report in &reports {
            let ipv4 = report.ipv4.as_ref().expect("v4");
            let may = |told, truth| told == truth || told == Unknown;
            assert!(may(ipv4.mapping, mapping) && may(ipv4.filtering, filtering), "{nat:?}: {ipv4:?}");
            assert!([nat_type, NatType::Unknown].contains(&ipv4.nat_type), "{nat:?}: {ipv4:?}");
            right += usize::from(ipv4.nat_type == nat_type && ipv4.filtering == filtering);
        }
        println!("{:16} {:4}  {right:5}  {:14}      0", format!("{nat:?}"), reports.len(), reports.len() - right);
        assert!(right * 10 >= reports.len() * 8, "{nat:?}: only {right} of {} told", reports.len());
    }
}

/// Every tenth UDP datagram that comes in or goes out here is lost, at random.
fn lose_a_tenth(at: &crate::net::Namespace) {
    let rule = "meta l4proto udp numgen random mod 10 0 drop";
    at.nft(&format!(
        "table inet loss {{
  chain inbound {{ type filter hook prerouting priority -300; iifname eth0 {rule}; }}
  chain outbound {{ type filter hook postrouting priority 300; oifname eth0 {rule}; }}
}}
"
    ));
}

#[test]
fn the_lifetime_of_a_mapping_is_found() {
    if !lab_runs() {
        return;
    }
    let lab = Lab::new(Plan::v4_only(Nat::PortRestricted), &[]);
    lab.exit.router.as_ref().expect("a NAT").sysctl(&["net/netfilter/nf_conntrack_udp_timeout=7"]);
    let options = Options { servers: vec![format!("{}:3478", STUN4[0])], port: None, lifetime: true };
    let mut lines = Vec::new();
    let report = lab.exit.host.run(|| block_on(measure(&options, &mut |line| lines.push(line)))).expect("a server");
    let lifetime = report.ipv4.expect("v4").lifetime_s;
    // the kernel forgets up to a second late
    assert!(matches!(lifetime, Some(6..=8)), "{lifetime:?} {lines:?}");
    assert!(lines.iter().any(|line| line == "IPv4: a mapping lives at least 5 s"), "{lines:?}");
}

/// A STUN server that knows MAPPED-ADDRESS and nothing else (RFC 8489 §14.1).
struct PlainServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl PlainServer {
    fn start(site: &Site) -> Self {
        let address = SocketAddr::new(site.public4.into(), 3478);
        let socket = site.host.run(|| UdpSocket::bind(address)).expect("free");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut request = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((20.., SocketAddr::V4(from))) = socket.recv_from(&mut request) else { continue };
                let mut answer = vec![0x01, 0x01, 0x00, 0x0c];
                answer.extend(&request[4..20]);
                answer.extend([0x00, 0x01, 0x00, 0x08, 0, 1]);
                answer.extend(from.port().to_be_bytes());
                answer.extend(from.ip().octets());
                let _ = socket.send_to(&answer, from);
            }
        });
        PlainServer { address, stop, thread: Some(thread) }
    }
}

impl Drop for PlainServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}
