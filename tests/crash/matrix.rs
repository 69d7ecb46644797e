//! SIGKILL at every step, and again at every step of the recovery.

use crate::lab_tests;
use crate::victim::{End, Mode, Victim, killer};

/// The system calls by which a node changes anything: files and settings, netlink, UAPI, processes. Killed on entering
/// one, a node has done all before it and nothing after; the kill on the next one is the kill after it.
const CALLS: [&str; 14] = [
    "write",
    "writev",
    "sendto",
    "sendmsg",
    "fdatasync",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "ftruncate",
    "bind",
    "clone3",
    "pidfd_send_signal",
    // after a netlink request, before its answer is read
    "recvfrom",
];

/// Every how many points one is taken.
fn step() -> u32 {
    std::env::var("PEERVPN_CRASH_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(1).max(1)
}

/// Kills the node at every point; each time recovers, the first recovery killed too, at a point that wanders.
fn every_point(mode: Mode) {
    let mut victim = Victim::new(mode);
    let (mut kills, mut second) = (0, 0);
    let mut counts = Vec::new();
    for call in CALLS {
        let mut n = 1;
        loop {
            if victim.run_through(&killer(call, n)) == End::Survived {
                victim.assert_restored(&format!("after a run without a kill ({call} {n})"));
                break;
            }
            kills += 1;
            let again = (CALLS[kills as usize % CALLS.len()], 1 + kills % 7);
            if victim.recover(&killer(again.0, again.1)) == End::Killed {
                second += 1;
                assert_eq!(victim.recover(&[]), End::Survived);
            }
            victim.assert_restored(&format!("killed at {call} {n}, recover killed at {again:?}"));
            n += step();
        }
        counts.push(format!("{call} {}", n.div_ceil(step()) - 1));
    }
    assert!(kills > 20, "only {kills} kills: strace did not count what it should");
    println!("crash matrix, {mode:?}: {kills} kills, {second} more during recover, host as before each time");
    println!("  {}", counts.join(", "));
}

/// Kills `recover` at every point, on a host on which everything is up.
fn every_point_of_recover(mode: Mode) {
    let mut victim = Victim::new(mode);
    let mut kills = 0;
    for call in CALLS {
        for n in (1..).step_by(step() as usize) {
            let mut node = victim.start(&[], &[]);
            node.event(victim.up());
            node.kill();
            let end = victim.recover(&killer(call, n));
            if end == End::Killed {
                kills += 1;
                assert_eq!(victim.recover(&[]), End::Survived);
            }
            victim.assert_restored(&format!("recover killed at {call} {n}"));
            if end == End::Survived {
                break;
            }
        }
    }
    assert!(kills > 5, "only {kills} kills");
    println!("crash matrix, {mode:?}: {kills} kills of recover, host as before each time");
}

/// Kills a node at every point that takes over from one that was killed: the kill switch is there all the time.
fn every_point_of_a_takeover() {
    let mut victim = Victim::new(Mode::Connect);
    let mut kills = 0;
    for call in CALLS {
        for n in (1..).step_by(step() as usize) {
            victim.killed();
            let mut node = victim.start(&killer(call, n), &[]);
            let up = node.try_event(victim.up(), crate::record::patience(20)).is_ok();
            if up {
                node.signal(libc::SIGTERM);
            }
            if node.wait().is_some() {
                victim.assert_restored(&format!("after a takeover without a kill ({call} {n})"));
                break;
            }
            kills += 1;
            // once it is up it is told to stop, which lifts the kill switch; this fails where there is none
            if !up {
                victim.site().host.output("nft", &["list", "chain", "inet", "peervpn", "blocked"]);
            }
            assert_eq!(victim.recover(&[]), End::Survived);
            victim.assert_restored(&format!("takeover killed at {call} {n}"));
        }
    }
    assert!(kills > 20, "only {kills} kills");
    println!("crash matrix, takeover: {kills} kills, closed until told to stop, host as before after recover");
}

lab_tests! {
    fn exit_killed_at_every_step("strace") { every_point(Mode::Exit) }
    fn connect_killed_at_every_step("strace") { every_point(Mode::Connect) }
    fn takeover_from_a_dead_connect_killed_at_every_step("strace") { every_point_of_a_takeover() }
    fn recover_of_an_exit_killed_at_every_step("strace") { every_point_of_recover(Mode::Exit) }
    fn recover_of_a_connect_killed_at_every_step("strace") { every_point_of_recover(Mode::Connect) }
}
