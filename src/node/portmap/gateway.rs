//! What is said to the default gateway while the node runs, and to nobody else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use peervpn_platform::{Host as _, os};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::host::change::PortMapping;
use crate::nat::gateway::{
    NAT_PMP_REQUEST, PORT, SSDP_GROUP, SSDP_PORT, is_internet_gateway, is_pcp, nat_pmp as nat_pmp_address,
    pcp_announce, ssdp_search,
};
use crate::nat::portmap::upnp::{self, Entry, Fault, Service, Url};
use crate::nat::portmap::{LEASE, Refusal, http, is_public, nat_pmp, pcp};

/// First retransmission to a PCP or NAT-PMP server, doubled each time; RFC 6886 §3.1.
const RETRANSMIT: Duration = Duration::from_millis(250);
/// A question about who is there is repeated sooner: the gateway is one hop away.
const RETRANSMIT_FIRST: Duration = Duration::from_millis(100);
/// No answer to a discovery within this means the gateway doesn't speak PCP or NAT-PMP.
const DISCOVERY: Duration = Duration::from_secs(1);
/// A PCP answer may come so much after a NAT-PMP one.
const PREFERENCE: Duration = Duration::from_millis(100);
/// Without a word until now the node need not wait for us.
const QUIET: Duration = Duration::from_millis(100);
/// A request to map or to renew is given up after this.
const REQUEST: Duration = Duration::from_secs(2);
/// Search by multicast where unicast found nothing, and once more, and no longer than the last.
const MULTICAST: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(750)];
const SEARCH: Duration = Duration::from_secs(2);
/// One HTTP exchange; routers' UPnP services are slow machines.
const HTTP: Duration = Duration::from_secs(3);

/// Who speaks what.
pub(super) struct Found {
    pub(super) gateway: Ipv4Addr,
    /// Our address towards it.
    pub(super) client: Ipv4Addr,
    pub(super) pcp: bool,
    pub(super) nat_pmp: bool,
    /// Its UPnP device description; not looked for where it speaks one of the others.
    pub(super) igd: Option<Url>,
}

/// What the gateway granted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grant {
    pub(super) external: SocketAddrV4,
    pub(super) lifetime: Duration,
}

/// Why there is no mapping.
#[derive(Debug, thiserror::Error)]
pub(super) enum No {
    #[error("no answer")]
    Silent,
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Fault(Fault),
    #[error("the journal can't be written")]
    Forbidden,
}

impl From<Refusal> for No {
    fn from(Refusal(why): Refusal) -> No {
        No::Refused(why)
    }
}

/// The IPv4 default gateway, and our address towards it.
fn default_gateway() -> Option<(Ipv4Addr, Ipv4Addr)> {
    // 192.0.0.9 is the PCP anycast address (RFC 7723), routed like everything far
    let way = os::host().ok()?.route_lookup(IpAddr::from([192, 0, 0, 9]), 0).ok()??;
    match (way.gateway?, way.source) {
        (IpAddr::V4(gateway), IpAddr::V4(client)) => Some((gateway, client)),
        _ => None,
    }
}

/// Whether a mapping was made on what is still the default gateway, and leads to our address of now.
pub(super) fn is_default(mapping: &PortMapping) -> bool {
    let made = match mapping {
        PortMapping::Pcp { gateway, client, .. } | PortMapping::NatPmp { gateway, client, .. } => (*gateway, *client),
        PortMapping::Upnp { server, client, .. } => (*server.ip(), *client),
    };
    default_gateway() == Some(made)
}

/// Asks the default gateway what it speaks, by all protocols side by side; creates nothing. `quiet` is called when it
/// takes long.
pub(super) async fn discover(quiet: impl Fn()) -> Option<Found> {
    let Some((gateway, client)) = default_gateway() else {
        quiet();
        return None;
    };
    let servers = servers(gateway, client);
    let search = search(gateway, client);
    let quiet_at = sleep_until(Instant::now() + QUIET);
    tokio::pin!(servers, search, quiet_at);
    let (mut spoken, mut searched, mut said) = (None, None, false);
    loop {
        tokio::select! {
            found = &mut servers, if spoken.is_none() => spoken = Some(found),
            found = &mut search, if searched.is_none() => searched = Some(found),
            () = &mut quiet_at, if !said => {
                quiet();
                said = true;
            }
        }
        match (spoken, &searched) {
            (Some((pcp, nat_pmp)), _) if pcp || nat_pmp => {
                return Some(Found { gateway, client, pcp, nat_pmp, igd: searched.flatten() });
            }
            (Some(_), Some(igd)) => {
                return igd.is_some().then(|| Found { gateway, client, pcp: false, nat_pmp: false, igd: igd.clone() });
            }
            _ => {}
        }
    }
}

/// A socket that hears the gateway alone.
async fn socket(client: Ipv4Addr, server: SocketAddrV4) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((client, 0)).await?;
    socket.connect(server).await?;
    Ok(socket)
}

/// Whether the gateway speaks PCP and NAT-PMP.
async fn servers(gateway: Ipv4Addr, client: Ipv4Addr) -> (bool, bool) {
    let Ok(socket) = socket(client, SocketAddrV4::new(gateway, PORT)).await else { return (false, false) };
    let announce = pcp_announce(client.into());
    let (mut pcp, mut nat_pmp) = (false, false);
    let mut buffer = [0; 1100];
    let mut end = Instant::now() + DISCOVERY;
    let (mut next, mut pause) = (Instant::now(), RETRANSMIT_FIRST);
    while !pcp && Instant::now() < end {
        if next <= Instant::now() {
            for request in [&announce[..], &NAT_PMP_REQUEST[..]] {
                if socket.send(request).await.is_err() {
                    return (pcp, nat_pmp);
                }
            }
            next += pause;
            pause *= 2;
        }
        match timeout_at(next.min(end), socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                pcp |= is_pcp(&buffer[..length]);
                if !nat_pmp && nat_pmp_address(&buffer[..length]).is_some() {
                    nat_pmp = true;
                    end = end.min(Instant::now() + PREFERENCE);
                }
            }
            // ICMP: nobody listens there
            Ok(Err(_)) => return (pcp, nat_pmp),
            Err(_) => {}
        }
    }
    (pcp, nat_pmp)
}

/// Where the gateway describes its UPnP device: asked directly, and by multicast where that finds nothing. An answer
/// counts from the gateway alone, and only if it points to itself. A host with a public address looks for none: it has
/// no NAT before it, and its network is likely a hoster's.
pub(super) async fn search(gateway: Ipv4Addr, client: Ipv4Addr) -> Option<Url> {
    if is_public(client) {
        return None;
    }
    let socket = UdpSocket::bind((client, 0)).await.ok()?;
    let start = Instant::now();
    let multicast = ssdp_search(SSDP_GROUP.into());
    let mut sends = vec![
        (start + MULTICAST[1], multicast.clone(), SSDP_GROUP),
        (start + MULTICAST[0], multicast, SSDP_GROUP),
        (start, ssdp_search(gateway.into()), gateway),
    ];
    let mut buffer = [0; 2048];
    let end = start + SEARCH;
    while Instant::now() < end {
        if let Some((_, text, to)) = sends.pop_if(|(at, ..)| *at <= Instant::now()) {
            // one that can't be sent is one that is not answered
            let _ = socket.send_to(text.as_bytes(), (to, SSDP_PORT)).await;
        }
        let until = sends.last().map_or(end, |(at, ..)| *at).min(end);
        if let Ok(Ok((length, from))) = timeout_at(until, socket.recv_from(&mut buffer)).await
            && from.ip() == IpAddr::V4(gateway)
            && is_internet_gateway(&buffer[..length])
            && let Some(url) = upnp::location(&buffer[..length]).filter(|url| *url.server.ip() == gateway)
        {
            return Some(url);
        }
    }
    None
}

/// Creates or renews a mapping whose undo is in the journal.
pub(super) async fn request(mapping: &PortMapping, suggested: SocketAddrV4) -> Result<Grant, No> {
    match mapping {
        PortMapping::Pcp { gateway, client, port, nonce } => {
            let wanted = pcp::Mapping { client: *client, port: *port, nonce: *nonce };
            let bytes = pcp::request(&wanted, LEASE, suggested);
            let granted = ask(*gateway, *client, &bytes, |answer| pcp::answer(answer, &wanted)).await??;
            lasting(granted.external, granted.lifetime)
        }
        PortMapping::NatPmp { gateway, client, port } => {
            let bytes = nat_pmp::request(*port, suggested.port(), LEASE);
            let granted = ask(*gateway, *client, &bytes, |answer| nat_pmp::answer(answer, *port)).await??;
            let address = ask(*gateway, *client, &NAT_PMP_REQUEST, nat_pmp_address).await?;
            let address = address.ok_or_else(|| No::Refused("the gateway has no external address".to_owned()))?;
            lasting(SocketAddrV4::new(address, granted.external_port), granted.lifetime)
        }
        PortMapping::Upnp { external_port, client, port, permanent, .. } => {
            let service = service(mapping).expect("a UPnP mapping");
            let lease = if *permanent { Duration::ZERO } else { LEASE };
            let server = service.control.server;
            upnp::done(&call(server, &upnp::add(&service, *external_port, *client, *port, lease)).await?)
                .map_err(No::Fault)?;
            let address = external_address(&service).await?;
            // the lease may be shorter than asked for, and its answer does not say so
            let granted = entry(&service, *external_port).await?.map(|entry| entry.lifetime);
            let lifetime = granted.filter(|granted| !granted.is_zero()).unwrap_or(LEASE).min(LEASE);
            lasting(SocketAddrV4::new(address, *external_port), lifetime)
        }
    }
}

fn lasting(external: SocketAddrV4, lifetime: Duration) -> Result<Grant, No> {
    if lifetime.is_zero() {
        return Err(No::Refused("granted for no time".to_owned()));
    }
    Ok(Grant { external, lifetime })
}

/// The service that a UPnP mapping was made by.
pub(super) fn service(mapping: &PortMapping) -> Option<Service> {
    match mapping {
        PortMapping::Upnp { server, path, service, .. } => {
            Some(Service { control: Url { server: *server, path: path.clone() }, kind: service.clone() })
        }
        _ => None,
    }
}

/// One question to the PCP or NAT-PMP server, repeated until it is answered.
async fn ask<T>(
    gateway: Ipv4Addr,
    client: Ipv4Addr,
    request: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<T, No> {
    let socket = socket(client, SocketAddrV4::new(gateway, PORT)).await.map_err(|_| No::Silent)?;
    let mut buffer = [0; 1100];
    let end = Instant::now() + REQUEST;
    let mut pause = RETRANSMIT;
    while Instant::now() < end {
        socket.send(request).await.map_err(|_| No::Silent)?;
        let until = end.min(Instant::now() + pause);
        while let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await {
            let length = received.map_err(|_| No::Silent)?;
            if let Some(answer) = read(&buffer[..length]) {
                return Ok(answer);
            }
        }
        pause *= 2;
    }
    Err(No::Silent)
}

/// The services that map ports, as the gateway describes them.
pub(super) async fn services(description: &Url) -> Result<Vec<Service>, No> {
    let answer = call(description.server, &http::get(description.server, &description.path)).await?;
    let text = upnp::done(&answer).map_err(No::Fault)?;
    Ok(upnp::services(&text, description))
}

/// The external address of a service that has one.
pub(super) async fn external_address(service: &Service) -> Result<Ipv4Addr, No> {
    let answer = call(service.control.server, &upnp::get_external_address(service)).await?;
    let address = upnp::external_address(&answer).map_err(No::Fault)?;
    address.ok_or_else(|| No::Refused("the gateway has no external address".to_owned()))
}

/// Who has an external port; `None` where nobody has, or the gateway won't say.
pub(super) async fn entry(service: &Service, external_port: u16) -> Result<Option<Entry>, No> {
    let answer = call(service.control.server, &upnp::get_entry(service, external_port)).await?;
    Ok(upnp::entry(&answer).ok())
}

/// One HTTP exchange.
async fn call(server: SocketAddrV4, request: &[u8]) -> Result<http::Answer, No> {
    let exchange = async {
        let mut stream = TcpStream::connect(SocketAddr::V4(server)).await.ok()?;
        stream.write_all(request).await.ok()?;
        let mut bytes = Vec::new();
        loop {
            let closed = stream.read_buf(&mut bytes).await.ok()? == 0;
            match http::answer(&bytes, closed) {
                Ok(Some(answer)) => return Some(answer),
                Ok(None) if bytes.len() <= http::MAX_ANSWER => {}
                _ => return None,
            }
        }
    };
    timeout(HTTP, exchange).await.ok().flatten().ok_or(No::Silent)
}
