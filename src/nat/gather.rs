//! Asks several STUN servers for our reflexive address, both families side by side, and decides when enough is known.
//! A dead server costs no time: after a family's first answer the others get a short grace for a second opinion.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use peervpn_platform::types::Family;

use super::keeper::Known;
use super::stun::{Body, Options, TransactionId};
use super::transaction::{AnswerFrom, Event, INITIAL_RTO, Request, Transactions, Transmit};

/// Added to two round trips for a second server's answer: another server is rarely further away than that.
const GRACE: Duration = Duration::from_millis(50);
/// The same for a family that has no answer at all yet while the other one has.
const GRACE_OTHER_FAMILY: Duration = Duration::from_millis(200);
/// No grace is longer.
const GRACE_MAX: Duration = Duration::from_secs(1);

/// One server's word on our reflexive address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The server as configured, `HOST:PORT`.
    pub server: String,
    /// Its address asked.
    pub server_address: SocketAddr,
    /// Our reflexive address there.
    pub reflexive: SocketAddr,
    /// Round trip, where a first request was answered.
    pub round_trip: Option<Duration>,
}

/// What comparing the servers' answers tells about the NAT's mapping behaviour (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MappingHint {
    /// Fewer than two servers on different addresses answered.
    #[default]
    Unknown,
    /// Servers on different addresses saw the same reflexive address.
    Consistent,
    /// Two servers saw different ones: this NAT maps by destination, so no endpoint learnt here holds for a peer.
    ByDestination,
}

/// What one family gave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FamilyReport {
    /// Why there is no socket of this family, if there is none (no such protocol on this host).
    pub unavailable: Option<String>,
    /// In order of arrival.
    pub observations: Vec<Observation>,
    /// What comparing them tells.
    pub mapping: MappingHint,
}

impl FamilyReport {
    /// The reflexive address to offer: the one most servers saw, the earliest on a tie.
    pub fn reflexive(&self) -> Option<SocketAddr> {
        let votes = |address| self.observations.iter().filter(|o| o.reflexive == address).count();
        self.observations
            .iter()
            .map(|o| o.reflexive)
            .reduce(|best, next| if votes(next) > votes(best) { next } else { best })
    }

    /// The shortest round trip to a server.
    pub fn round_trip(&self) -> Option<Duration> {
        self.observations.iter().filter_map(|o| o.round_trip).min()
    }
}

/// Why a server gave no observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// Its name didn't resolve (in time).
    Unresolved(String),
    /// It didn't answer in the time it was given.
    NoAnswer,
    /// It answered with this error code.
    Refused(u16),
    /// The request couldn't be sent.
    Unsendable(String),
}

/// Everything learnt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gathered {
    /// The local port used, the same for both families.
    pub port: u16,
    /// IPv4.
    pub v4: FamilyReport,
    /// IPv6.
    pub v6: FamilyReport,
    /// Servers (as configured) that gave nothing in either family, and why. A server that was merely slower than the
    /// others is [`Silence::NoAnswer`] too.
    pub silent: Vec<(String, Silence)>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Gathered {
    /// What the mapping keeper starts from.
    pub fn known(&self) -> Known {
        let by_destination = |family: &Family| self.family(*family).mapping == MappingHint::ByDestination;
        Known { reflexive: self.reflexive(), by_destination: Family::BOTH.into_iter().filter(by_destination).collect() }
    }

    /// One family's report.
    pub fn family(&self, family: Family) -> &FamilyReport {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Our reflexive addresses, v4 first.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        [&self.v4, &self.v6].into_iter().filter_map(FamilyReport::reflexive).collect()
    }

    /// Some server answered.
    pub fn any(&self) -> bool {
        !(self.v4.observations.is_empty() && self.v6.observations.is_empty())
    }
}

/// How far a server's name is.
#[derive(Debug)]
enum Name {
    Pending,
    Resolved,
    Unresolved(String),
}

#[derive(Debug)]
struct Target {
    server: usize,
    address: SocketAddr,
    id: TransactionId,
    /// `None` while it runs.
    end: Option<Result<(), Silence>>,
}

/// The gathering, sans I/O.
#[derive(Debug)]
pub struct Gather {
    servers: Vec<(String, Name)>,
    targets: Vec<Target>,
    transactions: Transactions,
    reports: [FamilyReport; 2],
    /// Time and round trip of each family's first answer.
    first: [Option<(Instant, Duration)>; 2],
    started: Instant,
    limit: Duration,
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl Gather {
    /// Starts. Every server is then either [`resolved`](Self::resolved) or [`unresolved`](Self::unresolved). It ends at
    /// `limit` at the latest.
    pub fn new(servers: &[String], limit: Duration, now: Instant) -> Self {
        Gather {
            servers: servers.iter().map(|server| (server.clone(), Name::Pending)).collect(),
            targets: Vec::new(),
            transactions: Transactions::new(),
            reports: Default::default(),
            first: [None; 2],
            started: now,
            limit,
        }
    }

    /// This family has no socket.
    pub fn unavailable(&mut self, family: Family, why: String) {
        self.reports[index(family)].unavailable = Some(why);
    }

    /// Server number `server` (of the list given) has these addresses: the first of each family is asked.
    /// `id` gives a fresh random transaction ID.
    pub fn resolved(
        &mut self,
        server: usize,
        addresses: &[SocketAddr],
        mut id: impl FnMut() -> TransactionId,
        now: Instant,
    ) {
        self.servers[server].1 = Name::Resolved;
        for family in Family::BOTH {
            let Some(&address) = addresses.iter().find(|address| Family::of(&address.ip()) == family) else { continue };
            if self.reports[index(family)].unavailable.is_some() || self.targets.iter().any(|t| t.address == address) {
                continue;
            }
            let id = id();
            self.targets.push(Target { server, address, id, end: None });
            let patience = Some(self.limit);
            let request = Request {
                id,
                server: address,
                options: Options::default(),
                from: AnswerFrom::Server,
                rto: INITIAL_RTO,
                patience,
            };
            self.transactions.start(request, now);
        }
    }

    /// Server number `server` has no address.
    pub fn unresolved(&mut self, server: usize, why: String) {
        self.servers[server].1 = Name::Unresolved(why);
    }

    /// The next datagram due; call until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.transactions.poll_transmit(now)
    }

    /// A datagram couldn't be sent: that target is done.
    pub fn unsendable(&mut self, id: TransactionId, why: String) {
        self.transactions.cancel(id);
        self.end(id, Err(Silence::Unsendable(why)));
    }

    /// Takes a datagram in.
    pub fn handle(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) {
        let Some(Event::Answer { id, server, response, round_trip, .. }) = self.transactions.handle(from, bytes, now)
        else {
            return;
        };
        let mapped = match response.body {
            Body::Error(code) => return self.end(id, Err(Silence::Refused(code))),
            Body::Success(success) => success.mapped,
        };
        let family = Family::of(&server.ip());
        if Family::of(&mapped.ip()) != family {
            return self.end(id, Err(Silence::NoAnswer));
        }
        self.end(id, Ok(()));
        let Some(target) = self.targets.iter().find(|target| target.id == id) else { return };
        let report = &mut self.reports[index(family)];
        let server_name = self.servers[target.server].0.clone();
        report.observations.push(Observation {
            server: server_name,
            server_address: server,
            reflexive: mapped,
            round_trip,
        });
        report.mapping = hint(&report.observations);
        // without a clean measurement, what has passed bounds the round trip from above
        let round_trip = round_trip.unwrap_or_else(|| now.saturating_duration_since(self.started));
        self.first[index(family)].get_or_insert((now, round_trip));
    }

    /// When to call [`Self::handle_timeout`], [`Self::poll_transmit`] and [`Self::is_done`] next.
    pub fn poll_timeout(&self, now: Instant) -> Instant {
        let limit = self.started + self.limit;
        let graces = Family::BOTH.into_iter().filter(|f| !self.is_settled(*f, now)).filter_map(|f| self.grace_ends(f));
        graces.chain(self.transactions.poll_timeout()).chain([limit]).min().unwrap_or(limit)
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(Event::TimedOut { id, .. }) = self.transactions.poll_timed_out(now) {
            self.end(id, Err(Silence::NoAnswer));
        }
    }

    /// Nothing more is worth waiting for.
    pub fn is_done(&self, now: Instant) -> bool {
        now >= self.started + self.limit || Family::BOTH.into_iter().all(|family| self.is_settled(family, now))
    }

    /// The result.
    pub fn finish(self, port: u16, now: Instant) -> Gathered {
        let mut silent = Vec::new();
        for (number, (server, name)) in self.servers.into_iter().enumerate() {
            let ends: Vec<_> = self.targets.iter().filter(|t| t.server == number).map(|t| &t.end).collect();
            let silence = match name {
                Name::Unresolved(why) => Silence::Unresolved(why),
                Name::Pending => Silence::Unresolved("no answer from the resolver".to_owned()),
                // its address is another server's too, or of a family this host lacks
                Name::Resolved if ends.is_empty() => continue,
                Name::Resolved if ends.iter().any(|end| matches!(end, Some(Ok(())))) => continue,
                Name::Resolved => {
                    let refused = ends.iter().find_map(|end| end.as_ref()?.as_ref().err());
                    refused.cloned().unwrap_or(Silence::NoAnswer)
                }
            };
            silent.push((server, silence));
        }
        let [v4, v6] = self.reports;
        Gathered { port, v4, v6, silent, elapsed: now.saturating_duration_since(self.started) }
    }

    fn end(&mut self, id: TransactionId, end: Result<(), Silence>) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.id == id) {
            target.end = Some(end);
        }
    }

    fn grace_ends(&self, family: Family) -> Option<Instant> {
        let own = self.first[index(family)].map(|(at, rtt)| at + (rtt * 2 + GRACE).min(GRACE_MAX));
        own.or_else(|| {
            let (at, rtt) = self.first.iter().flatten().next()?;
            Some(*at + (*rtt * 2 + GRACE_OTHER_FAMILY).min(GRACE_MAX))
        })
    }

    fn is_settled(&self, family: Family, now: Instant) -> bool {
        let report = &self.reports[index(family)];
        let nothing_runs = !self.servers.iter().any(|(_, name)| matches!(name, Name::Pending))
            && self.targets.iter().all(|t| Family::of(&t.address.ip()) != family || t.end.is_some());
        report.unavailable.is_some()
            || report.mapping != MappingHint::Unknown
            || nothing_runs
            || self.grace_ends(family).is_some_and(|ends| ends <= now)
    }
}

fn hint(observations: &[Observation]) -> MappingHint {
    let seen: HashSet<SocketAddr> = observations.iter().map(|o| o.reflexive).collect();
    let from: HashSet<IpAddr> = observations.iter().map(|o| o.server_address.ip()).collect();
    match (seen.len(), from.len()) {
        (2.., _) => MappingHint::ByDestination,
        (1, 2..) => MappingHint::Consistent,
        _ => MappingHint::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn ids() -> impl FnMut() -> TransactionId {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(1);
        || {
            let mut id = [0; 12];
            id[..4].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            TransactionId(id)
        }
    }

    fn start(servers: &[&str], now: Instant) -> Gather {
        let names: Vec<String> = servers.iter().map(|s| s.to_string()).collect();
        let mut gather = Gather::new(&names, LIMIT, now);
        for (number, server) in servers.iter().enumerate() {
            match server.parse() {
                Ok(address) => gather.resolved(number, &[address], ids(), now),
                Err(_) => gather.unresolved(number, "no such name".to_owned()),
            }
        }
        gather
    }

    fn sent(gather: &mut Gather, now: Instant) -> Vec<Transmit> {
        std::iter::from_fn(|| gather.poll_transmit(now)).collect()
    }

    /// Answers `request` with `reflexive`.
    fn answer(gather: &mut Gather, request: &Transmit, reflexive: &str, now: Instant) {
        let mapped: SocketAddr = reflexive.parse().unwrap();
        let mut bytes = vec![0x01, 0x01, 0x00, if mapped.is_ipv4() { 12 } else { 24 }];
        bytes.extend(&request.bytes[4..20]);
        bytes.extend([0x00, 0x01, 0x00]);
        match mapped.ip() {
            IpAddr::V4(ip) => {
                bytes.extend([8, 0, 1]);
                bytes.extend(mapped.port().to_be_bytes());
                bytes.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                bytes.extend([20, 0, 2]);
                bytes.extend(mapped.port().to_be_bytes());
                bytes.extend(ip.octets());
            }
        }
        gather.handle(request.to, &bytes, now);
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn two_servers_that_agree_end_it_at_once() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478", "192.0.2.2:3478", "192.0.2.3:3478"], t);
        let requests = sent(&mut gather, t);
        assert_eq!(requests.len(), 3);
        answer(&mut gather, &requests[1], "203.0.113.9:51820", t + ms(10));
        assert!(!gather.is_done(t + ms(10)));
        answer(&mut gather, &requests[0], "203.0.113.9:51820", t + ms(12));
        assert!(gather.is_done(t + ms(12)));
        let gathered = gather.finish(51820, t + ms(12));
        assert_eq!(gathered.v4.mapping, MappingHint::Consistent);
        assert_eq!(gathered.reflexive(), ["203.0.113.9:51820".parse().unwrap()]);
        assert_eq!(gathered.v4.round_trip(), Some(ms(10)));
        assert_eq!(gathered.silent, [("192.0.2.3:3478".to_owned(), Silence::NoAnswer)]);
    }

    #[test]
    fn different_answers_mean_mapping_by_destination() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478", "192.0.2.1:3479"], t);
        let requests = sent(&mut gather, t);
        answer(&mut gather, &requests[0], "203.0.113.9:1000", t);
        answer(&mut gather, &requests[1], "203.0.113.9:1001", t);
        assert!(gather.is_done(t));
        assert_eq!(gather.finish(0, t).v4.mapping, MappingHint::ByDestination);
    }

    #[test]
    fn two_ports_of_one_address_agreeing_is_no_second_opinion() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478", "192.0.2.1:3479"], t);
        let requests = sent(&mut gather, t);
        answer(&mut gather, &requests[0], "203.0.113.9:1000", t);
        answer(&mut gather, &requests[1], "203.0.113.9:1000", t);
        assert!(gather.is_done(t), "all have answered");
        assert_eq!(gather.finish(0, t).v4.mapping, MappingHint::Unknown);
    }

    #[test]
    fn a_dead_server_costs_only_the_grace() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478", "192.0.2.66:3478"], t);
        let requests = sent(&mut gather, t);
        answer(&mut gather, &requests[0], "203.0.113.9:1000", t + ms(30));
        assert!(!gather.is_done(t + ms(139)));
        assert_eq!(gather.poll_timeout(t + ms(30)), t + ms(30 + 60 + 50));
        assert!(gather.is_done(t + ms(140)));
    }

    #[test]
    fn a_dead_family_costs_only_its_grace() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478", "192.0.2.2:3478", "[2001:db8::1]:3478"], t);
        let requests = sent(&mut gather, t);
        answer(&mut gather, &requests[0], "203.0.113.9:1000", t + ms(10));
        answer(&mut gather, &requests[1], "203.0.113.9:1000", t + ms(10));
        assert!(!gather.is_done(t + ms(229)));
        assert_eq!(gather.poll_timeout(t + ms(10)), t + ms(230));
        assert!(gather.is_done(t + ms(230)));
        let mut gather = start(&["192.0.2.1:3478", "[2001:db8::1]:3478"], t);
        let requests = sent(&mut gather, t);
        gather.unsendable(requests[1].id, "network is unreachable".to_owned());
        answer(&mut gather, &requests[0], "203.0.113.9:1000", t + ms(10));
        assert!(gather.is_done(t + ms(10)));
        let gathered = gather.finish(1, t + ms(10));
        assert_eq!(
            gathered.silent,
            [("[2001:db8::1]:3478".to_owned(), Silence::Unsendable("network is unreachable".to_owned()))]
        );
    }

    #[test]
    fn silence_everywhere_ends_at_the_limit_with_retransmissions() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478"], t);
        let mut now = t;
        let mut count = 0;
        while !gather.is_done(now) {
            count += sent(&mut gather, now).len();
            let next = gather.poll_timeout(now);
            assert!(next > now);
            now = next;
            gather.handle_timeout(now);
        }
        assert_eq!((now - t, count), (LIMIT, 3), "requests at 0, 500 and 1500 ms");
        let gathered = gather.finish(1, now);
        assert!(!gathered.any());
        assert_eq!(gathered.silent, [("192.0.2.1:3478".to_owned(), Silence::NoAnswer)]);
    }

    #[test]
    fn names_that_do_not_resolve_end_it_and_are_reported() {
        let t = Instant::now();
        let gather = start(&["nowhere.invalid:3478"], t);
        assert!(gather.is_done(t));
        assert_eq!(
            gather.finish(1, t).silent,
            [("nowhere.invalid:3478".to_owned(), Silence::Unresolved("no such name".to_owned()))]
        );
    }

    #[test]
    fn an_answer_of_the_wrong_family_is_no_observation() {
        let t = Instant::now();
        let mut gather = start(&["192.0.2.1:3478"], t);
        let requests = sent(&mut gather, t);
        answer(&mut gather, &requests[0], "[2001:db8::9]:1000", t);
        assert!(gather.is_done(t) && !gather.finish(1, t).any());
    }
}
