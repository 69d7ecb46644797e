//! `connect`: from the target to a tunnel that carries this host's traffic, and back.
//!
//! Order: check, resolve, device up (WireGuard initiates by itself), wait for the first handshake, and only then firewall
//! and routes. Until the handshake nothing of this host's traffic has moved.

mod about;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use peervpn_platform::os::packet::InitiationTap;
use peervpn_platform::os::ready::Watched;
use peervpn_platform::types::{Backend, Family, PeerConfig, System};
use peervpn_platform::{Host as _, WireGuard, os};

use self::about::About;
use super::alarm::Alarm;
use super::apply::Applier;
use super::approach::{Approach, Candidate, Protection};
use super::control::{self, PeerStatus, Request, Response, Status};
use super::event::{Event, Output};
use super::guard::Guard;
use super::mapping::{self, MappingWatch, Monitor, next_news};
use super::steer::Steering;
use super::{Ground, Started, StopSignals, block_on, end, fail, port_in_use, redeem, roam, settle, start};
use crate::config::{ConnectOptions, Places};
use crate::error::{Failure, Words};
use crate::join::address::{exit_addresses, peer_addresses};
use crate::join::connect::ConnectString;
use crate::join::invite::{Invite, InviteError};
use crate::join::service::Settings;
use crate::key::{PresharedKey, PublicKey};
use crate::nat::keeper::{Event as News, Known};
use crate::tunnel::{self, mtu, wgquick};

/// An unanswered initiation is repeated after this, to the next endpoint where there are several, then after twice that.
/// Removing and adding the peer is what makes WireGuard do it: by itself it waits 5 s. A handshake is one round trip.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// `REKEY_TIMEOUT` of WireGuard (paper §6.1), from which on its own repetition is as good.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(5);
/// Our copy of a packet comes before WireGuard has worked on its own: the device is asked for the handshake after this,
/// then after twice that, and so on.
const WORKED_ON: Duration = Duration::from_millis(1);
/// The same where no packet has come: it may have before we listened.
const UNHEARD: Duration = Duration::from_millis(16);
/// How often it is asked at the least.
const HANDSHAKE_POLL: Duration = Duration::from_millis(250);
/// Who has not connected by then finds out by STUN what to tell the exit's operator; most never need it.
const ASK_STUN: Duration = Duration::from_secs(1);
/// When to say that the exit does not answer.
const SAY_UNREACHABLE: Duration = Duration::from_secs(3);

/// Runs `connect` to its end.
#[inline(never)] // 100 kB of stack, which the short commands would touch, too
pub fn run(options: &ConnectOptions, places: &Places, out: &mut dyn Output) -> Result<(), Failure> {
    let target = Target::parse(&options.target).map_err(|failure| failure.host("unchanged"))?;
    block_on(async {
        let mut signals = StopSignals::install()?;
        let (mut target, mut joined, invite) = match target {
            Target::Exit(target) => {
                let joined = super::state::exits(places)?.settings(&target.key).cloned();
                (target, joined, None)
            }
            Target::Invite(invite) => {
                let joined = redeem::joined(&invite, places).map_err(|failure| failure.host("unchanged"))?;
                let target = ConnectString { key: invite.exit, endpoints: invite.endpoints.clone() };
                (target, joined, Some(invite))
            }
        };
        let (mut ground, mut server) = Ground::prepare(&options.node, places, "connect", out)?;
        if target.key == ground.key.public() {
            let failure = match invite {
                Some(_) => InviteError::OwnExit.into(),
                None => Failure::usage(
                    "the target is this machine's own key",
                    "copy the connect string from the other machine's screen, where peervpn exit runs",
                ),
            };
            return Err(fail(ground.applier, server, failure));
        }
        let up = async {
            if let (Some(invite), None) = (&invite, &joined) {
                let (settings, endpoints) = redeem::redeem(&mut ground, invite, options, places, out).await?;
                (joined, target.endpoints) = (Some(settings), endpoints);
            }
            bring_up(&mut ground, &target, joined.as_ref(), options, out).await
        };
        match start(&options.node.interface, up, &mut server, &mut signals).await {
            Started::Stopped(asked) => end(ground.applier, asked, server, out).await,
            Started::Up(Err(failure)) => Err(fail(ground.applier, server, failure)),
            Started::Up(Ok(mut node)) => {
                settle::settled(places);
                serve(&mut node, server, signals, places, ground.applier, out).await
            }
        }
    })?
}

/// What `connect` was given.
enum Target {
    Exit(ConnectString),
    Invite(Box<Invite>),
}

impl Target {
    fn parse(text: &str) -> Result<Target, Failure> {
        if Invite::is_meant(text) {
            return Ok(Target::Invite(Box::new(text.parse::<Invite>()?)));
        }
        Ok(Target::Exit(text.trim().parse::<ConnectString>()?))
    }
}

/// A connected node.
struct Connected {
    interface: String,
    backend: String,
    exit: PublicKey,
    own: PublicKey,
    port: u16,
    exit_addresses: Vec<IpAddr>,
    /// For `peervpn export`.
    config: wgquick::Config,
    wireguard: Box<dyn WireGuard>,
    fwmark: u32,
    /// `--mtu`: it stays when the network changes.
    mtu: Option<u32>,
    /// The exit's own, as far as it said.
    exit_mtu: Option<u32>,
    about: Option<About>,
    /// The exit as the device knows it.
    peer: PeerConfig,
    changes: roam::Changes,
    firewall: roam::Changes,
    health: roam::Health,
    guard: Guard,
    steering: Steering,
    /// `--monitor-nat`.
    monitor: Option<Monitor>,
    mapping: Option<MappingWatch>,
}

async fn bring_up(
    ground: &mut Ground,
    target: &ConnectString,
    joined: Option<&Settings>,
    options: &ConnectOptions,
    out: &mut dyn Output,
) -> Result<Connected, Failure> {
    let own = ground.key.public();
    // an exit that we joined by an invite has told us ours, and shares a key with us
    let addresses = joined.map_or_else(|| peer_addresses(&target.key, &own), |joined| joined.tunnel_addresses);
    let exit = exit_addresses(&target.key);
    let endpoints = about::endpoints(&target.endpoints, joined);
    let allowed: Vec<IpNetwork> = if options.allowed_ips.is_empty() {
        Family::BOTH.into_iter().map(Family::default_prefix).collect()
    } else {
        options.allowed_ips.clone()
    };
    let allowed: Vec<IpNetwork> = allowed.into_iter().filter(|p| p.is_ipv4() || ground.applier.ipv6).collect();
    let exit_list: Vec<IpAddr> = exit.to_vec().into_iter().filter(|a| a.is_ipv4() || ground.applier.ipv6).collect();
    let approach = Approach::new(ground, &endpoints, addresses, &exit_list, joined, options, out).await?;
    let closed = approach.lock_down(&mut ground.applier, options, out)?;
    let Approach { candidates, port, numbers, mtu, .. } = &approach;
    let (port, numbers, mtu) = (*port, *numbers, *mtu);
    // what cryptokey routing lets in and out; which of it is used is the routing table's business
    let cryptokey: Vec<IpNetwork> =
        allowed.iter().copied().chain(exit_list.iter().map(|a| IpNetwork::from(*a))).collect();
    let mut config = tunnel::device(&ground.key, port, numbers.fwmark);
    let mut asked = 0;
    let preshared_key = joined.and_then(|joined| joined.preshared_key.clone());
    let exit_peer = |address| PeerConfig {
        preshared_key: preshared_key.as_ref().map(PresharedKey::secret),
        ..tunnel::peer(&target.key, Some(address), cryptokey.clone())
    };
    config.peers.push(exit_peer(candidates[asked].address));
    out.event(&Event::Step(format!(
        "our peer ID is {}: the exit's operator sees it when asked to let you in",
        own.peer_id()
    )));
    out.event(&Event::Step(format!("asking {} at {}", target.key.peer_id(), candidates[asked].address)));
    let started = Instant::now();
    let mut wireguard = ground
        .create_device(&config, &addresses.to_vec(), mtu)
        .map_err(|failure| if port != 0 && failure.message.contains("in use") { port_in_use(port) } else { failure })?;

    let interface = ground.interface.clone();
    let port = wireguard.state(&interface)?.listen_port;
    let wakeup = supported(InitiationTap::open_wakeup(port))?.map(Watched::new).transpose()?;
    let ready = closed.map_or_else(|| approach.protect(&mut ground.applier, options), Ok)?;
    let Protection { mut guard, carriers } = ready;
    let servers: &[String] = if options.node.no_stun { &[] } else { &options.node.stun_servers };
    let (pace, mut monitor) = mapping::pace(&options.node, out);
    let mut ask_stun = (!servers.is_empty()).then_some(if monitor.is_some() { Duration::ZERO } else { ASK_STUN });
    let mut mapping = None;
    let limit = options.timeout * options.retry.max(1);
    let mut turn = Instant::now();
    let mut ask_again = ASK_AGAIN;
    let (mut said, mut heard) = (false, false);
    let mut pause = UNHEARD;
    let endpoint = loop {
        // first: --monitor-nat needs it however soon the exit answers
        if ask_stun.take_if(|after| started.elapsed() >= *after).is_some() {
            mapping = match MappingWatch::start(port, numbers.fwmark, servers, Known::default(), pace) {
                Ok(watch) => Some(watch),
                Err(peervpn_platform::Error::Unsupported { what, instead }) => {
                    if monitor.take().is_some() {
                        let no = format!("no --monitor-nat: {what} is not supported here; {instead}");
                        out.event(&Event::Warning(no));
                    }
                    None
                }
                Err(error) => return Err(error.into()),
            };
        }
        let state = wireguard.state(&interface)?;
        let peer = state.peers.iter().find(|p| p.public_key == target.key.0);
        if let Some(peer) = peer
            && peer.last_handshake.is_some()
        {
            break peer.endpoint;
        }
        // giving up would open what the lockdown closes
        if started.elapsed() >= limit && !options.lockdown {
            return Err(no_handshake(target, candidates, limit, &own));
        }
        if !said && started.elapsed() >= SAY_UNREACHABLE {
            said = true;
            let local = SocketAddr::new(candidates[asked].source, port);
            let reflexive = mapping.as_ref().map_or_else(|| approach.reflexive.clone(), MappingWatch::reflexive);
            out.event(&unreachable(&own, &reflexive, local, started.elapsed()));
        }
        // asking again forgets the handshake under way: twice the time for an exit that has begun to speak
        let mut patience = (ask_again * if heard { 2 } else { 1 }).saturating_sub(turn.elapsed());
        if patience.is_zero() {
            (turn, heard) = (Instant::now(), false);
            if asked + 1 == candidates.len() {
                ask_again = (ask_again * 2).min(ASK_AGAIN_MAX);
            }
            asked = (asked + 1) % candidates.len();
            let address = candidates[asked].address;
            tracing::debug!(remote = %address, "asking again");
            wireguard.configure(&interface, &tunnel::peers(vec![tunnel::removal(&target.key)]))?;
            wireguard.configure(&interface, &tunnel::peers(vec![exit_peer(address)]))?;
            patience = ask_again;
        }
        tokio::select! {
            () = woken(wakeup.as_ref()) => {
                (heard, pause) = (true, WORKED_ON);
                tokio::time::sleep(pause).await;
            }
            _ = next_news(&mut mapping, &mut ground.applier) => {}
            () = tokio::time::sleep(pause.min(patience)) => pause = (pause * 2).min(HANDSHAKE_POLL),
        }
    };
    if monitor.is_none() {
        // WireGuard's own keepalive keeps the mapping from here on
        mapping = None;
    }
    let handshake_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);

    let endpoint_ip = endpoint.unwrap_or(candidates[asked].address).ip();
    let steering = Steering::new(&interface, options, numbers, &allowed, &exit_list, carriers);
    steering.take_over(endpoint_ip, &mut ground.applier, &guard)?;
    // names are asked through the tunnel, which stands; then all of it is read back at once
    let dns = guard.take_dns(&mut ground.applier, out)?;
    ground.applier.verify()?;
    guard.announce(out);
    out.event(&Event::Connected {
        mode: "connect",
        peer_id: target.key.peer_id(),
        endpoint: endpoint.map_or_else(String::new, |e| e.to_string()),
        handshake_ms,
        tunnel_addresses: addresses.to_vec(),
        dns,
    });
    // watched first: what changes after the look is not missed
    let changes = roam::Changes::watch()?;
    let way = roam::way(&mut ground.applier.host, endpoint_ip, numbers.fwmark, &interface);
    let health = roam::Health::new(way, Instant::now());
    Ok(Connected {
        interface,
        backend: ground.backend.to_string(),
        exit: target.key,
        own,
        port,
        exit_addresses: exit.to_vec(),
        config: wgquick::Config {
            key: ground.key.clone(),
            addresses: vec![addresses.v4.into(), addresses.v6.into()],
            dns: joined.map(|joined| joined.dns.clone()).unwrap_or_default(),
            mtu,
            listen_port: None,
            peers: vec![wgquick::Peer {
                public_key: target.key,
                preshared_key: preshared_key.clone(),
                allowed_ips: cryptokey.clone(),
                endpoint: endpoint.map(|endpoint| endpoint.to_string()),
            }],
        },
        wireguard,
        fwmark: numbers.fwmark,
        mtu: options.node.mtu,
        exit_mtu: joined.map(|joined| joined.mtu),
        about: Some(About::ask(addresses.v4, exit.v4)),
        peer: exit_peer(endpoint.unwrap_or(candidates[asked].address)),
        changes,
        firewall: roam::Changes::watch_firewall()?,
        health,
        guard,
        steering,
        monitor,
        mapping,
    })
}

/// After a few seconds without an answer: who we are, and what the exit's operator can do.
fn unreachable(own: &PublicKey, reflexive: &[SocketAddr], local: SocketAddr, since: Duration) -> Event {
    let same_family = reflexive.iter().find(|r| r.is_ipv4() == local.is_ipv4()).or(reflexive.first());
    let (endpoint, beware) = match same_family {
        Some(reflexive) => (*reflexive, ""),
        None => (local, ", whose address here no STUN server has confirmed"),
    };
    let connect = format!("{own}@{endpoint}");
    Event::Unreachable {
        since_s: since.as_secs(),
        hint: format!(
            "ask the exit's operator to type: {} (that calls us{beware}); or, if the exit asks before it lets people in, \
             to accept {}. We keep trying",
            Words::elsewhere(&format!("peers add \"{connect}\"")),
            own.peer_id()
        ),
        own: connect,
    }
}

fn no_handshake(target: &ConnectString, candidates: &[Candidate], limit: Duration, own: &PublicKey) -> Failure {
    let tried = candidates.iter().map(|c| c.address.to_string()).collect::<Vec<_>>().join(", ");
    Failure::new(
        format!("no handshake with {} within {} s (tried {tried})", target.key.peer_id(), limit.as_secs()),
        format!(
            "check that peervpn exit still runs there and shows this connect string; if it asks before letting people \
             in, its operator must accept {}: peervpn peers accept {}",
            own.peer_id(),
            own.peer_id()
        ),
    )
}

/// What a system may lack without harm.
fn supported<T>(outcome: peervpn_platform::Result<T>) -> peervpn_platform::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(peervpn_platform::Error::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits for a packet on our port; the packets themselves do not matter. Without a tap there is only the poll.
async fn woken(tap: Option<&Watched<InitiationTap>>) {
    let Some(tap) = tap else { return std::future::pending().await };
    let mut buffer = [0; 256];
    loop {
        let Ok(ready) = tap.readable().await else { return std::future::pending().await };
        let mut any = false;
        while let Ok(Some(_)) = tap.get_ref().recv(&mut buffer) {
            any = true;
        }
        ready.clear();
        if any {
            return;
        }
    }
}

async fn serve(
    node: &mut Connected,
    mut server: control::Server,
    mut signals: StopSignals,
    places: &Places,
    mut applier: Applier,
    out: &mut dyn Output,
) -> Result<(), Failure> {
    let mut alarm = Alarm::new();
    let down = loop {
        let asked = tokio::select! {
            () = signals.recv() => break None,
            asked = server.next() => asked,
            news = next_news(&mut node.mapping, &mut applier) => {
                if let News::Changed { old, new } = news {
                    out.event(&Event::Mapping { old: old.to_string(), new: new.to_string() });
                }
                continue;
            }
            () = node.guard.dns_changed() => {
                if let Err(failure) = node.guard.take_dns_back(&mut applier, out) {
                    tracing::warn!(%failure, "DNS cannot be looked after");
                }
                continue;
            }
            () = mapping::tick(&mut node.monitor) => {
                if let (Some(monitor), Some(mapping)) = (&mut node.monitor, &node.mapping) {
                    out.event(&monitor.line(mapping));
                }
                continue;
            }
            () = node.changes.settled() => {
                // first, or what follows goes astray
                node.put_back(&mut applier, out);
                node.network_changed(&mut applier, out);
                if let Err(failure) = node.guard.follow_lan(&mut applier) {
                    tracing::warn!(%failure, "the LAN cannot be followed");
                }
                continue;
            }
            () = node.firewall.settled() => {
                node.put_back(&mut applier, out);
                continue;
            }
            settings = About::answered(&mut node.about) => {
                if let Err(failure) = node.heard_about(&settings, places, &mut applier, out) {
                    tracing::warn!(%failure, "what the exit says cannot be followed");
                }
                continue;
            }
            _ = alarm.until(node.health.due()) => {
                node.look_at_exit(&applier, out);
                continue;
            }
        };
        if asked.request == Request::Down {
            break Some(asked);
        }
        let answer = answer(node, &asked.request);
        asked.reply(answer);
    };
    end(applier, down, server, out).await
}

impl Connected {
    /// Links, addresses or routes have changed: the outer packets may take another way now.
    fn network_changed(&mut self, applier: &mut Applier, out: &mut dyn Output) {
        let Some(endpoint) = self.peer.endpoint else { return };
        let way = roam::way(&mut applier.host, endpoint.ip(), self.fwmark, &self.interface);
        let mtu = way.as_ref().map(|way| mtu::inner(way.mtu, Family::of(&endpoint.ip())));
        let mtu = mtu.map(|mtu| mtu.min(self.exit_mtu.unwrap_or(u32::MAX)));
        let (remedy, said) = self.health.moved(way, Instant::now());
        if let Some(event) = said {
            out.event(&event);
            if let Some(mapping) = &mut self.mapping {
                mapping.refresh();
            }
            if let (None, Some(mtu)) = (self.mtu, mtu)
                && let Err(error) = applier.host.bring_up(&self.interface, mtu)
            {
                tracing::warn!(%error, "the tunnel keeps its MTU");
            }
        }
        self.remedy(remedy);
    }

    /// Rules or routes have changed: the traffic may go another way now.
    fn steer(&mut self, applier: &mut Applier, out: &mut dyn Output) {
        let Some(endpoint) = self.peer.endpoint else { return };
        if let Err(failure) = self.steering.look_after(endpoint.ip(), applier, &mut self.guard, out) {
            tracing::warn!(%failure, "the policy rules cannot be looked after");
        }
    }

    /// Another program has been at routes, rules or the firewall.
    fn put_back(&mut self, applier: &mut Applier, out: &mut dyn Output) {
        // macOS: routes by a gateway that has gone are replaced, not put back
        if os::SYSTEM == System::Macos {
            self.steer(applier, out);
        }
        settle::put_back(applier, out);
        self.steer(applier, out);
    }

    fn look_at_exit(&mut self, applier: &Applier, out: &mut dyn Output) {
        let state = self.wireguard.state(applier.interface()).ok();
        let exit = state.as_ref().and_then(|s| s.peers.iter().find(|p| p.public_key == self.exit.0));
        if let Some(endpoint) = exit.and_then(|exit| exit.endpoint) {
            // the exit may have moved, too
            self.peer.endpoint = Some(endpoint);
        }
        let (remedy, said) = self.health.look(exit, Instant::now());
        if let Some(event) = said {
            out.event(&event);
        }
        self.remedy(remedy);
    }

    fn remedy(&mut self, remedy: roam::Remedy) {
        let kernel = self.backend == Backend::Kernel.to_string();
        if let Err(error) = roam::apply(remedy, &self.peer, &mut *self.wireguard, &self.interface, kernel) {
            tracing::warn!(%error, "the exit can't be called");
        }
    }
}

fn answer(node: &mut Connected, request: &Request) -> Response {
    match request {
        Request::Status => match status(node) {
            Ok(status) => Response::Status(status),
            Err(failure) => control::failed(failure),
        },
        Request::PeersList => match status(node) {
            Ok(status) => Response::Peers { peers: status.peers },
            Err(failure) => control::failed(failure),
        },
        Request::Export { show_keys } => Response::Export { wg_quick: node.config.render(*show_keys).into() },
        _ => Response::Failed {
            error: "this node is connected to an exit; only an exit lets peers in".to_owned(),
            hint: Some("run it on the machine where peervpn exit runs".to_owned()),
        },
    }
}

fn status(node: &mut Connected) -> Result<Status, Failure> {
    let state = node.wireguard.state(&node.interface)?;
    let now = control::epoch();
    let peers = state.peers.iter().map(|peer| {
        let key = PublicKey(peer.public_key);
        let addresses = if key == node.exit { node.exit_addresses.clone() } else { Vec::new() };
        PeerStatus::of_device(peer, addresses, "exit", now)
    });
    let peers: Vec<PeerStatus> = peers.collect();
    Ok(Status {
        interface: node.interface.clone(),
        mode: "connect".to_owned(),
        backend: node.backend.clone(),
        public_key: node.own,
        port: node.port,
        endpoints: Vec::new(),
        initiations: None,
        kill_switch: Some(node.guard.status(peers.first().and_then(|peer| peer.last_handshake_s))),
        peers,
    })
}
