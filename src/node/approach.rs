//! How a connecting node gets at the exit: where to send outer packets, by which mark they are known, and the guard that
//! then lets nothing else out.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peervpn_platform::types::{Family, System};
use peervpn_platform::{Host as _, os};

use super::apply::Applier;
use super::event::{Event, Output};
use super::guard::Guard;
use super::{Ground, carrier};
use crate::config::ConnectOptions;
use crate::error::{self, Failure, Words};
use crate::host::{Numbers, numbers};
use crate::join::address::TunnelAddresses;
use crate::join::connect::{Endpoint, Host};
use crate::join::service::Settings;
use crate::tunnel::mtu;

/// How long STUN may hold up a connection. It is told of in [`super::connect`] when the exit does not answer.
const FIRST_LIMIT: Duration = Duration::from_secs(1);

/// Whether STUN is asked before WireGuard has the port, since its answers can't be heard afterwards. Elsewhere it is asked
/// when the exit does not answer, beside WireGuard, and holds up nothing.
fn asks_first(system: System) -> bool {
    match system {
        System::Linux | System::Macos => false,
        System::Windows => true,
    }
}

/// Everything that is known before a device is there; nothing is changed on the host yet.
pub struct Approach {
    /// Ways to the exit, at least one.
    pub candidates: Vec<Candidate>,
    /// Listen port, 0 for any.
    pub port: u16,
    /// For policy routing.
    pub numbers: Numbers,
    /// MTU of the tunnel in bytes.
    pub mtu: u32,
    /// Our addresses as STUN servers saw that port, v4 first; none where they are asked later.
    pub reflexive: Vec<SocketAddr>,
    addresses: TunnelAddresses,
    exit: Vec<IpAddr>,
    exit_has_v6: bool,
}

/// What lets nothing else out.
pub struct Protection {
    /// Up as far as [`Guard::lock_down`] or a take-over has come.
    pub guard: Guard,
    /// See [`carrier::marks`].
    pub carriers: Vec<u32>,
}

impl Approach {
    /// Looks up names and ways. `addresses`: ours in the tunnel; `exit`: the exit's there; `joined`: what it told us.
    pub async fn new(
        ground: &mut Ground,
        endpoints: &[Endpoint],
        addresses: TunnelAddresses,
        exit: &[IpAddr],
        joined: Option<&Settings>,
        options: &ConnectOptions,
        out: &mut dyn Output,
    ) -> Result<Approach, Failure> {
        let candidates = candidates(&mut ground.applier, endpoints, out).await?;
        let mut port = options.node.port.unwrap_or(0);
        let mut reflexive = Vec::new();
        // behind a dead node's kill switch nobody would answer
        let asks = asks_first(os::SYSTEM) && !options.node.no_stun && !ground.applier.closed();
        let servers: &[String] = if asks { &options.node.stun_servers } else { &[] };
        // pf knows outer packets by their port
        if port != 0 || os::SYSTEM == System::Macos || !servers.is_empty() {
            let gathered = super::stun::gather(port, servers, FIRST_LIMIT).await?;
            (port, reflexive) = (gathered.port, gathered.reflexive());
        }
        let host = &mut ground.applier.host;
        let (rules, routes) = (host.rules()?, host.routes()?);
        let numbers = numbers::choose(os::SYSTEM, &rules, &routes).ok_or_else(|| {
            Failure::new("no free fwmark, table or rule priority is left on this host", "ip rule shows who takes them")
        })?;
        let way = candidates.iter().map(|c| mtu::inner(c.mtu, Family::of(&c.address.ip()))).min();
        let way = way.unwrap_or(mtu::MIN).min(joined.map_or(u32::MAX, |joined| joined.mtu));
        let mtu = options.node.mtu.unwrap_or(way);
        let exit_has_v6 = joined.is_none_or(|joined| joined.ipv6);
        Ok(Approach { candidates, port, numbers, mtu, reflexive, addresses, exit: exit.to_vec(), exit_has_v6 })
    }

    /// Looks at what the guard must know of the host.
    pub fn protect(&self, applier: &mut Applier, options: &ConnectOptions) -> Result<Protection, Failure> {
        let own = applier.interface().to_owned();
        let mut carriers: Vec<u32> = Vec::new();
        for candidate in &self.candidates {
            carriers.extend(carrier::marks(&mut applier.host, candidate.address.ip(), self.numbers.fwmark, &own));
        }
        carriers.dedup();
        let mut guard = Guard::new(applier, options, self.numbers, self.addresses, &self.exit, carriers.clone())?;
        guard.exit_has_v6(self.exit_has_v6);
        guard.set_device(self.port, self.mtu);
        Ok(Protection { guard, carriers })
    }

    /// Closes the host before there is a device, where that is wanted: `--lockdown`, or a killed node's kill switch.
    /// Elsewhere [`Approach::protect`] has time until the exit has answered.
    pub fn lock_down(
        &self,
        applier: &mut Applier,
        options: &ConnectOptions,
        out: &mut dyn Output,
    ) -> Result<Option<Protection>, Failure> {
        if !options.lockdown && !applier.closed() {
            return Ok(None);
        }
        let protection = self.protect(applier, options)?;
        protection.guard.lock_down(applier, out)?;
        Ok(Some(protection))
    }
}

/// One way to the exit.
pub struct Candidate {
    pub address: SocketAddr,
    /// Our address on that way.
    pub source: IpAddr,
    /// MTU of the way, bytes.
    pub mtu: u32,
}

/// Resolves the endpoints and keeps those that this host has a route to.
async fn candidates(
    applier: &mut Applier,
    endpoints: &[Endpoint],
    out: &mut dyn Output,
) -> Result<Vec<Candidate>, Failure> {
    let mut addresses = Vec::new();
    let mut unresolved = None;
    for endpoint in endpoints {
        match &endpoint.host {
            Host::Ip(ip) => addresses.push(SocketAddr::new(*ip, endpoint.port)),
            Host::Name(name) => {
                out.event(&Event::Step(format!("looking up {name}")));
                match tokio::net::lookup_host((name.as_str(), endpoint.port)).await {
                    Ok(found) => {
                        let found: Vec<SocketAddr> = found.collect();
                        let ips: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
                        applier.remember(name, &ips)?;
                        addresses.extend(found);
                    }
                    Err(error) => {
                        // a kill switch that a dead node left holds DNS back
                        let known = applier.remembered(name);
                        if known.is_empty() {
                            unresolved = Some((name.clone(), error));
                        }
                        addresses.extend(known.into_iter().map(|ip| SocketAddr::new(ip, endpoint.port)));
                    }
                }
            }
        }
    }
    if let (true, Some((name, error))) = (addresses.is_empty(), unresolved) {
        return Err(Failure::new(
            format!("the name {name} does not resolve: {}", error::chain(&error)),
            "check the spelling and this host's DNS, or use the exit's address instead of its name",
        ));
    }
    let mut candidates = Vec::new();
    for address in &addresses {
        if let Some(way) = applier.host.route_lookup(address.ip(), 0)?
            && !candidates.iter().any(|c: &Candidate| c.address == *address)
        {
            candidates.push(Candidate { address: *address, source: way.source, mtu: way.mtu });
        }
    }
    if candidates.is_empty() {
        let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(
            format!("this host has no route to the exit ({list})"),
            format!("connect it to a network with a default route first: {}", Words::HERE.routes()),
        ));
    }
    Ok(candidates)
}
