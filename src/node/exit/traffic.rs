//! What an exit makes of its peers' packets on the network it is on now: the firewall table, and settings to forward.

use std::net::IpAddr;

use peervpn_platform::types::{Family, RouteLookup};
use peervpn_platform::{Host, os};

use super::Exit;
use crate::config::ExitOptions;
use crate::error::Failure;
use crate::host::firewall::{ExitPolicy, Policy, Surroundings};
use crate::host::lan::{self, Lan};
use crate::host::{Change, sysctls};
use crate::join::address::{TunnelAddresses, exit_addresses};
use crate::join::initiation::FLOOD;
use crate::node::apply::Applier;

/// IP protocol number of TCP; RFC 9293.
const TCP: u8 = 6;

/// What it depends on.
pub struct Traffic<'a> {
    pub interface: &'a str,
    pub port: u16,
    /// MTU of the tunnel in bytes.
    pub mtu: u32,
    pub addresses: TunnelAddresses,
    pub options: &'a ExitOptions,
    /// Where peers' DNS queries go.
    pub dns: &'a [IpAddr],
    /// How packets to the internet leave.
    pub uplinks: &'a [(Family, RouteLookup)],
    pub lan: &'a [Lan],
    /// See [`super::outer::Outer::led`].
    pub outer: Option<u32>,
}

impl Traffic<'_> {
    /// The table first: it stands before the first packet can be forwarded.
    pub fn changes(&self, host: &mut impl Host) -> Result<Vec<Change>, Failure> {
        let links = host.links()?;
        // IPv4 forwards what comes in by a link that is told to, answers too: by every link that peers' packets leave by
        let mut ways: Vec<String> = self.uplinks.iter().map(|(_, way)| way.interface.clone()).collect();
        for server in self.dns {
            ways.extend(host.route_lookup(*server, 0)?.map(|way| way.interface));
        }
        if self.options.allow_lan {
            ways.extend(links.iter().map(|link| link.name.clone()));
        }
        let other = |name: &String| links.iter().any(|l| l.name == *name && l.name != self.interface && !l.loopback);
        ways.retain(other);
        ways.sort();
        ways.dedup();
        let policy = ExitPolicy {
            interface: self.interface,
            port: self.port,
            initiations: FLOOD,
            v4: Some(self.addresses.v4),
            v6: Some(self.addresses.v6),
            allow_lan: self.options.allow_lan,
            allow_peers: self.options.allow_peers,
            services: vec![(TCP, crate::join::service::PORT)],
            dns: self.dns.to_vec(),
            lan: self.lan,
            outer: self.outer,
        };
        let around = Surroundings { port: Some(self.port), mtu: self.mtu, uplinks: self.uplinks.to_vec() };
        let mut changes = vec![Change::Firewall(Policy::Exit(policy).firewall(os::SYSTEM, &around)?)];
        let links: Vec<String> = links.into_iter().map(|link| link.name).collect();
        changes.extend(sysctls::exit(self.interface, &ways, &links, |key| host.sysctl(key).ok().flatten()));
        Ok(changes)
    }
}

/// This host's LAN by its addresses. (Private networks behind it are closed to peers anyway, and an exit's routes are many.)
pub fn lan(applier: &mut Applier) -> Result<Vec<Lan>, Failure> {
    let (links, addresses) = (applier.host.links()?, applier.host.addresses()?);
    Ok(lan::prefixes(applier.interface(), &links, &addresses, &[]))
}

impl Exit<'_> {
    /// Adapts to the network and the resolvers as they are now.
    pub(super) fn direct_traffic(&mut self, applier: &mut Applier) -> Result<(), Failure> {
        let interface = applier.interface().to_owned();
        let traffic = Traffic {
            interface: &interface,
            port: self.port,
            mtu: self.mtu,
            addresses: exit_addresses(&self.key.public()),
            options: self.options,
            dns: self.resolver.servers(),
            uplinks: &self.uplinks,
            lan: &self.lan,
            outer: self.outer.led(),
        };
        let changes = traffic.changes(&mut applier.host)?;
        applier.make_all(changes)
    }
}
