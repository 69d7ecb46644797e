//! The exit's policy: two peers behind one "tunnel", an internet and a LAN.

use std::sync::atomic::{AtomicBool, Ordering};

use peervpn::host::firewall::{ExitPolicy, Policy};

use super::lab_net::{Namespace, Namespaces};
use super::net::*;
use crate::firewall::exit;

/// Addresses of the exit's own that a peer may try: tunnel, public, LAN.
const OF_EXIT: [&str; 6] = ["10.77.0.1", "fd77::1", "203.0.113.1", "2001:db8:1::1", "192.168.7.1", "fd88::1"];
const TUNNEL_OF_EXIT: [&str; 2] = ["10.77.0.1", "fd77::1"];
const LAN: [&str; 2] = ["192.168.7.2", "fd88::2"];
const WEB: [(&str, &str); 2] = [("203.0.113.2", "203.0.113.1"), ("2001:db8:1::2", "2001:db8:1::1")];
const OTHER_PEER: [&str; 2] = ["10.77.0.3", "fd77::3"];

struct Lab {
    exit: Namespace,
    peers: [Namespace; 2],
    web: Namespace,
    lan: Namespace,
    _servers: Vec<Server>,
    _all: Namespaces,
}

impl Lab {
    /// None of it filtered yet; `None` where it can't be built.
    fn new() -> Option<Self> {
        if !possible(&["ip"]) {
            return None;
        }
        let (all, spaces) = Namespaces::new(&["exit", "a", "b", "web", "lan"]);
        let [exit, a, b, web, lan] = <[Namespace; 5]>::try_from(spaces).ok().expect("five");
        let link = |ours: &str, theirs: &Namespace| {
            format!("link add name {ours} type veth peer name eth0 netns {}\nlink set dev {ours} up\n", theirs.name)
        };
        for space in [&exit, &a, &b, &web, &lan] {
            // or a forwarded packet waits until the link-local address has been checked: nothing to ask neighbours from
            space.sysctl(&["net/ipv6/conf/default/accept_dad=0"]);
        }
        exit.ip(&format!(
            "link set dev lo up\nlink add name tun type bridge\n\
             link set dev tun address 02:00:00:00:00:01 mtu 1420 up\n{}{}{}{}\
             link set dev pa master tun\nlink set dev pb master tun\nlink set dev tun mtu 1420\n\
             addr add 10.77.0.1/32 dev tun\naddr add fd77::1/128 dev tun nodad\n\
             route add 10.77.0.2/32 dev tun\nroute add 10.77.0.3/32 dev tun\n\
             route add fd77::2/128 dev tun\nroute add fd77::3/128 dev tun\n\
             neigh add 10.77.0.2 dev tun lladdr 02:00:00:00:00:02 nud permanent\n\
             neigh add 10.77.0.3 dev tun lladdr 02:00:00:00:00:03 nud permanent\n\
             neigh add fd77::2 dev tun lladdr 02:00:00:00:00:02 nud permanent\n\
             neigh add fd77::3 dev tun lladdr 02:00:00:00:00:03 nud permanent\n\
             addr add 203.0.113.1/24 dev wan\naddr add 2001:db8:1::1/64 dev wan nodad\n\
             addr add 192.168.7.1/24 dev lan\naddr add fd88::1/64 dev lan nodad\n",
            link("pa", &a),
            link("pb", &b),
            link("wan", &web),
            link("lan", &lan),
        ));
        exit.sysctl(&["net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1", "net/ipv4/conf/all/send_redirects=0"]);
        for (peer, number) in [(&a, 2), (&b, 3)] {
            // a bridge would show them the direct way, a tunnel has none
            peer.sysctl(&["net/ipv6/conf/eth0/accept_redirects=0"]);
            // one neighbour for everything: a tunnel knows no neighbour discovery
            peer.ip(&format!(
                "link set dev lo up\nlink set dev eth0 address 02:00:00:00:00:0{number} up\n\
                 addr add 10.77.0.{number}/32 dev eth0\naddr add fd77::{number}/128 dev eth0 nodad\n\
                 route add 10.77.0.1/32 dev eth0\nroute add default via 10.77.0.1 dev eth0\n\
                 route add fd77::1/128 dev eth0\nroute add default via fd77::1 dev eth0\n\
                 neigh add 10.77.0.1 dev eth0 lladdr 02:00:00:00:00:01 nud permanent\n\
                 neigh add fd77::1 dev eth0 lladdr 02:00:00:00:00:01 nud permanent\n"
            ));
        }
        // both could answer tunnel addresses directly: only the policy hides and protects them
        web.ip("link set dev lo up\nlink set dev eth0 up\naddr add 203.0.113.2/24 dev eth0\n\
             addr add 2001:db8:1::2/64 dev eth0 nodad\nroute add default via 203.0.113.1\n\
             route add default via 2001:db8:1::1\n");
        lan.ip("link set dev lo up\nlink set dev eth0 up\naddr add 192.168.7.2/24 dev eth0\n\
             addr add fd88::2/64 dev eth0 nodad\nroute add default via 192.168.7.1\nroute add default via fd88::1\n");
        let servers = [&exit, &a, &b, &web, &lan].map(Server::start).into();
        Some(Lab { exit, peers: [a, b], web, lan, _servers: servers, _all: all })
    }

    fn install(&self, policy: ExitPolicy) {
        install(&self.exit, &Policy::Exit(ExitPolicy { interface: "tun", ..policy }).table());
    }

    /// What peer A can reach of these.
    fn outcomes<const N: usize>(&self, of: [&str; N]) -> [Outcome; N] {
        of.map(|address| reach(&self.peers[0], address))
    }

    fn assert_internet_masqueraded(&self) {
        for (web, exit) in WEB {
            assert_eq!(reach(&self.peers[0], web), seen_as(exit), "{web}");
        }
    }
}

/// As seen by a server that the peer reaches without any address translation.
fn as_peer<const N: usize>(of: [&str; N]) -> [Outcome; N] {
    of.map(|address| seen_as(if address.contains(':') { "fd77::2" } else { "10.77.0.2" }))
}

fn refused<const N: usize>() -> [Outcome; N] {
    [const { Outcome::Refused }; N]
}

#[test]
fn peers_reach_the_internet_and_nothing_else() {
    let Some(lab) = Lab::new() else { return };
    // the lab itself: without the policy, all of it is open
    assert_eq!(lab.outcomes(OF_EXIT), as_peer(OF_EXIT));
    assert_eq!(lab.outcomes(LAN), as_peer(LAN));
    assert_eq!(lab.outcomes(OTHER_PEER), as_peer(OTHER_PEER));
    assert_eq!(reach(&lab.web, "10.77.0.2"), seen_as("203.0.113.2"));
    assert_eq!(reach(&lab.web, "10.77.0.1"), seen_as("203.0.113.2"));

    lab.install(exit());
    lab.assert_internet_masqueraded();
    assert_eq!(lab.outcomes(OF_EXIT), refused());
    assert_eq!(lab.outcomes(LAN), refused());
    assert_eq!(lab.outcomes(OTHER_PEER), refused());
    for address in ["10.77.0.2", "fd77::2", "10.77.0.1", "fd77::1"] {
        assert_eq!(reach(&lab.web, address), Outcome::Silence, "from the internet to {address}");
    }
    assert_eq!(reach(&lab.lan, "10.77.0.2"), Outcome::Silence, "from the LAN to a peer");
    assert_eq!(reach(&lab.exit, "10.77.0.2"), seen_as("10.77.0.1"), "the exit itself reaches its peers");
    assert_eq!(reach(&lab.exit, "10.77.0.1"), seen_as("10.77.0.1"), "the exit reaches itself");
    assert_eq!(reach(&lab.lan, "203.0.113.2"), seen_as("192.168.7.2"), "others' traffic is left alone");
}

#[test]
fn each_flag_opens_what_it_names() {
    let Some(lab) = Lab::new() else { return };
    lab.install(ExitPolicy { allow_peers: true, ..exit() });
    lab.assert_internet_masqueraded();
    assert_eq!(lab.outcomes(OTHER_PEER), as_peer(OTHER_PEER));
    assert_eq!(lab.outcomes(LAN), refused());
    assert_eq!(lab.outcomes(OF_EXIT), refused());

    lab.install(ExitPolicy { allow_lan: true, ..exit() });
    lab.assert_internet_masqueraded();
    assert_eq!(lab.outcomes(LAN), [seen_as("192.168.7.1"), seen_as("fd88::1")]);
    assert_eq!(lab.outcomes(OF_EXIT), as_peer(OF_EXIT));
    assert_eq!(lab.outcomes(OTHER_PEER), refused());
    assert_eq!(reach(&lab.lan, "10.77.0.2"), Outcome::Silence, "the other way round stays closed");

    lab.install(ExitPolicy { services: vec![(6, PORT)], ..exit() });
    assert_eq!(lab.outcomes(TUNNEL_OF_EXIT), as_peer(TUNNEL_OF_EXIT));
    assert_eq!(lab.outcomes([OF_EXIT[2], OF_EXIT[3], OF_EXIT[4], OF_EXIT[5]]), refused());
    lab.install(ExitPolicy { services: vec![(6, PORT + 1), (17, PORT)], ..exit() });
    assert_eq!(lab.outcomes(TUNNEL_OF_EXIT), refused());
}

#[test]
fn what_another_program_publishes_on_a_tunnel_address_is_for_peers_only() {
    let Some(lab) = Lab::new() else { return };
    if !possible(&["nft"]) {
        return;
    }
    // as Docker does it: translated before any input chain sees it
    lab.exit.nft(
        "table inet docker { chain pre { type nat hook prerouting priority dstnat; \
         ip daddr 10.77.0.1 tcp dport 8080 dnat ip to 192.168.7.2; \
         ip6 daddr fd77::1 tcp dport 8080 dnat ip6 to fd88::2; }\n}",
    );
    for (address, (web, _)) in TUNNEL_OF_EXIT.into_iter().zip(WEB) {
        // the lab itself
        let way = if address.contains(':') { "2001:db8:1::1" } else { "203.0.113.1" };
        lab.web.ip(&format!("route replace {address} via {way}\n"));
        assert_eq!(reach(&lab.web, address), seen_as(web));
    }
    lab.install(ExitPolicy { allow_lan: true, ..exit() });
    assert_eq!(lab.outcomes(TUNNEL_OF_EXIT), [seen_as("192.168.7.1"), seen_as("fd88::1")]);
    for address in TUNNEL_OF_EXIT {
        assert_eq!(reach(&lab.web, address), Outcome::Silence, "{address}, beside the tunnel");
    }
}

#[test]
fn segments_fit_the_tunnel_in_both_directions() {
    let Some(lab) = Lab::new() else { return };
    // the tunnel's MTU is 1420: less 40 or 60 bytes of headers (RFC 6691), less 12 of the timestamp option
    lab.install(exit());
    for ((web, _), most) in WEB.into_iter().zip([1420 - 40 - 12, 1420 - 60 - 12]) {
        assert_eq!(attempt(&lab.peers[0], web, 0).mss, Some((most, most)), "{web}");
    }
    let mut table = Policy::Exit(ExitPolicy { interface: "tun", ..exit() }).table();
    for chain in &mut table.chains {
        chain.rules.retain(|rule| !rule.statements.contains(&peervpn_platform::nft::Statement::ClampMss));
    }
    install(&lab.exit, &table);
    for ((web, _), most) in WEB.into_iter().zip([1500 - 40 - 12, 1500 - 60 - 12]) {
        assert_eq!(attempt(&lab.peers[0], web, 0).mss, Some((most, most)), "{web}");
    }
}

#[test]
fn replacing_it_never_opens_or_breaks_anything() {
    let Some(lab) = Lab::new() else { return };
    lab.install(exit());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for time in 0..40 {
                lab.install(ExitPolicy { allow_peers: time % 2 == 0, ..exit() });
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            lab.assert_internet_masqueraded();
            assert_eq!(lab.outcomes(LAN), refused());
        }
    });
}

#[test]
fn echo_requests_to_tunnel_addresses_are_answered() {
    let Some(lab) = Lab::new() else { return };
    if !possible(&["ping"]) {
        return;
    }
    lab.install(exit());
    let ping = |to: &str| {
        let mut ping = lab.peers[0].command("ping");
        ping.args(["-c", "1", "-W", "2", to]).stdout(std::process::Stdio::null());
        ping.status().expect("ping starts").success()
    };
    for (address, expected) in OF_EXIT.into_iter().zip([true, true, false, false, false, false]) {
        assert_eq!(ping(address), expected, "{address}");
    }
}
