//! Drives the mapping keeper: raw sockets beside WireGuard's port, sources chosen by route look-ups with the device's
//! fwmark, server names looked up in the background.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use peervpn_platform::Host;
use peervpn_platform::os::{self, raw, raw::RawStun, ready::Watched};
use tokio::task::JoinHandle;

use super::alarm::{Alarm, Woken};
use super::apply::Applier;
use super::event::{Event as Said, Output};
use super::stun::transaction_id;
use crate::config::NodeOptions;
use crate::nat::keeper::{Event, Keeper, Known, Pace};

/// When names did not resolve, or no server was left: look them up again after this.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(30);
/// Addresses taken from one server name.
const ADDRESSES_PER_NAME: usize = 2;

/// The mapping of one port, watched.
pub struct MappingWatch {
    socket: Watched<RawStun>,
    fwmark: u32,
    pace: Pace,
    names: Vec<String>,
    known: Known,
    look_up: JoinHandle<Vec<SocketAddr>>,
    keeper: Option<Keeper>,
    alarm: Alarm,
    /// Answers that name one of these do not reach us.
    left_out: Vec<SocketAddr>,
    events: VecDeque<Event>,
}

impl MappingWatch {
    /// Watches the mapping of `port`. `known`: what STUN found before WireGuard took the port.
    pub fn start(
        port: u16,
        fwmark: u32,
        servers: &[String],
        known: Known,
        pace: Pace,
    ) -> Result<MappingWatch, peervpn_platform::Error> {
        Ok(MappingWatch {
            socket: Watched::new(RawStun::open(port, fwmark)?)?,
            fwmark,
            pace,
            names: servers.to_vec(),
            known,
            look_up: tokio::spawn(look_up(servers.to_vec(), Duration::ZERO)),
            keeper: None,
            alarm: Alarm::new(),
            left_out: Vec::new(),
            events: VecDeque::new(),
        })
    }

    /// The mappings as last confirmed, v4 first.
    pub fn reflexive(&self) -> Vec<SocketAddr> {
        self.keeper.as_ref().map_or_else(|| self.known.reflexive.clone(), Keeper::reflexive)
    }

    /// Measure at once: the network has changed.
    pub fn refresh(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            keeper.refresh(Instant::now());
        }
    }

    /// The next thing worth knowing. Can be dropped and called again at any time.
    pub async fn next(&mut self, host: &mut impl Host) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            match &mut self.keeper {
                None => {
                    let servers = (&mut self.look_up).await.unwrap_or_default();
                    if servers.is_empty() {
                        self.look_up = tokio::spawn(look_up(self.names.clone(), LOOK_UP_AGAIN));
                    } else {
                        // the first refresh is due when the mapping found before is one interval old
                        let now = Instant::now();
                        let first = if self.known.reflexive.is_empty() { now } else { now + self.pace.interval };
                        self.keeper = Some(Keeper::new(self.pace, &servers, &self.known, first));
                    }
                }
                Some(keeper) => {
                    let probes: Vec<_> =
                        std::iter::from_fn(|| keeper.poll_transmit(Instant::now(), transaction_id)).collect();
                    let expected = keeper.expected();
                    // before a question is out, so that its answer is heard
                    if expected != self.left_out
                        && let Err(error) = self.socket.get_ref().leave_out(&expected)
                    {
                        tracing::debug!(%error, "every STUN answer wakes us");
                    }
                    self.left_out = expected;
                    for probe in probes {
                        send(self.socket.get_ref(), host, self.fwmark, probe.to, &probe.bytes);
                    }
                    let due = keeper.poll_timeout().unwrap_or_else(|| Instant::now() + self.pace.interval);
                    tokio::select! {
                        woken = self.alarm.until(due) => match woken {
                            Woken::Due => self.events.extend(keeper.handle_timeout(Instant::now())),
                            // the NAT may have forgotten us meanwhile
                            Woken::Suspended => keeper.refresh(Instant::now()),
                        },
                        ready = self.socket.readable() => {
                            let Ok(ready) = ready else { return std::future::pending().await };
                            let mut buffer = [0; raw::BUFFER_LEN];
                            while let Ok(Some((from, message))) = self.socket.get_ref().recv(&mut buffer) {
                                self.events.extend(keeper.handle(from, message, Instant::now()));
                            }
                            ready.clear();
                        }
                    }
                }
            }
        }
    }
}

/// The keeper's next news, if there is a keeper.
pub async fn next_news(mapping: &mut Option<MappingWatch>, applier: &mut Applier) -> Event {
    match mapping {
        Some(mapping) => mapping.next(&mut applier.host).await,
        None => std::future::pending().await,
    }
}

/// A probe that can't be sent is an answer that does not come: the keeper goes on to the next server.
fn send(socket: &RawStun, host: &mut impl Host, fwmark: u32, to: SocketAddr, message: &[u8]) {
    let sent = match host.route_lookup(to.ip(), fwmark) {
        Ok(Some(way)) => socket.send(way.source, to, message),
        Ok(None) => Err(std::io::ErrorKind::NetworkUnreachable.into()),
        Err(error) => {
            tracing::debug!(remote = %to, error = %error, "no source for a STUN probe");
            return;
        }
    };
    if let Err(error) = sent {
        tracing::debug!(remote = %to, %error, "STUN probe not sent");
    }
}

async fn look_up(names: Vec<String>, after: Duration) -> Vec<SocketAddr> {
    tokio::time::sleep(after).await;
    let mut servers = Vec::new();
    for name in names {
        if let Ok(found) = tokio::net::lookup_host(name).await {
            for address in found.take(ADDRESSES_PER_NAME * 2) {
                let same_family = servers.iter().filter(|s: &&SocketAddr| s.is_ipv4() == address.is_ipv4());
                if !servers.contains(&address) && same_family.count() < ADDRESSES_PER_NAME * 8 {
                    servers.push(address);
                }
            }
        }
    }
    servers
}

impl Drop for MappingWatch {
    fn drop(&mut self) {
        self.look_up.abort();
    }
}

/// How often a line of `--monitor-nat` is printed; design §3.
const MONITOR: Duration = Duration::from_secs(10);

/// The keeper's pace, and `--monitor-nat` where it was asked for: each of its lines is then a measurement.
pub fn pace(options: &NodeOptions, out: &mut dyn Output) -> (Pace, Option<Monitor>) {
    let interval = options.keeper_interval;
    let nobody = options.no_stun || options.stun_servers.is_empty();
    if options.monitor_nat && nobody {
        out.event(&Said::Warning(
            "no --monitor-nat: it asks STUN servers, and with --no-stun there are none".to_owned(),
        ));
    }
    if !options.monitor_nat || nobody {
        return (Pace { interval, ask: false }, None);
    }
    let mut ticks = tokio::time::interval_at((Instant::now() + MONITOR).into(), MONITOR);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    (Pace { interval: interval.min(MONITOR), ask: true }, Some(Monitor { ticks, last: None }))
}

/// `--monitor-nat`: remembers what the last line said.
pub struct Monitor {
    ticks: tokio::time::Interval,
    last: Option<SocketAddr>,
}

/// The next line is due.
pub async fn tick(monitor: &mut Option<Monitor>) {
    match monitor {
        Some(monitor) => drop(monitor.ticks.tick().await),
        None => std::future::pending().await,
    }
}

impl Monitor {
    /// The line for now.
    pub fn line(&mut self, mapping: &MappingWatch) -> super::event::Event {
        let now = mapping.reflexive().into_iter().next();
        let old = self.last.filter(|last| now.is_some_and(|now| now != *last));
        self.last = now.or(self.last);
        let (hours, minutes, seconds) = os::local_time();
        let time = format!("{hours:02}:{minutes:02}:{seconds:02}");
        super::event::Event::Monitor { time, old: old.map(|a| a.to_string()), now: now.map(|a| a.to_string()) }
    }
}
