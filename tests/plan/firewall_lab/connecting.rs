//! The connecting node's policy, together with the policy rules it is made for and a strict reverse-path filter.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use peervpn::host::firewall::{ConnectPolicy, KillSwitch, Policy};
use peervpn::host::lan::Lan;
use peervpn_platform::types::Family;

use super::lab_net::{Namespace, Namespaces};
use super::net::*;
use crate::firewall::{FWMARK, connect};

/// The host's public addresses.
const HOST: [&str; 2] = ["203.0.113.9", "2001:db8:1::9"];
/// A machine somewhere in the internet, on `outside`; the host has no route to it but the default ones.
const AFAR: [&str; 2] = ["198.51.100.2", "2001:db8:2::2"];

struct Lab {
    host: Namespace,
    outside: Namespace,
    exit: Namespace,
    container: Namespace,
    _servers: Vec<Server>,
    _all: Namespaces,
}

impl Lab {
    /// Before the connection: default routes by `eth0`, a container's bridge in the place of Docker's.
    fn new() -> Option<Self> {
        if !possible(&["ip", "nft"]) {
            return None;
        }
        let (all, spaces) = Namespaces::new(&["host", "out", "exit", "box"]);
        let [host, outside, exit, container] = <[Namespace; 4]>::try_from(spaces).ok().expect("four");
        for space in [&host, &outside, &exit, &container] {
            // or a forwarded packet waits until the link-local address has been checked: nothing to ask neighbours from
            space.sysctl(&["net/ipv6/conf/default/accept_dad=0"]);
        }
        host.ip(&format!(
            "link set dev lo up\nlink add name eth0 type veth peer name eth0 netns {}\n\
             link add name tun type veth peer name tun netns {}\nlink add name br0 type veth peer name eth0 netns {}\n\
             link set dev eth0 up\nlink set dev br0 up\nlink set dev tun mtu 1420 up\n\
             addr add 203.0.113.9/24 dev eth0\naddr add 2001:db8:1::9/64 dev eth0 nodad\n\
             addr add 172.18.0.1/24 dev br0\naddr add 10.77.0.1/32 dev tun\naddr add fd77::1/128 dev tun nodad\n\
             neigh add 10.77.0.254 dev tun lladdr 02:00:00:00:00:0e nud permanent\n\
             neigh add fd77::e dev tun lladdr 02:00:00:00:00:0e nud permanent\n",
            outside.name, exit.name, container.name,
        ));
        host.sysctl(&[
            "net/ipv4/ip_forward=1",
            "net/ipv4/conf/all/rp_filter=1",
            "net/ipv4/conf/eth0/rp_filter=1",
            "net/ipv4/conf/tun/rp_filter=1",
            "net/ipv4/conf/all/src_valid_mark=1",
        ]);
        // it asks for its neighbours as itself, not as the far address
        outside.sysctl(&["net/ipv4/conf/all/arp_announce=2"]);
        outside.ip("link set dev lo up\nlink set dev eth0 up\naddr add 203.0.113.1/24 dev eth0\n\
             addr add 2001:db8:1::1/64 dev eth0 nodad\naddr add 198.51.100.2/32 dev lo\n\
             addr add 2001:db8:2::2/128 dev lo nodad\n\
             route add 10.77.0.0/16 via 203.0.113.9\nroute add fd77::/64 via 2001:db8:1::9\n");
        exit.ip(
            "link set dev lo up\nlink set dev tun address 02:00:00:00:00:0e up\naddr add 10.77.0.254/32 dev tun\n\
             addr add fd77::e/128 dev tun nodad\naddr add 198.51.100.2/32 dev lo\naddr add 2001:db8:2::2/128 dev lo nodad\n\
             route add default via 10.77.0.1 dev tun onlink\nroute add fd77::1/128 dev tun\n",
        );
        // the exit end answers whatever is asked over the veth that stands for the tunnel
        exit.sysctl(&["net/ipv4/conf/tun/rp_filter=0", "net/ipv4/conf/all/rp_filter=0"]);
        container.ip("link set dev lo up\nlink set dev eth0 up\naddr add 172.18.0.2/24 dev eth0\n\
             route add default via 172.18.0.1\n");
        host.ip("route add default via 203.0.113.1\nroute add default via 2001:db8:1::1\n");
        let servers = [&host, &outside, &exit, &container].map(Server::start).into();
        Some(Lab { host, outside, exit, container, _servers: servers, _all: all })
    }

    fn install(&self, policy: ConnectPolicy) {
        install(&self.host, &Policy::Connect(ConnectPolicy { interface: "tun", ..policy }).table());
    }

    /// What a full tunnel's routes are: everything but marked packets and the LAN goes through it.
    fn switch_routes(&self) {
        let mut lines = "route add 10.77.0.254/32 dev tun src 10.77.0.1\n\
             route add default via 10.77.0.254 dev tun src 10.77.0.1 table 80\n\
             route add fd77::e/128 dev tun\nroute add default via fd77::e dev tun src fd77::1 table 80\n"
            .to_owned();
        for family in ["", "-6 "] {
            lines.push_str(&format!(
                "{family}rule add not fwmark {FWMARK:#x} table 80 priority 101\n\
                 {family}rule add table main suppress_prefixlength 0 priority 100\n"
            ));
        }
        // `ip -batch` has no per-line family for rules
        for line in lines.lines() {
            self.host.output("ip", &line.split(' ').collect::<Vec<_>>());
        }
    }
}

/// From `outside`'s far address to the host.
fn from_afar(lab: &Lab, to: &str) -> Outcome {
    let source = if to.contains(':') { "from 2001:db8:2::2" } else { "from 198.51.100.2" };
    let route = match source {
        "from 2001:db8:2::2" => "route replace 2001:db8:1::9/128 dev eth0 src 2001:db8:2::2\n",
        _ => "route replace 203.0.113.9/32 dev eth0 src 198.51.100.2\n",
    };
    lab.outside.ip(route);
    reach(&lab.outside, to)
}

#[test]
fn own_traffic_enters_the_tunnel_and_what_came_from_outside_is_answered_there() {
    let Some(lab) = Lab::new() else { return };
    assert_eq!(reach(&lab.host, AFAR[0]), seen_as(HOST[0]), "before: by eth0");
    assert_eq!(from_afar(&lab, HOST[0]), seen_as(AFAR[0]));
    lab.switch_routes();
    assert_eq!(reach(&lab.host, AFAR[0]), seen_as("10.77.0.1"), "through the tunnel");
    assert_eq!(reach(&lab.host, AFAR[1]), seen_as("fd77::1"));
    for host in HOST {
        assert_eq!(from_afar(&lab, host), Outcome::Silence, "the routes alone cut {host} off");
    }
    assert_eq!(attempt(&lab.host, AFAR[0], FWMARK).outcome, Outcome::Silence, "nor do marked packets get an answer");

    lab.install(connect());
    assert_eq!(reach(&lab.host, AFAR[0]), seen_as("10.77.0.1"));
    assert_eq!(reach(&lab.host, AFAR[1]), seen_as("fd77::1"));
    for (host, afar) in HOST.into_iter().zip(AFAR) {
        assert_eq!(from_afar(&lab, host), seen_as(afar), "{host}");
        assert_eq!(attempt(&lab.host, afar, FWMARK).outcome, seen_as(host), "marked packets go beside the tunnel");
    }
    assert_eq!(reach(&lab.outside, "10.77.0.1"), Outcome::Silence, "the tunnel address from beside it");
    assert_eq!(reach(&lab.outside, "fd77::1"), Outcome::Silence);
    assert_eq!(reach(&lab.exit, "10.77.0.1"), seen_as("10.77.0.254"), "and through it");
}

#[test]
fn containers_use_the_tunnel_and_their_published_ports_stay_reachable() {
    let Some(lab) = Lab::new() else { return };
    lab.host.nft(
        "table ip docker { chain pre { type nat hook prerouting priority dstnat; \
         ip daddr 203.0.113.9 tcp dport 8080 dnat to 172.18.0.2; }\n}",
    );
    lab.install(connect());
    lab.switch_routes();
    let through = attempt(&lab.container, AFAR[0], 0);
    assert_eq!(through.outcome, seen_as("172.18.0.2"));
    let most = 1420 - 40 - 12;
    assert_eq!(through.mss, Some((most, most)), "segments fit the tunnel");
    assert_eq!(from_afar(&lab, HOST[0]), seen_as(AFAR[0]), "the published port");
    assert_eq!(reach(&lab.container, "172.18.0.1"), seen_as("172.18.0.2"), "the host, from its container");
}

#[test]
fn v6_is_refused_at_once_where_the_exit_has_none() {
    let Some(lab) = Lab::new() else { return };
    lab.install(ConnectPolicy { refuse_v6: true, ..connect() });
    lab.switch_routes();
    assert_eq!(reach(&lab.host, AFAR[1]), Outcome::Refused);
    assert_eq!(reach(&lab.host, AFAR[0]), seen_as("10.77.0.1"), "v4 goes on");
    assert_eq!(reach(&lab.host, "fd77::e"), seen_as("fd77::1"), "the exit itself stays reachable");
    assert_eq!(reach(&lab.host, "2001:db8:1::1"), seen_as(HOST[1]), "the LAN too");
    assert_eq!(from_afar(&lab, HOST[1]), seen_as(AFAR[1]), "and what came from outside is answered");
    assert_eq!(attempt(&lab.host, AFAR[1], FWMARK).outcome, seen_as(HOST[1]), "and outer packets leave");
}

/// A session from afar, as of SSH, that is there before the tunnel, tracked by nobody.
fn session(lab: &Lab, to: &str, port: u16) -> (TcpStream, TcpStream) {
    // makes the far address the source
    from_afar(lab, to);
    let listener = lab.host.run(|| TcpListener::bind(("::", port)).expect("listen"));
    let client = lab.outside.run(|| TcpStream::connect((to, port)).expect("connect"));
    let (server, _) = listener.accept().expect("accept");
    client.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    (server, client)
}

/// The host speaks first; whether the far end hears it.
fn heard(server: &mut TcpStream, client: &mut TcpStream) -> bool {
    server.write_all(b"x").expect("room in the buffer");
    client.read_exact(&mut [0]).is_ok()
}

#[test]
fn a_session_from_outside_survives_the_start() {
    let Some(lab) = Lab::new() else { return };
    let sessions = HOST.map(|host| session(&lab, host, 2222));
    let (mut unlisted, mut unlisted_client) = session(&lab, HOST[0], 3333);
    lab.install(ConnectPolicy { listening: vec![2222], ..connect() });
    lab.switch_routes();
    for (mut server, mut client) in sessions {
        assert!(
            heard(&mut server, &mut client),
            "the host's own words come first: no packet from outside was seen yet"
        );
        client.write_all(b"y").expect("room in the buffer");
        server.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
        server.read_exact(&mut [0]).expect("the far end is heard");
        assert!(heard(&mut server, &mut client));
    }
    assert!(!heard(&mut unlisted, &mut unlisted_client), "what the host itself may have opened enters the tunnel");
}

/// The LAN of the host as the node would see it, and a kill switch for everything else.
fn closed() -> [Lan; 3] {
    [("eth0", "203.0.113.0/24"), ("br0", "172.18.0.0/24"), ("eth0", "2001:db8:1::/64")]
        .map(|(interface, prefix)| Lan { interface: interface.into(), prefix: prefix.parse().unwrap() })
}

#[test]
fn the_kill_switch_lets_answers_the_lan_and_marked_packets_through_and_refuses_the_rest_at_once() {
    let Some(lab) = Lab::new() else { return };
    let (lan, everything) = (closed(), Family::BOTH.map(Family::default_prefix));
    let kill_switch = KillSwitch { allowed: &everything, exclude: &[], exit: &[], lan: Some(&lan) };
    let policy = || ConnectPolicy { listening: vec![2222], kill_switch: Some(kill_switch), ..connect() };
    let old = HOST.map(|host| session(&lab, host, 2222));
    lab.install(policy());
    // the tunnel is not up yet, or broken: no rules lead into it
    for (host, afar) in HOST.into_iter().zip(AFAR) {
        assert_eq!(reach(&lab.host, afar), Outcome::Refused, "{afar}, beside the tunnel");
        assert_eq!(from_afar(&lab, host), seen_as(afar), "a new connection from outside, to {host}");
        assert_eq!(attempt(&lab.host, afar, FWMARK).outcome, seen_as(host), "outer packets");
    }
    assert_eq!(reach(&lab.host, "203.0.113.1"), seen_as(HOST[0]), "the LAN");
    assert_eq!(reach(&lab.host, "2001:db8:1::1"), seen_as(HOST[1]), "the LAN");
    assert_eq!(reach(&lab.container, AFAR[0]), Outcome::Refused, "a container's connections, beside the tunnel");
    assert_eq!(reach(&lab.container, "172.18.0.1"), seen_as("172.18.0.2"), "its host");
    for (mut server, mut client) in old {
        assert!(heard(&mut server, &mut client), "a session that is older");
    }
    lab.switch_routes();
    assert_eq!(reach(&lab.host, AFAR[0]), seen_as("10.77.0.1"), "through the tunnel");
    assert_eq!(reach(&lab.host, AFAR[1]), seen_as("fd77::1"));
    assert_eq!(from_afar(&lab, HOST[0]), seen_as(AFAR[0]));
    let no_lan = KillSwitch { lan: None, ..kill_switch };
    lab.install(ConnectPolicy { kill_switch: Some(no_lan), ..policy() });
    assert_eq!(reach(&lab.host, "203.0.113.1"), Outcome::Refused, "--no-lan");
    assert_eq!(from_afar(&lab, HOST[0]), seen_as(AFAR[0]), "and yet whoever came from outside is answered");
}

#[test]
fn a_program_that_restores_marks_does_not_turn_outer_packets_away() {
    let Some(lab) = Lab::new() else { return };
    // iptables -t mangle -A OUTPUT -j CONNMARK --restore-mark, as hosts with several uplinks have it
    lab.host
        .nft("table inet uplinks { chain out { type route hook output priority mangle; meta mark set ct mark; }\n}");
    let (lan, everything) = (closed(), Family::BOTH.map(Family::default_prefix));
    let kill_switch = KillSwitch { allowed: &everything, exclude: &[], exit: &[], lan: Some(&lan) };
    lab.install(ConnectPolicy { kill_switch: Some(kill_switch), ..connect() });
    lab.switch_routes();
    for (host, afar) in HOST.into_iter().zip(AFAR) {
        assert_eq!(attempt(&lab.host, afar, FWMARK).outcome, seen_as(host), "an outer packet");
        assert_eq!(from_afar(&lab, host), seen_as(afar), "an answer");
    }
    assert_eq!(reach(&lab.host, AFAR[0]), seen_as("10.77.0.1"), "through the tunnel");
}
