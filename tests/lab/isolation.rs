//! What a peer may not reach: the exit's LAN, the exit's services, other peers. Each with its counter-proof, so that a
//! lab in which nothing can be reached does not pass.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::service::{Web, knock};
use crate::topology::{Lab, Nat};
use crate::{assert_leaves_through_exit, join, lab_tests, open_exit, texts};

fn reachable(lab: &Lab, address: IpAddr) -> bool {
    lab.peer().host.run(|| knock(address, Duration::from_millis(1500))).is_ok()
}

/// The exit's LAN gateway (in IPv6 by its public address, as at every home), its own LAN address, its tunnel addresses.
fn inner_addresses(lab: &Lab, ready: &Value) -> Vec<IpAddr> {
    let mut all = vec![IpAddr::from(lab.exit.lan_router()), lab.exit.host4.into()];
    let gateway = |host: Ipv6Addr| IpAddr::from(Ipv6Addr::from_bits(host.to_bits() & !0xf | 1));
    all.extend(lab.exit.host6.map(gateway));
    all.extend(lab.exit.host6.map(IpAddr::V6));
    all.extend(texts(ready, "tunnel_addresses").iter().map(|a| a.parse::<IpAddr>().expect("an address")));
    all
}

/// Web servers on everything at the exit's site that a peer might try.
fn services(lab: &Lab) -> [Web; 2] {
    let router = lab.exit.router.as_ref().expect("behind a router");
    // it takes v4 too, on Linux
    let both = || [IpAddr::from(Ipv6Addr::UNSPECIFIED)];
    [Web::start(router, both()), Web::start(&lab.exit.host, both())]
}

lab_tests! {
    fn peers_cannot_reach_the_exits_lan_or_services() {
        // an open peer, whose own network is none of 192.168.1.0/24
        let lab = Lab::new(Nat::FullCone, &[Nat::Open.into()]);
        let _services = services(&lab);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        for address in inner_addresses(&lab, &ready) {
            lab.exit.host.run(|| knock(address, Duration::from_secs(2))).unwrap_or_else(|e| panic!("{address} is not served: {e}"));
            assert!(!reachable(&lab, address), "a peer reached {address} at the exit's site");
        }
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn with_allow_lan_they_can() {
        let lab = Lab::new(Nat::FullCone, &[Nat::Open.into()]);
        let _services = services(&lab);
        // a part of it is behind a link that is no uplink
        let router = lab.exit.router.as_ref().expect("behind a router");
        router.ip(&format!(
            "link add name lan1 type veth peer name eth1 netns {}\naddr add 172.22.0.1/24 dev lan1\nlink set lan1 up\n",
            lab.exit.host.name
        ));
        lab.exit.host.ip("addr add 172.22.0.2/24 dev eth1\nlink set eth1 up\n");
        let (mut exit, ready) = open_exit(&lab, &["--allow-lan"]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        let behind = IpAddr::from(Ipv4Addr::new(172, 22, 0, 1));
        for address in inner_addresses(&lab, &ready).into_iter().chain([behind]) {
            assert!(reachable(&lab, address), "a peer did not reach {address} at the exit's site");
        }
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    /// A scan from a peer, over everything at the exit's site and the other peer: the control service answers, on the
    /// exit's tunnel addresses, and nothing else does (DNS would, had this exit a resolver).
    fn a_port_scan_finds_the_control_service_alone() {
        let lab = Lab::new(Nat::FullCone, &[Nat::Open.into(), Nat::PortRestricted.into()]);
        let _services = services(&lab);
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        let (mut other, connected) = join(&lab.peers[1], &ready, &[]);
        let _service = Web::start(&lab.peers[1].host, [IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)]);
        let parse = |list: Vec<String>| list.into_iter().map(|a| a.parse::<IpAddr>().expect("an address"));
        let tunnel: Vec<IpAddr> = parse(texts(&ready, "tunnel_addresses")).collect();
        let mut targets = inner_addresses(&lab, &ready);
        targets.extend(parse(texts(&connected, "tunnel_addresses")));
        for address in targets {
            let expected: &[u16] = if tunnel.contains(&address) { &[CONTROL] } else { &[] };
            assert_eq!(scan(&lab, address), expected, "open ports of {address}");
        }
        peer.stop(libc::SIGINT);
        other.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
    }

    fn peers_cannot_reach_each_other() {
        assert_eq!(peer_reaches_peer(&[]), [false; 2]);
    }

    fn with_allow_peers_they_can() {
        assert_eq!(peer_reaches_peer(&["--allow-peers"]), [true; 2]);
    }
}

/// The control service's TCP port.
const CONTROL: u16 = 51820;

/// The TCP ports of an address that answer to the first peer, of those that services like to have.
fn scan(lab: &Lab, address: IpAddr) -> Vec<u16> {
    let ports: Vec<u16> = (1..=1024).chain([3306, 5432, 8080, 8443, CONTROL]).collect();
    // a refusal comes at once; what is swallowed instead costs the limit, so many are asked side by side
    let mut open: Vec<u16> = std::thread::scope(|scope| {
        let scans: Vec<_> = ports
            .chunks(64)
            .map(|ports| {
                scope.spawn(move || {
                    let answers = |port: &&u16| {
                        let target = SocketAddr::new(address, **port);
                        TcpStream::connect_timeout(&target, Duration::from_millis(500)).is_ok()
                    };
                    lab.peer().host.run(|| ports.iter().filter(answers).copied().collect::<Vec<_>>())
                })
            })
            .collect();
        scans.into_iter().flat_map(|scan| scan.join().expect("a scan")).collect()
    });
    open.sort_unstable();
    open
}

/// Whether the first peer reaches the second one's tunnel addresses, v4 and v6.
fn peer_reaches_peer(args: &[&str]) -> [bool; 2] {
    let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into(), Nat::PortRestricted.into()]);
    let (mut exit, ready) = open_exit(&lab, args);
    let (mut first, _) = join(lab.peer(), &ready, &[]);
    let (mut second, connected) = join(&lab.peers[1], &ready, &[]);
    let _service = Web::start(&lab.peers[1].host, [IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)]);
    let addresses: Vec<IpAddr> =
        texts(&connected, "tunnel_addresses").iter().map(|a| a.parse().expect("an address")).collect();
    let result = [Ipv4Addr::UNSPECIFIED.into(), IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED)].map(|family: IpAddr| {
        let address = addresses.iter().find(|a| a.is_ipv4() == family.is_ipv4()).expect("both families");
        reachable(&lab, *address)
    });
    lab.peers.iter().for_each(|site| assert_leaves_through_exit(&lab, site));
    first.stop(libc::SIGINT);
    second.stop(libc::SIGINT);
    exit.stop(libc::SIGINT);
    result
}
