//! Carries out changes to the host, through the journal: append the undo, sync, do, mark done; read back at the end.
//! One journal an interface, `STATE_DIR/journal/INTERFACE.journal`, locked for as long as its node lives: an unlocked
//! one that is not empty is an orphan, left by a node that was killed.

use std::net::IpAddr;
use std::path::PathBuf;

use peervpn_platform::files;
use peervpn_platform::nft::foreign::{Place, Position};
use peervpn_platform::os::{self, SystemHost};
use peervpn_platform::types::{DeviceConfig, FileState, ProcessId, Route, Rule};
use peervpn_platform::{Error, Host};

use super::event::{Event, Output};
use super::recover;
use super::undo::{self, Dead, Leftovers, Names};
use crate::config::Places;
use crate::error::{Failure, Hint as _, Status, Words, chain};
use crate::host::change::{Change, Undo};
use crate::host::journal::{self, Record};
use crate::host::{dns, foreign};

/// The host under one node: what was changed so far, and how it is put back.
pub struct Applier<H = SystemHost> {
    /// Direct access, for reading and for what lives on our own link.
    pub host: H,
    /// This host has IPv6, and new interfaces get it.
    pub ipv6: bool,
    log: files::Log,
    interface: String,
    mode: &'static str,
    /// The journal has its first line.
    opened: bool,
    undos: Vec<Undo>,
    made: Vec<Change>,
    /// Routes over our own link.
    own_routes: Vec<Route>,
    /// Our interface's packets are to pass other programs' firewalls.
    passes: bool,
    /// A node that was killed had closed this host: only who stops us, or recovers, opens it.
    closed: bool,
    /// Our firewall rules are a kill switch: as it is, and as the journal has it.
    closing: (bool, bool),
    /// Names as they were looked up, for a node that comes after us and finds DNS closed.
    names: Names,
}

/// Where the journal of an interface is.
pub fn journal_path(places: &Places, interface: &str) -> PathBuf {
    journal_dir(places).join(format!("{interface}.journal"))
}

/// Where the journals are.
pub fn journal_dir(places: &Places) -> PathBuf {
    places.state_dir.join("journal")
}

impl Applier {
    /// Takes the journal of `interface`; puts the host back first where an earlier node did not. Fails if a node runs
    /// on the interface.
    pub fn open(
        places: &Places,
        interface: &str,
        mode: &'static str,
        out: &mut dyn Output,
    ) -> Result<Applier, Failure> {
        Applier::open_on(os::host()?, places, interface, mode, out)
    }
}

impl<H: Host> Applier<H> {
    /// [`Applier::open`] on that host.
    pub(super) fn open_on(
        mut host: H,
        places: &Places,
        interface: &str,
        mode: &'static str,
        out: &mut dyn Output,
    ) -> Result<Self, Failure> {
        files::private_dir(&journal_dir(places)).map_err(unwritable)?;
        let path = journal_path(places, interface);
        let mut log = match files::Log::open(&path).map_err(unwritable)? {
            files::LogOpen::Locked(log) => log,
            files::LogOpen::Busy(pid) => {
                let holder = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
                return Err(Failure::new(
                    format!("a node already runs on {interface}{holder}"),
                    format!("peervpn status shows it; peervpn down --interface {interface} stops it"),
                )
                .host("unchanged"));
            }
        };
        let mut dead = Dead::default();
        if !log.is_empty().map_err(unwritable)? {
            if let Some(elsewhere) = undo::elsewhere(&mut host, &mut log)? {
                return Err(
                    elsewhere.failure(interface, "or give this node a state directory of its own: --state-dir DIR")
                );
            }
            dead = undo::dead(&mut host, &mut log, interface)?;
            if dead.closed && mode == "exit" {
                return Err(Failure::new(
                    format!("a connection on {interface} was killed, and its kill switch is still on"),
                    format!("{} lifts it; then start the exit again", Words::HERE.ours("recover")),
                )
                .host("unchanged"));
            }
            let but = if dead.closed { "; its kill switch stays" } else { "" };
            out.event(&Event::Step(format!(
                "the last node on {interface} did not stop by itself: putting the host back{but}"
            )));
            let left = recover::orphan(&mut host, &path, &mut log, dead.closed.then_some(interface), out)?;
            if !left.none() {
                return Err(not_restored(&left));
            }
            if !dead.closed {
                log.remove().map_err(|error| unwritable(error).host("restored"))?;
                log = match files::Log::open(&path).map_err(unwritable)? {
                    files::LogOpen::Locked(log) => log,
                    files::LogOpen::Busy(_) => {
                        return Err(Failure::new(
                            format!("another node has just started on {interface}"),
                            "peervpn status shows it",
                        )
                        .host("restored"));
                    }
                };
            }
        }
        let ipv6 = host.ipv6()?;
        Ok(Applier {
            host,
            ipv6,
            log,
            interface: interface.to_owned(),
            mode,
            opened: dead.closed,
            undos: dead.closed.then(|| undo::firewall(interface)).into_iter().collect(),
            made: Vec::new(),
            own_routes: Vec::new(),
            passes: false,
            closed: dead.closed,
            closing: (dead.closed, dead.closed),
            names: dead.names,
        })
    }

    /// `exit` or `connect`.
    pub fn mode(&self) -> &'static str {
        self.mode
    }

    /// Interface name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The host was closed by a node that was killed, and still is, or by us in its place.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// What a name stood for when this node, or the one before it that was killed, looked it up.
    pub fn remembered(&self, name: &str) -> Vec<IpAddr> {
        self.names.iter().filter(|(known, _)| known == name).map(|(_, address)| *address).collect()
    }

    /// Keeps in the journal what a name stands for.
    pub fn remember(&mut self, name: &str, addresses: &[IpAddr]) -> Result<(), Failure> {
        let new = addresses.iter().map(|address| (name.to_owned(), *address));
        let kept = self.names.iter().filter(|(known, _)| known != name).cloned();
        self.names = kept.chain(new).collect();
        // with nothing in the journal yet it goes there with the first change
        let record = self.opened.then(|| Record::Names(self.names.clone()));
        self.write(record)
    }

    /// Whether the firewall rules that are made next are a kill switch.
    pub fn will_close(&mut self, close: bool) {
        self.closing.0 = close;
    }

    /// Makes a change. On failure nothing is undone yet: the caller ends with [`Applier::undo_all`].
    pub fn make(&mut self, change: Change) -> Result<(), Failure> {
        self.make_all(vec![change])
    }

    /// Makes changes in order, all their undos on disk before the first one: one sync instead of many.
    pub fn make_all(&mut self, changes: Vec<Change>) -> Result<(), Failure> {
        let mut needed = Vec::new();
        let mut undos = Vec::new();
        for change in changes {
            if let Some(undo) = self.undo_of(&change)? {
                // taking it back once takes back every version of it
                let whole = matches!(
                    undo,
                    Undo::Firewall { .. }
                        | Undo::SystemDns { .. }
                        | Undo::ResolvedLink { .. }
                        | Undo::Resolvconf { .. }
                );
                if !(whole && self.undos.contains(&undo)) {
                    undos.push(undo);
                }
                needed.push(change);
            }
        }
        let numbers = self.write_undos(undos)?;
        for change in needed {
            tracing::debug!(op = %change, "host change");
            do_change(&mut self.host, &change)?;
            if let Change::Firewall(firewall) = &change {
                self.made.retain(|made| !matches!(made, Change::Firewall(before) if before.name() == firewall.name()));
            }
            self.made.push(change);
        }
        // an undo is made whether this is there or not, so it waits for no disk
        let done: Vec<u8> = numbers.flat_map(|n| journal::encode(&Record::Done { n })).collect();
        if done.is_empty() { Ok(()) } else { self.log.note(&done).map_err(unwritable) }
    }

    /// Makes these policy rules ours, instead of the ones before: new ones are there before old ones go.
    pub fn replace_rules(&mut self, rules: Vec<Rule>) -> Result<(), Failure> {
        let made: Vec<Rule> = self.made.iter().filter_map(Change::rule).cloned().collect();
        let new = rules.iter().filter(|rule| !made.contains(rule)).cloned().map(Change::Rule);
        self.make_all(new.collect())?;
        for old in made.iter().filter(|rule| !rules.contains(rule)) {
            self.host.delete_rule(old)?;
            self.made.retain(|change| change.rule() != Some(old));
        }
        Ok(())
    }

    /// Has these routes beside our link, and none of those made before that are not among them. The old ones first: two to
    /// one destination cannot be there at once.
    pub fn replace_routes(&mut self, routes: Vec<Route>) -> Result<(), Failure> {
        let of = |change: &Change| match change {
            Change::Route(route) => Some(route.clone()),
            _ => None,
        };
        let made: Vec<Route> = self.made.iter().filter_map(of).collect();
        for old in made.iter().filter(|route| !routes.contains(route)) {
            self.host.delete_route(old)?;
            self.made.retain(|change| of(change).as_ref() != Some(old));
        }
        let new = routes.into_iter().filter(|route| !made.contains(route)).map(Change::Route);
        self.make_all(new.collect())
    }

    /// Lets our interface's packets pass other programs' firewalls, now and whenever [`Applier::put_back`] looks again.
    pub fn pass_firewalls(&mut self) -> Result<Vec<String>, Failure> {
        self.passes = true;
        let mut made = Vec::new();
        for place in foreign::places(&self.host.seen_chains()?, &self.interface) {
            let change = Change::ForeignAccept { place, interface: self.interface.clone() };
            made.push(change.to_string());
            match self.undo_of(&change)? {
                Some(undo) if self.undos.contains(&undo) => do_change(&mut self.host, &change)?,
                _ => self.make(change)?,
            }
        }
        Ok(made)
    }

    /// Adds routes over our own link, which need no undo, and remembers them for [`Applier::put_back`].
    pub fn add_own_routes(&mut self, routes: Vec<Route>) -> Result<(), Error> {
        self.host.add_routes(&routes)?;
        self.own_routes.extend(routes);
        Ok(())
    }

    /// Makes again what other programs have taken away: our firewall table, policy rules, routes, places in their
    /// firewalls. Says what, or why not; one that cannot be, as a route by a link that has gone, keeps no other from it.
    pub fn put_back(&mut self) -> Result<Vec<Result<String, Error>>, Failure> {
        let (rules, routes) = self.rules_and_routes()?;
        let mut again = Vec::new();
        for change in &self.made {
            let there = match change {
                Change::Firewall(firewall) => self.host.firewall_stands(firewall)?,
                Change::Route(route) => holds(&routes, route),
                Change::Rule(rule) => rules.contains(rule),
                _ => true,
            };
            if !there {
                again.push(do_change(&mut self.host, change).map(|()| change.to_string()));
            }
        }
        if self.host.link(&self.interface)?.is_some_and(|link| link.up) {
            for route in self.own_routes.iter().filter(|route| !holds(&routes, route)) {
                again.push(self.host.add_route(route).map(|()| Change::Route(route.clone()).to_string()));
            }
        }
        if self.passes {
            again.extend(self.pass_firewalls()?.into_iter().map(Ok));
        }
        Ok(again)
    }

    /// Journals a process that is held and has done nothing yet; release it after this.
    pub fn adopt_process(&mut self, id: ProcessId) -> Result<(), Failure> {
        let interface = self.interface.clone();
        self.write_undos(vec![Undo::Process { id, interface }]).map(drop)
    }

    /// Journals the undo of a change that someone else makes after this, on a gateway. The same undo once is enough.
    pub fn journal(&mut self, undo: Undo) -> Result<(), Failure> {
        if self.undos.contains(&undo) {
            return Ok(());
        }
        self.write_undos(vec![undo]).map(drop)
    }

    /// Reads back every change made so far; an error names the first that is not there.
    pub fn verify(&mut self) -> Result<(), Failure> {
        let (rules, routes) = self.rules_and_routes()?;
        for change in &self.made {
            let there = match change {
                Change::Sysctl { key, value, .. } => self.host.sysctl(key)?.as_deref() == Some(value),
                Change::Link { name } => self.host.link(name)?.is_some(),
                Change::Firewall(firewall) => self.host.firewall_stands(firewall)?,
                Change::Route(route) => holds(&routes, route),
                Change::Rule(rule) => rules.contains(rule),
                Change::File { path, text, .. } => {
                    matches!(os::dns::file::state(path)?, FileState::Text { text: now, .. } if now == *text)
                }
                Change::ResolvedLink { interface, servers, .. } => match self.host.link(interface)? {
                    Some(link) => os::dns::resolved::servers(link.index)? == *servers,
                    None => false,
                },
                Change::SystemDns { interface, servers } => self.host.dns(interface)? == *servers,
                // it made of it what its configuration says
                Change::Resolvconf { .. } => true,
                Change::ForeignAccept { place, interface } => {
                    foreign::there(&self.host.seen_chains()?, place, interface)
                }
            };
            if !there {
                return Err(Failure::new(
                    format!("the system accepted a change and does not show it: {change}"),
                    "another program manages this host's network at the same time: find it with peervpn doctor",
                ));
            }
        }
        Ok(())
    }

    /// Those of the host, read only where some of ours are to be found among them: an exit has a route for every peer.
    fn rules_and_routes(&mut self) -> Result<(Vec<Rule>, Vec<Route>), Error> {
        let rules = self.made.iter().any(|change| matches!(change, Change::Rule(_)));
        let routes = !self.own_routes.is_empty() || self.made.iter().any(|change| matches!(change, Change::Route(_)));
        Ok((if rules { self.host.rules()? } else { Vec::new() }, if routes { self.host.routes()? } else { Vec::new() }))
    }

    /// Puts everything back but the firewall rules: as they were closed, the host stays.
    pub fn undo_but_firewall(&mut self) -> Leftovers {
        let left = undo::but_firewall(&mut self.host, &mut self.log, &self.interface).0;
        if left.none() {
            let firewall = undo::firewall(&self.interface);
            self.undos.retain(|undo| *undo == firewall);
            self.made.retain(|change| matches!(change, Change::Firewall(_)));
            self.own_routes.clear();
        }
        left
    }

    /// Puts everything back, newest first, past failures, and removes the journal if all went well.
    pub fn undo_all(mut self) -> Leftovers {
        let left = undo::each(&mut self.host, &self.undos, Some(&mut self.log));
        if left.none()
            && let Err(error) = self.log.remove()
        {
            return Leftovers(vec![chain(&error)]);
        }
        left
    }

    /// Puts everything back and says so in the failure that made it necessary. A host that was closed when we came stays
    /// closed.
    pub fn undo_after(mut self, failure: Failure) -> Failure {
        if self.closed {
            let left = undo::but_firewall(&mut self.host, &mut self.log, &self.interface).0;
            let still = format!(
                "its kill switch is on, as a node that was killed left it; {} lifts it",
                Words::HERE.ours("recover")
            );
            return match left.none() {
                true => failure.host(format!("restored, but {still}")),
                false => unrestored(failure.host(format!("{}; {still}", left.describe()))),
            };
        }
        let untouched = self.undos.is_empty();
        let left = self.undo_all();
        if left.none() {
            failure.host(if untouched { "unchanged" } else { "restored" })
        } else {
            unrestored(failure.host(left.describe()))
        }
    }

    fn undo_of(&mut self, change: &Change) -> Result<Option<Undo>, Failure> {
        Ok(match change {
            Change::Sysctl { key, value, beside } => match self.host.sysctl(key)? {
                Some(was) if was != *value => {
                    let mut found = Vec::new();
                    for key in beside {
                        if let Some(value) = self.host.sysctl(key)? {
                            found.push((key.clone(), value));
                        }
                    }
                    Some(Undo::Sysctl { key: key.clone(), was, set: value.clone(), beside: found })
                }
                _ => None,
            },
            Change::Link { name } => Some(Undo::Link { name: name.clone() }),
            Change::Firewall(firewall) => Some(Undo::Firewall { name: firewall.name().to_owned() }),
            Change::Route(route) => Some(Undo::Route { route: route.clone() }),
            Change::Rule(rule) => Some(Undo::Rule(rule.clone())),
            Change::File { path, text, in_place } => {
                let was = os::dns::file::state(path)?;
                let set = dns::digest(text);
                (!dns::still_ours(&was, &set)).then(|| Undo::File { path: path.clone(), was, set, in_place: *in_place })
            }
            Change::ResolvedLink { interface, .. } => Some(Undo::ResolvedLink { interface: interface.clone() }),
            Change::SystemDns { interface, .. } => Some(Undo::SystemDns { interface: interface.clone() }),
            Change::Resolvconf { resolvconf, record, .. } => {
                Some(Undo::Resolvconf { resolvconf: resolvconf.clone(), record: record.clone() })
            }
            // by their comment they are found wherever in the chain they are
            Change::ForeignAccept { place, interface } => Some(Undo::ForeignAccept {
                place: Place { position: Position::First, ..place.clone() },
                comment: foreign::comment(interface),
            }),
        })
    }

    /// Returns the numbers the records got.
    fn write_undos(&mut self, undos: Vec<Undo>) -> Result<std::ops::Range<u32>, Failure> {
        let first = self.undos.len() as u32;
        let mut records = Vec::new();
        if !std::mem::replace(&mut self.opened, true) {
            records.push(Record::Open {
                version: journal::VERSION,
                boot: undo::boot_id(&mut self.host),
                namespace: self.host.namespace().unwrap_or_default(),
                mode: self.mode.to_owned(),
                interface: self.interface.clone(),
            });
            records.extend((!self.names.is_empty()).then(|| Record::Names(self.names.clone())));
        }
        records.extend((first..).zip(&undos).map(|(n, undo)| Record::Undo { n, undo: undo.clone() }));
        let (closing, known) = self.closing;
        if closing != known {
            records.push(Record::Closes(closing));
            self.closing.1 = closing;
        }
        // if this fails, what they would take back is not done
        self.write(records)?;
        self.undos.extend(undos);
        Ok(first..self.undos.len() as u32)
    }

    fn write(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), Failure> {
        let bytes: Vec<u8> = records.into_iter().flat_map(|record| journal::encode(&record)).collect();
        if bytes.is_empty() {
            return Ok(());
        }
        self.log.append(&bytes).map_err(unwritable)
    }
}

/// Whether a route is among these; the kernel fills in what it was not told.
fn holds(routes: &[Route], route: &Route) -> bool {
    let key = |r: &Route| (r.table, r.destination, r.kind, r.protocol);
    routes.iter().any(|r| key(r) == key(route))
}

fn do_change(host: &mut dyn Host, change: &Change) -> Result<(), Error> {
    match change {
        Change::Sysctl { key, value, .. } => host.set_sysctl(key, value),
        Change::Link { name } => host.create_wireguard_link(name),
        Change::Firewall(firewall) => host.replace_firewall(firewall),
        Change::Route(route) => host.add_route(route),
        Change::Rule(rule) => host.add_rule(rule),
        Change::File { path, text, in_place } => {
            let state = FileState::Text { text: text.clone(), mode: os::dns::file::MODE };
            os::dns::file::put(path, &state, *in_place)
        }
        Change::ResolvedLink { interface, servers, plain } => match host.link(interface)? {
            Some(link) => os::dns::resolved::set(link.index, servers, *plain),
            None => Err(Error::Unexpected {
                operation: format!("look up link {interface}"),
                detail: "it has gone".to_owned(),
            }),
        },
        Change::SystemDns { interface, servers } => host.set_dns(interface, servers),
        Change::Resolvconf { resolvconf, record, text } => os::dns::resolvconf::add(resolvconf, record, text),
        Change::ForeignAccept { place, interface } => host.insert_rules(place, &foreign::rules(interface)),
    }
}

/// Brings up what lives on our link: WireGuard's settings, addresses, MTU. Goes with the link.
pub fn bring_up(
    host: &mut dyn Host,
    wireguard: &mut dyn peervpn_platform::WireGuard,
    interface: &str,
    config: &DeviceConfig,
    addresses: &[ipnetwork::IpNetwork],
    mtu: u32,
) -> Result<(), Error> {
    wireguard.configure(interface, config)?;
    for address in addresses {
        host.add_address(interface, *address)?;
    }
    host.bring_up(interface, mtu)
}

/// The state directory can't be used.
pub fn unwritable(error: Error) -> Failure {
    let hint = match error.kind() {
        Some(std::io::ErrorKind::PermissionDenied) => error.hint(),
        Some(std::io::ErrorKind::StorageFull) => Some("make room on the disk, then try again".to_owned()),
        _ => Some("choose another place with --state-dir DIR".to_owned()),
    };
    Failure { message: chain(&error), host: Some("unchanged".to_owned()), hint, status: Status::Failed }
}

/// An earlier node's changes could not all be taken back.
pub fn not_restored(left: &Leftovers) -> Failure {
    Failure {
        message: "the host could not be fully put back after an earlier crash".to_owned(),
        host: Some(left.describe()),
        hint: Some("peervpn recover tries again; a reboot clears it".to_owned()),
        status: Status::NotRestored,
    }
}

fn unrestored(failure: Failure) -> Failure {
    Failure { status: Status::NotRestored, hint: Some("peervpn recover tries again".to_owned()), ..failure }
}

#[cfg(test)]
mod tests;
