//! NAT discovery: mapping behaviour (RFC 5780 §4.3), filtering behaviour (§4.4) and hairpinning (RFC 4787 §6) of one
//! family, sans I/O, everything in parallel that the RFC's logic allows.
//!
//! Three local ports, because a test must not open the filter for another:
//! - [`Path::Asked`] is the port asked about. It asks every server, then every address of the chosen server: its mapping
//!   behaviour. It also repeats the filtering tests where the filter is surely open: a server whose CHANGE-REQUEST
//!   doesn't work shows itself here instead of making every NAT look strict.
//! - [`Path::Filter`] talks to the chosen server's first address only; what reaches it from the others passed the filter.
//! - [`Path::Second`] measures the mapping behaviour again (another host may hold the first port's outside) and
//!   exchanges hairpinned packets with the first.
//!
//! A wrong result never comes from a lost packet: "no answer" counts only after [`COPIES`] transactions with all their
//! retransmissions while a control on the same path was answered before and in the middle of the wait. Where that can't
//! be had the result is [`Behaviour::Unknown`] and [`Measured::why`] says why.

mod judge;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use peervpn_platform::types::Family;
use serde::Serialize;

use super::stun::{Body, Options, Success, TransactionId};
use super::transaction::{AnswerFrom, Event, Request, Transactions, Transmit, rto_from};

/// RTO of the first contact. RFC 8489 §6.2.1 recommends 500 ms where nothing is known; this is one command's handful of
/// datagrams, and silence must be told within a second.
const CONTACT_RTO: Duration = Duration::from_millis(120);
/// No server answered within this: the contact is over. Four requests to each server are out by then.
const CONTACT_LIMIT: Duration = Duration::from_millis(1000);
/// Some server answered, none with OTHER-ADDRESS: how long after the start the others may still.
const OTHER_ADDRESS_LIMIT: Duration = Duration::from_millis(700);
/// After the first answer with OTHER-ADDRESS, how long a server earlier in the list may take to be preferred.
const SETTLE: Duration = Duration::from_millis(20);
/// Transactions of each filtering test, started a third of an RTO apart.
const COPIES: u32 = 3;
/// How long a filtering test waits for its answers: this and [`WAIT_ROUND_TRIPS`] round trips, with which at least nine
/// requests go out.
const WAIT: Duration = Duration::from_millis(500);
/// See [`WAIT`].
const WAIT_ROUND_TRIPS: u32 = 12;
/// Longest such wait.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// Whole discovery at most.
const LIMIT: Duration = Duration::from_secs(6);
/// Largest RTO once a round trip is known.
const MAX_RTO: Duration = Duration::from_millis(300);

/// Mapping or filtering behaviour; RFC 4787 §4.1 and §5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Behaviour {
    /// The same for every destination; what no NAT and no firewall amounts to, too.
    EndpointIndependent,
    /// Depends on the remote address.
    AddressDependent,
    /// Depends on the remote address and port.
    AddressAndPortDependent,
    /// Not measured, or inconclusive.
    #[default]
    Unknown,
}

/// One of the three local ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Path {
    /// The port asked about.
    Asked,
    /// The filtering tests' port. The caller gives it a number that [`Path::Asked`] and [`Path::Second`] never had in an
    /// earlier run, or the NAT may still remember what they opened.
    Filter,
    /// The cross-check's port.
    Second,
}

impl Path {
    /// All, in the order of the ports given to [`Discovery::new`].
    pub const ALL: [Path; 3] = [Path::Asked, Path::Filter, Path::Second];

    fn index(self) -> usize {
        self as usize
    }
}

/// What was measured in one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Measured {
    /// A server answered.
    pub udp: bool,
    /// Servers on different addresses that gave no answer to any request.
    pub silent: usize,
    /// The server that the rest is told from.
    pub server: Option<SocketAddr>,
    /// The source of the path asked about.
    pub local: Option<SocketAddr>,
    /// Its reflexive address.
    pub reflexive: Option<SocketAddr>,
    /// Mapping behaviour.
    pub mapping: Behaviour,
    /// Servers saw different reflexive addresses, whichever of the two dependent behaviours it is.
    pub maps_by_destination: bool,
    /// The path asked about maps by destination although the NAT doesn't: another host behind it holds that port.
    pub port_taken: bool,
    /// Filtering behaviour.
    pub filtering: Behaviour,
    /// Two hosts behind this NAT reach each other by their reflexive addresses; `None` without a NAT or unmeasured.
    pub hairpin: Option<bool>,
    /// Shortest round trip to a server.
    pub round_trip: Option<Duration>,
    /// Why something is unknown, for people.
    pub why: Vec<&'static str>,
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    /// First contact with server number N; also observes the mapping.
    Contact(usize),
    /// Observes the mapping towards the server asked.
    Map,
    /// CHANGE-REQUEST on a path whose filter is surely open: both flags, or the port only.
    Honours(Change),
    /// Before and in the middle of the wait.
    Control(u8),
    /// The filtering test proper.
    Filter(Change),
    /// To ourselves by way of the NAT.
    Hairpin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    AddressAndPort,
    Port,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Contact {
    Waiting,
    Answered(Success),
    /// With an error, or with something that tells nothing: UDP works.
    Refused,
    Silent,
    /// There is no way to it.
    Unsent,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    local: IpAddr,
    contact: Contact,
}

/// The server chosen for the tests.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    /// Primary address and port.
    first: SocketAddr,
    /// OTHER-ADDRESS: another address and another port.
    other: SocketAddr,
    rto: Duration,
}

impl Chosen {
    /// The other address with the first port.
    fn other_address(&self) -> SocketAddr {
        SocketAddr::new(self.other.ip(), self.first.port())
    }

    /// The first address with the other port.
    fn other_port(&self) -> SocketAddr {
        SocketAddr::new(self.first.ip(), self.other.port())
    }

    /// Every address and port the mapping is compared over.
    fn all(&self) -> [SocketAddr; 4] {
        [self.first, self.other_address(), self.other, self.other_port()]
    }

    fn answers_from(&self, change: Change) -> SocketAddr {
        match change {
            Change::AddressAndPort => self.other,
            Change::Port => self.other_port(),
        }
    }
}

/// The discovery of one family.
pub struct Discovery {
    family: Family,
    ports: [u16; 3],
    ids: Box<dyn FnMut() -> TransactionId + Send>,
    started: Instant,
    names_pending: usize,
    servers: Vec<Server>,
    candidate_since: Option<Instant>,
    chosen: Option<Chosen>,
    /// Servers that were chosen and turned out not to do what RFC 5780 asks.
    unfit: Vec<SocketAddr>,
    /// What the last of them told all the same.
    earlier: Option<Measured>,
    /// When the filtering tests' wait ends; known once the control is answered.
    wait_ends: Option<Instant>,
    middle: Option<Instant>,
    hairpin_started: bool,
    round_trip: Option<Duration>,
    transactions: [Transactions; 3],
    tests: HashMap<TransactionId, (Path, Test)>,
    later: BTreeMap<(Instant, u32), (Path, Request, Test)>,
    serial: u32,
    observed: HashMap<(Path, SocketAddr), SocketAddr>,
    /// Changed answers seen on an open path, and on the filtering path.
    honoured: Vec<Change>,
    passed: Vec<Change>,
    controls: [Option<SocketAddr>; 2],
    ignores_change: bool,
    hairpinned: bool,
    done: bool,
}

impl Discovery {
    /// Starts with these local ports (in the order of [`Path::ALL`]) and `names` servers still to be resolved;
    /// `ids` gives fresh random transaction IDs.
    pub fn new(
        family: Family,
        ports: [u16; 3],
        names: usize,
        ids: impl FnMut() -> TransactionId + Send + 'static,
        now: Instant,
    ) -> Self {
        Discovery {
            family,
            ports,
            ids: Box::new(ids),
            started: now,
            names_pending: names,
            servers: Vec::new(),
            candidate_since: None,
            chosen: None,
            unfit: Vec::new(),
            earlier: None,
            wait_ends: None,
            middle: None,
            hairpin_started: false,
            round_trip: None,
            transactions: Default::default(),
            tests: HashMap::new(),
            later: BTreeMap::new(),
            serial: 0,
            observed: HashMap::new(),
            honoured: Vec::new(),
            passed: Vec::new(),
            controls: [None; 2],
            ignores_change: false,
            hairpinned: false,
            done: false,
        }
    }

    /// One name is resolved (or failed): `server` is its address in this family and the local address that packets to it
    /// leave with, `None` if it has none or there is no route.
    pub fn resolved(&mut self, server: Option<(SocketAddr, IpAddr)>, now: Instant) {
        self.names_pending = self.names_pending.saturating_sub(1);
        if let Some((address, local)) = server
            && Family::of(&address.ip()) == self.family
            && !self.servers.iter().any(|known| known.address == address)
        {
            let number = self.servers.len();
            self.servers.push(Server { address, local, contact: Contact::Waiting });
            if self.chosen.is_none() {
                let patience = CONTACT_LIMIT.saturating_sub(now.saturating_duration_since(self.started));
                self.start(Path::Asked, address, Test::Contact(number), (CONTACT_RTO, patience), now);
            }
        }
        self.advance(now);
    }

    /// The next datagram due and the port to send it from; call until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(Path, Transmit)> {
        while let Some(entry) = self.later.first_entry().filter(|entry| entry.key().0 <= now) {
            let (path, request, test) = entry.remove();
            self.tests.insert(request.id, (path, test));
            self.transactions[path.index()].start(request, now);
        }
        Path::ALL.into_iter().find_map(|path| Some((path, self.transactions[path.index()].poll_transmit(now)?)))
    }

    /// There is no way to send this transaction's datagrams. (One that was merely dropped on the way out is a lost one.)
    pub fn unsendable(&mut self, path: Path, id: TransactionId, now: Instant) {
        self.transactions[path.index()].cancel(id);
        self.over(id, Contact::Unsent);
        self.advance(now);
    }

    /// Takes a datagram in that arrived on `path`.
    pub fn handle(&mut self, path: Path, from: SocketAddr, bytes: &[u8], now: Instant) {
        let Some(id) = super::stun::transaction_id(bytes) else { return };
        let Some(&(_, test)) = self.tests.get(&id) else { return };
        if test == Test::Hairpin {
            // our own request, whichever of the two ports it came back to
            self.hairpinned = true;
            return self.advance(now);
        }
        if let (Test::Filter(_) | Test::Honours(_), Some(chosen)) = (test, self.chosen)
            && from == chosen.first
            && super::stun::decode(bytes).is_ok()
        {
            // answered from where it was asked, or refused: this server can't test filtering
            self.ignores_change = true;
            return self.advance(now);
        }
        let Some(Event::Answer { server, response, round_trip, .. }) =
            self.transactions[path.index()].handle(from, bytes, now)
        else {
            return;
        };
        if let Some(round_trip) = round_trip {
            self.round_trip = Some(self.round_trip.map_or(round_trip, |known| known.min(round_trip)));
        }
        match response.body {
            Body::Success(success) if Family::of(&success.mapped.ip()) == self.family => {
                self.answered(path, server, test, success, now);
            }
            _ => self.over(id, Contact::Refused),
        }
        self.advance(now);
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        for path in Path::ALL {
            while let Some(Event::TimedOut { id, .. }) = self.transactions[path.index()].poll_timed_out(now) {
                self.over(id, Contact::Silent);
            }
        }
        self.advance(now);
    }

    /// When to call [`Self::handle_timeout`] and [`Self::poll_transmit`] next, once both have nothing more at `now`.
    pub fn poll_timeout(&self, now: Instant) -> Instant {
        let fixed = [self.started + OTHER_ADDRESS_LIMIT, self.started + CONTACT_LIMIT];
        let marks = [self.settles(), self.middle, self.wait_ends, self.later.first_key_value().map(|(key, _)| key.0)];
        let timers = self.transactions.iter().filter_map(Transactions::poll_timeout);
        let first_phase = fixed.into_iter().filter(|_| self.chosen.is_none());
        let limit = self.started + LIMIT;
        let all = first_phase.chain(marks.into_iter().flatten()).chain(timers);
        all.filter(|at| *at > now).min().map_or(limit, |at| at.min(limit))
    }

    /// Nothing more will be learnt.
    pub fn is_done(&self) -> bool {
        self.done
    }

    fn answered(&mut self, path: Path, server: SocketAddr, test: Test, success: Success, now: Instant) {
        self.observed.entry((path, server)).or_insert(success.mapped);
        match test {
            Test::Contact(number) => self.servers[number].contact = Contact::Answered(success),
            Test::Control(number) => {
                self.controls[usize::from(number)] = Some(success.mapped);
                if number == 0 {
                    let wait = self.wait();
                    self.wait_ends = Some(now + wait);
                    self.middle = Some(now + wait / 2);
                }
            }
            Test::Honours(change) => self.honoured.push(change),
            Test::Filter(change) => self.passed.push(change),
            Test::Map | Test::Hairpin => {}
        }
    }

    /// A transaction ended without a reflexive address.
    fn over(&mut self, id: TransactionId, how: Contact) {
        if let Some(&(_, Test::Contact(number))) = self.tests.get(&id) {
            self.servers[number].contact = how;
        }
    }

    fn start(&mut self, path: Path, server: SocketAddr, test: Test, timing: (Duration, Duration), at: Instant) {
        let change = match test {
            Test::Filter(change) | Test::Honours(change) => Some(change),
            _ => None,
        };
        let from = match (change, self.chosen) {
            (Some(change), Some(chosen)) => AnswerFrom::Exactly(chosen.answers_from(change)),
            _ => AnswerFrom::Server,
        };
        let options = Options {
            change_ip: change == Some(Change::AddressAndPort),
            change_port: change.is_some(),
            response_port: None,
        };
        let (rto, patience) = timing;
        let request = Request { id: (self.ids)(), server, options, from, rto, patience: Some(patience) };
        self.serial += 1;
        self.later.insert((at, self.serial), (path, request, test));
    }

    /// How long an answer is waited for before its absence means something.
    fn wait(&self) -> Duration {
        (WAIT + self.round_trip.unwrap_or(CONTACT_RTO) * WAIT_ROUND_TRIPS).min(WAIT_MAX)
    }

    /// Every server has answered or never will.
    fn contacts_over(&self) -> bool {
        self.names_pending == 0 && self.servers.iter().all(|server| server.contact != Contact::Waiting)
    }

    /// When the wait for a server earlier in the list is over.
    fn settles(&self) -> Option<Instant> {
        let since = self.candidate_since.filter(|_| self.chosen.is_none())?;
        Some(since + SETTLE.max(self.round_trip.unwrap_or_default() / 2))
    }

    fn candidate(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.servers.iter().find_map(|server| match &server.contact {
            Contact::Answered(Success { other: Some(other), .. })
                // RFC 5780 §7.4: both differ, or it can't test
                if other.ip() != server.address.ip()
                    && other.port() != server.address.port()
                    && Family::of(&other.ip()) == self.family
                    && !self.unfit.iter().any(|unfit| unfit.ip() == server.address.ip() || unfit.ip() == other.ip()) =>
            {
                Some((server.address, *other))
            }
            _ => None,
        })
    }

    /// Takes every step that is due.
    fn advance(&mut self, now: Instant) {
        if self.done {
            return;
        }
        if self.chosen.is_none() {
            if let Some((first, other)) = self.candidate() {
                self.candidate_since.get_or_insert(now);
                if self.contacts_over() || self.settles().is_some_and(|at| at <= now) {
                    self.choose(first, other, now);
                }
            } else {
                let answered = self.servers.iter().any(|server| matches!(server.contact, Contact::Answered(_)));
                let limit = if answered { OTHER_ADDRESS_LIMIT } else { CONTACT_LIMIT };
                self.done = self.contacts_over() || now >= self.started + limit;
            }
        }
        if let Some(chosen) = self.chosen {
            self.continue_with(chosen, now);
        }
        self.done |= now >= self.started + LIMIT;
    }

    /// Starts every test that doesn't depend on another one's result.
    fn choose(&mut self, first: SocketAddr, other: SocketAddr, now: Instant) {
        let rto = rto_from(self.round_trip.unwrap_or(CONTACT_RTO)).min(MAX_RTO);
        let chosen = Chosen { first, other, rto };
        self.chosen = Some(chosen);
        let timing = (rto, self.wait());
        for path in [Path::Asked, Path::Second] {
            for server in chosen.all() {
                if !self.observed.contains_key(&(path, server)) {
                    self.start(path, server, Test::Map, timing, now);
                }
            }
        }
        self.start(Path::Filter, first, Test::Control(0), timing, now);
        let patience = WAIT_MAX * 2;
        for copy in 0..COPIES {
            for change in [Change::AddressAndPort, Change::Port] {
                let at = now + rto / COPIES * copy;
                self.start(Path::Filter, first, Test::Filter(change), (rto, patience), at);
            }
        }
    }

    fn continue_with(&mut self, chosen: Chosen, now: Instant) {
        let timing = (chosen.rto, self.wait());
        for (path, change) in self.open_paths(chosen) {
            if !self.has_test(path, Test::Honours(change)) {
                self.start(path, chosen.first, Test::Honours(change), timing, now);
            }
        }
        if self.middle.is_some_and(|at| at <= now) {
            self.middle = None;
            self.start(Path::Filter, chosen.first, Test::Control(1), timing, now);
        }
        self.start_hairpin(chosen, now);
        if self.is_mapping_settled(chosen) && self.is_filtering_settled(now) && self.is_hairpin_settled() {
            self.done = true;
            let measured = self.measured();
            if measured.mapping == Behaviour::Unknown || measured.filtering == Behaviour::Unknown {
                // another server may do better
                self.unfit.push(chosen.first);
                if let Some((first, other)) = self.candidate() {
                    self.earlier = Some(measured);
                    self.forget_tests();
                    self.choose(first, other, now);
                }
            }
        }
    }

    /// Where a changed answer surely passes: the path has heard from that address, on the same mapping.
    fn open_paths(&self, chosen: Chosen) -> Vec<(Path, Change)> {
        let mut open = Vec::new();
        for path in [Path::Asked, Path::Second] {
            let mapped = self.observed.get(&(path, chosen.first));
            for change in [Change::AddressAndPort, Change::Port] {
                if mapped.is_some() && self.observed.get(&(path, chosen.answers_from(change))) == mapped {
                    open.push((path, change));
                }
            }
        }
        open
    }

    /// Drops all that a server that was no good has begun; what the first contacts saw stays.
    fn forget_tests(&mut self) {
        self.later.clear();
        self.tests.clear();
        self.transactions = Default::default();
        self.observed.retain(|(path, server), _| {
            *path == Path::Asked && self.servers.iter().any(|known| known.address == *server)
        });
        self.honoured.clear();
        self.passed.clear();
        (self.controls, self.wait_ends, self.middle) = ([None; 2], None, None);
        (self.ignores_change, self.hairpin_started, self.done) = (false, false, false);
    }

    fn start_hairpin(&mut self, chosen: Chosen, now: Instant) {
        let asked = self.observed.get(&(Path::Asked, chosen.first)).copied();
        let second = self.observed.get(&(Path::Second, chosen.first)).copied();
        let (Some(asked), Some(second), false) = (asked, second, self.hairpin_started) else { return };
        self.hairpin_started = true;
        if self.is_natted() {
            // both ways: each opens the other's filter
            for copy in 0..COPIES {
                let at = now + chosen.rto / COPIES * copy;
                self.start(Path::Asked, second, Test::Hairpin, (chosen.rto, WAIT), at);
                self.start(Path::Second, asked, Test::Hairpin, (chosen.rto, WAIT), at);
            }
        }
    }

    fn has_test(&self, path: Path, test: Test) -> bool {
        self.tests.values().any(|known| *known == (path, test))
            || self.later.values().any(|(on, _, known)| (*on, *known) == (path, test))
    }

    /// Transactions of this kind still run or will.
    fn runs(&self, wanted: impl Fn(Path, Test) -> bool) -> bool {
        self.later.values().any(|(path, _, test)| wanted(*path, *test))
            || self
                .tests
                .iter()
                .any(|(id, (path, test))| wanted(*path, *test) && self.transactions[path.index()].is_running(*id))
    }

    fn is_mapping_settled(&self, chosen: Chosen) -> bool {
        let all = |path| chosen.all().into_iter().all(|server| self.observed.contains_key(&(path, server)));
        (all(Path::Asked) && all(Path::Second)) || !self.runs(|_, test| test == Test::Map)
    }

    fn is_filtering_settled(&self, now: Instant) -> bool {
        if self.ignores_change || self.passed.contains(&Change::AddressAndPort) {
            return true;
        }
        match self.wait_ends {
            None => !self.runs(|_, test| matches!(test, Test::Control(_))),
            Some(ends) if ends > now => false,
            // what surely comes may take a retransmission more
            Some(_) => {
                let needs = |change| self.honoured.contains(&change);
                let honoured = needs(Change::AddressAndPort) && needs(Change::Port);
                !self
                    .runs(|_, test| matches!(test, Test::Control(_)) || (matches!(test, Test::Honours(_)) && !honoured))
            }
        }
    }

    fn is_hairpin_settled(&self) -> bool {
        self.hairpinned
            || if self.hairpin_started {
                !self.runs(|_, test| test == Test::Hairpin)
            } else {
                !self.runs(|_, test| test == Test::Map)
            }
    }
}

#[cfg(test)]
#[path = "discovery/tests.rs"]
mod tests;
