//! STUN before the handoff.

use std::fmt::Debug;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use peervpn::nat::gather::{Gathered, MappingHint, Silence};
use peervpn::node::stun::{GatherError, LIMIT, gather};
use peervpn_platform::os::port_holder;

use crate::topology::{DEAD, Lab, Nat, Plan, STUN4, STUN6, Site, WEB};
use crate::{block_on, lab_runs};

const PORT: u16 = 51820;

fn servers() -> Vec<String> {
    let v4 = STUN4.map(|ip| format!("{ip}:3478"));
    let v6 = STUN6.map(|ip| format!("[{ip}]:3478"));
    v4.into_iter().chain(v6).collect()
}

/// What `take` takes, tried again for a while: a child that another test has just forked holds all our descriptors, closed
/// sockets among them, until its exec. A port that this process itself holds is a panic at once.
fn once_free<T, E: Debug>(take: impl Fn() -> Result<T, E>) -> T {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match take() {
            Ok(taken) => return taken,
            Err(error) => {
                let ours = port_holder(PORT).is_some_and(|holder| holder.pid == std::process::id());
                assert!(!ours && Instant::now() < end, "the port is not free: {error:?}, held by us: {ours}");
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

fn ask(site: &Site, servers: &[String]) -> Gathered {
    site.host.run(|| once_free(|| block_on(gather(PORT, servers, LIMIT))))
}

#[test]
fn reflexive_addresses_are_found_behind_every_nat_that_lets_udp_through() {
    if !lab_runs() {
        return;
    }
    use Nat::{FullCone, Open, PortRestricted, RestrictedCone, Symmetric, UdpFirewall};
    for nat in [Open, UdpFirewall, FullCone, RestrictedCone, PortRestricted, Symmetric] {
        let lab = Lab::new(nat, &[]);
        // the router's own v6 may still be under duplicate address detection
        assert_eq!(lab.exit.whoami(WEB[1]).ok(), lab.exit.public(WEB[1]), "{nat:?}");
        let gathered = ask(&lab.exit, &servers());
        assert_eq!(gathered.port, PORT);
        let v4 = gathered.v4.reflexive().unwrap_or_else(|| panic!("{nat:?}: {gathered:?}"));
        assert_eq!(v4.ip(), lab.exit.public4, "{nat:?}");
        if nat == Symmetric {
            assert_eq!(gathered.v4.mapping, MappingHint::ByDestination, "{gathered:?}");
        } else {
            assert_eq!(gathered.v4.mapping, MappingHint::Consistent, "{nat:?}: {gathered:?}");
            assert_eq!(v4.port(), PORT, "{nat:?}: the NAT keeps free ports");
        }
        let v6 = gathered.v6.reflexive().unwrap_or_else(|| panic!("{nat:?}: v6 is routed: {gathered:?}"));
        assert_eq!(v6, SocketAddr::new(lab.exit.host6.expect("with v6").into(), PORT));
        assert_eq!(gathered.v6.mapping, MappingHint::Consistent);
        assert_eq!(gathered.silent, []);
        assert!(gathered.elapsed < Duration::from_millis(500), "{nat:?}: {:?}", gathered.elapsed);
        // the sockets are closed: the port can be taken
        lab.exit.host.run(|| once_free(|| UdpSocket::bind(("0.0.0.0", PORT))));
    }
}

#[test]
fn dead_servers_cost_a_short_grace_and_a_dead_net_costs_the_limit() {
    if !lab_runs() {
        return;
    }
    let lab = Lab::new(Plan::v4_only(Nat::PortRestricted), &[Plan::v4_only(Nat::Blocked)]);
    let dead = format!("{DEAD}:3478");
    let mut mixed = vec![dead.clone(), "not-a-name.invalid:3478".to_owned(), "[2001:db8:ff::3]:3478".to_owned()];
    mixed.push(servers()[0].clone());
    let gathered = ask(&lab.exit, &mixed);
    assert_eq!(gathered.reflexive(), [SocketAddr::new(lab.exit.public4.into(), PORT)]);
    assert_eq!(gathered.v4.mapping, MappingHint::Unknown, "one opinion is none");
    let silent: Vec<&str> = gathered.silent.iter().map(|(server, _)| server.as_str()).collect();
    assert_eq!(silent, mixed[..3]);
    assert_eq!(gathered.silent[0].1, Silence::NoAnswer);
    assert!(matches!(gathered.silent[2].1, Silence::Unsendable(_)), "no v6 route: {:?}", gathered.silent[2]);
    assert!(gathered.elapsed < Duration::from_millis(1200), "{:?}", gathered.elapsed);

    mixed.remove(1);
    let gathered = ask(&lab.exit, &mixed);
    assert!(gathered.elapsed < Duration::from_millis(300), "{:?}", gathered.elapsed);

    let limit = Duration::from_millis(700);
    let peer = &lab.peers[0];
    let gathered = peer.host.run(|| block_on(gather(0, &servers(), limit))).expect("any port");
    assert!(!gathered.any() && gathered.port != 0);
    assert!((limit..limit + Duration::from_millis(300)).contains(&gathered.elapsed), "{:?}", gathered.elapsed);
}

#[test]
fn an_occupied_port_is_an_error_of_its_own_and_no_servers_only_check_the_port() {
    if !lab_runs() {
        return;
    }
    let lab = Lab::without_stun(Nat::Open, &[]);
    lab.exit.host.run(|| {
        let gathered = block_on(gather(PORT, &[], LIMIT)).expect("free");
        assert!(!gathered.any() && gathered.elapsed < Duration::from_millis(100), "{gathered:?}");
        for address in ["0.0.0.0", "127.0.0.1", "::", "::1"] {
            let _holder = once_free(|| UdpSocket::bind((address, PORT)));
            match block_on(gather(PORT, &[], LIMIT)) {
                Err(GatherError::PortInUse { port: PORT, holder: Some(holder) }) => {
                    assert_eq!(holder.pid, std::process::id());
                }
                other => panic!("{address}: {other:?}"),
            }
        }
    });
}
