//! Letting peers in: initiations, the dialogue on the terminal, `peers accept`.

use std::collections::VecDeque;
use std::io::{BufRead as _, IsTerminal as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use peervpn_platform::os;
use peervpn_platform::os::packet::InitiationTap;
use peervpn_platform::os::raw::{RawStun, hand_over};
use peervpn_platform::os::ready::{Ready, Watched};
use peervpn_platform::types::{PeerConfig, Route, RouteKind};
use peervpn_platform::{Host as _, OUR_PROTOCOL};
use tokio::sync::mpsc;

use super::Exit;
use super::call::Call;
use crate::error::{Failure, Hint as _};
use crate::join::address::TunnelAddresses;
use crate::join::admission::{Decision, Pending};
use crate::join::connect::Endpoint;
use crate::join::initiation::{INITIATION_LEN, Verdict};
use crate::join::peers::{How, Peer, check_name};
use crate::key::{PresharedKey, PublicKey};
use crate::node::apply::Applier;
use crate::node::control::{PeerStatus, PendingPeer, Response};
use crate::node::event::{Event, Output};
use crate::node::state;
use crate::tunnel;

/// `main`: where replies to peers are looked up like any other destination.
const MAIN_TABLE: u32 = 254;

/// The routes to a peer's tunnel addresses. They lie on our link and go with it.
pub fn routes(interface: &str, addresses: &TunnelAddresses, ipv6: bool) -> Vec<Route> {
    let route = |destination: IpNetwork| Route {
        table: MAIN_TABLE,
        destination,
        kind: RouteKind::Unicast,
        oif: Some(interface.to_owned()),
        gateway: None,
        metric: None,
        protocol: OUR_PROTOCOL,
        mtu: None,
    };
    addresses.allowed_ips().into_iter().filter(|prefix| prefix.is_ipv4() || ipv6).map(route).collect()
}

/// A peer as the device is to have it.
pub fn device_peer(peer: &Peer, endpoint: Option<SocketAddr>) -> PeerConfig {
    PeerConfig {
        preshared_key: peer.preshared_key.as_ref().map(PresharedKey::secret),
        ..tunnel::peer(&peer.public_key, endpoint, peer.tunnel_addresses.allowed_ips().to_vec())
    }
}

/// A newcomer's initiation reaches us before WireGuard has worked on it. A peer that is installed in between has its
/// initiation answered *and* gets ours, and both fail (see `call`): so wait until WireGuard has dropped it.
const SETTLE: Duration = Duration::from_millis(5);
/// During a flood initiations are looked at this often, many at a time, instead of waking for each. The tap has room for
/// what 50,000 a second bring meanwhile.
const LOOK: Duration = Duration::from_millis(4);
/// Where many join at once, WireGuard has more to drop: they are installed together once no more come, but after this at
/// the latest.
const SETTLE_MAX: Duration = Duration::from_millis(100);

/// Somebody who is to be let in.
pub struct Newcomer {
    peer: Peer,
    came: Instant,
    initiation: [u8; INITIATION_LEN],
}

/// When the newcomers are to be installed.
fn when(admitted: &[Newcomer]) -> Option<Instant> {
    let (first, last) = (admitted.first()?.came, admitted.last()?.came);
    Some((last + SETTLE).min(first + SETTLE_MAX))
}

/// When [`Exit::install`] has something to do.
pub async fn due(admitted: &[Newcomer]) {
    match when(admitted) {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for initiations; `flooded`: when they were last looked at, if that was during a flood. Then they are due at a
/// time, not told of.
pub async fn readable(
    tap: &Watched<InitiationTap>,
    flooded: Option<Instant>,
) -> std::io::Result<Option<Ready<'_, InitiationTap>>> {
    let Some(looked) = flooded else { return tap.readable().await.map(Some) };
    tokio::time::sleep_until((looked + LOOK).into()).await;
    Ok(None)
}

/// Newcomers asked about on the terminal, one at a time.
pub struct Questions {
    lines: mpsc::Receiver<String>,
    /// The first one is being asked about.
    newcomers: VecDeque<PublicKey>,
}

impl Questions {
    /// If there is a terminal to ask on.
    pub fn on_terminal() -> Option<Questions> {
        if !std::io::stdin().is_terminal() {
            return None;
        }
        let (sender, lines) = mpsc::channel(1);
        // a blocking read can't be given up, so it gets a thread that ends with the process
        std::thread::spawn(move || {
            os::confine_thread();
            os::signals::read_terminal_or_fail();
            for line in std::io::stdin().lock().lines() {
                let Ok(line) = line else { return };
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Some(Questions { lines, newcomers: VecDeque::new() })
    }
}

/// The next line typed while a question is open; `None`: nobody can answer here any more (the end of the input, or the
/// shell has put us into the background). Those who wait are let in by `peers accept` as ever.
pub async fn next_answer(questions: &mut Option<Questions>) -> Option<String> {
    match questions {
        Some(questions) => questions.lines.recv().await,
        None => std::future::pending().await,
    }
}

impl Exit<'_> {
    /// Looks at one initiation that came for our port.
    pub(super) fn initiation(
        &mut self,
        payload: &[u8],
        source: SocketAddr,
        now: Instant,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) {
        // WireGuard may heed it even if we don't
        self.met = true;
        let settled = |key: &PublicKey| self.admission.is_settled(key);
        let key = match self.checker.check(payload, source, now, settled) {
            Verdict::Valid { key } | Verdict::Settled { key } => key,
            Verdict::Drop(_) => return,
        };
        self.heard(&key, now);
        match self.admission.consider(key, source, now) {
            Decision::Admit(addresses) => {
                if self.admitted.iter().all(|newcomer| newcomer.peer.public_key != key)
                    && let Ok(initiation) = payload.try_into()
                {
                    let peer =
                        Peer { endpoint: Some(source.into()), ..Peer::new(key, addresses, How::Any, state::now()) };
                    // not `now`: the others of this look may have taken longer than what it has to settle
                    self.admitted.push(Newcomer { peer, came: Instant::now(), initiation });
                }
            }
            Decision::AskOperator { first: true } => {
                if let Some(questions) = &mut self.questions {
                    // one question at a time; who comes meanwhile is asked about next
                    questions.newcomers.push_back(key);
                    if questions.newcomers.len() == 1 {
                        ask(&key, source, out);
                    }
                } else {
                    let endpoint = source.to_string();
                    out.event(&Event::Pending { peer_id: key.peer_id(), public_key: key, endpoint });
                }
                self.save_waiting(now);
            }
            Decision::Collision { error, first: true } => {
                out.event(&Event::Warning(format!("{error}; {}", error.hint().unwrap_or_default())));
            }
            Decision::Known => {
                // an invite's slot is known, too, and used but once
                if self.store.get(&key).is_some() {
                    self.keepalives.heard(key, now);
                }
                if self.checker.is_flooded() {
                    self.let_through(source, applier);
                }
            }
            Decision::AskOperator { first: false }
            | Decision::Collision { first: false, .. }
            | Decision::Revoked
            | Decision::Denied
            | Decision::Full
            | Decision::Closed => {}
        }
    }

    /// During a flood the firewall keeps a known peer's initiation from WireGuard, too, if it comes from a new source.
    /// An empty datagram makes it a source that we have sent something to, so that the next one passes. Nothing was
    /// proven so far, and nothing is given: WireGuard drops it at the other end.
    fn let_through(&self, source: SocketAddr, applier: &mut Applier) {
        let sent = applier.host.route_lookup(source.ip(), 0).map_err(std::io::Error::other).and_then(|way| {
            let way = way.ok_or(std::io::ErrorKind::HostUnreachable)?;
            RawStun::open(self.port, 0).map_err(std::io::Error::other)?.send(way.source, source, &[])
        });
        tracing::debug!(remote = %source, ?sent, "a peer asks during a flood");
    }

    /// A newcomer who came alone is installed without an endpoint, and WireGuard handed its initiation once more: it is
    /// answered like any known peer's, a round trip earlier than by a handshake of our own. Nothing has to settle before:
    /// should WireGuard work on the first one only now, the second is a replay to it. Where many come at once, or the
    /// keepalive can't be switched on later, they are called.
    pub(super) fn welcome(&mut self, applier: &mut Applier, out: &mut dyn Output) {
        if self.admitted.len() == 1 && self.keepalives.switchable() {
            let Newcomer { peer, initiation, .. } = self.admitted.remove(0);
            self.let_in_or_say(peer, Some(&initiation), applier, out);
        }
    }

    /// Gives WireGuard the initiation that it dropped because it did not know the peer; said only if that can't be done,
    /// since the peer is called then.
    fn hand_over(&self, initiation: &[u8], from: SocketAddr, applier: &mut Applier) {
        let way = applier.host.route_lookup(from.ip(), 0).map_err(std::io::Error::other);
        let handed = way.and_then(|way| {
            let way = way.ok_or(std::io::ErrorKind::HostUnreachable)?;
            hand_over(from, SocketAddr::new(way.source, self.port), initiation)
        });
        if let Err(error) = handed {
            tracing::debug!(remote = %from, %error, "an initiation can't be handed over");
        }
    }

    /// Installs the newcomers when their time has come.
    pub(super) fn install(&mut self, now: Instant, applier: &mut Applier, out: &mut dyn Output) {
        if when(&self.admitted).is_none_or(|due| due > now) {
            return;
        }
        let due: Vec<Peer> = std::mem::take(&mut self.admitted).into_iter().map(|newcomer| newcomer.peer).collect();
        if due.len() > 1 && self.let_in(due.clone(), None, applier, out).is_ok() {
            return;
        }
        // one that can't be let in must not keep the others out
        for peer in due {
            self.let_in_or_say(peer, None, applier, out);
        }
    }

    fn let_in_or_say(&mut self, peer: Peer, initiation: Option<&[u8]>, applier: &mut Applier, out: &mut dyn Output) {
        let id = peer.public_key.peer_id();
        if let Err(failure) = self.let_in(vec![peer], initiation, applier, out) {
            out.event(&Event::Warning(format!("{id} could not be let in: {}", failure.message)));
        }
    }

    /// A line typed on the terminal answers the open question.
    pub(super) fn terminal_answer(&mut self, line: &str, applier: &mut Applier, out: &mut dyn Output) {
        let Some(questions) = &mut self.questions else { return };
        let Some(key) = questions.newcomers.front().copied() else { return };
        let yes = match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => true,
            "n" | "no" => false,
            _ => {
                out.event(&Event::Question("please answer y or n: ".to_owned()));
                return;
            }
        };
        questions.newcomers.pop_front();
        let now = Instant::now();
        let id = key.peer_id();
        if yes {
            if let Err(failure) = self.accept(&key.to_string(), None, now, applier, out) {
                out.event(&Event::Warning(format!("{id} could not be let in: {}", failure.message)));
            }
        } else {
            let said = match self.admission.deny(&key.to_string(), now) {
                Ok(_) => format!("{id} was not let in"),
                Err(error) => error.to_string(),
            };
            out.event(&Event::Step(said));
        }
        self.ask_next(now, out);
    }

    /// Asks about the next newcomer who still waits.
    fn ask_next(&mut self, now: Instant, out: &mut dyn Output) {
        let Some(questions) = &mut self.questions else { return };
        let waiting = self.admission.pending(now);
        while let Some(key) = questions.newcomers.front() {
            if let Some(pending) = waiting.iter().find(|p| p.key == *key) {
                ask(key, pending.source, out);
                return;
            }
            questions.newcomers.pop_front();
        }
    }

    /// Those who wait, oldest first.
    pub(super) fn pending(&mut self, now: Instant) -> Vec<PendingPeer> {
        let pending = |p: &Pending| PendingPeer {
            peer_id: p.key.peer_id(),
            public_key: p.key,
            endpoint: p.source.to_string(),
            since_s: now.saturating_duration_since(p.first_seen).as_secs(),
        };
        self.admission.pending(now).iter().map(pending).collect()
    }

    /// `peers accept`, or a yes on the terminal.
    pub(super) fn accept(
        &mut self,
        id: &str,
        name: Option<&str>,
        now: Instant,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Result<Response, Failure> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let peer = match self.admission.accept(id, now) {
            // if it can't be let in now, its next initiation puts it back on the list
            Ok(Pending { key, addresses, source, .. }) => {
                Peer { endpoint: Some(source.into()), ..Peer::new(key, addresses, How::Accepted, state::now()) }
            }
            Err(error) => self.pardoned(id).ok_or(error)?,
        };
        let peer = Peer { name: name.map(str::to_owned).or(peer.name), ..peer };
        let key = peer.public_key;
        let answer = Response::Accepted(PeerStatus::at_rest(&peer));
        self.let_in(vec![peer], None, applier, out)?;
        self.decided(&key, now, out);
        Ok(answer)
    }

    /// Nobody need be asked about this key any more.
    pub(super) fn decided(&mut self, key: &PublicKey, now: Instant, out: &mut dyn Output) {
        if let Some(questions) = &mut self.questions {
            let asked = questions.newcomers.front() == Some(key);
            questions.newcomers.retain(|other| other != key);
            if asked {
                self.ask_next(now, out);
            }
        }
        self.save_waiting(now);
    }

    /// Asks about those who waited before a restart.
    pub(super) fn ask_again(&mut self, out: &mut dyn Output) {
        let now = Instant::now();
        let waiting = self.admission.pending(now);
        if let Some(questions) = &mut self.questions {
            questions.newcomers.extend(waiting.iter().map(|pending| pending.key));
            self.ask_next(now, out);
        }
    }

    /// Puts peers into WireGuard, routes to them, remembers them: one request, one batch, one write, however many join at
    /// once. With endpoint and keepalive in one request on a device that is up, our side initiates at once, through the
    /// NAT that the peer's own packet has opened. With the `initiation` of a single one, that one is answered instead.
    pub(super) fn let_in(
        &mut self,
        peers: Vec<Peer>,
        initiation: Option<&[u8]>,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Result<(), Failure> {
        let interface = applier.interface().to_owned();
        let endpoint = |peer: &Peer| peer.endpoint.as_ref().and_then(Endpoint::socket_addr);
        let called = |peer: &Peer| endpoint(peer).filter(|_| initiation.is_none());
        let configs = peers.iter().map(|peer| device_peer(peer, called(peer))).collect();
        // before the device knows them: whatever handshake comes from here on is an answer
        let under_way = self.calls.len() + peers.len() - 1;
        let call = |peer: &Peer| {
            let call = Call::new(peer.public_key, vec![endpoint(peer)?], under_way);
            Some(if initiation.is_some() { call.unless_answered() } else { call })
        };
        let calls: Vec<Call> = peers.iter().filter_map(call).collect();
        let new_routes: Vec<Route> =
            peers.iter().flat_map(|peer| routes(&interface, &peer.tunnel_addresses, applier.ipv6)).collect();
        let revoked = peers.iter().any(|peer| self.store.is_revoked(&peer.public_key)).then(|| self.store.clone());
        let mut added = 0;
        let mut done = Ok(());
        for peer in &peers {
            done = self.store.add(peer.clone()).map_err(Failure::from);
            if done.is_err() {
                break;
            }
            added += 1;
        }
        let stored = done.is_ok();
        let done = done
            .and_then(|()| Ok(self.wireguard.configure(&interface, &tunnel::peers(configs))?))
            .and_then(|()| Ok(applier.host.add_routes(&new_routes)?))
            .inspect(|()| {
                if let (Some(initiation), Some(from)) = (initiation, peers.first().and_then(endpoint)) {
                    self.hand_over(initiation, from, applier);
                }
            })
            .and_then(|()| self.peers.keep(&mut self.store));
        if let Err(failure) = done {
            // all or nothing: a peer that can't be kept is not let in
            for peer in &peers[..added] {
                self.store.remove(&peer.public_key);
            }
            if let Some(before) = revoked {
                self.store = before;
            }
            if stored {
                let removals = peers.iter().map(|peer| tunnel::removal(&peer.public_key)).collect();
                let _ = self.wireguard.configure(&interface, &tunnel::peers(removals));
                for route in &new_routes {
                    let _ = applier.host.delete_route(route);
                }
            }
            return Err(failure);
        }
        self.calls.extend(calls);
        for peer in &peers {
            let (key, tunnel_addresses) = (peer.public_key, peer.tunnel_addresses);
            self.admission.know(key, tunnel_addresses);
            if called(peer).is_some() {
                self.met = true;
                self.keepalives.called(&key);
            } else if initiation.is_some() {
                self.keepalives.heard(key, Instant::now());
            }
            out.event(&Event::Joined {
                peer_id: key.peer_id(),
                public_key: key,
                tunnel_addresses: tunnel_addresses.to_vec(),
                how: peer.how.as_str(),
            });
        }
        Ok(())
    }
}

fn ask(key: &PublicKey, source: SocketAddr, out: &mut dyn Output) {
    out.event(&Event::Question(format!(
        "let {} in? It asks from {source}, its key is {key}. The other person's screen must show the same peer ID. [y/n] ",
        key.peer_id()
    )));
}
