//! Token buckets: one for all, one per source in a table of fixed size.

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
    fn a_source_is_an_ipv4_address_or_an_ipv6_64() {
        let of = |text: &str| Source::of(&text.parse().unwrap());
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:2"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:2:ffff::9]:2"));
        assert_ne!(of("[2001:db8:1:2::1]:1"), of("[2001:db8:1:3::1]:1"));
    }
}
