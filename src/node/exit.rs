//! `exit`: from the first check to peers whose traffic leaves through this host, and back.
//!
//! Order: check, STUN on our port, device up, firewall, forwarding, and only then peers. Handshake initiations are
//! watched from before the device is up, so none is missed.

mod admit;
mod call;
mod endpoints;
mod invites;
mod keepalive;
mod manage;
mod mapped;
mod outer;
mod traffic;
mod watch_mapping;

use std::net::SocketAddr;
use std::time::Instant;

use peervpn_platform::os::packet::InitiationTap;
use peervpn_platform::os::ready::Watched;
use peervpn_platform::types::{Family, RouteLookup};
use peervpn_platform::{Host as _, WireGuard};

use self::outer::Outer;
use super::apply::Applier;
use super::control::{self, Initiations, PeerStatus, Request, Response, Status};
use super::dns;
use super::event::{Event, Output};
use super::mapping::{self, MappingWatch, Monitor};
use super::portmap::{self, PortMap};
use super::state::PeersFile;
use super::{
    Ground, Started, StopSignals, block_on, end, fail, port_in_use, roam, service, settle, start, state, stun,
};
use crate::config::{Accept, ExitOptions, Places};
use crate::error::{Failure, Words};
use crate::host::firewall::can_exit;
use crate::host::foreign;
use crate::host::lan::Lan;
use crate::join::address::exit_addresses;
use crate::join::admission::Admission;
use crate::join::connect::Endpoint;
use crate::join::initiation::Checker;
use crate::join::peers::PeerStore;
use crate::join::waiting::Waiting;
use crate::key::PrivateKey;
use crate::tunnel::{self, mtu};

/// WireGuard's customary port, and how many after it are tried when the user named none.
pub(super) const FIRST_PORT: u16 = 51820;
const PORTS_TRIED: u16 = 10;
/// So many routes are kept in memory at once.
const ROUTES: usize = 2000;
/// So many initiations are looked at before it is anything else's turn, also in a flood.
const AT_ONCE: usize = 512;

/// Runs `exit` to its end.
#[inline(never)] // 100 kB of stack, which the short commands would touch, too
pub fn run(options: &ExitOptions, places: &Places, out: &mut dyn Output) -> Result<(), Failure> {
    can_exit(peervpn_platform::os::SYSTEM).map_err(|no| Failure::from(no).host("unchanged"))?;
    block_on(async {
        let mut signals = StopSignals::install()?;
        let (mut ground, mut server) = Ground::prepare(&options.node, places, "exit", out)?;
        let peers = match state::PeersFile::own(places) {
            Ok(peers) => peers,
            Err(failure) => return Err(fail(ground.applier, server, failure)),
        };
        let up = bring_up(&mut ground, peers, options, places, out);
        match start(&options.node.interface, up, &mut server, &mut signals).await {
            Started::Stopped(asked) => end(ground.applier, asked, server, out).await,
            Started::Up(Err(failure)) => Err(fail(ground.applier, server, failure)),
            Started::Up(Ok((mut exit, tap))) => {
                settle::settled(places);
                let asked = exit.serve(&tap, &mut server, &mut signals, &mut ground.applier, out).await;
                exit.remember_endpoints();
                // before its undo: a renewal would bring it back
                exit.portmap = None;
                exit.save_waiting(Instant::now());
                end(ground.applier, asked, server, out).await
            }
        }
    })?
}

/// A running exit.
struct Exit<'a> {
    options: &'a ExitOptions,
    places: &'a Places,
    key: PrivateKey,
    backend: String,
    port: u16,
    endpoints: Vec<String>,
    wireguard: Box<dyn WireGuard>,
    checker: Checker,
    /// Initiations that the tap had no room for.
    unseen: u64,
    admission: Admission,
    store: PeerStore,
    /// Where the store is kept.
    peers: PeersFile,
    /// Someone was called, or asked: peers' endpoints may be others than those in the store.
    met: bool,
    /// Who waited and who was denied, as it stands in the file.
    waiting: Waiting,
    /// The control service on our tunnel addresses.
    service: Option<service::Server>,
    /// MTU of the tunnel in bytes.
    mtu: u32,
    /// Peers reach the IPv6 internet.
    ipv6: bool,
    resolver: dns::Resolver,
    mapping: Option<MappingWatch>,
    /// Unless `--no-portmap`.
    portmap: Option<PortMap>,
    mapped: mapped::Mapped,
    /// `--monitor-nat`.
    monitor: Option<Monitor>,
    /// How packets to the internet leave.
    uplinks: Vec<(Family, RouteLookup)>,
    /// This host's LAN.
    lan: Vec<Lan>,
    outer: Outer,
    changes: roam::Changes,
    firewall: roam::Changes,
    /// Newcomers about to be installed.
    admitted: Vec<admit::Newcomer>,
    tending: invites::Tending,
    /// Peers we call until they answer.
    calls: Vec<call::Call>,
    /// Whose keepalive is on.
    keepalives: keepalive::Keepalives,
    /// Newcomers are asked about on the terminal.
    questions: Option<admit::Questions>,
}

type Up<'a> = (Exit<'a>, Watched<InitiationTap>);

async fn bring_up<'a>(
    ground: &mut Ground,
    (peers, store): (PeersFile, PeerStore),
    options: &'a ExitOptions,
    places: &'a Places,
    out: &mut dyn Output,
) -> Result<Up<'a>, Failure> {
    let host = &mut ground.applier.host;
    let uplinks = watch_mapping::uplinks(host)?;
    if uplinks.is_empty() {
        return Err(Failure::new(
            "this host has no default route, so it cannot be an exit",
            format!("connect it to the internet first: {} shows its routes", Words::HERE.routes()),
        ));
    }
    // looks for the gateway while STUN is asked
    let mut portmap = (!options.no_portmap).then(PortMap::start);
    let (port, gathered) = learn_endpoints(options, out).await?;
    let mapped = mapped::first(&mut portmap, port, &gathered, &uplinks, &mut ground.applier, out).await?;
    let endpoints = endpoints::choose(options, port, &gathered, &mapped, &mut ground.applier.host, &uplinks, out)?;

    let addresses = exit_addresses(&ground.key.public());
    let way = uplinks.iter().map(|(_, way)| way.mtu).min().unwrap_or(mtu::ETHERNET);
    // peers may come by either family: leave room for the longer outer header
    let mtu = options.node.mtu.unwrap_or_else(|| mtu::inner(way, Family::V6));
    let outer = Outer::new(&mut ground.applier, &uplinks)?;
    let mut config = tunnel::device(&ground.key, port, outer.mark());
    config.peers = store
        .peers()
        .map(|peer| admit::device_peer(peer, peer.endpoint.as_ref().and_then(Endpoint::socket_addr)))
        .chain(store.invites().map(invites::device_slot))
        .collect();

    let tap = InitiationTap::open(port)?;
    let interface = ground.interface.clone();
    out.event(&Event::Step(format!("setting up {interface} ({} back end)", ground.backend)));
    let wireguard = ground
        .create_device(&config, &addresses.to_vec(), mtu)
        .map_err(|failure| if failure.message.contains("in use") { port_in_use(port) } else { failure })?;
    // of thousands of peers it takes megabytes
    drop(config);

    let resolver = dns::Resolver::new(&options.dns, out);
    let lan = traffic::lan(&mut ground.applier)?;
    let traffic = traffic::Traffic {
        interface: &interface,
        port,
        mtu,
        addresses,
        options,
        dns: resolver.servers(),
        uplinks: &uplinks,
        lan: &lan,
        outer: None,
    };
    let changes = traffic.changes(&mut ground.applier.host)?;
    ground.applier.make_all(changes)?;
    for place in ground.applier.pass_firewalls()? {
        out.event(&Event::Step(place));
    }
    for (tables, command) in foreign::LEGACY {
        if peervpn_platform::os::legacy_tables(tables).iter().any(|table| table == "filter") {
            out.event(&Event::Warning(format!(
                "{command} has rules that cannot be seen from here; if it drops forwarded packets, let ours pass: {}",
                foreign::legacy_mend(command, &interface)
            )));
        }
    }
    let ipv6 = ground.applier.ipv6;
    let mut routes = store
        .peers()
        .flat_map(|peer| admit::routes(&interface, &peer.tunnel_addresses, ipv6))
        .chain(store.invites().map(|invite| invites::route_to_door(&interface, invite)))
        .peekable();
    while routes.peek().is_some() {
        let some: Vec<_> = routes.by_ref().take(ROUTES).collect();
        ground.applier.host.add_routes(&some)?;
    }
    drop(routes);
    ground.applier.verify()?;

    let tap = Watched::new(tap)?;
    let own: Vec<_> = addresses.to_vec().into_iter().filter(|address| address.is_ipv4() || ipv6).collect();
    let service = match service::Server::bind(&own).await {
        Ok(service) => Some(service),
        Err(error) => {
            out.event(&Event::Warning(format!(
                "no invite can be redeemed here: TCP port {} of the tunnel addresses can't be used: {error}",
                crate::join::service::PORT
            )));
            None
        }
    };
    let public_key = ground.key.public();
    let connect = format!("{public_key}@{}", endpoints.join(","));
    out.event(&Event::Ready {
        mode: "exit",
        interface,
        backend: ground.backend.to_string(),
        public_key,
        peer_id: public_key.peer_id(),
        port,
        endpoints: endpoints.clone(),
        tunnel_addresses: addresses.to_vec(),
        connect,
    });
    if options.accept == Accept::Any {
        out.event(&Event::Warning("anyone who has the connect string can use this exit (--accept any)".to_owned()));
    }
    let mut admission = Admission::new(options.accept, public_key);
    admission.reserve(store.peers().len());
    for peer in store.peers() {
        admission.know(peer.public_key, peer.tunnel_addresses);
    }
    for revoked in store.revoked() {
        admission.revoke(revoked.public_key);
    }
    let servers: &[String] = if options.node.no_stun { &[] } else { &options.node.stun_servers };
    let (pace, monitor) = mapping::pace(&options.node, out);
    let mapping = (!servers.is_empty())
        .then(|| MappingWatch::start(port, outer.mark(), servers, gathered.known(), pace))
        .transpose()?;
    invites::know_slots(&mut admission, &store);
    let met = store.peers().any(|peer| peer.endpoint.is_some());
    let waiting = state::waiting(places);
    manage::recall_waiting(&mut admission, &waiting);
    let mut exit = Exit {
        service,
        mtu,
        ipv6: ipv6 && uplinks.iter().any(|(family, _)| *family == Family::V6),
        uplinks,
        lan,
        outer,
        changes: roam::Changes::watch()?,
        firewall: roam::Changes::watch_firewall()?,
        mapping,
        portmap,
        mapped,
        monitor,
        admitted: Vec::new(),
        tending: invites::Tending::new(),
        calls: Vec::new(),
        keepalives: keepalive::Keepalives::new(&ground.backend, store.peers()),
        options,
        places,
        checker: Checker::new(&ground.key),
        unseen: 0,
        admission,
        questions: (options.accept == Accept::Ask && out.interactive()).then(admit::Questions::on_terminal).flatten(),
        key: ground.key.clone(),
        backend: ground.backend.to_string(),
        port,
        endpoints,

        wireguard,
        store,
        peers,
        met,
        waiting,
        resolver,
    };
    exit.ask_again(out);
    Ok((exit, tap))
}

/// Binds our port, asks the STUN servers from it, and lets it go for WireGuard.
async fn learn_endpoints(
    options: &ExitOptions,
    out: &mut dyn Output,
) -> Result<(u16, crate::nat::gather::Gathered), Failure> {
    let servers: &[String] = if options.node.no_stun { &[] } else { &options.node.stun_servers };
    if !servers.is_empty() {
        out.event(&Event::Step(format!("asking STUN for our reflexive address ({} known servers)", servers.len())));
    }
    let ports = match options.node.port {
        Some(port) => port..=port,
        None => FIRST_PORT..=FIRST_PORT + PORTS_TRIED - 1,
    };
    let mut last = None;
    for port in ports {
        match stun::gather(port, servers, stun::LIMIT).await {
            Ok(gathered) => return Ok((port, gathered)),
            Err(error @ stun::GatherError::PortInUse { .. }) => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or_else(|| port_in_use(FIRST_PORT), Failure::from))
}

impl Exit<'_> {
    /// Until a signal, or `down`: then the request to be answered when the host is put back.
    async fn serve(
        &mut self,
        tap: &Watched<InitiationTap>,
        server: &mut control::Server,
        signals: &mut StopSignals,
        applier: &mut Applier,
        out: &mut dyn Output,
    ) -> Option<control::Asked> {
        // what expired while no node ran
        self.tend_invites(applier);
        let mut flooded = None;
        loop {
            tokio::select! {
                () = signals.recv() => return None,
                ready = admit::readable(tap, flooded) => {
                    let Ok(ready) = ready else { return None };
                    let seen = self.initiations(tap.get_ref(), applier, out);
                    if let Some(ready) = ready {
                        ready.clear();
                    }
                    // without any since the last look it is over; where some are left, there is a next look
                    let mut flood = seen == AT_ONCE || seen > 0 && self.checker.is_flooded();
                    if flood != flooded.is_some() && tap.get_ref().announce(!flood).is_err() {
                        flood = !flood;
                    }
                    flooded = flood.then(Instant::now);
                    if seen > 0 && !flood {
                        self.welcome(applier, out);
                    }
                }
                asked = server.next() => {
                    if asked.request == Request::Down {
                        return Some(asked);
                    }
                    self.unseen = tap.get_ref().dropped().unwrap_or(self.unseen);
                    let answer = self.answer(&asked.request, applier, out).unwrap_or_else(control::failed);
                    self.plan_tending();
                    asked.reply(answer);
                }
                news = mapping::next_news(&mut self.mapping, applier) => self.news(news, applier, out),
                news = portmap::next_news(&mut self.portmap) => self.port_mapping(news, applier, out),
                () = mapping::tick(&mut self.monitor) => {
                    if let (Some(monitor), Some(mapping)) = (&mut self.monitor, &self.mapping) {
                        out.event(&monitor.line(mapping));
                    }
                }
                asked = service::next(&mut self.service) => {
                    let answer = self.service(asked.from, &asked.request, applier, out);
                    self.plan_tending();
                    asked.reply(answer);
                }
                () = self.tending.due() => self.tend_invites(applier),
                () = self.changes.settled() => {
                    self.network_changed(applier, out);
                    settle::put_back(applier, out);
                }
                () = self.firewall.settled() => settle::put_back(applier, out),
                () = admit::due(&self.admitted) => self.install(Instant::now(), applier, out),
                () = call::due(&self.calls) => self.call(applier),
                () = keepalive::due(&self.keepalives) => self.tend_keepalives(Instant::now(), applier),
                () = self.resolver.changed() => {
                    if let Err(failure) = self.direct_traffic(applier) {
                        tracing::warn!(%failure, "peers' DNS goes on to the old servers");
                    }
                }
                line = admit::next_answer(&mut self.questions) => match line {
                    Some(line) => self.terminal_answer(&line, applier, out),
                    None => self.questions = None,
                },
            }
        }
    }

    /// How many there were; more may wait behind [`AT_ONCE`].
    fn initiations(&mut self, tap: &InitiationTap, applier: &mut Applier, out: &mut dyn Output) -> usize {
        let mut buffer = [0; 256];
        // asked once: in some virtual machines that is a system call, dearer than all else about a forged one
        let now = Instant::now();
        for seen in 0..AT_ONCE {
            let Ok(Some((source, payload))) = tap.recv(&mut buffer) else { return seen };
            self.initiation(payload, source, now, applier, out);
        }
        AT_ONCE
    }

    fn answer(&mut self, request: &Request, applier: &mut Applier, out: &mut dyn Output) -> Result<Response, Failure> {
        match request {
            Request::Status => Ok(Response::Status(self.status(applier)?)),
            Request::PeersList => Ok(Response::Peers { peers: self.status(applier)?.peers }),
            Request::PeersPending => Ok(Response::Pending { pending: self.pending(Instant::now()) }),
            Request::PeersAccept { id, name } => self.accept(id, name.as_deref(), Instant::now(), applier, out),
            Request::PeersAdd { target, name } => self.add(target, name.as_deref(), applier, out),
            Request::PeersDeny { id } => self.deny(id, Instant::now(), out),
            Request::PeersRename { id, name } => self.rename(id, name.as_deref()),
            Request::PeersRevoke { id } => self.revoke(id, applier, out),
            Request::Invite(wanted) => self.invite(wanted, applier),
            Request::Export { show_keys } => Ok(self.export(*show_keys)),
            Request::Down => unreachable!("the event loop ends with it"),
        }
    }

    fn status(&mut self, applier: &Applier) -> Result<Status, Failure> {
        let state = self.wireguard.state(applier.interface())?;
        let now = control::epoch();
        let peers = state.peers.iter().map(|peer| {
            let key = crate::key::PublicKey(peer.public_key);
            match (self.store.get(&key), self.store.invite(&key)) {
                (Some(known), _) => PeerStatus::at_rest(known).with_device(peer, now),
                (None, Some(invite)) => PeerStatus::of_invite(invite).with_device(peer, now),
                (None, None) => PeerStatus::of_device(peer, Vec::new(), "added", now),
            }
        });
        let peers = peers.collect();
        Ok(Status {
            interface: applier.interface().to_owned(),
            mode: "exit".to_owned(),
            backend: self.backend.clone(),
            public_key: self.key.public(),
            port: self.port,
            endpoints: self.endpoints.clone(),
            kill_switch: None,
            initiations: Some(Initiations {
                checked: self.checker.counters(),
                refused: self.admission.refused(),
                unseen: self.unseen,
            }),
            peers,
        })
    }

    /// Where peers are now, so that a restart can call them instead of waiting for them.
    fn remember_endpoints(&mut self) {
        if !self.met {
            return;
        }
        let Ok(state) = self.wireguard.state(&self.options.node.interface) else { return };
        let now: Vec<(_, SocketAddr)> =
            state.peers.iter().filter_map(|p| Some((crate::key::PublicKey(p.public_key), p.endpoint?))).collect();
        for (key, endpoint) in now {
            self.store.set_endpoint(&key, endpoint.into());
        }
        if let Err(failure) = self.peers.keep(&mut self.store) {
            tracing::warn!(%failure, "peers' endpoints are not remembered");
        }
    }
}
