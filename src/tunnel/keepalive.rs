//! Whom our side keeps calling. A persistent keepalive makes WireGuard initiate every 5 s towards a silent peer, for ever
//! and with a handshake's worth of arithmetic, even where it knows no endpoint: with 10,000 peers, most of them away, that
//! is 2,000 handshakes a second. So only those peers have one whose endpoint is known, and of those that went silent only
//! the ones heard of last.

use std::collections::HashSet;
use std::time::Duration;

use peervpn_platform::types::PeerState;

/// A session without a new handshake for this long is over: WireGuard makes one every 120 s and gives a peer up after
/// 90 s more (whitepaper §6.1, REKEY-AFTER-TIME and REKEY-ATTEMPT-TIME).
pub const SILENT: Duration = Duration::from_secs(300);
/// Silent peers that go on being called, so that they come back through a NAT or firewall that only our packets open: an
/// initiation every 5 s each, 13 a second, half a percent of a core.
pub const CALLED: usize = 64;

/// Those of `held` that need no keepalive any more, given what the device says at `now` (since the Unix epoch).
pub fn given_up(peers: &[PeerState], held: &HashSet<[u8; 32]>, now: Duration) -> Vec<[u8; 32]> {
    let silent = |peer: &&PeerState| peer.last_handshake.is_none_or(|at| now.saturating_sub(at) >= SILENT);
    let mut silent: Vec<&PeerState> =
        peers.iter().filter(|peer| held.contains(&peer.public_key)).filter(silent).collect();
    silent.sort_by_key(|peer| std::cmp::Reverse(peer.last_handshake));
    silent.iter().skip(CALLED).map(|peer| peer.public_key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8, last_handshake: Option<u64>) -> PeerState {
        PeerState {
            public_key: [number; 32],
            endpoint: None,
            keepalive: 25,
            last_handshake: last_handshake.map(Duration::from_secs),
            rx_bytes: 0,
            tx_bytes: 0,
            allowed_ips: Vec::new(),
        }
    }

    #[test]
    fn of_the_silent_those_heard_of_last_are_called_on() {
        let now = Duration::from_secs(10_000);
        // 0 and 1 were never heard, 2 is there, the rest fell silent one after the other
        let heard = |n: u8| match n {
            0 | 1 => None,
            2 => Some(9_900),
            n => Some(1_000 + u64::from(n)),
        };
        let peers: Vec<PeerState> = (0..=CALLED as u8 + 4).map(|n| peer(n, heard(n))).collect();
        let mut held: HashSet<[u8; 32]> = peers.iter().map(|p| p.public_key).collect();
        let mut gone = given_up(&peers, &held, now);
        gone.sort_unstable();
        assert_eq!(gone, [[0; 32], [1; 32], [3; 32], [4; 32]]);
        held.retain(|key| key[0] > 3);
        assert_eq!(given_up(&peers, &held, now), [[4; 32]], "only those that have a keepalive");
        held.remove(&[4; 32]);
        assert!(given_up(&peers, &held, now).is_empty());
    }
}
