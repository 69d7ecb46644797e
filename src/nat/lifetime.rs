//! How long a mapping lives without traffic: RFC 5780 §4.6, sans I/O.
//!
//! A mapping that has been idle is tested from a second port: a request with RESPONSE-PORT makes the server answer to
//! the idle one, which arrives only while the mapping lives. Instead of one mapping after the other, a ladder of them is
//! opened at once, each tested after its own time: the whole takes about as long as the mapping lives. A second ladder
//! between the last rung that lived and the first that didn't narrows it down.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::stun::{Body, Options, TransactionId};
use super::transaction::{AnswerFrom, Event, Request, Transactions, Transmit};

/// Seconds of the first ladder's rungs. The first one tells whether the server does what RESPONSE-PORT asks; the last is
/// RFC 4787 REQ-5's recommended default of 5 minutes.
const RUNGS: [u64; 18] = [0, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 90, 105, 120, 150, 180, 240, 300];
/// Rungs of the second ladder.
const FINER: u64 = 4;
/// RTO and patience of each exchange: five requests.
const RTO: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(3);
/// Transactions that test a rung, with different RTOs: only silence of all says that the mapping is gone.
const COPIES: u32 = 2;

/// The rungs of the first ladder.
pub fn first_ladder() -> Vec<Duration> {
    RUNGS.iter().copied().map(Duration::from_secs).collect()
}

/// A ladder between a time that a mapping lived and one that it didn't; empty when a second is all that is between.
pub fn finer_ladder(alive: Duration, dead: Duration) -> Vec<Duration> {
    let (alive, dead) = (alive.as_secs(), dead.as_secs());
    let step = (dead.saturating_sub(alive)).div_ceil(FINER + 1).max(1);
    let between: Vec<Duration> =
        (1..).map(|n| alive + n * step).take_while(|at| *at < dead).map(Duration::from_secs).collect();
    // the promise is tested again: the rung at zero
    if between.is_empty() { between } else { [Duration::ZERO].into_iter().chain(between).collect() }
}

/// What a ladder told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every rung lived.
    AtLeast(Duration),
    /// Lived after `alive`, didn't after `dead`.
    Between {
        /// Longest idle time survived.
        alive: Duration,
        /// Shortest idle time not survived.
        dead: Duration,
    },
    /// The server doesn't answer to RESPONSE-PORT, or not at all.
    NotMeasurable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its mapping is being made.
    Opening,
    /// Made then, with this outside port.
    Idle(Instant, u16),
    /// Being tested.
    Testing,
    Alive,
    Dead,
    /// Its mapping couldn't be made: it says nothing.
    Skipped,
}

/// One ladder. Port 0 is the testing one, port N+1 that of rung N.
pub struct Ladder {
    server: SocketAddr,
    rungs: Vec<(Duration, State)>,
    /// The testing port's transactions first.
    transactions: Vec<Transactions>,
    /// Rung that a transaction of the testing port tests.
    tests: Vec<(TransactionId, usize)>,
    ids: Box<dyn FnMut() -> TransactionId + Send>,
    ignores: bool,
}

impl Ladder {
    /// Starts: needs one port more than `rungs` (ascending, the first zero).
    pub fn new(
        server: SocketAddr,
        rungs: &[Duration],
        ids: impl FnMut() -> TransactionId + Send + 'static,
        now: Instant,
    ) -> Self {
        let mut ladder = Ladder {
            server,
            rungs: rungs.iter().map(|after| (*after, State::Opening)).collect(),
            transactions: std::iter::repeat_with(Transactions::new).take(rungs.len() + 1).collect(),
            tests: Vec::new(),
            ids: Box::new(ids),
            ignores: false,
        };
        for port in 1..=rungs.len() {
            let request = ladder.request(None);
            ladder.transactions[port].start(request, now);
        }
        ladder
    }

    /// The next datagram due and the port to send it from; call until `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<(usize, Transmit)> {
        self.transactions.iter_mut().enumerate().find_map(|(port, running)| Some((port, running.poll_transmit(now)?)))
    }

    /// Takes a datagram in that arrived on `port`.
    pub fn handle(&mut self, port: usize, from: SocketAddr, bytes: &[u8], now: Instant) {
        let tested = super::stun::transaction_id(bytes).and_then(|id| self.tests.iter().find(|(test, _)| *test == id));
        if let Some(&(_, rung)) = tested {
            match self.transactions[0].handle(from, bytes, now) {
                Some(Event::Answer { .. }) if port == rung + 1 => self.rungs[rung].1 = State::Alive,
                // answered to where the request came from
                Some(_) => self.ignores = true,
                None => {}
            }
        } else if port > 0
            && let Some(Event::Answer { response, .. }) = self.transactions[port].handle(from, bytes, now)
            && let Body::Success(success) = response.body
        {
            self.rungs[port - 1].1 = State::Idle(now, success.mapped.port());
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        for port in 0..self.transactions.len() {
            while let Some(Event::TimedOut { id, .. }) = self.transactions[port].poll_timed_out(now) {
                match self.tests.iter().position(|(test, _)| *test == id) {
                    Some(index) => {
                        let (_, rung) = self.tests.swap_remove(index);
                        let others = self.tests.iter().any(|(_, other)| *other == rung);
                        if !others && self.rungs[rung].1 == State::Testing {
                            self.rungs[rung].1 = State::Dead;
                        }
                    }
                    None => self.rungs[port.saturating_sub(1)].1 = State::Skipped,
                }
            }
        }
        for rung in 0..self.rungs.len() {
            let (after, state) = self.rungs[rung];
            if let State::Idle(since, outside) = state
                && since + after <= now
            {
                self.rungs[rung].1 = State::Testing;
                for copy in 0..COPIES {
                    let request = Request { rto: RTO + RTO / COPIES * copy, ..self.request(Some(outside)) };
                    self.tests.push((request.id, rung));
                    self.transactions[0].start(request, now);
                }
            }
        }
    }

    /// When to call [`Self::handle_timeout`] and [`Self::poll_transmit`] next.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let idle = self.rungs.iter().filter_map(|(after, state)| match state {
            State::Idle(since, _) => Some(*since + *after),
            _ => None,
        });
        let timers = self.transactions.iter().filter_map(Transactions::poll_timeout);
        idle.chain(timers).map(|at| at.max(now)).min()
    }

    /// The longest idle time survived so far.
    pub fn alive(&self) -> Duration {
        self.told().take_while(|(_, state)| *state == State::Alive).map(|(after, _)| after).last().unwrap_or_default()
    }

    /// The rungs that say something.
    fn told(&self) -> impl Iterator<Item = (Duration, State)> + '_ {
        self.rungs.iter().copied().filter(|(_, state)| *state != State::Skipped)
    }

    /// The result, once it is there.
    pub fn outcome(&self) -> Option<Outcome> {
        if self.ignores || matches!(self.rungs.first(), None | Some((_, State::Skipped | State::Dead))) {
            // without the first rung there is no promise to rely on
            return Some(Outcome::NotMeasurable);
        }
        match self.told().find(|(_, state)| *state != State::Alive) {
            None => Some(Outcome::AtLeast(self.alive())),
            Some((dead, State::Dead)) => Some(Outcome::Between { alive: self.alive(), dead }),
            Some(_) => None,
        }
    }

    fn request(&mut self, response_port: Option<u16>) -> Request {
        Request {
            id: (self.ids)(),
            server: self.server,
            options: Options { response_port, ..Options::default() },
            from: AnswerFrom::Server,
            rto: RTO,
            patience: Some(PATIENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a ladder against mappings that live `lifetime`; `obeys`: the server knows RESPONSE-PORT.
    fn run(rungs: &[Duration], lifetime: Duration, obeys: bool, lost: u32) -> (Outcome, Duration) {
        let server: SocketAddr = "192.0.2.3:3478".parse().unwrap();
        let start = Instant::now();
        let mut now = start;
        let mut next = 0u32;
        let ids = move || {
            next += 1;
            let mut id = [0; 12];
            id[..4].copy_from_slice(&next.to_be_bytes());
            TransactionId(id)
        };
        let mut ladder = Ladder::new(server, rungs, ids, now);
        let mut opened = vec![None; rungs.len() + 1];
        let mut count = 0;
        loop {
            ladder.handle_timeout(now);
            while let Some((port, transmit)) = ladder.poll_transmit(now) {
                count += 1;
                if lost > 0 && count % lost == 0 {
                    continue;
                }
                opened[port].get_or_insert(now);
                let response_port = (transmit.bytes.len() > 20).then(|| usize::from(transmit.bytes[25]));
                let to = response_port.filter(|_| obeys).unwrap_or(port);
                let mut answer = vec![0x01, 0x01, 0x00, 0x0c];
                answer.extend(&transmit.bytes[4..20]);
                // outside port 0x4e00 + inside port, so that a byte tells which it is
                answer.extend([0x00, 0x01, 0x00, 0x08, 0, 1, 0x4e, port as u8, 203, 0, 113, 9]);
                if opened[to].is_some_and(|at| now - at <= lifetime) {
                    ladder.handle(to, server, &answer, now + Duration::from_millis(1));
                }
            }
            if let Some(outcome) = ladder.outcome() {
                return (outcome, now - start);
            }
            now = ladder.poll_timeout(now).expect("no outcome, so something runs").max(now + Duration::from_micros(1));
        }
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn two_ladders_find_the_lifetime_to_the_second_where_it_is_short() {
        let (outcome, took) = run(&first_ladder(), s(33), true, 0);
        assert_eq!(outcome, Outcome::Between { alive: s(30), dead: s(40) });
        assert!(took < s(44), "{took:?}");
        assert_eq!(finer_ladder(s(30), s(40)), [0, 32, 34, 36, 38].map(s));
        assert_eq!(run(&finer_ladder(s(30), s(40)), s(33), true, 0).0, Outcome::Between { alive: s(32), dead: s(34) });
        assert_eq!(finer_ladder(s(5), s(10)), [0, 6, 7, 8, 9].map(s));
        assert_eq!(finer_ladder(s(9), s(10)), []);
        assert_eq!(run(&first_ladder(), s(1000), true, 0).0, Outcome::AtLeast(s(300)));
    }

    #[test]
    fn loss_does_not_shorten_it() {
        for lost in [2, 3, 5, 7] {
            let (outcome, _) = run(&first_ladder(), s(33), true, lost);
            let Outcome::Between { alive, dead } = outcome else { panic!("every {lost}th lost: {outcome:?}") };
            assert!(alive <= s(33) && dead > s(33), "every {lost}th lost: {outcome:?}");
        }
    }

    #[test]
    fn a_server_without_response_port_is_no_measurement() {
        let (outcome, took) = run(&first_ladder(), s(33), false, 0);
        assert_eq!(outcome, Outcome::NotMeasurable);
        assert!(took < s(1));
        assert_eq!(run(&first_ladder(), Duration::ZERO, false, 1).0, Outcome::NotMeasurable, "no answer at all");
    }
}
