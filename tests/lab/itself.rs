//! The lab's own ground: each NAT behaves as its name says, and the lab can run here at all.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use crate::record;
use crate::topology::{Lab, Nat, Plan, STUN4};
use crate::{assert_leaves_directly, lab_tests};

/// When this machine lacks what every test needs, all of them skip: that must not look like success.
#[test]
fn not_everything_is_skipped() {
    if let Some(what) = record::missing(&[]) {
        panic!("every lab test was skipped on the {} back end, missing: {what}", record::backend());
    }
}

/// RFC 5780 CHANGE-REQUEST flags (§7.2): other address and port, other port.
const CHANGE_BOTH: u8 = 6;
const CHANGE_PORT: u8 = 2;

/// One binding exchange; the reflexive port, or `None` if nothing came back.
fn ask(socket: &UdpSocket, server: SocketAddr, change: u8) -> Option<u16> {
    let mut request = vec![0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42];
    request.extend([change; 12]);
    request.extend([0, 3, 0, 4, 0, 0, 0, change]);
    for _ in 0..2 {
        socket.send_to(&request, server).ok()?;
        let mut answer = [0; 512];
        while let Ok((length, _)) = socket.recv_from(&mut answer) {
            if answer[8..20] != [change; 12] {
                continue;
            }
            // XOR-MAPPED-ADDRESS (RFC 8489 §14.2): the port is xored with the cookie's upper half
            let found = answer[20..length].windows(8).find(|w| w[..4] == [0, 0x20, 0, 8]);
            return found.map(|w| u16::from_be_bytes([w[6], w[7]]) ^ 0x2112);
        }
    }
    None
}

fn measure(nat: Nat) -> (Option<[u16; 2]>, &'static str) {
    let lab = Lab::new(Nat::Open, &[nat.into()]);
    assert_leaves_directly(lab.peer());
    lab.peer().host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:40000").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
        let [first, second] = STUN4.map(|address| SocketAddr::from((address, 3478)));
        // filtering before the second address has been sent to
        let mapped = ask(&socket, first, 0);
        let filtering = match (ask(&socket, first, CHANGE_BOTH), ask(&socket, first, CHANGE_PORT)) {
            (Some(_), _) => "endpoint-independent",
            (None, Some(_)) => "address-dependent",
            (None, None) => "address-and-port-dependent",
        };
        let mapped = mapped.map(|port| [port, ask(&socket, second, 0).expect("the second address answers, too")]);
        (mapped, filtering)
    })
}

lab_tests! {
    /// RFC 4787 §4.1 and §5 for every type, measured against coturn.
    fn the_labs_nats_are_what_their_names_say() {
        let mapped = [40000; 2];
        assert_eq!(measure(Nat::Open), (Some(mapped), "endpoint-independent"));
        assert_eq!(measure(Nat::UdpFirewall), (Some(mapped), "address-and-port-dependent"));
        assert_eq!(measure(Nat::FullCone), (Some(mapped), "endpoint-independent"));
        assert_eq!(measure(Nat::RestrictedCone), (Some(mapped), "address-dependent"));
        assert_eq!(measure(Nat::PortRestricted), (Some(mapped), "address-and-port-dependent"));
        assert_eq!(measure(Nat::Blocked), (None, "address-and-port-dependent"));
        let (ports, filtering) = measure(Nat::Symmetric);
        let [first, second] = ports.expect("an answer");
        assert!(first != second && first != 40000, "mapped {first} and {second}");
        assert_eq!(filtering, "address-and-port-dependent");
    }

    /// A site without IPv6 has none; a renumbered one is seen with its new address.
    fn the_labs_sites_change_as_told("conntrack") {
        let mut lab = Lab::without_stun(Nat::Open, &[Plan::v4_only(Nat::PortRestricted)]);
        assert!(lab.peer().whoami(crate::topology::WEB[1]).is_err());
        let before = lab.peer().public4;
        lab.peers[0].renumber();
        assert_ne!(lab.peer().public4, before);
        assert_leaves_directly(lab.peer());
    }
}
