//! Stopping, dying, recovering and failing leave the host as it was: snapshots by the standard tools before and after.

use std::time::Instant;

use serde_json::Value;

use crate::node::Node;
use crate::record::{KERNEL_ONLY, patience};
use crate::snapshot::{Snapshot, assert_unchanged};
use crate::topology::{Lab, Nat, WEB};
use crate::{assert_leaves_directly, assert_leaves_through_exit, join, lab_tests, open_exit, text};

/// An exit and a peer behind NATs, connected, and both hosts as they were before.
struct Running {
    lab: Lab,
    before: [Snapshot; 2],
    exit: Node,
    peer: Node,
    ready: Value,
}

impl Running {
    fn new() -> Running {
        let lab = Lab::new(Nat::FullCone, &[Nat::PortRestricted.into()]);
        let before = [lab.exit.host.snapshot(), lab.peer().host.snapshot()];
        let (exit, ready) = open_exit(&lab, &[]);
        let (peer, _) = join(lab.peer(), &ready, &[]);
        assert_leaves_through_exit(&lab, lab.peer());
        for (site, before) in [&lab.exit, lab.peer()].iter().zip(&before) {
            assert!(*before != site.host.snapshot(), "a running node changes nothing the snapshot sees");
        }
        Running { lab, before, exit, peer, ready }
    }

    #[track_caller]
    fn assert_exit_unchanged(&self, when: &str) {
        assert_unchanged(&format!("(exit, {when})"), &self.before[0], &self.lab.exit.host.snapshot());
    }

    #[track_caller]
    fn assert_peer_unchanged(&self, when: &str) {
        assert_unchanged(&format!("(peer, {when})"), &self.before[1], &self.lab.peer().host.snapshot());
        assert_leaves_directly(self.lab.peer());
    }

    fn stop_both_by(mut self, signal: i32, name: &str) {
        self.peer.stop(signal);
        self.assert_peer_unchanged(name);
        self.exit.stop(signal);
        self.assert_exit_unchanged(name);
    }
}

lab_tests! {
    fn host_unchanged_after_sigint() { Running::new().stop_both_by(libc::SIGINT, "after SIGINT") }

    fn host_unchanged_after_sigterm() { Running::new().stop_both_by(libc::SIGTERM, "after SIGTERM") }

    fn host_unchanged_after_down() {
        let mut running = Running::new();
        running.lab.peer().run_ok(&["down"]);
        running.peer.stopped();
        running.assert_peer_unchanged("after down");
        running.lab.exit.run_ok(&["down"]);
        running.exit.stopped();
        running.assert_exit_unchanged("after down");
    }

    /// A second signal while the node stops does not cut the undo short.
    fn host_unchanged_after_impatient_signals() {
        let mut running = Running::new();
        for _ in 0..5 {
            running.peer.signal(libc::SIGINT);
            running.exit.signal(libc::SIGTERM);
            std::thread::sleep(std::time::Duration::from_millis(3));
        }
        running.peer.stopped();
        running.exit.stopped();
        running.assert_exit_unchanged("after five SIGTERM");
        running.assert_peer_unchanged("after five SIGINT");
    }

    /// The node dies, the packets keep flowing; `recover` puts both hosts back.
    fn kill_9_leaves_the_tunnel_forwarding_and_recover_restores() {
        let mut running = Running::new();
        running.exit.kill();
        assert_leaves_through_exit(&running.lab, running.lab.peer());
        running.peer.kill();
        assert_leaves_through_exit(&running.lab, running.lab.peer());
        running.lab.peer().run_ok(&["recover"]);
        running.assert_peer_unchanged("after kill -9 and recover");
        running.lab.exit.run_ok(&["recover"]);
        running.assert_exit_unchanged("after kill -9 and recover");
        // and once more: nothing left to do is no failure
        running.lab.exit.run_ok(&["recover"]);
        running.assert_exit_unchanged("after a second recover");
    }

    /// A new start finds the orphaned journal, undoes it first, and works.
    fn host_unchanged_after_kill_9_and_a_new_start() {
        let mut running = Running::new();
        running.exit.kill();
        running.peer.kill();
        let (exit, ready) = open_exit(&running.lab, &[]);
        assert_eq!(text(&ready, "public_key"), text(&running.ready, "public_key"));
        running.exit = exit;
        let (peer, _) = join(running.lab.peer(), &ready, &[]);
        running.peer = peer;
        assert_leaves_through_exit(&running.lab, running.lab.peer());
        running.stop_both_by(libc::SIGINT, "after kill -9, a new start and SIGINT");
    }

    /// No exit answers: exit status 1 within the bound, the host as it was.
    fn host_unchanged_after_a_connect_that_got_no_handshake() {
        let lab = Lab::new(Nat::Open, &[Nat::PortRestricted.into()]);
        let before = lab.peer().host.snapshot();
        let target = format!("{}@{}:51820", "TIT9pVDwsUZR9E57w2e8HhJ1Fc+Y7XqVpMzVb8QvUzU=", lab.exit.public4);
        let start = Instant::now();
        let mut peer = lab.peer().connect(&target, &["--timeout", &patience(4).as_secs().to_string()]);
        // nothing of the host's traffic is touched while it tries
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert!(peer.runs(), "{}", peer.log());
        assert_leaves_directly(lab.peer());
        assert_eq!(peer.wait(), Some(1), "{}", peer.log());
        assert!(start.elapsed() < patience(8), "gave up only after {:?}", start.elapsed());
        assert!(peer.log().contains("error: ") && peer.log().contains("hint: "), "{}", peer.log());
        assert_unchanged("after a failed connect", &before, &lab.peer().host.snapshot());
    }

    /// On the kernel back end no other program is ever started: no ip, nft, iptables, sysctl, wg.
    fn the_kernel_back_end_starts_no_other_program("strace", KERNEL_ONLY) {
        let mut lab = Lab::without_stun(Nat::Open, &[Nat::PortRestricted.into()]);
        let trace = lab.exit.dir.join("trace");
        let under = ["strace", "-f", "-qq", "-A", "-e", "trace=execve,execveat", "-o", &trace.to_string_lossy()];
        let under: Vec<String> = under.map(str::to_owned).to_vec();
        lab.peers[0].under = under.clone();
        lab.exit.under = under;
        let (mut exit, ready) = open_exit(&lab, &["--no-stun"]);
        let (mut peer, _) = join(lab.peer(), &ready, &["--no-stun"]);
        lab.exit.run_ok(&["status"]);
        lab.peer().run_ok(&["down"]);
        peer.stopped();
        lab.exit.run_ok(&["down"]);
        exit.stopped();
        lab.exit.run_ok(&["recover"]);
        let trace = std::fs::read_to_string(trace).expect("a trace");
        let started: Vec<&str> = trace.lines().filter(|line| line.contains("exec")).collect();
        // exit, connect, status, twice down, recover
        assert_eq!(started.len(), 6, "other programs were started:\n{}", started.join("\n"));
    }

    /// The exit goes away while a peer is connected: nothing leaks, and `down` brings the peer back.
    fn the_exit_stops_while_a_peer_is_connected() {
        let mut running = Running::new();
        running.exit.stop(libc::SIGINT);
        running.assert_exit_unchanged("after SIGINT with a peer connected");
        running.lab.web.take_callers();
        for web in WEB {
            let answer = running.lab.peer().whoami(web);
            assert!(answer.is_err(), "a request to {web} left beside the tunnel, seen as {answer:?}");
        }
        assert!(running.lab.web.take_callers().is_empty(), "something left beside the tunnel");
        running.lab.peer().run_ok(&["down"]);
        running.peer.stopped();
        running.assert_peer_unchanged("after down without an exit");
    }
}
