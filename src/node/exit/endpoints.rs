//! Which endpoints go into the connect string, best first, and what the person is told about them.

use std::net::{IpAddr, SocketAddr};

use peervpn_platform::Host;
use peervpn_platform::types::{Family, RouteLookup};

use super::mapped::Mapped;
use crate::config::ExitOptions;
use crate::error::Failure;
use crate::join::connect::Endpoint;
use crate::nat::gather::{Gathered, MappingHint};
use crate::node::event::{Event, Output};

/// Those stated by hand, the one that the gateway maps, then what STUN servers saw; local addresses only where none gave any.
pub fn choose(
    options: &ExitOptions,
    port: u16,
    gathered: &Gathered,
    mapped: &Mapped,
    host: &mut impl Host,
    uplinks: &[(Family, RouteLookup)],
    out: &mut dyn Output,
) -> Result<Vec<String>, Failure> {
    let mut endpoints: Vec<String> = Vec::new();
    for text in &options.endpoints {
        let endpoint: Endpoint = text.parse::<Endpoint>()?;
        endpoints.push(endpoint.to_string());
    }
    endpoints.extend(gathered.reflexive().iter().map(SocketAddr::to_string));
    mapped.place(&mut endpoints, options.endpoints.len());
    for family in Family::BOTH {
        // a mapped endpoint works all the same
        let mapped = family == Family::V4 && matches!(mapped.offered(), Some((_, true)));
        if !mapped && gathered.family(family).mapping == MappingHint::ByDestination {
            out.event(&Event::Warning(format!(
                "this network's NAT maps each destination to another port ({}): the endpoint below will not work for \
                 most peers. Forward UDP port {port} on the router and state it with --endpoint HOST:PORT",
                if family == Family::V4 { "IPv4" } else { "IPv6" },
            )));
        }
    }
    if endpoints.is_empty() {
        endpoints.extend(local(host, uplinks, port)?);
        let why = if options.node.no_stun { "no STUN server was asked" } else { "no STUN server answered" };
        out.event(&Event::Warning(format!(
            "{why}: the endpoints below are this host's own addresses. Peers on the same network can use them; others \
             only if no NAT is in between, or with the router's address stated by --endpoint HOST:PORT"
        )));
    }
    endpoints.dedup();
    Ok(endpoints)
}

/// The addresses of the links with a default route, with our port; those that mean something beyond the link first.
fn local(host: &mut impl Host, uplinks: &[(Family, RouteLookup)], port: u16) -> Result<Vec<String>, Failure> {
    let mut addresses: Vec<IpAddr> = uplinks.iter().map(|(_, way)| way.source).collect();
    for address in host.addresses()? {
        let ip = address.address.ip();
        let beyond_link = match ip {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        if beyond_link && !addresses.contains(&ip) && uplinks.iter().any(|(_, way)| way.ifindex == address.ifindex) {
            addresses.push(ip);
        }
    }
    Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect())
}
