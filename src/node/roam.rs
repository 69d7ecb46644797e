//! Roaming: what a node does when links, addresses or routes change under it, or when the other side falls silent.
//!
//! WireGuard follows by itself, but late: it sends again when it has something to send, and answers a lost path after
//! 15 s. We see the change at once, and make it send.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use peervpn_platform::Watch;
use peervpn_platform::os::ready::Watched;
use peervpn_platform::os::watch::{FileWatch, NetworkWatch};
use peervpn_platform::types::{PeerConfig, PeerState, RouteLookup};
use peervpn_platform::{Host, WireGuard};

use super::event::Event;
use crate::error::Failure;
use crate::tunnel;

/// Changes come in bursts (an address goes, another comes, a route follows): look when they have paused for this long.
const SETTLE: Duration = Duration::from_millis(200);
/// A burst that does not end is looked at this often.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// Tells when something (the network, where nothing else is said) has changed and come to rest.
pub struct Changes<W: Watch = NetworkWatch> {
    watch: Watched<W>,
    since: Option<(Instant, Instant)>,
}

impl Changes {
    /// From now on.
    pub fn watch() -> Result<Changes, Failure> {
        Ok(Changes { watch: Watched::new(NetworkWatch::open()?)?, since: None })
    }

    /// The same for the firewall.
    pub fn watch_firewall() -> Result<Changes, Failure> {
        Ok(Changes { watch: Watched::new(NetworkWatch::open_firewall()?)?, since: None })
    }
}

impl Changes<FileWatch> {
    /// The same for files, whether they are there or not.
    pub fn watch_files(paths: &[&Path]) -> Result<Self, Failure> {
        Ok(Changes { watch: Watched::new(FileWatch::open(paths)?)?, since: None })
    }
}

impl<W: Watch> Changes<W> {
    /// It has changed and come to rest. Can be dropped and called again at any time.
    pub async fn settled(&mut self) {
        loop {
            let due = self.since.map(|(first, last)| (last + SETTLE).min(first + SETTLE_MAX));
            tokio::select! {
                ready = self.watch.readable() => {
                    let Ok(ready) = ready else { return std::future::pending().await };
                    if self.watch.get_ref().drain() {
                        let now = Instant::now();
                        self.since = Some((self.since.map_or(now, |(first, _)| first), now));
                    }
                    ready.clear();
                }
                () = sleep_until(due) => {
                    self.since = None;
                    return;
                }
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Nothing heard for this long: both sides send a keepalive every 25 s, so two were lost.
const SILENT: Duration = Duration::from_secs(2 * tunnel::KEEPALIVE as u64 + 10);
/// How often a healthy tunnel is looked at.
const LOOK: Duration = Duration::from_secs(tunnel::KEEPALIVE as u64);
/// After a change of network the answer to our keepalive may take this long.
const ANSWER: Duration = Duration::from_secs(1);
/// Longest time between two attempts to reach a silent exit.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A connected node's view of its one peer, the exit.
pub struct Health {
    /// Way of the outer packets when last looked at.
    way: Option<RouteLookup>,
    heard: Instant,
    rx_bytes: u64,
    next: Instant,
    backoff: Duration,
    lost: bool,
}

/// What to do about the exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing.
    None,
    /// Send it something at once: the session lives, our address has changed.
    Poke,
    /// Initiate anew.
    Call,
}

impl Health {
    /// A tunnel whose first handshake was just done, on this way.
    pub fn new(way: Option<RouteLookup>, now: Instant) -> Health {
        Health { way, heard: now, rx_bytes: 0, next: now + LOOK, backoff: ANSWER, lost: false }
    }

    /// When to look next.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// The network has changed: compares the way of the outer packets with the one before.
    pub fn moved(&mut self, way: Option<RouteLookup>, now: Instant) -> (Remedy, Option<Event>) {
        if self.way == way {
            return (Remedy::None, None);
        }
        let said = match &way {
            None => Event::Step("this host has lost its way to the exit; waiting for a network".to_owned()),
            Some(way) => Event::Step(format!(
                "the network has changed: reaching the exit from {} by {}",
                way.source, way.interface
            )),
        };
        let remedy = if way.is_some() { Remedy::Poke } else { Remedy::None };
        self.way = way;
        self.backoff = ANSWER;
        // if the answer does not come, the next look calls
        self.next = now + ANSWER;
        self.heard = self.heard.min(now.checked_sub(SILENT).unwrap_or(self.heard));
        (remedy, Some(said))
    }

    /// Looks at the exit as the device sees it.
    pub fn look(&mut self, exit: Option<&PeerState>, now: Instant) -> (Remedy, Option<Event>) {
        if let Some(exit) = exit
            && exit.rx_bytes != self.rx_bytes
        {
            (self.rx_bytes, self.heard) = (exit.rx_bytes, now);
            self.next = now + LOOK;
            self.backoff = ANSWER;
            let again = std::mem::take(&mut self.lost)
                .then(|| Event::Step("the exit answers again: traffic goes through it".to_owned()));
            return (Remedy::None, again);
        }
        if now.saturating_duration_since(self.heard) < SILENT {
            self.next = now + LOOK;
            return (Remedy::None, None);
        }
        self.next = now + self.backoff;
        // a first miss right after a change of network is no news yet
        let said = (!self.lost && self.backoff > ANSWER).then(|| {
            self.lost = true;
            Event::Warning(
                "the exit does not answer: this host's traffic stays inside the tunnel and waits; we keep calling. \
                 peervpn down goes back to the plain network"
                    .to_owned(),
            )
        });
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        (if self.way.is_some() { Remedy::Call } else { Remedy::None }, said)
    }
}

/// Carries a remedy out. `peer` is the exit's whole configuration.
pub fn apply(
    remedy: Remedy,
    peer: &PeerConfig,
    wireguard: &mut dyn WireGuard,
    interface: &str,
    kernel: bool,
) -> Result<(), peervpn_platform::Error> {
    let remove = PeerConfig { public_key: peer.public_key, remove: true, ..PeerConfig::default() };
    match remedy {
        Remedy::None => Ok(()),
        // the kernel sends a keepalive at once when it is switched on; userspace devices would lose the session by it
        Remedy::Poke if kernel => [0, tunnel::KEEPALIVE].into_iter().try_for_each(|keepalive| {
            let toggled = PeerConfig {
                public_key: peer.public_key,
                update_only: true,
                keepalive: Some(keepalive),
                ..PeerConfig::default()
            };
            wireguard.configure(interface, &tunnel::peers(vec![toggled]))
        }),
        Remedy::Poke | Remedy::Call => {
            wireguard.configure(interface, &tunnel::peers(vec![remove]))?;
            wireguard.configure(interface, &tunnel::peers(vec![peer.clone()]))
        }
    }
}

/// The way of the outer packets towards `endpoint`; one through the tunnel itself is none.
pub fn way(host: &mut impl Host, endpoint: IpAddr, fwmark: u32, tunnel: &str) -> Option<RouteLookup> {
    host.outer_route(endpoint, fwmark).ok().flatten().filter(|way| way.interface != tunnel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(interface: &str, source: &str) -> Option<RouteLookup> {
        Some(RouteLookup {
            ifindex: 2,
            interface: interface.to_owned(),
            source: source.parse().unwrap(),
            gateway: None,
            mtu: 1500,
            table: 254,
        })
    }

    fn exit(rx_bytes: u64) -> PeerState {
        PeerState {
            public_key: [1; 32],
            endpoint: None,
            keepalive: 25,
            last_handshake: None,
            rx_bytes,
            tx_bytes: 0,
            allowed_ips: Vec::new(),
        }
    }

    #[test]
    fn a_change_that_does_not_touch_the_way_is_nothing() {
        let start = Instant::now();
        let mut health = Health::new(by("eth0", "192.0.2.1"), start);
        assert_eq!(health.moved(by("eth0", "192.0.2.1"), start), (Remedy::None, None));
        let (remedy, said) = health.moved(by("wlan0", "198.51.100.1"), start);
        assert_eq!(remedy, Remedy::Poke);
        assert!(matches!(said, Some(Event::Step(text)) if text.contains("198.51.100.1 by wlan0")));
    }

    #[test]
    fn after_a_move_an_answer_ends_it_and_silence_calls() {
        let start = Instant::now();
        let mut health = Health::new(by("eth0", "192.0.2.1"), start);
        health.look(Some(&exit(100)), start);
        health.moved(by("wlan0", "198.51.100.1"), start);
        assert_eq!(health.due(), start + ANSWER);
        let mut answered = Health { way: health.way.clone(), ..health };
        assert_eq!(answered.look(Some(&exit(132)), start + ANSWER), (Remedy::None, None));
        assert_eq!(answered.due(), start + ANSWER + LOOK);

        let mut silent = Health::new(by("eth0", "192.0.2.1"), start);
        silent.look(Some(&exit(100)), start);
        silent.moved(by("wlan0", "198.51.100.1"), start + Duration::from_secs(3600));
        let mut now = start + Duration::from_secs(3600);
        let mut warnings = 0;
        for _ in 0..10 {
            now = silent.due();
            let (remedy, said) = silent.look(Some(&exit(100)), now);
            assert_eq!(remedy, Remedy::Call);
            warnings += usize::from(matches!(said, Some(Event::Warning(_))));
        }
        assert_eq!(warnings, 1, "said once");
        assert_eq!(silent.due(), now + BACKOFF_MAX);
        let (remedy, said) = silent.look(Some(&exit(101)), silent.due());
        assert!(remedy == Remedy::None && matches!(said, Some(Event::Step(_))));
    }

    #[test]
    fn a_healthy_tunnel_is_looked_at_rarely_and_lost_only_after_two_keepalives() {
        let start = Instant::now();
        let mut health = Health::new(by("eth0", "192.0.2.1"), start);
        let mut now = start;
        let mut calls = 0;
        for round in 0..4 {
            now = health.due();
            calls += usize::from(health.look(Some(&exit(100)), now).0 == Remedy::Call);
            assert!(round < 2 || calls > 0 || now < start + SILENT + LOOK);
        }
        assert!(calls >= 1 && now >= start + SILENT);
    }

    #[test]
    fn without_a_network_nobody_is_called() {
        let start = Instant::now();
        let mut health = Health::new(by("eth0", "192.0.2.1"), start + SILENT);
        assert_eq!(health.moved(None, start + SILENT).0, Remedy::None);
        for _ in 0..5 {
            assert_eq!(health.look(Some(&exit(0)), health.due()).0, Remedy::None);
        }
        assert_eq!(health.moved(by("eth0", "192.0.2.9"), health.due()).0, Remedy::Poke);
    }
}
