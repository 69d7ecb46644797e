//! The mapping keeper, sans I/O: keeps the NAT's mapping of our port alive and notices when it changes.
//!
//! A refresh asks two servers at once and waits for neither: a datagram lost on the way out would let the mapping die
//! half an interval later on a carrier's NAT, and a timer to notice would wake the machine once more each time. An
//! answer that names the mapping as it is known says nothing new, so the system may keep it from us
//! ([`Keeper::expected`]); silence then means "unchanged". Silence is not believed for ever: every [`HEARD`]th refresh
//! is a question, to one server and then the next, that must be answered. So is every refresh with a single server,
//! before the first sight, after a question that nobody answered, and while a change is in doubt.
//!
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
/// Servers asked one after the other for one refresh before it counts as unanswered.
const ATTEMPTS: usize = 3;
/// Servers asked at once by a refresh that waits for no answer.
const AT_ONCE: usize = 2;
/// One refresh in so many is a question: every three minutes at the default interval.
const HEARD: u32 = 9;

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
    /// No server answered a question.
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

/// How often, and whether silence will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one refresh to the next.
    pub interval: Duration,
    /// Every refresh is to be answered: its reader wants measurements.
    pub ask: bool,
}

/// A server that was asked, and may answer.
#[derive(Debug, Clone, Copy)]
struct Probe {
    id: TransactionId,
    server: SocketAddr,
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
    /// Refreshes since an answer was last heard.
    unheard: u32,
    /// Servers asked in vain by this question.
    attempts: usize,
    /// Of this refresh.
    probes: Vec<Probe>,
    /// Probes of this refresh that are still to be sent.
    owed: usize,
    /// A question is open until then.
    give_up: Option<Instant>,
    next: Instant,
}

/// The keeper of one port.
#[derive(Debug)]
pub struct Keeper {
    pace: Pace,
    mappings: BTreeMap<Family, Mapping>,
}

impl Keeper {
    /// Refreshes with these servers, the first time at `now`.
    pub fn new(pace: Pace, servers: &[SocketAddr], known: &Known, now: Instant) -> Self {
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
                        unheard: 0,
                        attempts: 0,
                        probes: Vec::new(),
                        owed: 0,
                        give_up: None,
                        next: now,
                    },
                );
            }
        }
        Keeper { pace, mappings }
    }

    /// The mappings known, v4 first.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        self.mappings.values().filter_map(|m| m.known).collect()
    }

    /// The mappings whose confirmation says nothing new at present, one a family at most: answers that name one of them
    /// need not be handed to [`Keeper::handle`]. To be asked for before what [`Keeper::poll_transmit`] gave is sent.
    pub fn expected(&self) -> Vec<SocketAddr> {
        let quiet = |m: &&Mapping| m.give_up.is_none() && m.suspected.is_none();
        self.mappings.values().filter(quiet).filter_map(|m| m.known).collect()
    }

    /// Ask at once: the network has changed.
    pub fn refresh(&mut self, now: Instant) {
        for mapping in self.mappings.values_mut() {
            mapping.rest(now);
            mapping.unheard = HEARD;
        }
    }

    /// When something is due next; `None` without servers.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.mappings.values().map(|m| m.give_up.unwrap_or(m.next)).min()
    }

    /// The next datagram due, with random transaction IDs from `id`; call until `None`.
    pub fn poll_transmit(&mut self, now: Instant, mut id: impl FnMut() -> TransactionId) -> Option<Transmit> {
        let idle = |m: &&mut Mapping| m.give_up.is_none();
        if self.mappings.values().any(|m| m.give_up.is_none() && m.next <= now) {
            // answers come at different times; one wake-up is to do for both families
            let soon = |m: &&mut Mapping| m.next <= now + TOGETHER;
            self.mappings.values_mut().filter(idle).filter(soon).for_each(|m| m.next = m.next.min(now));
        }
        for mapping in self.mappings.values_mut() {
            if mapping.owed == 0 && mapping.give_up.is_none() && mapping.next <= now {
                mapping.begin(self.pace, now);
            }
        }
        let mapping = self.mappings.values_mut().find(|m| m.owed > 0)?;
        mapping.owed -= 1;
        let (id, server) = (id(), mapping.take_turn());
        mapping.probes.push(Probe { id, server });
        Some(Transmit { id, to: server, bytes: stun::request(id, Options::default()) })
    }

    /// Time has passed: answers that did not come.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        for (family, mapping) in &mut self.mappings {
            if mapping.give_up.is_none_or(|give_up| give_up > now) {
                continue;
            }
            if !mapping.ask_elsewhere(now) {
                mapping.suspected = None;
                mapping.rest(now + self.pace.interval);
                events.push(Event::Unanswered { family: *family });
            }
        }
        events
    }

    /// A message that came for our port.
    pub fn handle(&mut self, from: SocketAddr, message: &[u8], now: Instant) -> Option<Event> {
        let id = stun::transaction_id(message)?;
        let interval = self.pace.interval;
        let asked = |m: &Mapping| m.probes.iter().position(|p| p.id == id && p.server == from);
        let (family, mapping) = self.mappings.iter_mut().find(|(_, m)| asked(m).is_some())?;
        let response = stun::decode(message).ok()?;
        mapping.probes.retain(|p| p.id != id);
        let seen = match response.body {
            Body::Success(success) if Family::of(&success.mapped.ip()) == *family => success.mapped,
            // a server that refuses us is as good as one that is silent
            _ => {
                if mapping.give_up.is_some() && !mapping.ask_elsewhere(now) {
                    mapping.rest(now + interval);
                }
                return None;
            }
        };
        mapping.sight(seen, from, now, interval)
    }
}

impl Mapping {
    /// A refresh, or the next attempt of a question.
    fn begin(&mut self, pace: Pace, now: Instant) {
        if self.attempts == 0 && self.suspected.is_none() {
            self.probes.clear();
        }
        let settled = self.known.is_some() && self.suspected.is_none() && self.attempts == 0;
        self.unheard += 1;
        if settled && !pace.ask && self.servers.len() >= AT_ONCE && self.unheard < HEARD {
            self.owed = AT_ONCE;
            self.next = now + pace.interval;
        } else {
            self.owed = 1;
            self.attempts += 1;
            self.give_up = Some(now + ANSWER);
        }
    }

    /// The next server in rotation; where there are others, not the one whose word is to be confirmed.
    fn take_turn(&mut self) -> SocketAddr {
        let heard = self.suspected.map(|(_, by)| by);
        let take = |turn: &mut usize| {
            let server = self.servers[*turn % self.servers.len()];
            *turn = (*turn + 1) % self.servers.len();
            server
        };
        let mut turn = self.turn;
        let mut server = take(&mut turn);
        if Some(server) == heard {
            server = take(&mut turn);
        }
        self.turn = turn;
        server
    }

    /// The next attempt of a question, if there is one left.
    fn ask_elsewhere(&mut self, now: Instant) -> bool {
        self.give_up = None;
        let left = self.attempts < ATTEMPTS.min(self.servers.len().max(2));
        if left {
            self.next = now;
        }
        left
    }

    fn rest(&mut self, until: Instant) {
        self.probes.clear();
        self.owed = 0;
        self.attempts = 0;
        self.give_up = None;
        self.next = until;
    }

    fn sight(&mut self, seen: SocketAddr, by: SocketAddr, now: Instant, interval: Duration) -> Option<Event> {
        self.unheard = 0;
        let Some(known) = self.known else {
            self.known = Some(seen);
            self.rest(now + interval);
            return Some(Event::Found { reflexive: seen });
        };
        match self.suspected {
            None if seen == known => {
                if self.give_up.is_some() {
                    self.rest(now + interval);
                }
                Some(Event::Unchanged { reflexive: seen })
            }
            None => {
                // another server's word, at once (it may be on its way already); the same one's again where it is the
                // only one
                self.suspected = Some((seen, by));
                self.attempts = 0;
                self.owed = 0;
                self.give_up = None;
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
        /// Every refresh is a question.
        fn asking(servers: &[&str], known: Option<&str>) -> Self {
            Bench::new(servers, known, true)
        }

        fn new(servers: &[&str], known: Option<&str>, ask: bool) -> Self {
            let now = Instant::now();
            let servers: Vec<_> = servers.iter().map(|s| address(s)).collect();
            let known = Known { reflexive: known.into_iter().map(address).collect(), ..Known::default() };
            let keeper = Keeper::new(Pace { interval: INTERVAL, ask }, &servers, &known, now);
            Bench { keeper, now, ids: Box::new(ids()) }
        }

        fn sent(&mut self) -> Option<Transmit> {
            self.keeper.poll_transmit(self.now, &mut self.ids)
        }

        fn all_sent(&mut self) -> Vec<Transmit> {
            std::iter::from_fn(|| self.sent()).collect()
        }

        fn answered(&mut self, probe: &Transmit, mapped: &str) -> Option<Event> {
            self.keeper.handle(probe.to, &answer(probe.id, address(mapped)), self.now)
        }
    }

    const A: &str = "192.0.2.1:3478";
    const B: &str = "192.0.2.2:3478";
    const OLD: &str = "203.0.113.45:51820";
    const NEW: &str = "203.0.113.45:51821";
    const C: &str = "192.0.2.3:3478";

    fn servers_of(probes: &[Transmit]) -> Vec<String> {
        probes.iter().map(|probe| probe.to.to_string()).collect()
    }

    #[test]
    fn a_refresh_asks_two_servers_and_waits_for_none() {
        let mut bench = Bench::new(&[A, B, C], Some(OLD), false);
        for servers in [[A, B], [C, A], [B, C]] {
            assert_eq!(servers_of(&bench.all_sent()), servers);
            assert_eq!(bench.keeper.expected(), [address(OLD)]);
            assert_eq!(bench.keeper.poll_timeout(), Some(bench.now + INTERVAL), "one wake-up a refresh");
            bench.now += INTERVAL;
            assert_eq!(bench.keeper.handle_timeout(bench.now), []);
        }
    }

    #[test]
    fn silence_is_questioned_now_and_then_and_until_it_is_broken() {
        let mut bench = Bench::new(&[A, B, C], Some(OLD), false);
        let mut round = |heard: bool| {
            for n in 1..HEARD {
                assert_eq!(bench.all_sent().len(), AT_ONCE, "refresh {n}");
                bench.now += INTERVAL;
            }
            for _ in 0..ATTEMPTS {
                let [probe] = &bench.all_sent()[..] else { panic!("one server at a time") };
                assert_eq!(bench.keeper.expected(), []);
                assert_eq!(bench.keeper.poll_timeout(), Some(bench.now + ANSWER));
                if heard {
                    assert_eq!(bench.answered(probe, OLD), Some(Event::Unchanged { reflexive: address(OLD) }));
                    assert_eq!(bench.keeper.expected(), [address(OLD)]);
                    bench.now += INTERVAL;
                    return Vec::new();
                }
                bench.now += ANSWER;
                let events = bench.keeper.handle_timeout(bench.now);
                if !events.is_empty() {
                    bench.now += INTERVAL;
                    assert_eq!(bench.all_sent().len(), 1, "the next refresh asks again");
                    return events;
                }
            }
            panic!("the question never ends");
        };
        assert_eq!(round(true), []);
        assert_eq!(round(true), []);
        assert_eq!(round(false), [Event::Unanswered { family: Family::V4 }]);
    }

    #[test]
    fn a_single_server_is_always_waited_for() {
        let mut bench = Bench::new(&[A], Some(OLD), false);
        for _ in 0..3 {
            let [probe] = &bench.all_sent()[..] else { panic!("one probe") };
            assert_eq!(bench.keeper.poll_timeout(), Some(bench.now + ANSWER));
            bench.answered(probe, OLD);
            bench.now += INTERVAL;
        }
    }

    #[test]
    fn a_change_seen_by_both_servers_of_a_refresh_needs_no_third() {
        let mut bench = Bench::new(&[A, B], Some(OLD), false);
        let [first, second] = &bench.all_sent()[..] else { panic!("two probes") };
        assert_eq!(bench.answered(first, NEW), None);
        assert_eq!(bench.keeper.expected(), [], "now the old one would be news, too");
        let changed = Event::Changed { old: address(OLD), new: address(NEW) };
        assert_eq!(bench.answered(second, NEW), Some(changed));
        assert_eq!(bench.sent(), None);
        assert_eq!(bench.keeper.expected(), [address(NEW)]);
    }

    #[test]
    fn a_change_seen_by_one_server_of_a_refresh_is_confirmed_elsewhere() {
        for (second, event) in [
            (NEW, Event::Changed { old: address(OLD), new: address(NEW) }),
            (OLD, Event::ByDestination { family: Family::V4 }),
        ] {
            // of A's and B's answers, B's is lost, or kept from us because it names the old one
            let mut bench = Bench::new(&[A, B], Some(OLD), false);
            let first = bench.all_sent().remove(0);
            assert_eq!(bench.answered(&first, NEW), None);
            let [probe] = &bench.all_sent()[..] else { panic!("one question") };
            assert_eq!(probe.to, address(B), "not whom we have heard");
            assert_eq!(bench.answered(probe, second), Some(event));
        }
    }

    #[test]
    fn after_a_change_of_network_the_next_refresh_is_a_question() {
        let mut bench = Bench::new(&[A, B], Some(OLD), false);
        assert_eq!(bench.all_sent().len(), AT_ONCE);
        bench.now += INTERVAL / 2;
        bench.keeper.refresh(bench.now);
        assert_eq!(bench.all_sent().len(), 1);
        assert_eq!(bench.keeper.poll_timeout(), Some(bench.now + ANSWER));
    }

    #[test]
    fn servers_take_turns_once_an_interval() {
        let mut bench = Bench::asking(&[A, B], Some(OLD));
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
            let mut keeper = Keeper::new(Pace { interval: INTERVAL, ask: true }, &servers, &Known::default(), now);
            keeper.mappings.get_mut(&Family::V6).unwrap().next = now + Duration::from_millis(apart);
            let mut ids = ids();
            assert!(keeper.poll_transmit(now, &mut ids).is_some_and(|probe| probe.to.is_ipv4()));
            assert_eq!(keeper.poll_transmit(now, &mut ids).is_some_and(|probe| probe.to.is_ipv6()), together);
            assert_eq!(keeper.poll_transmit(now, &mut ids), None);
        }
    }

    #[test]
    fn a_lost_answer_is_asked_for_elsewhere_at_once() {
        let mut bench = Bench::asking(&[A, B], Some(OLD));
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
        let mut bench = Bench::asking(&[A, B], Some(OLD));
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
        let mut bench = Bench::asking(&[A, B], Some(OLD));
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
        let mut bench = Bench::asking(&[A, B], None);
        let servers = [A, B].map(address);
        let known = Known { reflexive: vec![address(OLD)], by_destination: vec![Family::V4] };
        bench.keeper = Keeper::new(Pace { interval: INTERVAL, ask: true }, &servers, &known, bench.now);
        for mapped in [NEW, OLD] {
            let probe = bench.sent().unwrap();
            assert_eq!(bench.answered(&probe, mapped), None);
        }
    }

    #[test]
    fn answers_of_strangers_and_to_other_questions_are_nothing() {
        let mut bench = Bench::asking(&[A, B], Some(OLD));
        let probe = bench.sent().unwrap();
        assert_eq!(bench.keeper.handle(address(B), &answer(probe.id, address(NEW)), bench.now), None);
        assert_eq!(bench.keeper.handle(address(A), &answer(TransactionId([99; 12]), address(NEW)), bench.now), None);
        assert_eq!(bench.keeper.handle(address(A), &[0; 20], bench.now), None);
        assert_eq!(bench.answered(&probe, OLD), Some(Event::Unchanged { reflexive: address(OLD) }));
    }
}
