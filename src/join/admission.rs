//! Admission: what an exit does about a valid initiation. Bounded in memory whatever arrives; the caller installs
//! admitted peers and keeps the peers file.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::address::{TunnelAddresses, exit_addresses, peer_addresses};
use super::bucket::{Bucket, Rate, Source};
use super::peers::{MAX_PEERS, designates};
use crate::config::Accept;
use crate::error::Hint;
use crate::key::PublicKey;

/// Most peers that wait for the operator.
pub const MAX_PENDING: usize = 64;
/// A pending peer that stays silent this long is forgotten.
pub const PENDING_FOR: Duration = Duration::from_secs(600);
/// A denied key isn't asked about again for this long.
pub const DENIED_FOR: Duration = Duration::from_secs(3600);

/// Most pending peers of one source, so that one host cannot fill the list.
const PENDING_PER_SOURCE: usize = 8;
/// Most keys remembered as denied, and as announced with a colliding address.
const MAX_REMEMBERED: usize = 1024;
/// How often the operator is told of someone new; others wait unannounced until their next initiation.
const ANNOUNCEMENTS: Rate = Rate { period: Duration::from_secs(5), burst: 16 };

/// What to do about a valid initiation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Already a peer: nothing.
    Known,
    /// Thrown out: nothing.
    Revoked,
    /// The operator said no a while ago: nothing.
    Denied,
    /// `--accept none`: nothing.
    Closed,
    /// There are [`MAX_PEERS`] peers: nothing.
    Full,
    /// Install it with these addresses, then call [`Admission::know`].
    Admit(TunnelAddresses),
    /// It waits for the operator.
    AskOperator {
        /// Tell the operator now.
        first: bool,
    },
    /// Its IPv4 tunnel address is taken.
    Collision {
        /// By whom.
        error: AdmissionError,
        /// Tell the operator now.
        first: bool,
    },
}

/// A peer that waits for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Its static public key.
    pub key: PublicKey,
    /// The source of its newest initiation.
    pub source: SocketAddr,
    /// Its tunnel addresses, once accepted.
    pub addresses: TunnelAddresses,
    /// When it first asked.
    pub first_seen: Instant,
    /// When it last asked.
    pub last_seen: Instant,
}

/// Why a peer cannot be accepted or denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// Nobody of that ID or key waits.
    #[error("no peer {0:?} is waiting")]
    NotPending(String),
    /// Two waiting peers have this ID.
    #[error("peer ID {0} fits more than one waiting peer")]
    Ambiguous(String),
    /// Two keys give the same IPv4 tunnel address.
    #[error("peer {} cannot join: its tunnel address {address} is that of {}", peer.peer_id(), with.peer_id())]
    Collision {
        /// Who wants to join.
        peer: PublicKey,
        /// Who has the address, possibly the exit itself.
        with: PublicKey,
        /// The address.
        address: Ipv4Addr,
    },
    /// There are [`MAX_PEERS`] peers.
    #[error("there are already {MAX_PEERS} peers")]
    Full,
}

impl Hint for AdmissionError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            AdmissionError::NotPending(_) => "peervpn peers pending shows who is waiting".to_owned(),
            AdmissionError::Ambiguous(_) => "give the whole public key".to_owned(),
            AdmissionError::Collision { .. } => {
                "make an invite for it with peervpn invite: that carries an address of its own".to_owned()
            }
            AdmissionError::Full => "peervpn peers revoke ID makes room".to_owned(),
        })
    }
}

struct Waiting {
    peer: Pending,
    announced: bool,
}

/// Keys with the time until which they are remembered, bounded.
#[derive(Default)]
struct Remembered(HashMap<PublicKey, Instant>);

impl Remembered {
    fn contains(&self, key: &PublicKey, now: Instant) -> bool {
        self.0.get(key).is_some_and(|until| *until > now)
    }

    fn insert(&mut self, key: PublicKey, until: Instant) {
        if self.0.len() >= MAX_REMEMBERED && !self.0.contains_key(&key) {
            let first = self.0.iter().min_by_key(|(_, until)| **until).map(|(key, _)| *key);
            first.and_then(|key| self.0.remove(&key));
        }
        self.0.insert(key, until);
    }
}

/// Who is in, who is out, who waits.
pub struct Admission {
    accept: Accept,
    exit: PublicKey,
    known: HashMap<PublicKey, TunnelAddresses>,
    /// Whose IPv4 tunnel address it is; the exit's own is among them.
    holders: HashMap<Ipv4Addr, PublicKey>,
    revoked: HashSet<PublicKey>,
    denied: Remembered,
    colliding: Remembered,
    waiting: Vec<Waiting>,
    announcements: Bucket,
    refused: u64,
}

impl Admission {
    /// Admission to this exit, which has its derived tunnel addresses, without peers so far.
    pub fn new(accept: Accept, exit: PublicKey) -> Self {
        Self::with_addresses(accept, exit, exit_addresses(&exit))
    }

    /// The same, where the exit's own tunnel addresses were set by hand.
    pub fn with_addresses(accept: Accept, exit: PublicKey, own: TunnelAddresses) -> Self {
        Admission {
            accept,
            exit,
            known: HashMap::new(),
            holders: HashMap::from([(own.v4, exit)]),
            revoked: HashSet::new(),
            denied: Remembered::default(),
            colliding: Remembered::default(),
            waiting: Vec::new(),
            announcements: Bucket::default(),
            refused: 0,
        }
    }

    /// Makes room for so many peers at once.
    pub fn reserve(&mut self, peers: usize) {
        self.known.reserve(peers);
        self.holders.reserve(peers);
    }

    /// Makes a key a peer: at start from the peers file, and after each installation. Lifts a revocation.
    pub fn know(&mut self, key: PublicKey, addresses: TunnelAddresses) {
        self.forget(&key);
        self.revoked.remove(&key);
        self.denied.0.remove(&key);
        self.waiting.retain(|waiting| waiting.peer.key != key);
        self.known.insert(key, addresses);
        self.holders.insert(addresses.v4, key);
    }

    /// Makes a peer an unknown key again, which may ask.
    pub fn forget(&mut self, key: &PublicKey) {
        if let Some(addresses) = self.known.remove(key)
            && self.holders.get(&addresses.v4) == Some(key)
        {
            self.holders.remove(&addresses.v4);
        }
    }

    /// Throws a key out: at start from the peers file, and on `peers revoke`.
    pub fn revoke(&mut self, key: PublicKey) {
        self.forget(&key);
        self.waiting.retain(|waiting| waiting.peer.key != key);
        self.revoked.insert(key);
    }

    /// Whether nothing is left to decide about a key; for [`super::initiation::Checker::check`].
    pub fn is_settled(&self, key: &PublicKey) -> bool {
        self.known.contains_key(key) || self.revoked.contains(key)
    }

    /// How many initiations of revoked and denied keys came, since the start.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Decides about an initiation. Call it for [`super::initiation::Verdict::Settled`] too, so that revoked keys are
    /// counted; the answer is then [`Decision::Known`] or [`Decision::Revoked`].
    pub fn consider(&mut self, key: PublicKey, source: SocketAddr, now: Instant) -> Decision {
        if self.known.contains_key(&key) {
            return Decision::Known;
        }
        if self.revoked.contains(&key) {
            self.refused += 1;
            return Decision::Revoked;
        }
        if self.denied.contains(&key, now) {
            self.refused += 1;
            return Decision::Denied;
        }
        if self.accept == Accept::None {
            return Decision::Closed;
        }
        if self.known.len() >= MAX_PEERS {
            return Decision::Full;
        }
        let addresses = peer_addresses(&self.exit, &key);
        if let Err(error) = self.collision(&key, addresses) {
            let first = !self.colliding.contains(&key, now) && self.announcements.take(ANNOUNCEMENTS, now);
            if first {
                self.colliding.insert(key, now + PENDING_FOR);
            }
            return Decision::Collision { error, first };
        }
        match self.accept {
            Accept::Any => Decision::Admit(addresses),
            _ => Decision::AskOperator { first: self.wait(key, source, addresses, now) },
        }
    }

    /// Why a peer with these addresses cannot be admitted, if so: an IPv4 collision.
    pub fn collision(&self, key: &PublicKey, addresses: TunnelAddresses) -> Result<(), AdmissionError> {
        match self.holder(key, addresses) {
            Some(with) => Err(AdmissionError::Collision { peer: *key, with, address: addresses.v4 }),
            None => Ok(()),
        }
    }

    /// Takes a waiting peer, named by peer ID or key, off the list; install it, then call [`Admission::know`].
    /// On an error it goes on waiting.
    pub fn accept(&mut self, who: &str, now: Instant) -> Result<Pending, AdmissionError> {
        let index = self.resolve(who, now)?;
        let peer = self.waiting[index].peer;
        if self.known.len() >= MAX_PEERS {
            return Err(AdmissionError::Full);
        }
        self.collision(&peer.key, peer.addresses)?;
        self.waiting.remove(index);
        Ok(peer)
    }

    /// Takes a waiting peer, named by peer ID or key, off the list and ignores it for [`DENIED_FOR`].
    pub fn deny(&mut self, who: &str, now: Instant) -> Result<Pending, AdmissionError> {
        let index = self.resolve(who, now)?;
        let peer = self.waiting.remove(index).peer;
        self.denied.insert(peer.key, now + DENIED_FOR);
        Ok(peer)
    }

    /// Puts someone back on the list who waited before a restart; does nothing about keys already decided on.
    pub fn wait_again(&mut self, key: PublicKey, source: SocketAddr, since: Instant, now: Instant) {
        if self.accept != Accept::Ask || self.is_settled(&key) || self.denied.contains(&key, now) {
            return;
        }
        let addresses = peer_addresses(&self.exit, &key);
        if self.holder(&key, addresses).is_none() {
            self.wait(key, source, addresses, now);
            if let Some(waiting) = self.waiting.iter_mut().find(|waiting| waiting.peer.key == key) {
                waiting.peer.first_seen = since;
            }
        }
    }

    /// Keeps ignoring a key that was denied before a restart.
    pub fn deny_until(&mut self, key: PublicKey, until: Instant) {
        self.waiting.retain(|waiting| waiting.peer.key != key);
        self.denied.insert(key, until);
    }

    /// Keys that are ignored for a while, and until when.
    pub fn denied(&self, now: Instant) -> impl Iterator<Item = (PublicKey, Instant)> {
        self.denied.0.iter().filter(move |(_, until)| **until > now).map(|(key, until)| (*key, *until))
    }

    /// Who waits, longest first.
    pub fn pending(&mut self, now: Instant) -> Vec<Pending> {
        self.expire(now);
        let mut pending: Vec<_> = self.waiting.iter().map(|waiting| waiting.peer).collect();
        pending.sort_by_key(|peer| (peer.first_seen, peer.key));
        pending
    }

    fn holder(&self, key: &PublicKey, addresses: TunnelAddresses) -> Option<PublicKey> {
        self.holders.get(&addresses.v4).copied().filter(|holder| holder != key)
    }

    fn expire(&mut self, now: Instant) {
        self.waiting.retain(|waiting| now.saturating_duration_since(waiting.peer.last_seen) < PENDING_FOR);
    }

    /// Puts a peer on the list or refreshes it there; whether to announce it.
    fn wait(&mut self, key: PublicKey, source: SocketAddr, addresses: TunnelAddresses, now: Instant) -> bool {
        self.expire(now);
        let known = self.waiting.iter().position(|waiting| waiting.peer.key == key);
        let index = known.unwrap_or_else(|| {
            self.make_room(Source::of(&source));
            let peer = Pending { key, source, addresses, first_seen: now, last_seen: now };
            self.waiting.push(Waiting { peer, announced: false });
            self.waiting.len() - 1
        });
        let waiting = &mut self.waiting[index];
        waiting.peer.source = source;
        waiting.peer.last_seen = now;
        let first = !waiting.announced && self.announcements.take(ANNOUNCEMENTS, now);
        waiting.announced |= first;
        first
    }

    /// Whoever has been silent longest goes: among those of this source if it has its share, else among all. A peer
    /// that still wants in repeats its initiation every 5 s.
    fn make_room(&mut self, source: Source) {
        let same = |waiting: &Waiting| Source::of(&waiting.peer.source) == source;
        let crowded = self.waiting.iter().filter(|waiting| same(waiting)).count() >= PENDING_PER_SOURCE;
        if !crowded && self.waiting.len() < MAX_PENDING {
            return;
        }
        let candidates = self.waiting.iter().enumerate().filter(|(_, waiting)| !crowded || same(waiting));
        let silent = candidates.min_by_key(|(_, waiting)| waiting.peer.last_seen).map(|(index, _)| index);
        silent.map(|index| self.waiting.remove(index));
    }

    fn resolve(&mut self, who: &str, now: Instant) -> Result<usize, AdmissionError> {
        self.expire(now);
        let who = who.trim();
        let mut fitting =
            self.waiting.iter().enumerate().filter(|(_, waiting)| designates(who, &waiting.peer.key)).map(|(i, _)| i);
        match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(AdmissionError::Ambiguous(who.to_owned())),
            (Some(index), None) => Ok(index),
            _ => Err(AdmissionError::NotPending(who.chars().take(64).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: PublicKey = PublicKey([1; 32]);
    const SECOND: Duration = Duration::from_secs(1);

    fn key(number: u32) -> PublicKey {
        let mut key = PublicKey([7; 32]);
        key.0[..4].copy_from_slice(&number.to_be_bytes());
        key
    }

    fn source(number: u32) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::from_bits(0xc633_6400 + number).into(), 40000)
    }

    fn addresses(number: u32) -> TunnelAddresses {
        peer_addresses(&EXIT, &key(number))
    }

    const FIRST: Decision = Decision::AskOperator { first: true };
    const AGAIN: Decision = Decision::AskOperator { first: false };

    #[test]
    fn each_mode_decides_about_an_unknown_key() {
        let now = Instant::now();
        for (accept, decision) in
            [(Accept::Ask, FIRST), (Accept::Any, Decision::Admit(addresses(1))), (Accept::None, Decision::Closed)]
        {
            let mut admission = Admission::new(accept, EXIT);
            assert!(!admission.is_settled(&key(1)));
            assert_eq!(admission.consider(key(1), source(1), now), decision);
            admission.know(key(1), addresses(1));
            assert!(admission.is_settled(&key(1)));
            assert_eq!(admission.consider(key(1), source(1), now), Decision::Known);
            admission.revoke(key(1));
            assert!(admission.is_settled(&key(1)));
            assert_eq!(admission.consider(key(1), source(1), now), Decision::Revoked);
            assert_eq!(admission.refused(), 1);
            admission.know(key(1), addresses(1));
            admission.forget(&key(1));
            assert_ne!(admission.consider(key(1), source(1), now), Decision::Known);
        }
    }

    #[test]
    fn a_peer_waits_is_announced_once_and_is_accepted_where_it_last_was() {
        let mut admission = Admission::new(Accept::Ask, EXIT);
        let start = Instant::now();
        assert_eq!(admission.consider(key(1), source(1), start), FIRST);
        let later = start + 5 * SECOND;
        assert_eq!(admission.consider(key(1), source(2), later), AGAIN);
        let expected =
            Pending { key: key(1), source: source(2), addresses: addresses(1), first_seen: start, last_seen: later };
        assert_eq!(admission.pending(later), [expected]);
        for who in [key(2).peer_id(), "012".to_owned(), String::new()] {
            assert_eq!(admission.accept(&who, later), Err(AdmissionError::NotPending(who)));
        }
        assert_eq!(admission.accept(&key(1).peer_id(), later), Ok(expected));
        assert_eq!(admission.pending(later), []);
        assert_eq!(admission.consider(key(2), source(1), later), FIRST);
        assert_eq!(admission.accept(&key(2).to_string(), later).unwrap().key, key(2));
    }

    #[test]
    fn a_silent_peer_expires_and_is_announced_again() {
        let mut admission = Admission::new(Accept::Ask, EXIT);
        let mut now = Instant::now();
        assert_eq!(admission.consider(key(1), source(1), now), FIRST);
        now += PENDING_FOR - SECOND;
        assert_eq!(admission.consider(key(1), source(1), now), AGAIN, "asking again keeps it waiting");
        now += PENDING_FOR;
        assert_eq!(admission.accept(&key(1).peer_id(), now), Err(AdmissionError::NotPending(key(1).peer_id())));
        assert_eq!(admission.consider(key(1), source(1), now), FIRST);
    }

    #[test]
    fn a_denied_key_is_quiet_for_a_while() {
        let mut admission = Admission::new(Accept::Ask, EXIT);
        let now = Instant::now();
        admission.consider(key(1), source(1), now);
        assert_eq!(admission.deny(&key(1).peer_id(), now).unwrap().key, key(1));
        assert_eq!(admission.consider(key(1), source(1), now + DENIED_FOR - SECOND), Decision::Denied);
        assert_eq!(admission.refused(), 1);
        assert_eq!(admission.consider(key(1), source(1), now + DENIED_FOR), FIRST);
        for number in 2..3000 {
            admission.consider(key(number), source(1), now);
            admission.deny(&key(number).to_string(), now + number * SECOND / 1000).unwrap();
        }
        assert_eq!(admission.denied.0.len(), MAX_REMEMBERED);
        assert!(admission.denied.contains(&key(2999), now), "the newest stay");
    }

    #[test]
    fn a_restart_keeps_who_waits_and_who_was_denied() {
        let mut admission = Admission::new(Accept::Ask, EXIT);
        let start = Instant::now();
        let now = start + 100 * SECOND;
        admission.know(key(1), addresses(1));
        admission.deny_until(key(2), now + SECOND);
        for number in 1..4 {
            admission.wait_again(key(number), source(1), start, now);
        }
        let pending = admission.pending(now);
        assert_eq!(pending.len(), 1);
        assert_eq!((pending[0].key, pending[0].first_seen, pending[0].last_seen), (key(3), start, now));
        assert_eq!(admission.consider(key(3), source(1), now), AGAIN, "it was announced");
        assert_eq!(admission.consider(key(2), source(1), now), Decision::Denied);
        assert_eq!(admission.denied(now).collect::<Vec<_>>(), [(key(2), now + SECOND)]);
        assert_eq!(admission.denied(now + SECOND).count(), 0);
    }

    #[test]
    fn one_source_cannot_fill_the_list_and_many_push_out_the_silent() {
        let mut admission = Admission::new(Accept::Ask, EXIT);
        let mut now = Instant::now();
        let mut tick = || {
            now += SECOND;
            now
        };
        admission.consider(key(0), source(0), tick());
        for number in 1..100 {
            admission.consider(key(number), source(1), tick());
        }
        let pending = admission.pending(tick());
        assert_eq!(pending.len(), 1 + PENDING_PER_SOURCE);
        assert_eq!(pending[0].key, key(0));
        for number in 100..300 {
            admission.consider(key(number), source(number), tick());
            admission.consider(key(0), source(0), tick());
        }
        let pending = admission.pending(tick());
        assert_eq!(pending.len(), MAX_PENDING);
        assert_eq!(pending[0].key, key(0), "who goes on asking stays");
    }

    #[test]
    fn announcements_are_limited_and_made_up_for() {
        let mut admission = Admission::new(Accept::Ask, EXIT);
        let now = Instant::now();
        let burst = ANNOUNCEMENTS.burst;
        for number in 0..burst {
            assert_eq!(admission.consider(key(number), source(number), now), FIRST);
        }
        assert_eq!(admission.consider(key(burst), source(burst), now), AGAIN);
        assert_eq!(admission.consider(key(burst), source(burst), now + ANNOUNCEMENTS.period), FIRST);
        assert_eq!(admission.consider(key(burst), source(burst), now + 2 * ANNOUNCEMENTS.period), AGAIN);
    }

    #[test]
    fn a_collision_names_both_and_the_remedy() {
        let now = Instant::now();
        for accept in [Accept::Ask, Accept::Any] {
            let mut admission = Admission::new(accept, EXIT);
            let theirs = TunnelAddresses { v4: addresses(2).v4, ..addresses(1) };
            admission.know(key(1), theirs);
            let error = admission.collision(&key(2), addresses(2)).unwrap_err();
            let collision = |first| Decision::Collision { error: error.clone(), first };
            assert_eq!(admission.consider(key(2), source(2), now), collision(true));
            assert_eq!(admission.consider(key(2), source(2), now + SECOND), collision(false));
            assert_eq!(admission.consider(key(2), source(2), now + PENDING_FOR), collision(true));
            let (second, first) = (key(2).peer_id(), key(1).peer_id());
            let address = addresses(2).v4;
            let expected = format!("peer {second} cannot join: its tunnel address {address} is that of {first}");
            assert_eq!(error.to_string(), expected);
            assert!(error.hint().unwrap().contains("peervpn invite"));
            admission.forget(&key(1));
            assert_eq!(admission.collision(&key(2), addresses(2)), Ok(()));
        }
    }

    #[test]
    fn the_exits_own_address_is_taken_and_late_collisions_are_found() {
        let now = Instant::now();
        let own = TunnelAddresses { v4: addresses(2).v4, ..exit_addresses(&EXIT) };
        let mut admission = Admission::with_addresses(Accept::Any, EXIT, own);
        let decision = admission.consider(key(2), source(2), now);
        let own = |error: &AdmissionError| matches!(error, AdmissionError::Collision { with, .. } if *with == EXIT);
        assert!(matches!(decision, Decision::Collision { error, first: true } if own(&error)));

        let mut admission = Admission::new(Accept::Ask, EXIT);
        assert_eq!(admission.consider(key(2), source(2), now), FIRST);
        admission.know(key(1), TunnelAddresses { v4: addresses(2).v4, ..addresses(1) });
        let error = admission.accept(&key(2).peer_id(), now).unwrap_err();
        assert!(matches!(error, AdmissionError::Collision { with, .. } if with == key(1)));
        assert_eq!(admission.pending(now).len(), 1, "it goes on waiting");
    }
}
