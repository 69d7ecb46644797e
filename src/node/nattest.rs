//! `peervpn nattest`: drives `nat::discovery` for both families and asks the gateway which port-mapping protocols it
//! speaks, all at once. Ordinary sockets only; needs no privilege.

mod gateway;
mod lifetime;
mod sockets;

use std::net::{IpAddr, SocketAddr, UdpSocket as StdUdpSocket};
use std::time::Instant;

use peervpn_platform::os::udp;
use peervpn_platform::types::Family;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::config::DEFAULT_KEEPER_INTERVAL;
use crate::error::{Failure, Hint};
use crate::nat::discovery::{Behaviour, Discovery, Measured, Path};
use crate::nat::verdict::{self, CanBeExit, NatType};
use crate::node::stun::{no_way, transaction_id};
use sockets::Sockets;

/// What to test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// STUN servers as `HOST:PORT`.
    pub servers: Vec<String>,
    /// The local port asked about; `None` takes any.
    pub port: Option<u16>,
    /// Measure the mapping lifetime, too: takes as long as a mapping lives, five minutes at most, and somewhat more.
    pub lifetime: bool,
}

/// How the measurement of the mapping lifetime goes, for people.
pub type Progress<'a> = &'a mut (dyn FnMut(String) + Send);

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum NattestError {
    /// The port asked about is somebody's.
    #[error(transparent)]
    Port(#[from] crate::node::stun::GatherError),
    /// No server has an address that packets can be sent to.
    #[error("no STUN server can be asked: {0}")]
    NoServer(String),
}

impl Hint for NattestError {
    fn hint(&self) -> Option<String> {
        match self {
            NattestError::Port(error) => error.hint(),
            NattestError::NoServer(_) => Some(
                "check the network and its name server, or name one by address: --stun-server ADDRESS:PORT".to_owned(),
            ),
        }
    }
}

/// The result; its JSON is that of cli.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// IPv4; `None` where this host has no way to any server by it.
    pub ipv4: Option<FamilyReport>,
    /// IPv6.
    pub ipv6: Option<FamilyReport>,
    /// Port-mapping protocols of the gateway.
    pub port_mapping: PortMapping,
    /// Verdict.
    pub can_be_exit: CanBeExit,
    /// Milliseconds from the start.
    pub elapsed_ms: u64,
    /// The verdict in plain lines. Only for people.
    #[serde(skip)]
    pub explanation: Vec<String>,
}

/// One family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyReport {
    /// Some server answered.
    pub udp: bool,
    /// The source of the packets.
    pub local: Option<SocketAddr>,
    /// Where the first server saw them come from.
    pub reflexive: Option<SocketAddr>,
    /// Mapping behaviour.
    pub mapping: Behaviour,
    /// Filtering behaviour.
    pub filtering: Behaviour,
    /// The familiar name.
    pub nat_type: NatType,
    /// The NAT gave the local port's number.
    pub port_preserved: Option<bool>,
    /// Hosts behind the NAT reach each other by their reflexive addresses.
    pub hairpin: Option<bool>,
    /// Carrier-grade NAT.
    pub cgn: Option<bool>,
    /// Mapping lifetime in seconds, with `--lifetime`.
    pub lifetime_s: Option<u64>,
    /// What it was told from.
    #[serde(skip)]
    pub measured: Measured,
}

/// Port-mapping protocols found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct PortMapping {
    /// PCP, RFC 6887.
    pub pcp: bool,
    /// NAT-PMP, RFC 6886.
    pub nat_pmp: bool,
    /// UPnP Internet Gateway Device.
    pub upnp: bool,
}

impl PortMapping {
    /// Some protocol was found.
    pub fn any(self) -> bool {
        self.pcp || self.nat_pmp || self.upnp
    }
}

/// Runs every test and returns: about a second, see `nat::discovery` for what it waits for.
#[inline(never)] // 100 kB of stack, which the short commands would touch, too
pub fn run(options: &Options, progress: Progress) -> Result<Report, Failure> {
    Ok(super::block_on(measure(options, progress))??)
}

/// [`run`] for those who have an event loop.
pub async fn measure(options: &Options, progress: Progress<'_>) -> Result<Report, NattestError> {
    let started = Instant::now();
    let mut sockets = Sockets::bind(options.port)?;
    let (measured, gateway) = tokio::join!(discover(options, &mut sockets, started), gateway::probe());
    let [v4, v6] = measured?;
    let report = |measured: Option<Measured>| measured.map(|measured| FamilyReport::new(measured, gateway.external));
    let (mut ipv4, mut ipv6) = (report(v4), report(v6));
    drop(sockets);
    if options.lifetime {
        for (name, report) in [("IPv4", &mut ipv4), ("IPv6", &mut ipv6)] {
            if let Some(report) = report {
                lifetime::measure(name, report, progress).await;
            }
        }
    }
    let cgn = ipv4.as_ref().and_then(|report| report.cgn) == Some(true);
    let of = |report: &Option<FamilyReport>| report.as_ref().map(|report| report.measured.clone());
    let (v4, v6) = (of(&ipv4), of(&ipv6));
    let can_be_exit = verdict::can_be_exit(v4.as_ref(), v6.as_ref(), gateway.protocols.any(), cgn);
    let mut explanation = verdict::explain(v4.as_ref(), v6.as_ref(), can_be_exit, cgn);
    let shortest = [&ipv4, &ipv6].into_iter().filter_map(|report| report.as_ref()?.lifetime_s).min();
    explanation.extend(shortest.and_then(|s| verdict::explain_lifetime(s, DEFAULT_KEEPER_INTERVAL.as_secs())));
    Ok(Report {
        explanation,
        ipv4,
        ipv6,
        port_mapping: gateway.protocols,
        can_be_exit,
        elapsed_ms: started.elapsed().as_millis() as u64,
    })
}

impl FamilyReport {
    fn new(measured: Measured, gateway_external: Option<IpAddr>) -> Self {
        let (local, reflexive) = (measured.local, measured.reflexive);
        FamilyReport {
            udp: measured.udp,
            local,
            reflexive,
            mapping: measured.mapping,
            filtering: measured.filtering,
            nat_type: NatType::of(&measured),
            port_preserved: local.zip(reflexive).map(|(local, reflexive)| local.port() == reflexive.port()),
            hairpin: measured.hairpin,
            cgn: local
                .filter(SocketAddr::is_ipv4)
                .and_then(|local| verdict::cgn(local.ip(), gateway_external, reflexive.map(|r| r.ip()))),
            lifetime_s: None,
            measured,
        }
    }
}

/// Both families' discoveries; `None` for a family in which no server can be asked.
async fn discover(
    options: &Options,
    sockets: &mut Sockets,
    started: Instant,
) -> Result<[Option<Measured>; 2], NattestError> {
    let names = options.servers.len();
    let mut runs: Vec<(Family, Discovery, bool)> = Family::BOTH
        .into_iter()
        .filter_map(|family| {
            let ports = sockets.ports(family)?;
            Some((family, Discovery::new(family, ports, names, transaction_id, started), false))
        })
        .collect();
    let mut lookups = JoinSet::new();
    for server in options.servers.iter().cloned() {
        lookups.spawn(async move { tokio::net::lookup_host(server).await.map(Vec::from_iter) });
    }
    let mut trouble = None;
    loop {
        let now = Instant::now();
        for (family, discovery, _) in &mut runs {
            discovery.handle_timeout(now);
            while let Some((path, transmit)) = discovery.poll_transmit(now) {
                if let Err(error) = sockets.send(*family, path, &transmit).await {
                    tracing::debug!(remote = %transmit.to, %error, "cannot send a STUN request");
                    if no_way(&error) {
                        discovery.unsendable(path, transmit.id, now);
                    }
                }
            }
        }
        if runs.iter().all(|(_, discovery, _)| discovery.is_done()) {
            break;
        }
        let wake = runs.iter().filter(|(_, d, _)| !d.is_done()).map(|(_, d, _)| d.poll_timeout(now)).min();
        tokio::select! {
            biased;
            (family, path, from, length) = sockets.receive() => {
                let now = Instant::now();
                if let Some((_, discovery, _)) = runs.iter_mut().find(|(of, ..)| *of == family) {
                    discovery.handle(path, from, sockets.received(length), now);
                }
            }
            Some(found) = lookups.join_next() => {
                let addresses = match found {
                    Ok(Ok(addresses)) => addresses,
                    Ok(Err(error)) => {
                        trouble = Some(error.to_string());
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                };
                for (family, discovery, asked) in &mut runs {
                    let address = addresses.iter().copied().find(|address| Family::of(&address.ip()) == *family);
                    let server = address.and_then(|address| match local_towards(address) {
                        Ok(local) => Some((address, local)),
                        Err(error) => {
                            trouble = Some(error.to_string());
                            None
                        }
                    });
                    *asked |= server.is_some();
                    discovery.resolved(server, Instant::now());
                }
            }
            () = tokio::time::sleep_until(wake.unwrap_or(now).into()) => {}
        }
    }
    if !runs.iter().any(|(_, _, asked)| *asked) {
        let none = if names == 0 { "none is configured" } else { "their names could not be looked up in time" };
        let why = trouble.unwrap_or_else(|| none.to_owned());
        return Err(NattestError::NoServer(why));
    }
    let mut measured = [None, None];
    for (family, discovery, asked) in runs {
        if asked {
            measured[usize::from(family == Family::V6)] = Some(discovery.measured());
        }
    }
    Ok(measured)
}

/// The local address that packets to `server` leave with. Connecting a datagram socket sends nothing.
fn local_towards(server: SocketAddr) -> std::io::Result<IpAddr> {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = StdUdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}
