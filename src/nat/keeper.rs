//! The mapping keeper, sans I/O: keeps the NAT's mapping of our port alive and notices when it changes.
//!
//! One probe an interval and family, the servers in rotation. An answer that is lost is asked for elsewhere at once.
//! A changed reflexive address is believed when a second server sees the same; if the second one still sees the old,
//! or a third, the NAT maps by destination and no endpoint we print holds for a peer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peervpn_platform::types::Family;

use super::stun::{self, Body, Options, TransactionId};
use super::transaction::Transmit;

/// How long an answer may take; RFC 8489 §6.2.1 starts with an RTO of half a second, so this has room for one loss on
/// a slow way.
const ANSWER: Duration = Duration::from_millis(1500);
/// Servers asked for one refresh before it counts as unanswered.
const ATTEMPTS: usize = 3;

/// Refreshes that are due within this of each other go out together.
const TOGETHER: Duration = Duration::from_secs(1);

/// What the keeper found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A server saw the mapping as it is known.
    Unchanged {
        /// Reflexive address.
        reflexive: SocketAddr,
    },
    /// The first sight of a mapping in this family.
    Found {
        /// Reflexive address.
        reflexive: SocketAddr,
    },
    /// Two servers saw another mapping than before.
    Changed {
        /// Before.
        old: SocketAddr,
        /// Now.
        new: SocketAddr,
    },
    /// Two servers see two mappings at the same time. Said once until servers agree again.
    ByDestination {
        /// Family.
        family: Family,
    },
    /// No server answered this refresh.
    Unanswered {
        /// Family.
        family: Family,
    },
}

/// What STUN found before WireGuard took the port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// One reflexive address a family at most, v4 first.
    pub reflexive: Vec<SocketAddr>,
    /// Families whose NAT is known to map by destination: that is not news.
    pub by_destination: Vec<Family>,
}

/// A probe under way.
#[derive(Debug, Clone, Copy)]
struct Probe {
    id: TransactionId,
    server: SocketAddr,
    give_up: Instant,
}

/// One family's mapping.
#[derive(Debug)]
struct Mapping {
    servers: Vec<SocketAddr>,
    /// Next server in rotation.
    turn: usize,
    known: Option<SocketAddr>,
    /// Another address, seen by this one server so far.
    suspected: Option<(SocketAddr, SocketAddr)>,
    by_destination: bool,
    attempts: usize,
    probe: Option<Probe>,
    next: Instant,
}

/// The keeper of one port.
#[derive(Debug)]
pub struct Keeper {
    interval: Duration,
    mappings: BTreeMap<Family, Mapping>,
}

impl Keeper {
    /// Refreshes every `interval` with these servers, the first time at `now`.
    pub fn new(interval: Duration, servers: &[SocketAddr], known: &Known, now: Instant) -> Self {
        let mut mappings = BTreeMap::new();
        for family in Family::BOTH {
            let servers: Vec<_> = servers.iter().copied().filter(|s| Family::of(&s.ip()) == family).collect();
            if !servers.is_empty() {
                let reflexive = known.reflexive.iter().copied().find(|k| Family::of(&k.ip()) == family);
                mappings.insert(
                    family,
                    Mapping {
                        servers,
                        turn: 0,
                        known: reflexive,
                        suspected: None,
                        by_destination: known.by_destination.contains(&family),
                        attempts: 0,
                        probe: None,
                        next: now,
                    },
                );
            }
        }
        Keeper { interval, mappings }
    }

    /// The mappings known, v4 first.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        self.mappings.values().filter_map(|m| m.known).collect()
    }

    /// Refresh at once: the network has changed.
    pub fn refresh(&mut self, now: Instant) {
        for mapping in self.mappings.values_mut() {
            mapping.probe = None;
            mapping.next = now;
        }
    }

    /// When something is due next; `None` without servers.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.mappings.values().map(|m| m.probe.map_or(m.next, |p| p.give_up)).min()
    }

    /// The next datagram due, with random transaction IDs from `id`; call until `None`.
    pub fn poll_transmit(&mut self, now: Instant, mut id: impl FnMut() -> TransactionId) -> Option<Transmit> {
        let idle = |m: &&mut Mapping| m.probe.is_none();
        if self.mappings.values().any(|m| m.probe.is_none() && m.next <= now) {
            // answers come at different times; one wake-up is to do for both families
            let soon = |m: &&mut Mapping| m.next <= now + TOGETHER;
            self.mappings.values_mut().filter(idle).filter(soon).for_each(|m| m.next = m.next.min(now));
        }
        let mapping = self.mappings.values_mut().filter(idle).find(|m| m.next <= now)?;
        let id = id();
        let server = mapping.servers[mapping.turn % mapping.servers.len()];
        mapping.turn = (mapping.turn + 1) % mapping.servers.len();
        mapping.attempts += 1;
        mapping.probe = Some(Probe { id, server, give_up: now + ANSWER });
        Some(Transmit { id, to: server, bytes: stun::request(id, Options::default()) })
    }

    /// Time has passed: answers that did not come.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for (family, mapping) in &mut self.mappings {
            let Some(probe) = mapping.probe else { continue };
            if probe.give_up > now {
                continue;
            }
            mapping.probe = None;
            if mapping.attempts < ATTEMPTS.min(mapping.servers.len().max(2)) {
                mapping.next = now;
            } else {
                mapping.suspected = None;
                mapping.rest(now + self.interval);
                events.push(Event::Unanswered { family: *family });
            }
        }
        events
    }

    /// A message that came for our port.
    pub fn handle(&mut self, from: SocketAddr, message: &[u8], now: Instant) -> Option<Event> {
        let id = stun::transaction_id(message)?;
        let interval = self.interval;
        let (family, mapping) =
            self.mappings.iter_mut().find(|(_, m)| m.probe.is_some_and(|p| p.id == id && p.server == from))?;
        let response = stun::decode(message).ok()?;
        mapping.probe = None;
        let Body::Success(success) = response.body else {
            // a server that refuses us is as good as one that is silent
            if mapping.attempts < ATTEMPTS {
                mapping.next = now;
            } else {
                mapping.rest(now + interval);
            }
            return None;
        };
        let seen = success.mapped;
        if Family::of(&seen.ip()) != *family {
            mapping.rest(now + interval);
            return None;
        }
        mapping.sight(seen, from, now, interval)
    }
}

impl Mapping {
    fn rest(&mut self, until: Instant) {
        self.attempts = 0;
        self.next = until;
    }

    fn sight(&mut self, seen: SocketAddr, by: SocketAddr, now: Instant, interval: Duration) -> Option<Event> {
        let Some(known) = self.known else {
            self.known = Some(seen);
            self.rest(now + interval);
            return Some(Event::Found { reflexive: seen });
        };
        match self.suspected {
            None if seen == known => {
                self.rest(now + interval);
                Some(Event::Unchanged { reflexive: seen })
            }
            None => {
                // another server's word, at once; the same one's again where it is the only one
                self.suspected = Some((seen, by));
                self.attempts = 0;
                self.next = now;
                None
            }
            Some((suspected, first)) => {
                self.suspected = None;
                self.rest(now + interval);
                if seen == suspected {
                    self.known = Some(seen);
                    // only another server's agreement tells that the NAT does not map by destination
                    self.by_destination &= by == first;
                    return Some(Event::Changed { old: known, new: seen });
                }
                let said = std::mem::replace(&mut self.by_destination, true);
                (!said).then(|| Event::ByDestination { family: Family::of(&seen.ip()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn ids() -> impl FnMut() -> TransactionId {
        let mut n = 0u8;
        move || {
            n += 1;
            TransactionId([n; 12])
        }
    }

    /// RFC 8489 §14.2: an answer with XOR-MAPPED-ADDRESS, IPv4.
    fn answer(id: TransactionId, mapped: SocketAddr) -> Vec<u8> {
        let SocketAddr::V4(mapped) = mapped else { panic!() };
        let mut bytes = vec![1, 1, 0, 12, 0x21, 0x12, 0xa4, 0x42];
        bytes.extend(id.0);
        bytes.extend([0, 0x20, 0, 8, 0, 1]);
        bytes.extend((mapped.port() ^ 0x2112).to_be_bytes());
        bytes.extend((u32::from(*mapped.ip()) ^ 0x2112_a442).to_be_bytes());
        bytes
    }

    struct Bench {
        keeper: Keeper,
        now: Instant,
        ids: Box<dyn FnMut() -> TransactionId>,
    }

    impl Bench {
        fn new(servers: &[&str], known: Option<&str>) -> Self {
            let now = Instant::now();
            let servers: Vec<_> = servers.iter().map(|s| address(s)).collect();
            let known = Known { reflexive: known.into_iter().map(address).collect(), ..Known::default() };
            Bench { keeper: Keeper::new(INTERVAL, &servers, &known, now), now, ids: Box::new(ids()) }
        }

        fn sent(&mut self) -> Option<Transmit> {
            self.keeper.poll_transmit(self.now, &mut self.ids)
        }

        fn answered(&mut self, probe: &Transmit, mapped: &str) -> Option<Event> {
            self.keeper.handle(probe.to, &answer(probe.id, address(mapped)), self.now)
        }
    }

    const A: &str = "192.0.2.1:3478";
    const B: &str = "192.0.2.2:3478";
    const OLD: &str = "203.0.113.45:51820";
    const NEW: &str = "203.0.113.45:51821";

    #[test]
    fn servers_take_turns_once_an_interval() {
        let mut bench = Bench::new(&[A, B], Some(OLD));
        for server in [A, B, A] {
            let probe = bench.sent().unwrap();
            assert_eq!(probe.to, address(server));
            assert_eq!(bench.sent(), None);
            assert_eq!(bench.answered(&probe, OLD), Some(Event::Unchanged { reflexive: address(OLD) }));
            assert_eq!(bench.keeper.poll_timeout(), Some(bench.now + INTERVAL));
            assert_eq!(bench.sent(), None);
            bench.now += INTERVAL;
        }
    }

    #[test]
    fn families_whose_turns_are_close_are_refreshed_at_one_wake_up() {
        let servers = [A, "[2001:db8::1]:3478"].map(address);
        for (apart, together) in [(500, true), (1500, false)] {
            let now = Instant::now();
            let mut keeper = Keeper::new(INTERVAL, &servers, &Known::default(), now);
            keeper.mappings.get_mut(&Family::V6).unwrap().next = now + Duration::from_millis(apart);
            let mut ids = ids();
            assert!(keeper.poll_transmit(now, &mut ids).is_some_and(|probe| probe.to.is_ipv4()));
            assert_eq!(keeper.poll_transmit(now, &mut ids).is_some_and(|probe| probe.to.is_ipv6()), together);
            assert_eq!(keeper.poll_transmit(now, &mut ids), None);
        }
    }

    #[test]
    fn a_lost_answer_is_asked_for_elsewhere_at_once() {
        let mut bench = Bench::new(&[A, B], Some(OLD));
        bench.sent().unwrap();
        bench.now = bench.keeper.poll_timeout().unwrap();
        assert_eq!(bench.keeper.handle_timeout(bench.now), []);
        let probe = bench.sent().unwrap();
        assert_eq!(probe.to, address(B));
        bench.now += ANSWER;
        assert_eq!(bench.keeper.handle_timeout(bench.now), [Event::Unanswered { family: Family::V4 }]);
        assert_eq!(bench.keeper.poll_timeout(), Some(bench.now + INTERVAL));
    }

    #[test]
    fn a_change_is_believed_when_a_second_server_sees_it() {
        let mut bench = Bench::new(&[A, B], Some(OLD));
        let probe = bench.sent().unwrap();
        assert_eq!(bench.answered(&probe, NEW), None);
        let probe = bench.sent().unwrap();
        assert_eq!(probe.to, address(B));
        let changed = Event::Changed { old: address(OLD), new: address(NEW) };
        assert_eq!(bench.answered(&probe, NEW), Some(changed));
        assert_eq!(bench.keeper.reflexive(), [address(NEW)]);
    }

    #[test]
    fn two_sights_at_once_are_mapping_by_destination_and_said_once() {
        let mut bench = Bench::new(&[A, B], Some(OLD));
        for said in [Some(Event::ByDestination { family: Family::V4 }), None] {
            let probe = bench.sent().unwrap();
            assert_eq!(bench.answered(&probe, NEW), None);
            let probe = bench.sent().unwrap();
            assert_eq!(bench.answered(&probe, OLD), said);
            assert_eq!(bench.keeper.reflexive(), [address(OLD)]);
            bench.now += INTERVAL;
        }
    }

    #[test]
    fn mapping_by_destination_that_is_known_is_no_news() {
        let mut bench = Bench::new(&[A, B], None);
        let servers = [A, B].map(address);
        let known = Known { reflexive: vec![address(OLD)], by_destination: vec![Family::V4] };
        bench.keeper = Keeper::new(INTERVAL, &servers, &known, bench.now);
        for mapped in [NEW, OLD] {
            let probe = bench.sent().unwrap();
            assert_eq!(bench.answered(&probe, mapped), None);
        }
    }

    #[test]
    fn answers_of_strangers_and_to_other_questions_are_nothing() {
        let mut bench = Bench::new(&[A, B], Some(OLD));
        let probe = bench.sent().unwrap();
        assert_eq!(bench.keeper.handle(address(B), &answer(probe.id, address(NEW)), bench.now), None);
        assert_eq!(bench.keeper.handle(address(A), &answer(TransactionId([99; 12]), address(NEW)), bench.now), None);
        assert_eq!(bench.keeper.handle(address(A), &[0; 20], bench.now), None);
        assert_eq!(bench.answered(&probe, OLD), Some(Event::Unchanged { reflexive: address(OLD) }));
    }
}
