//! Is this UDP payload a handshake initiation from someone who holds the private key he names? WireGuard itself says
//! nothing about unknown keys, so an exit looks at copies of the packets (design §4).
//!
//! The checks run cheapest first, and none allocates before both buckets gave a token:
//! 1. type 1, three zero bytes, exactly 148 bytes (WireGuard paper §5.4.2);
//! 2. mac1, keyed with our public key (§5.4.4): drops noise and whoever doesn't know our key;
//! 3. a token bucket per source and one in all; when that is empty, whoever asks for the second time has another one, so
//!    that forged sources, each of which is seen once, keep nobody out for longer than the time between two questions.
//!    Whoever sends each forged source twice fills that one as well; WireGuard's own remedy, a cookie that only the true
//!    source gets (paper §5.3), would cost the newcomer another 5 s;
//! 4. `es` opens the sender's static key; keys about which nothing is left to decide end here;
//! 5. `ss` opens the timestamp, which proves possession of the private key; an older or equal timestamp of the same key
//!    is a replay.
//!
//! There is no Noise code here: gotatun opens the key, and one gotatun tunnel a key, fed the same packet, checks the
//! rest and remembers the newest timestamp. What that leaves open: those tunnels are a bounded table, so an old
//! packet can pass once more after a restart, or after a flood of fresh keys. It then names the true key with a wrong
//! source; the handshake that we start towards that source fails, and the true peer's next packet corrects it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use blake2::{Blake2s256, Blake2sMac, Digest};
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgHandshakeInit, WgKind};
use gotatun::x25519;
use serde::{Deserialize, Serialize};

use super::bucket::{Askers, Bucket, Rate, Source, Sources};
use crate::key::{PrivateKey, PublicKey};

/// Length of a handshake initiation in bytes; WireGuard paper §5.4.2.
pub const INITIATION_LEN: usize = 148;
/// Where mac1 stands in it; mac2 follows, which only matters to a device under load.
const MAC1: std::ops::Range<usize> = 116..132;

/// A peer initiates every 5 s until answered and every 2 min after; this leaves room for many behind one address.
const PER_SOURCE: Rate = Rate { period: Duration::from_millis(100), burst: 20 };
/// For one address family and for those who ask again there, each. Opening one to the end takes about eight X25519
/// products, 0.4 ms: a flood costs 4 % of a core for each.
const IN_ALL: Rate = Rate { period: Duration::from_millis(10), burst: 200 };
/// More initiations a second than this, of one address family, are a flood: the firewall then keeps from WireGuard what comes from sources that
/// we have sent nothing to, and as many of those at once are not one yet.
pub const FLOOD: u32 = 200;
const UNFLOODED: Rate = Rate { period: Duration::from_millis(1000 / FLOOD as u64), burst: FLOOD };
/// Places of 4 bytes. At 50,000 forged sources a second one in twenty is lost within half a second, which is when
/// `connect` asks again, and two in five within the 5 s of WireGuard itself.
const ASKERS: usize = 1 << 19;
/// Times four sources: 2048.
const SOURCE_SETS: usize = 512;
/// Keys whose newest timestamp is remembered, 19 kB each.
const REPLAY_KEYS: usize = 256;

/// Why an initiation is not looked at further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Not type 1 or not 148 bytes.
    Malformed,
    /// mac1 is wrong: noise, a scan, or meant for another key.
    Mac1,
    /// The source's bucket is empty.
    SourceRate,
    /// The bucket for all is empty.
    TotalRate,
    /// The static key doesn't open.
    StaticKey,
    /// The static key is our own, or one that anyone can compute the shared secret of (RFC 7748 §6.1).
    UnfitKey,
    /// The timestamp doesn't open: the sender doesn't hold the private key.
    Timestamp,
    /// A timestamp not newer than this key's newest.
    Replay,
}

/// What an initiation is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A fresh initiation by the holder of this key.
    Valid {
        /// The sender's static key.
        key: PublicKey,
    },
    /// Names a key about which nothing is left to decide; whether the sender holds it was not checked.
    Settled {
        /// The static key it names.
        key: PublicKey,
    },
    /// Nothing.
    Drop(Reason),
}

/// How many initiations ended how, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// [`Verdict::Valid`].
    pub valid: u64,
    /// [`Verdict::Settled`].
    pub settled: u64,
    /// [`Reason::Malformed`].
    pub malformed: u64,
    /// [`Reason::Mac1`].
    pub mac1: u64,
    /// [`Reason::SourceRate`].
    pub source_rate: u64,
    /// [`Reason::TotalRate`].
    pub total_rate: u64,
    /// [`Reason::StaticKey`].
    pub static_key: u64,
    /// [`Reason::UnfitKey`].
    pub unfit_key: u64,
    /// [`Reason::Timestamp`].
    pub timestamp: u64,
    /// [`Reason::Replay`].
    pub replay: u64,
}

impl Counters {
    fn count(&mut self, verdict: &Verdict) {
        *match verdict {
            Verdict::Valid { .. } => &mut self.valid,
            Verdict::Settled { .. } => &mut self.settled,
            Verdict::Drop(Reason::Malformed) => &mut self.malformed,
            Verdict::Drop(Reason::Mac1) => &mut self.mac1,
            Verdict::Drop(Reason::SourceRate) => &mut self.source_rate,
            Verdict::Drop(Reason::TotalRate) => &mut self.total_rate,
            Verdict::Drop(Reason::StaticKey) => &mut self.static_key,
            Verdict::Drop(Reason::UnfitKey) => &mut self.unfit_key,
            Verdict::Drop(Reason::Timestamp) => &mut self.timestamp,
            Verdict::Drop(Reason::Replay) => &mut self.replay,
        } += 1;
    }
}

struct Remembered {
    /// Boxed: the table would move its kilobytes around.
    tunnel: Box<Tunn>,
    used: u64,
}

/// The buckets of one address family.
#[derive(Debug, Default)]
struct Gate {
    all: Bucket,
    /// For who asks for the second time when `all` is empty.
    again: Bucket,
    /// Follows what the firewall lets through; see [`FLOOD`].
    unflooded: Bucket,
}

/// Checks initiations that are addressed to one static key. Bounded in memory.
pub struct Checker {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Keyed with HASH(LABEL-MAC1 || our public key); WireGuard paper §5.4.4.
    mac1: Blake2sMac<U16>,
    sources: Sources,
    /// IPv4 and IPv6 apart: a flood of one leaves the other way open.
    gates: [Gate; 2],
    /// Made when a bucket for all is empty for the first time.
    askers: Option<Askers>,
    flooded: bool,
    remembered: HashMap<PublicKey, Remembered>,
    uses: u64,
    indices: IndexTable,
    /// A tunnel wants one; only packets that pass through it are limited, and none does.
    limiter: Arc<RateLimiter>,
    counters: Counters,
}

impl Checker {
    /// A checker for initiations to the holder of this key.
    pub fn new(key: &PrivateKey) -> Self {
        let private = key.as_x25519().clone();
        let public = x25519::PublicKey::from(&private);
        let mac1_key = Blake2s256::new().chain_update(b"mac1----").chain_update(public.as_bytes()).finalize();
        Checker {
            mac1: KeyInit::new_from_slice(&mac1_key).expect("32 bytes are a key"),
            sources: Sources::new(SOURCE_SETS, PER_SOURCE),
            gates: Default::default(),
            askers: None,
            flooded: false,
            remembered: HashMap::new(),
            uses: 0,
            indices: IndexTable::from_os_rng(),
            limiter: Arc::new(RateLimiter::new(&public, u64::MAX)),
            counters: Counters::default(),
            private,
            public,
        }
    }

    /// Checks one UDP payload. `settled` tells whether nothing is left to decide about a key (known or revoked): that
    /// spares the second half of the work, and keeps peers' regular handshakes out of the replay table.
    pub fn check(
        &mut self,
        payload: &[u8],
        source: SocketAddr,
        now: Instant,
        settled: impl FnOnce(&PublicKey) -> bool,
    ) -> Verdict {
        self.flooded = !self.gate(&source).unflooded.take(UNFLOODED, now);
        let verdict = match self.cheap(payload, source, now) {
            Ok(()) => self.open(payload, settled).unwrap_or_else(Verdict::Drop),
            Err(reason) => Verdict::Drop(reason),
        };
        self.counters.count(&verdict);
        verdict
    }

    /// Whether the firewall may have kept the last initiation from WireGuard, so many came.
    pub fn is_flooded(&self) -> bool {
        self.flooded
    }

    /// How many initiations ended how.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    fn cheap(&mut self, payload: &[u8], source: SocketAddr, now: Instant) -> Result<(), Reason> {
        if payload.len() != INITIATION_LEN || payload[..4] != [1, 0, 0, 0] {
            return Err(Reason::Malformed);
        }
        let mac1 = self.mac1.clone().chain_update(&payload[..MAC1.start]);
        mac1.verify_slice(&payload[MAC1]).map_err(|_| Reason::Mac1)?;
        if !self.sources.take(Source::of(&source), now) {
            return Err(Reason::SourceRate);
        }
        if self.gate(&source).all.take(IN_ALL, now) {
            return Ok(());
        }
        let again = self.askers.get_or_insert_with(|| Askers::new(ASKERS, now)).again(&source, now);
        if again && self.gate(&source).again.take(IN_ALL, now) {
            return Ok(());
        }
        Err(Reason::TotalRate)
    }

    fn gate(&mut self, source: &SocketAddr) -> &mut Gate {
        &mut self.gates[usize::from(source.ip().to_canonical().is_ipv6())]
    }

    fn open(&mut self, payload: &[u8], settled: impl FnOnce(&PublicKey) -> bool) -> Result<Verdict, Reason> {
        let Ok(WgKind::HandshakeInit(packet)) = Packet::<[u8]>::copy_from(payload).try_into_wg() else {
            return Err(Reason::Malformed);
        };
        let half = parse_handshake_anon(&self.private, &self.public, &packet).map_err(|_| Reason::StaticKey)?;
        let key = PublicKey(half.peer_static_public);
        if settled(&key) {
            return Ok(Verdict::Settled { key });
        }
        self.check_timestamp(key, packet)?;
        Ok(Verdict::Valid { key })
    }

    fn check_timestamp(&mut self, key: PublicKey, packet: Packet<WgHandshakeInit>) -> Result<(), Reason> {
        self.uses += 1;
        if let Some(remembered) = self.remembered.get_mut(&key) {
            feed(&mut remembered.tunnel, packet)?;
            remembered.used = self.uses;
            return Ok(());
        }
        let theirs = x25519::PublicKey::from(key.0);
        if theirs == self.public || !self.private.diffie_hellman(&theirs).was_contributory() {
            return Err(Reason::UnfitKey);
        }
        let indices = self.indices.clone();
        let mut tunnel =
            Box::new(Tunn::new(self.private.clone(), theirs, None, None, indices, Arc::clone(&self.limiter)));
        feed(&mut tunnel, packet)?;
        // only proven keys get here, so what does not open never pushes anyone out
        if self.remembered.len() >= REPLAY_KEYS {
            let oldest = self.remembered.iter().min_by_key(|(_, remembered)| remembered.used).map(|(key, _)| *key);
            oldest.and_then(|key| self.remembered.remove(&key));
        }
        self.remembered.insert(key, Remembered { tunnel, used: self.uses });
        Ok(())
    }
}

/// Feeds a packet to its key's tunnel, and throws away the session that this makes; the newest timestamp stays.
fn feed(tunnel: &mut Tunn, packet: Packet<WgHandshakeInit>) -> Result<(), Reason> {
    let result = match tunnel.handle_incoming_packet(WgKind::HandshakeInit(packet)) {
        TunnResult::WriteToNetwork(WgKind::HandshakeResp(_)) => Ok(()),
        TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => Err(Reason::Replay),
        _ => Err(Reason::Timestamp),
    };
    tunnel.reset();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "192.0.2.1:40000";

    fn source() -> SocketAddr {
        SOURCE.parse().unwrap()
    }

    struct Sender {
        key: PrivateKey,
        tunnel: Tunn,
    }

    impl Sender {
        fn new(exit: &PublicKey) -> Self {
            Self::with_key(PrivateKey::generate(), exit)
        }

        fn with_key(key: PrivateKey, exit: &PublicKey) -> Self {
            let theirs = x25519::PublicKey::from(exit.0);
            let limiter = Arc::new(RateLimiter::new(&theirs, 1));
            let private = key.as_x25519().clone();
            let tunnel = Tunn::new(private, theirs, None, None, IndexTable::from_os_rng(), limiter);
            Sender { key, tunnel }
        }

        fn initiation(&mut self) -> Vec<u8> {
            let packet = self.tunnel.format_handshake_initiation(true).unwrap();
            packet.into_bytes().as_ref().to_vec()
        }
    }

    struct Exit {
        public: PublicKey,
        checker: Checker,
        now: Instant,
    }

    impl Exit {
        fn new() -> Self {
            let key = PrivateKey::generate();
            Exit { public: key.public(), checker: Checker::new(&key), now: Instant::now() }
        }

        fn check(&mut self, payload: &[u8]) -> Verdict {
            self.now += Duration::from_secs(1);
            self.checker.check(payload, source(), self.now, |_| false)
        }

        /// Puts the right mac1 on a changed packet, as everyone who knows our public key can.
        fn seal(&self, payload: &mut [u8]) {
            let mac1 = self.checker.mac1.clone().chain_update(&payload[..MAC1.start]).finalize();
            payload[MAC1].copy_from_slice(&mac1.into_bytes());
        }
    }

    #[test]
    fn a_real_initiation_is_valid_once_and_a_newer_one_again() {
        let mut exit = Exit::new();
        let mut sender = Sender::new(&exit.public);
        let valid = Verdict::Valid { key: sender.key.public() };
        let [first, second] = [sender.initiation(), sender.initiation()];
        assert_eq!(exit.check(&first), valid);
        assert_eq!(exit.check(&first), Verdict::Drop(Reason::Replay));
        assert_eq!(exit.check(&second), valid);
        assert_eq!(exit.check(&first), Verdict::Drop(Reason::Replay));
        assert_eq!(exit.check(&second), Verdict::Drop(Reason::Replay));
        assert_eq!(exit.check(&sender.initiation()), valid);
        assert_eq!(exit.checker.counters(), Counters { valid: 3, replay: 3, ..Counters::default() });
    }

    #[test]
    fn many_handshakes_of_one_key_stay_in_one_place() {
        let mut exit = Exit::new();
        let mut sender = Sender::new(&exit.public);
        for _ in 0..50 {
            let packet = sender.initiation();
            assert_eq!(exit.check(&packet), Verdict::Valid { key: sender.key.public() });
        }
        assert_eq!(exit.checker.remembered.len(), 1);
    }

    #[test]
    fn each_changed_byte_is_noticed() {
        let mut exit = Exit::new();
        let packet = Sender::new(&exit.public).initiation();
        for index in 0..MAC1.end {
            let mut bad = packet.clone();
            bad[index] ^= 0x40;
            let expected = if index < 4 { Reason::Malformed } else { Reason::Mac1 };
            assert_eq!(exit.check(&bad), Verdict::Drop(expected), "byte {index}");
            if (4..MAC1.start).contains(&index) {
                exit.seal(&mut bad);
                let expected = match index {
                    // the sender's index is free to choose
                    4..8 => continue,
                    8..88 => Reason::StaticKey,
                    _ => Reason::Timestamp,
                };
                assert_eq!(exit.check(&bad), Verdict::Drop(expected), "byte {index} under a right mac1");
            }
        }
        assert!(exit.checker.remembered.is_empty(), "what did not open was remembered");
        assert!(matches!(exit.check(&packet), Verdict::Valid { .. }), "forgeries spoilt the true packet");
    }

    #[test]
    fn other_lengths_are_malformed() {
        let mut exit = Exit::new();
        let mut packet = Sender::new(&exit.public).initiation();
        assert_eq!(exit.check(&packet[..147]), Verdict::Drop(Reason::Malformed));
        packet.push(0);
        assert_eq!(exit.check(&packet), Verdict::Drop(Reason::Malformed));
        assert_eq!(exit.check(&[]), Verdict::Drop(Reason::Malformed));
    }

    #[test]
    fn an_initiation_to_another_key_fails_its_mac1() {
        let mut exit = Exit::new();
        let other = PrivateKey::generate().public();
        assert_eq!(exit.check(&Sender::new(&other).initiation()), Verdict::Drop(Reason::Mac1));
    }

    #[test]
    fn our_own_key_and_weak_keys_are_unfit() {
        let key = PrivateKey::generate();
        let mut checker = Checker::new(&key);
        let own = Sender::with_key(key.clone(), &key.public()).initiation();
        let verdict = checker.check(&own, source(), Instant::now(), |_| false);
        assert_eq!(verdict, Verdict::Drop(Reason::UnfitKey));
        // a low-order point would let anyone open the timestamp: the shared secret is zero
        let weak = PublicKey([0; 32]);
        let packet = match Packet::<[u8]>::copy_from(&own).try_into_wg() {
            Ok(WgKind::HandshakeInit(packet)) => packet,
            other => panic!("{other:?}"),
        };
        assert_eq!(checker.check_timestamp(weak, packet), Err(Reason::UnfitKey));
        assert!(checker.remembered.is_empty());
    }

    #[test]
    fn settled_keys_end_after_the_first_opening() {
        let mut exit = Exit::new();
        let mut sender = Sender::new(&exit.public);
        let key = sender.key.public();
        let packet = sender.initiation();
        for _ in 0..2 {
            let verdict = exit.checker.check(&packet, source(), exit.now, |asked| *asked == key);
            assert_eq!(verdict, Verdict::Settled { key });
        }
        assert!(exit.checker.remembered.is_empty());
    }

    #[test]
    fn buckets_empty_per_source_and_in_all() {
        let mut exit = Exit::new();
        let packet = Sender::new(&exit.public).initiation();
        let now = exit.now;
        let mut check = |source: SocketAddr| exit.checker.check(&packet, source, now, |_| true);
        for _ in 0..PER_SOURCE.burst {
            assert!(matches!(check(source()), Verdict::Settled { .. }));
        }
        assert_eq!(check(source()), Verdict::Drop(Reason::SourceRate));
        for number in PER_SOURCE.burst..IN_ALL.burst {
            let other = SocketAddr::new(std::net::Ipv4Addr::from_bits(0xc633_6400 + number).into(), 1);
            assert!(matches!(check(other), Verdict::Settled { .. }), "{number}");
        }
        assert_eq!(check("203.0.113.9:1".parse().unwrap()), Verdict::Drop(Reason::TotalRate));
        // whoever asks again has a bucket for such times
        let newcomer = "203.0.113.9:1".parse().unwrap();
        let half_a_second = now + Duration::from_millis(500);
        for number in 0..2 * IN_ALL.burst {
            let other = SocketAddr::new(std::net::Ipv4Addr::from_bits(0xc100_0000 + number).into(), 1);
            exit.checker.check(&packet, other, half_a_second, |_| true);
        }
        let verdict = exit.checker.check(&packet, newcomer, half_a_second, |_| true);
        assert!(matches!(verdict, Verdict::Settled { .. }), "{verdict:?}");
        assert!(exit.checker.is_flooded());
        let other_family = exit.checker.check(&packet, "[2001:db8::1]:1".parse().unwrap(), half_a_second, |_| true);
        assert!(matches!(other_family, Verdict::Settled { .. }) && !exit.checker.is_flooded());
        // noise takes no token
        let later = half_a_second + IN_ALL.period;
        let noise = [1, 0, 0, 0].into_iter().chain([7; 144]).collect::<Vec<u8>>();
        assert_eq!(exit.checker.check(&noise, source(), later, |_| true), Verdict::Drop(Reason::Mac1));
        let fresh = "203.0.113.10:1".parse().unwrap();
        assert!(matches!(exit.checker.check(&packet, fresh, later, |_| true), Verdict::Settled { .. }));
    }

    #[test]
    fn the_replay_table_is_bounded_and_forgets_the_oldest() {
        let mut exit = Exit::new();
        let mut senders: Vec<Sender> = (0..=REPLAY_KEYS).map(|_| Sender::new(&exit.public)).collect();
        let packets: Vec<_> = senders.iter_mut().map(Sender::initiation).collect();
        let again = senders[0].initiation();
        for packet in &packets[..REPLAY_KEYS] {
            assert!(matches!(exit.check(packet), Verdict::Valid { .. }));
        }
        assert!(matches!(exit.check(&again), Verdict::Valid { .. }), "used again: now the newest");
        assert!(matches!(exit.check(&packets[REPLAY_KEYS]), Verdict::Valid { .. }));
        assert_eq!(exit.checker.remembered.len(), REPLAY_KEYS);
        assert_eq!(exit.check(&packets[0]), Verdict::Drop(Reason::Replay));
        assert!(!exit.checker.remembered.contains_key(&senders[1].key.public()));
        let size = size_of::<Tunn>() * REPLAY_KEYS;
        assert!(size < 8 << 20, "the table takes {size} bytes");
    }

    proptest::proptest! {
        #[test]
        fn any_payload_is_judged(payload in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let mut exit = Exit::new();
            let verdict = exit.check(&payload);
            proptest::prop_assert!(matches!(verdict, Verdict::Drop(Reason::Malformed | Reason::Mac1)));
        }
    }
}
