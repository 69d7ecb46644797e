//! Many STUN transactions at once, sans I/O: retransmission, time-outs, matching answers to requests.
//! RFC 8489 §6.2.1: the first request at once, then at RTO, doubled each time, `RC` requests in all; a transaction
//! fails `RM` × RTO after the last one.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::stun::{self, Options, Response, TransactionId};

/// Initial RTO where no round trip is known yet; RFC 8489 §6.2.1.
pub const INITIAL_RTO: Duration = Duration::from_millis(500);
/// Requests sent in all, `Rc`; RFC 8489 §6.2.1.
pub const RC: u32 = 7;
/// RTOs to wait after the last request, `Rm`; RFC 8489 §6.2.1.
pub const RM: u32 = 16;
/// Least RTO derived from a measured round trip: the clock granularity and scheduling slack of both ends.
pub const MIN_RTO: Duration = Duration::from_millis(20);

/// RTO after one measured round trip: RFC 6298 §2.2 (SRTT + 4 × RTTVAR with RTTVAR = R/2), not rounded up to a second
/// (RFC 8489 §6.2.1), at least [`MIN_RTO`].
pub fn rto_from(round_trip: Duration) -> Duration {
    (round_trip * 3).max(MIN_RTO)
}

/// Which source an answer may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFrom {
    /// Only the address the request went to.
    Server,
    /// Only this one: what CHANGE-REQUEST asked for (RFC 5780 §4.4).
    Exactly(SocketAddr),
}

/// One request to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Random, never used twice.
    pub id: TransactionId,
    /// Where to.
    pub server: SocketAddr,
    /// What it asks.
    pub options: Options,
    /// Where the answer may come from.
    pub from: AnswerFrom,
    /// First retransmission after this; [`INITIAL_RTO`] or [`rto_from`].
    pub rto: Duration,
    /// Give up this long after the start even if RFC 8489's schedule would go on.
    pub patience: Option<Duration>,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// The transaction it belongs to.
    pub id: TransactionId,
    /// Where to.
    pub to: SocketAddr,
    /// Payload.
    pub bytes: Vec<u8>,
}

/// A transaction's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An answer came.
    Answer {
        /// Which transaction.
        id: TransactionId,
        /// Where the request went.
        server: SocketAddr,
        /// Where the answer came from.
        from: SocketAddr,
        /// The answer.
        response: Response,
        /// From the only request to the answer; `None` after a retransmission, which makes it ambiguous (RFC 6298 §3).
        round_trip: Option<Duration>,
    },
    /// No answer to any of the requests.
    TimedOut {
        /// Which transaction.
        id: TransactionId,
        /// Where the requests went.
        server: SocketAddr,
        /// How many were sent.
        transmissions: u32,
    },
}

#[derive(Debug)]
struct Running {
    request: Request,
    started: Instant,
    last_sent: Option<Instant>,
    sent: u32,
    next: Instant,
}

/// The transactions of one socket (or one a family).
#[derive(Debug, Default)]
pub struct Transactions {
    running: BTreeMap<TransactionId, Running>,
    order: VecDeque<TransactionId>,
}

impl Transactions {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts one; its first request is due at `now`.
    pub fn start(&mut self, request: Request, now: Instant) {
        let running = Running { request, started: now, last_sent: None, sent: 0, next: now };
        if self.running.insert(request.id, running).is_none() {
            self.order.push_back(request.id);
        }
    }

    /// Ends one without an event.
    pub fn cancel(&mut self, id: TransactionId) {
        self.running.remove(&id);
        self.order.retain(|other| *other != id);
    }

    /// Still running?
    pub fn is_running(&self, id: TransactionId) -> bool {
        self.running.contains_key(&id)
    }

    /// None running?
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// The next datagram due, in order of `start`; call until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        for id in &self.order {
            let running = self.running.get_mut(id)?;
            if running.sent < RC && running.next <= now && running.ends() > now {
                running.sent += 1;
                running.last_sent = Some(now);
                let rto = running.request.rto;
                running.next = now + if running.sent == RC { rto * RM } else { rto * 2u32.pow(running.sent - 1) };
                let bytes = stun::request(*id, running.request.options);
                return Some(Transmit { id: *id, to: running.request.server, bytes });
            }
        }
        None
    }

    /// When to call [`Self::poll_transmit`] and [`Self::poll_timed_out`] next; `None` when nothing runs.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.running.values().map(|running| running.next.min(running.ends())).min()
    }

    /// The next transaction whose time is over; call until `None`.
    pub fn poll_timed_out(&mut self, now: Instant) -> Option<Event> {
        let id = self.order.iter().copied().find(|id| self.running.get(id).is_some_and(|r| r.is_over(now)))?;
        let running = self.running.get(&id)?;
        let event = Event::TimedOut { id, server: running.request.server, transmissions: running.sent };
        self.cancel(id);
        Some(event)
    }

    /// Takes a datagram in. `None` if it answers none of ours, comes from where no answer may come from, or is
    /// malformed: the transaction then runs on, or one forged datagram would end it.
    pub fn handle(&mut self, from: SocketAddr, bytes: &[u8], now: Instant) -> Option<Event> {
        let id = stun::transaction_id(bytes)?;
        let running = self.running.get(&id)?;
        let expected = match running.request.from {
            AnswerFrom::Server => running.request.server,
            AnswerFrom::Exactly(address) => address,
        };
        if !same(from, expected) {
            return None;
        }
        let response = stun::decode(bytes).ok()?;
        let round_trip =
            (running.sent == 1).then(|| running.last_sent.map(|sent| now.saturating_duration_since(sent))).flatten();
        let server = running.request.server;
        self.cancel(id);
        Some(Event::Answer { id, server, from, response, round_trip })
    }
}

impl Running {
    fn ends(&self) -> Instant {
        match self.request.patience {
            Some(patience) => self.started + patience,
            None => self.started + self.request.rto * (2u32.pow(RC - 1) - 1 + RM),
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.ends() <= now || (self.sent == RC && self.next <= now)
    }
}

/// Equal address and port; a v6 scope or flow label doesn't make another sender.
fn same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip(), a.port()) == (b.ip(), b.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        "192.0.2.1:3478".parse().unwrap()
    }

    fn request(id: u8) -> Request {
        Request {
            id: TransactionId([id; 12]),
            server: server(),
            options: Options::default(),
            from: AnswerFrom::Server,
            rto: INITIAL_RTO,
            patience: None,
        }
    }

    /// A success answer with MAPPED-ADDRESS 203.0.113.9:9.
    fn answer(id: u8) -> Vec<u8> {
        let mut bytes = vec![0x01, 0x01, 0x00, 0x0c, 0x21, 0x12, 0xa4, 0x42];
        bytes.extend([id; 12]);
        bytes.extend([0x00, 0x01, 0x00, 0x08, 0, 1, 0, 9, 203, 0, 113, 9]);
        bytes
    }

    fn run_silent(request: Request) -> (Vec<u128>, u128) {
        let start = Instant::now();
        let mut transactions = Transactions::new();
        transactions.start(request, start);
        let mut now = start;
        let mut sent = Vec::new();
        loop {
            while transactions.poll_transmit(now).is_some() {
                sent.push((now - start).as_millis());
            }
            if let Some(Event::TimedOut { transmissions, .. }) = transactions.poll_timed_out(now) {
                assert_eq!(transmissions as usize, sent.len());
                assert!(transactions.is_empty() && transactions.poll_timeout().is_none());
                return (sent, (now - start).as_millis());
            }
            let next = transactions.poll_timeout().expect("something runs");
            assert!(next > now, "a timer that is due without anything to do would spin");
            now = next;
        }
    }

    #[test]
    fn retransmissions_follow_rfc_8489_6_2_1() {
        let (sent, end) = run_silent(request(1));
        assert_eq!(sent, [0, 500, 1500, 3500, 7500, 15500, 31500]);
        assert_eq!(end, 39500);
    }

    #[test]
    fn patience_and_a_measured_round_trip_shorten_it() {
        assert_eq!(rto_from(Duration::from_millis(1)), MIN_RTO);
        assert_eq!(rto_from(Duration::from_millis(100)), Duration::from_millis(300));
        let quick = Request { rto: MIN_RTO, patience: Some(Duration::from_millis(600)), ..request(1) };
        assert_eq!(run_silent(quick), (vec![0, 20, 60, 140, 300], 600));
        let boundary = Request { rto: MIN_RTO, patience: Some(Duration::from_millis(60)), ..request(1) };
        assert_eq!(run_silent(boundary), (vec![0, 20], 60));
    }

    #[test]
    fn answers_are_matched_by_id_and_source_and_counted_once() {
        let now = Instant::now();
        let mut transactions = Transactions::new();
        transactions.start(request(1), now);
        transactions.start(request(2), now);
        assert_eq!(transactions.poll_transmit(now).unwrap().id, TransactionId([1; 12]));
        assert_eq!(transactions.poll_transmit(now).unwrap().id, TransactionId([2; 12]));
        assert_eq!(transactions.poll_transmit(now), None);
        let later = now + Duration::from_millis(30);
        assert_eq!(transactions.handle("192.0.2.2:3478".parse().unwrap(), &answer(1), later), None);
        assert_eq!(transactions.handle(server(), &answer(3), later), None);
        let mut broken = answer(1);
        broken[21] = 0x55;
        assert_eq!(transactions.handle(server(), &broken, later), None);
        let Some(Event::Answer { id, round_trip, .. }) = transactions.handle(server(), &answer(2), later) else {
            panic!("the second one's answer")
        };
        assert_eq!((id, round_trip), (TransactionId([2; 12]), Some(Duration::from_millis(30))));
        assert_eq!(transactions.handle(server(), &answer(2), later), None);
        assert!(transactions.is_running(TransactionId([1; 12])));
    }

    #[test]
    fn a_round_trip_after_a_retransmission_is_not_measured() {
        let now = Instant::now();
        let mut transactions = Transactions::new();
        transactions.start(request(1), now);
        transactions.poll_transmit(now).unwrap();
        transactions.poll_transmit(now + INITIAL_RTO).unwrap();
        let event = transactions.handle(server(), &answer(1), now + INITIAL_RTO + Duration::from_millis(1));
        assert!(matches!(event, Some(Event::Answer { round_trip: None, .. })), "{event:?}");
    }

    #[test]
    fn a_changed_source_is_accepted_only_where_it_was_asked_for() {
        let other: SocketAddr = "192.0.2.2:3479".parse().unwrap();
        let now = Instant::now();
        let mut transactions = Transactions::new();
        let options = Options { change_ip: true, change_port: true, ..Options::default() };
        transactions.start(Request { from: AnswerFrom::Exactly(other), options, ..request(1) }, now);
        transactions.poll_transmit(now).unwrap();
        assert_eq!(transactions.handle(server(), &answer(1), now), None);
        assert!(
            matches!(transactions.handle(other, &answer(1), now), Some(Event::Answer { from, .. }) if from == other)
        );
    }
}
