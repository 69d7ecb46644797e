//! [`Host`] by IP Helper: links and addresses in `interface.rs`, routes in `route.rs`, filters in `wfp.rs`. Windows has no
//! policy rules and no sysctls; reading them finds none, writing one is unsupported.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{boot, interface, nrpt, route, wfp, wireguard};
use crate::firewall::Firewall;
use crate::nft::Rule as NftRule;
use crate::nft::foreign::{Place, SeenChain};
use crate::types::*;
use crate::{Error, Host, OUR_ALIAS, Result};

fn unsupported<T>(what: &'static str, instead: &'static str) -> Result<T> {
    Err(Error::Unsupported { what, instead })
}

const RULES: &str = "routes alone decide here: leave policy rules out";
const FILTERS: &str = "this system takes filters of its own kind";

/// The network stack.
#[derive(Debug)]
pub struct SystemHost(());

/// Opens the network stack; changes nothing.
pub fn host() -> Result<SystemHost> {
    Ok(SystemHost(()))
}

impl Host for SystemHost {
    fn links(&mut self) -> Result<Vec<Link>> {
        Ok(interface::entries()?.into_iter().map(|entry| entry.link).collect())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        Ok(interface::find(name)?.map(|entry| entry.link))
    }

    fn create_wireguard_link(&mut self, name: &str) -> Result<()> {
        wireguard::create(name)
    }

    fn delete_link(&mut self, name: &str) -> Result<()> {
        wireguard::delete(name)
    }

    fn mark_link(&mut self, name: &str) -> Result<()> {
        // what WireGuardNT writes into the description is the mark; nothing else can be marked
        match self.link(name)? {
            Some(link) if link.alias.as_deref() == Some(OUR_ALIAS) => Ok(()),
            _ => unsupported("marking another program's adapter", "let this system's WireGuard make it"),
        }
    }

    fn bring_up(&mut self, name: &str, mtu: u32) -> Result<()> {
        interface::tune(name, mtu)?;
        wireguard::up(name)
    }

    fn addresses(&mut self) -> Result<Vec<Address>> {
        interface::addresses()
    }

    fn add_address(&mut self, link: &str, address: IpNetwork) -> Result<()> {
        interface::add_address(link, address)
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        route::list()
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        route::add(route)
    }

    fn add_routes(&mut self, routes: &[Route]) -> Result<()> {
        routes.iter().try_for_each(route::add)
    }

    fn delete_route(&mut self, route: &Route) -> Result<()> {
        route::delete(route)
    }

    fn rules(&mut self) -> Result<Vec<Rule>> {
        Ok(Vec::new())
    }

    fn add_rule(&mut self, _rule: &Rule) -> Result<()> {
        unsupported("a policy rule", RULES)
    }

    fn delete_rule(&mut self, _rule: &Rule) -> Result<()> {
        unsupported("a policy rule", RULES)
    }

    fn route_lookup(&mut self, destination: IpAddr, _mark: u32) -> Result<Option<RouteLookup>> {
        route::look_up(destination)
    }

    fn sysctl(&mut self, _key: &str) -> Result<Option<String>> {
        Ok(None)
    }

    fn set_sysctl(&mut self, _key: &str, _value: &str) -> Result<()> {
        unsupported("a sysctl", "leave it out: Windows has none")
    }

    fn seen_chains(&mut self) -> Result<Vec<SeenChain>> {
        Ok(Vec::new())
    }

    fn insert_rules(&mut self, _place: &Place, _rules: &[NftRule]) -> Result<()> {
        unsupported("a rule in another program's chain", FILTERS)
    }

    fn delete_commented(&mut self, _place: &Place, _comment: &str) -> Result<()> {
        unsupported("a rule in another program's chain", FILTERS)
    }

    fn ipv6(&mut self) -> Result<bool> {
        interface::ipv6()
    }

    fn boot_id(&mut self) -> Result<String> {
        boot::id()
    }

    fn replace_firewall(&mut self, firewall: &Firewall) -> Result<()> {
        match firewall {
            Firewall::Wfp(set) => wfp::replace(set),
            _ => unsupported("another system's firewall", FILTERS),
        }
    }

    fn firewall_stands(&mut self, firewall: &Firewall) -> Result<bool> {
        match firewall {
            Firewall::Wfp(set) => Ok(wfp::names(&set.name)? == Some(set.names())),
            _ => Ok(false),
        }
    }

    fn firewall_rules(&mut self, name: &str) -> Result<Vec<String>> {
        Ok(wfp::names(name)?.unwrap_or_default())
    }

    fn delete_firewall(&mut self, name: &str) -> Result<()> {
        wfp::delete(name)
    }

    fn delete_marked(&mut self) -> Result<()> {
        let (filters, rules) = (wfp::delete_all(), nrpt::remove_all());
        filters.and(rules)
    }

    fn outer_route(&mut self, destination: IpAddr, _mark: u32) -> Result<Option<RouteLookup>> {
        route::look_up_outer(destination)
    }

    fn set_dns(&mut self, interface: &str, servers: &[IpAddr]) -> Result<()> {
        nrpt::set(interface, servers)
    }

    fn dns(&mut self, interface: &str) -> Result<Vec<IpAddr>> {
        nrpt::servers(interface)
    }

    fn unset_dns(&mut self, interface: &str) -> Result<()> {
        nrpt::remove(interface)
    }
}
