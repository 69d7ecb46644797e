//! What tests of the node run on instead of the machine: directories of their own, and a host in memory. The host keeps
//! all that a [`Host`] can change, as one value to compare, so that on every system the very code that changes the host and
//! puts it back can be held against what was there before. It refuses a change, or its process is killed at one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::rc::Rc;

use ipnetwork::IpNetwork;
use peervpn_platform::firewall::Firewall;
use peervpn_platform::nft;
use peervpn_platform::nft::foreign::{Place, SeenChain, SeenRule};
use peervpn_platform::types::*;
use peervpn_platform::{Error, Host, OUR_ALIAS, Result};

use super::event::{Event, Output};
use crate::config::Places;

/// Nobody reads it, and there is nothing to warn of.
pub struct Unwarned;

impl Output for Unwarned {
    fn event(&mut self, event: &Event) {
        assert!(!matches!(event, Event::Warning(_)), "{event:?}");
    }
}

/// Directories of a test's own, removed at the end.
pub struct Scratch(pub Places);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("peervpn-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Scratch(Places { run_dir: dir.join("run"), state_dir: dir })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0.state_dir);
    }
}

/// The host's network configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub rules: Vec<Rule>,
    pub settings: BTreeMap<String, String>,
    pub firewalls: BTreeMap<String, Firewall>,
    pub dns: BTreeMap<String, Vec<IpAddr>>,
    pub chains: Vec<SeenChain>,
}

/// What goes wrong with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The system refuses it, and takes what comes after it.
    Refused,
    /// The process is killed before it.
    KilledBefore,
    /// The process is killed after it.
    KilledAfter,
}

#[derive(Default)]
struct Machine {
    state: State,
    boot: u32,
    /// Changes since the last [`FakeHost::trouble`].
    changes: u32,
    trouble: Option<(u32, Trouble)>,
    killed: bool,
}

/// A machine; its clones are the same one.
#[derive(Clone, Default)]
pub struct FakeHost(Rc<RefCell<Machine>>);

impl FakeHost {
    pub fn new(state: State) -> FakeHost {
        let host = FakeHost::default();
        host.set(|now| *now = state);
        host
    }

    pub fn state(&self) -> State {
        self.0.borrow().state.clone()
    }

    /// What another program changes.
    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.borrow_mut().state);
    }

    /// The change that goes wrong, counted from 1, for the process that comes now.
    pub fn trouble(&self, at: u32, trouble: Trouble) {
        let mut machine = self.0.borrow_mut();
        (machine.trouble, machine.changes, machine.killed) = (Some((at, trouble)), 0, false);
    }

    /// Another process comes, for which nothing goes wrong. Whether the trouble had come about.
    pub fn no_trouble(&self) -> bool {
        let mut machine = self.0.borrow_mut();
        machine.killed = false;
        machine.trouble.take().is_some_and(|(at, _)| at <= machine.changes)
    }

    /// What is kept in memory is gone.
    pub fn reboot(&self, before: State) {
        let mut machine = self.0.borrow_mut();
        machine.boot += 1;
        machine.state = State { dns: std::mem::take(&mut machine.state.dns), ..before };
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T> {
        let machine = self.0.borrow();
        if machine.killed { Err(Error::system("go on", ErrorKind::Interrupted)) } else { Ok(read(&machine.state)) }
    }

    fn change(&self, what: &str, change: impl FnOnce(&mut State) -> Option<ErrorKind>) -> Result<()> {
        self.read(|_| ())?;
        let mut machine = self.0.borrow_mut();
        machine.changes += 1;
        let trouble = machine.trouble.filter(|(at, _)| *at == machine.changes).map(|(_, trouble)| trouble);
        machine.killed = matches!(trouble, Some(Trouble::KilledBefore | Trouble::KilledAfter));
        let refused = match trouble {
            Some(Trouble::Refused) => Some(ErrorKind::ResourceBusy),
            Some(Trouble::KilledBefore) => Some(ErrorKind::Interrupted),
            Some(Trouble::KilledAfter) => change(&mut machine.state).or(Some(ErrorKind::Interrupted)),
            None => change(&mut machine.state),
        };
        refused.map_or(Ok(()), |kind| Err(Error::system(what, kind)))
    }
}

/// Writing it writes every interface's, too (Linux).
pub const FORWARDING: &str = "net/ipv6/conf/all/forwarding";

/// A link, up.
pub fn link(index: u32, name: &str, kind: &str, alias: Option<&str>) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: Some(kind.to_owned()),
        up: true,
        loopback: false,
        mtu: 1500,
        alias: alias.map(str::to_owned),
    }
}

/// Our own rules, as each system shows them.
fn shown(firewall: &Firewall) -> Vec<String> {
    match firewall {
        Firewall::Nft(table) => {
            table.chains.iter().flat_map(|chain| &chain.rules).filter_map(|rule| rule.comment.clone()).collect()
        }
        Firewall::Pf(anchor) => anchor.rules.lines().map(str::to_owned).collect(),
        Firewall::Wfp(filters) => filters.names(),
    }
}

fn seen_rule(rule: &nft::Rule) -> SeenRule {
    SeenRule { handle: 0, comment: rule.comment.clone(), always: None }
}

/// Two of a kind are refused.
fn unless(there: bool) -> Option<ErrorKind> {
    there.then_some(ErrorKind::AlreadyExists)
}

impl Host for FakeHost {
    fn links(&mut self) -> Result<Vec<Link>> {
        self.read(|state| state.links.clone())
    }

    fn link(&mut self, name: &str) -> Result<Option<Link>> {
        self.read(|state| state.links.iter().find(|link| link.name == name).cloned())
    }

    fn create_wireguard_link(&mut self, name: &str) -> Result<()> {
        self.change("create a link", |state| {
            let refused = unless(state.links.iter().any(|link| link.name == name));
            if refused.is_none() {
                let index = state.links.iter().map(|link| link.index).max().unwrap_or_default() + 1;
                state.links.push(link(index, name, "wireguard", Some(OUR_ALIAS)));
            }
            refused
        })
    }

    fn delete_link(&mut self, name: &str) -> Result<()> {
        self.change("delete a link", |state| {
            let gone = state.links.iter().find(|link| link.name == name).map(|link| link.index);
            state.links.retain(|link| link.name != name);
            state.addresses.retain(|address| Some(address.ifindex) != gone);
            state.routes.retain(|route| route.oif.as_deref() != Some(name));
            None
        })
    }

    fn mark_link(&mut self, name: &str) -> Result<()> {
        self.change("mark a link", |state| {
            let found = state.links.iter_mut().find(|link| link.name == name);
            found.map_or(Some(ErrorKind::NotFound), |link| {
                link.alias = Some(OUR_ALIAS.to_owned());
                None
            })
        })
    }

    fn bring_up(&mut self, name: &str, mtu: u32) -> Result<()> {
        self.change("bring a link up", |state| {
            let found = state.links.iter_mut().find(|link| link.name == name);
            found.map_or(Some(ErrorKind::NotFound), |link| {
                (link.up, link.mtu) = (true, mtu);
                None
            })
        })
    }

    fn addresses(&mut self) -> Result<Vec<Address>> {
        self.read(|state| state.addresses.clone())
    }

    fn add_address(&mut self, link: &str, address: IpNetwork) -> Result<()> {
        self.change("add an address", |state| {
            let Some(link) = state.links.iter().find(|found| found.name == link) else {
                return Some(ErrorKind::NotFound);
            };
            state.addresses.push(Address { ifindex: link.index, address });
            None
        })
    }

    fn routes(&mut self) -> Result<Vec<Route>> {
        self.read(|state| state.routes.clone())
    }

    fn add_route(&mut self, route: &Route) -> Result<()> {
        self.change("add a route", |state| {
            let key = |route: &Route| (route.table, route.destination, route.metric);
            let refused = unless(state.routes.iter().any(|there| key(there) == key(route)));
            state.routes.extend(refused.is_none().then(|| route.clone()));
            refused
        })
    }

    fn add_routes(&mut self, routes: &[Route]) -> Result<()> {
        routes.iter().try_for_each(|route| self.add_route(route))
    }

    fn delete_route(&mut self, route: &Route) -> Result<()> {
        self.change("delete a route", |state| {
            state.routes.retain(|there| there != route);
            None
        })
    }

    fn rules(&mut self) -> Result<Vec<Rule>> {
        self.read(|state| state.rules.clone())
    }

    fn add_rule(&mut self, rule: &Rule) -> Result<()> {
        self.change("add a rule", |state| {
            let refused = unless(state.rules.contains(rule));
            state.rules.extend(refused.is_none().then(|| rule.clone()));
            refused
        })
    }

    fn delete_rule(&mut self, rule: &Rule) -> Result<()> {
        self.change("delete a rule", |state| {
            state.rules.retain(|there| there != rule);
            None
        })
    }

    fn route_lookup(&mut self, destination: IpAddr, _mark: u32) -> Result<Option<RouteLookup>> {
        self.read(|state| {
            let fits = state.routes.iter().filter(|route| route.destination.contains(destination));
            let route = fits.max_by_key(|route| route.destination.prefix())?;
            let link = state.links.iter().find(|link| Some(&link.name) == route.oif.as_ref())?;
            Some(RouteLookup {
                ifindex: link.index,
                interface: link.name.clone(),
                source: destination,
                gateway: route.gateway,
                mtu: link.mtu,
                table: route.table,
            })
        })
    }

    fn sysctl(&mut self, key: &str) -> Result<Option<String>> {
        self.read(|state| state.settings.get(key).cloned())
    }

    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()> {
        self.change("write a setting", |state| {
            if !state.settings.contains_key(key) {
                return Some(ErrorKind::NotFound);
            }
            let along = |other: &str| other == key || (key == FORWARDING && other.ends_with("/forwarding"));
            state.settings.iter_mut().filter(|(key, _)| along(key)).for_each(|(_, was)| *was = value.to_owned());
            None
        })
    }

    fn ipv6(&mut self) -> Result<bool> {
        Ok(true)
    }

    fn boot_id(&mut self) -> Result<String> {
        Ok(format!("boot {}", self.0.borrow().boot))
    }

    fn replace_firewall(&mut self, firewall: &Firewall) -> Result<()> {
        self.change("replace the firewall rules", |state| {
            state.firewalls.insert(firewall.name().to_owned(), firewall.clone());
            None
        })
    }

    fn firewall_stands(&mut self, firewall: &Firewall) -> Result<bool> {
        self.read(|state| state.firewalls.get(firewall.name()) == Some(firewall))
    }

    fn firewall_rules(&mut self, name: &str) -> Result<Vec<String>> {
        self.read(|state| state.firewalls.get(name).map_or_else(Vec::new, shown))
    }

    fn delete_firewall(&mut self, name: &str) -> Result<()> {
        self.change("delete firewall rules", |state| {
            state.firewalls.remove(name);
            None
        })
    }

    fn delete_marked(&mut self) -> Result<()> {
        self.change("delete what is marked", |state| {
            // there is none but ours
            state.firewalls.clear();
            state.dns.clear();
            None
        })
    }

    fn set_dns(&mut self, interface: &str, servers: &[IpAddr]) -> Result<()> {
        self.change("set DNS servers", |state| {
            state.dns.insert(interface.to_owned(), servers.to_vec());
            None
        })
    }

    fn dns(&mut self, interface: &str) -> Result<Vec<IpAddr>> {
        self.read(|state| state.dns.get(interface).cloned().unwrap_or_default())
    }

    fn unset_dns(&mut self, interface: &str) -> Result<()> {
        self.change("unset DNS servers", |state| {
            state.dns.remove(interface);
            None
        })
    }

    fn seen_chains(&mut self) -> Result<Vec<SeenChain>> {
        self.read(|state| state.chains.clone())
    }

    fn insert_rules(&mut self, place: &Place, rules: &[nft::Rule]) -> Result<()> {
        self.change("insert firewall rules", |state| {
            let Some(chain) = state.chains.iter_mut().find(|chain| place.is(chain)) else {
                return Some(ErrorKind::NotFound);
            };
            chain.rules.extend(rules.iter().map(seen_rule));
            None
        })
    }

    fn delete_commented(&mut self, place: &Place, comment: &str) -> Result<()> {
        self.change("delete firewall rules", |state| {
            for chain in state.chains.iter_mut().filter(|chain| place.is(chain)) {
                chain.rules.retain(|rule| rule.comment.as_deref() != Some(comment));
            }
            None
        })
    }
}
