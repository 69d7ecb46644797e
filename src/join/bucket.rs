//! Token buckets: one for all, one per source in a table of fixed size; and who has asked before.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What counts as one source: an IPv4 address, or an IPv6 /64, since one host commands a whole /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    pub(super) fn of(address: &SocketAddr) -> Self {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Source::V4(ip.to_bits()),
            IpAddr::V6(ip) => Source::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// One token every `period`, at most `burst` saved up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) period: Duration,
    pub(super) burst: u32,
}

/// A bucket, kept as the time when it will be full again; `None` is full.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket(Option<Instant>);

impl Bucket {
    /// Takes a token if there is one.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.0.unwrap_or(now).max(now);
        if full_at - now > rate.period * (rate.burst - 1) {
            return false;
        }
        self.0 = Some(full_at + rate.period);
        true
    }
}

const WAYS: usize = 4;

/// One place of the table.
type Place = Option<(Source, Bucket)>;

/// Buckets per source, 4 places for each hash value, all allocated at once. A new source always finds a place: it takes
/// that of the fullest bucket, whose loss matters least. So a flood of sources costs the table nothing but memory of
/// who behaved, and never locks anyone out.
pub(super) struct Sources {
    sets: Box<[[Place; WAYS]]>,
    /// Seeded at random, so that nobody can choose sources that fall into one set.
    hasher: RandomState,
    rate: Rate,
}

impl Sources {
    pub(super) fn new(sets: usize, rate: Rate) -> Self {
        Sources { sets: vec![[None; WAYS]; sets].into_boxed_slice(), hasher: RandomState::new(), rate }
    }

    /// Takes one of the source's tokens if there is one.
    pub(super) fn take(&mut self, source: Source, now: Instant) -> bool {
        let index = self.hasher.hash_one(source) as usize % self.sets.len();
        let set = &mut self.sets[index];
        let place = set.iter().position(|entry| matches!(entry, Some((other, _)) if *other == source));
        let place = place.unwrap_or_else(|| {
            let fullest = (0..WAYS).min_by_key(|way| set[*way].and_then(|(_, bucket)| bucket.0)).expect("four ways");
            set[fullest] = None;
            fullest
        });
        let (_, bucket) = set[place].get_or_insert((source, Bucket::default()));
        bucket.take(self.rate, now)
    }
}

/// Sources that asked in vain a moment ago. A flood from forged sources names each of them once, a peer that wants in
/// repeats itself. A table of fixed size with one place for each hash value; who comes later takes it.
pub(super) struct Askers {
    /// The highest 8 bits: when, in [`TICK`]s; the others: of whom, a part of the hash. 0 is nobody.
    places: Box<[u32]>,
    /// Seeded at random, so that nobody can choose sources that push out another one.
    hasher: RandomState,
    start: Instant,
}

/// A repetition that comes in the same one is none.
const TICK: Duration = Duration::from_millis(125);
/// WireGuard repeats an unanswered initiation after `REKEY_TIMEOUT` and some jitter (paper §6.1): in ticks.
const REPEATED_WITHIN: u8 = 64;

impl Askers {
    /// The memory is zeros, which the system only provides as it is written to.
    pub(super) fn new(places: usize, start: Instant) -> Self {
        Askers { places: vec![0; places].into_boxed_slice(), hasher: RandomState::new(), start }
    }

    /// Whether this address and port has asked some time ago; remembers that it asks now.
    pub(super) fn again(&mut self, source: &SocketAddr, now: Instant) -> bool {
        let hash = self.hasher.hash_one((source.ip().to_canonical(), source.port()));
        // the bits that choose the place are not those that are kept in it
        let (index, tag) = ((hash >> 32) as usize % self.places.len(), hash as u32 & 0x00ff_ffff | 1);
        let tick = (now.saturating_duration_since(self.start).as_millis() / TICK.as_millis()) as u8;
        let place = &mut self.places[index];
        let ago = tick.wrapping_sub((*place >> 24) as u8);
        let again = *place & 0x00ff_ffff == tag && (1..=REPEATED_WITHIN).contains(&ago);
        *place = u32::from(tick) << 24 | tag;
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { period: Duration::from_millis(100), burst: 3 };

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::default();
        let start = Instant::now();
        assert_eq!([0, 1, 2, 3].map(|_| bucket.take(RATE, start)), [true, true, true, false]);
        assert!(!bucket.take(RATE, start + Duration::from_millis(99)));
        assert!(bucket.take(RATE, start + Duration::from_millis(100)));
        assert!(!bucket.take(RATE, start + Duration::from_millis(100)));
        let later = start + Duration::from_secs(9);
        assert_eq!([0, 1, 2, 3].map(|_| bucket.take(RATE, later)), [true, true, true, false]);
    }

    #[test]
    fn a_flood_of_sources_neither_locks_out_others_nor_frees_itself() {
        let mut sources = Sources::new(16, RATE);
        let now = Instant::now();
        let greedy = Source::V4(0);
        while sources.take(greedy, now) {}
        for number in 1..10_000 {
            assert!(sources.take(Source::V6(number), now), "a new source always has a token");
        }
        assert!(!sources.take(greedy, now), "an empty bucket is the last to be forgotten");
    }

    #[test]
    fn a_second_question_is_known_by_its_address_and_port() {
        let start = Instant::now();
        let mut askers = Askers::new(1 << 16, start);
        let of = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let at = |millis| start + Duration::from_millis(millis);
        assert!(!askers.again(&of("192.0.2.1:1"), at(0)));
        assert!(!askers.again(&of("192.0.2.1:1"), at(1)), "a copy of the same packet");
        assert!(!askers.again(&of("192.0.2.1:2"), at(500)), "another port");
        assert!(askers.again(&of("192.0.2.1:1"), at(500)));
        assert!(askers.again(&of("[::ffff:192.0.2.1]:1"), at(5900)));
        assert!(!askers.again(&of("192.0.2.1:1"), at(15_000)), "too long ago");
        // far more sources than places: few who ask once are taken for someone else, and it never grows
        let mut mistaken = 0;
        for number in 0..1_000_000 {
            let source = SocketAddr::new(std::net::Ipv4Addr::from_bits(number).into(), 7);
            mistaken += u32::from(askers.again(&source, at(16_000 + u64::from(number) / 50)));
        }
        assert!(mistaken < 10, "{mistaken}");
        assert_eq!(askers.places.len(), 1 << 16);
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let of = |text: &str| Source::of(&text.parse().unwrap());
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:2:ffff::9]:2"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
    }
}
