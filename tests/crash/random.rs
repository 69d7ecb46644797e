//! SIGKILL at random times: what no list of steps has thought of.

use std::time::{Duration, Instant};

use crate::lab_tests;
use crate::victim::{Mode, Victim};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// xorshift64*; good enough to spread kills over time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u128) -> u128 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) % limit.max(1)
    }
}

fn kills(mode: Mode) {
    let number = variable("PEERVPN_CRASH_KILLS").unwrap_or(24) / 2;
    let seed = variable("PEERVPN_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("random kills, {mode:?}: seed {seed}");
    let mut random = Random(seed.max(1));
    let mut victim = Victim::new(mode);
    // how long a whole life takes here: up, and down again
    let start = Instant::now();
    let mut node = victim.start(&[], &[]);
    node.event(victim.up());
    let up = start.elapsed();
    node.stop(libc::SIGTERM);
    let whole = start.elapsed();
    let (mut ended, mut died) = (0, 0);
    for _ in 0..number {
        let at = Duration::from_nanos(random.below((whole + whole / 8).as_nanos()) as u64);
        let start = Instant::now();
        let mut node = victim.start(&[], &[]);
        // from a moment on it is stopping when it is killed
        if at > up {
            let _ = node.try_event(victim.up(), crate::record::patience(20));
            node.signal(libc::SIGTERM);
            std::thread::sleep(at - up);
        } else {
            std::thread::sleep(at.saturating_sub(start.elapsed()));
        }
        node.signal(libc::SIGKILL);
        match node.wait() {
            None => died += 1,
            Some(_) => ended += 1,
        }
        victim.recover(&[]);
        victim.assert_restored(&format!("killed {at:?} after its start (seed {seed})"));
    }
    println!("random kills, {mode:?}: {died} killed, {ended} had ended before, host as before each time");
}

lab_tests! {
    fn exit_killed_at_random_times() { kills(Mode::Exit) }
    fn connect_killed_at_random_times() { kills(Mode::Connect) }
}
