//! Every exit that can be reached × every peer, v4 and v6 outside, v4 and v6 inside.

use crate::record;
use crate::topology::{Lab, Nat};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text, texts};

/// Which family carries the outer packets.
#[derive(Clone, Copy, PartialEq)]
enum Outer {
    V4,
    V6,
}

fn pass(exit_nat: Nat, peer_nat: Nat, outer: Outer) {
    let lab = Lab::new(exit_nat, &[peer_nat.into()]);
    assert_leaves_directly(lab.peer());
    let (mut exit, ready) = open_exit(&lab, &[]);
    assert_eq!(text(&ready, "backend"), record::backend());

    // both reflexive addresses are offered, with the port that WireGuard holds
    let endpoints = texts(&ready, "endpoints");
    let port = ready["port"].as_u64().expect("a port");
    let v4 = format!("{}:{port}", lab.exit.public4);
    let v6 = format!("[{}]:{port}", lab.exit.host6.expect("the exit has IPv6"));
    assert!(endpoints.contains(&v4) && endpoints.contains(&v6), "{v4} and {v6} are not both in {endpoints:?}");
    assert_eq!(text(&ready, "connect"), format!("{}@{}", text(&ready, "public_key"), endpoints.join(",")));

    let target = format!("{}@{}", text(&ready, "public_key"), if outer == Outer::V4 { &v4 } else { &v6 });
    let mut peer = lab.peer().connect(&target, &[]);
    let connected = peer.event("connected");
    assert_eq!(text(&connected, "endpoint"), if outer == Outer::V4 { &v4 } else { &v6 });
    assert_eq!(text(&connected, "peer_id"), text(&ready, "peer_id"));
    let joined = exit.event("joined");
    assert_eq!(joined["how"], "any");
    assert_eq!(joined["tunnel_addresses"], connected["tunnel_addresses"]);
    assert_leaves_through_exit(&lab, lab.peer());

    peer.stop(libc::SIGINT);
    assert_leaves_directly(lab.peer());
    exit.stop(libc::SIGINT);
}

lab_tests! {
    fn open_exit_open_peer_v4_outside() { pass(Nat::Open, Nat::Open, Outer::V4) }
    fn open_exit_open_peer_v6_outside() { pass(Nat::Open, Nat::Open, Outer::V6) }
    fn open_exit_port_restricted_peer_v4_outside() { pass(Nat::Open, Nat::PortRestricted, Outer::V4) }
    fn open_exit_port_restricted_peer_v6_outside() { pass(Nat::Open, Nat::PortRestricted, Outer::V6) }
    fn open_exit_symmetric_peer_v4_outside() { pass(Nat::Open, Nat::Symmetric, Outer::V4) }
    fn open_exit_symmetric_peer_v6_outside() { pass(Nat::Open, Nat::Symmetric, Outer::V6) }
    fn full_cone_exit_open_peer_v4_outside() { pass(Nat::FullCone, Nat::Open, Outer::V4) }
    fn full_cone_exit_open_peer_v6_outside() { pass(Nat::FullCone, Nat::Open, Outer::V6) }
    fn full_cone_exit_port_restricted_peer_v4_outside() { pass(Nat::FullCone, Nat::PortRestricted, Outer::V4) }
    fn full_cone_exit_port_restricted_peer_v6_outside() { pass(Nat::FullCone, Nat::PortRestricted, Outer::V6) }
    fn full_cone_exit_symmetric_peer_v4_outside() { pass(Nat::FullCone, Nat::Symmetric, Outer::V4) }
    fn full_cone_exit_symmetric_peer_v6_outside() { pass(Nat::FullCone, Nat::Symmetric, Outer::V6) }

    /// The shortest whole thing, for a kernel on which there is no time for more: `tests/vm/lab` runs it under QEMU.
    fn smoke_one_exit_one_peer_one_request_one_clean_stop() {
        let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into()]);
        let before = lab.peer().host.snapshot();
        let (mut exit, ready) = open_exit(&lab, &[]);
        let (mut peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        peer.stop(libc::SIGINT);
        exit.stop(libc::SIGINT);
        crate::snapshot::assert_unchanged("after a clean stop", &before, &lab.peer().host.snapshot());
        assert_leaves_directly(lab.peer());
    }
}
