//! Carries out changes to the host, through the journal: append the undo, sync, do, mark done; read back at the end.
//! One journal an interface, `STATE_DIR/journal/INTERFACE.journal`, locked for as long as its node lives: an unlocked
//! one that is not empty is an orphan, left by a node that was killed.

use std::path::PathBuf;
use std::time::Duration;

use peervpn_platform::files;
use peervpn_platform::nft::foreign::{Place, Position};
use peervpn_platform::os::{self, SystemHost};
use peervpn_platform::types::{DeviceConfig, FileState, ProcessId, Route, Rule};
use peervpn_platform::{Error, Host as _, OUR_ALIAS, OUR_PROTOCOL};

use super::event::{Event, Output};
use super::{portmap, recover};
use crate::config::Places;
use crate::error::{Failure, Hint as _, Status, chain};
use crate::host::change::{Change, Undo, sysctl_writes};
use crate::host::journal::{self, Journal, Record};
use crate::host::{dns, firewall, foreign};

/// How long a userspace device gets to end by itself before it is killed.
const DEVICE_GRACE: Duration = Duration::from_secs(2);

/// The host under one node: what was changed so far, and how it is put back.
pub struct Applier {
    /// Direct access, for reading and for what lives on our own link.
    pub host: SystemHost,
    /// This host has IPv6, and new interfaces get it.
    pub ipv6: bool,
    log: files::Log,
    interface: String,
    mode: &'static str,
    undos: Vec<Undo>,
    made: Vec<Change>,
    /// Routes over our own link.
    own_routes: Vec<Route>,
    /// Our interface's packets are to pass other programs' firewalls.
    passes: bool,
}

/// What an undo left behind: empty when everything was put back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers(pub Vec<String>);

impl Leftovers {
    /// Everything was put back.
    pub fn none(&self) -> bool {
        self.0.is_empty()
    }

    /// `restored`, or what is left.
    pub fn describe(&self) -> String {
        if self.none() { "restored".to_owned() } else { format!("not fully restored: {}", self.0.join("; ")) }
    }
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
        let mut host = os::host()?;
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
        if !log.is_empty().map_err(unwritable)? {
            out.event(&Event::Step(format!(
                "the last node on {interface} did not stop by itself: putting the host back"
            )));
            let left = recover::orphan(&mut host, &path, &mut log, out)?;
            if !left.none() {
                return Err(not_restored(&left));
            }
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
        let ipv6 = host.ipv6()?;
        Ok(Applier {
            host,
            ipv6,
            log,
            interface: interface.to_owned(),
            mode,
            undos: Vec::new(),
            made: Vec::new(),
            own_routes: Vec::new(),
            passes: false,
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
        self.write(numbers.map(|n| Record::Done { n }))
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
    /// firewalls. Says what.
    pub fn put_back(&mut self) -> Result<Vec<String>, Failure> {
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
                do_change(&mut self.host, change)?;
                again.push(change.to_string());
            }
        }
        if self.host.link(&self.interface)?.is_some_and(|link| link.up) {
            for route in self.own_routes.iter().filter(|route| !holds(&routes, route)) {
                self.host.add_route(route)?;
                again.push(Change::Route(route.clone()).to_string());
            }
        }
        if self.passes {
            again.extend(self.pass_firewalls()?);
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

    /// Puts everything back, newest first, past failures, and removes the journal if all went well.
    pub fn undo_all(mut self) -> Leftovers {
        let left = undo_each(&mut self.host, &self.undos, Some(&mut self.log));
        if left.none()
            && let Err(error) = self.log.remove()
        {
            return Leftovers(vec![chain(&error)]);
        }
        left
    }

    /// Puts everything back and says so in the failure that made it necessary.
    pub fn undo_after(self, failure: Failure) -> Failure {
        let untouched = self.undos.is_empty();
        let left = self.undo_all();
        if left.none() {
            failure.host(if untouched { "unchanged" } else { "restored" })
        } else {
            Failure {
                status: Status::NotRestored,
                hint: Some("peervpn recover tries again".to_owned()),
                ..failure.host(left.describe())
            }
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
            Change::Route(route) => Some(Undo::Route(route.clone())),
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
        if first == 0 {
            records.push(Record::Open {
                version: journal::VERSION,
                boot: boot_id(&mut self.host),
                mode: self.mode.to_owned(),
                interface: self.interface.clone(),
            });
        }
        records.extend((first..).zip(&undos).map(|(n, undo)| Record::Undo { n, undo: undo.clone() }));
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

/// Undoes an orphaned journal, as far as it can be read. Also returns what it said.
pub fn undo_journal(host: &mut SystemHost, log: &mut files::Log) -> (Leftovers, Journal) {
    let bytes = match log.contents() {
        Ok(bytes) => bytes,
        Err(error) => return (Leftovers(vec![chain(&error)]), Journal::default()),
    };
    let journal = journal::decode(&bytes);
    // where the first line is lost, the boot is unknown: an undo checks what it finds
    let rebooted = journal.boot.as_ref().is_some_and(|boot| *boot != boot_id(host));
    let undos: Vec<Undo> = journal.undos.iter().filter(|u| !rebooted || u.survives_reboot()).cloned().collect();
    (undo_each(host, &undos, Some(log)), journal)
}

/// Deletes what carries our marks: rules and routes by protocol number, tables and links by name and alias. For the
/// case that no journal tells. Kernel settings carry no mark.
pub fn sweep(host: &mut SystemHost) -> Leftovers {
    let mut left = Leftovers::default();
    let mut undos = Vec::new();
    match (host.links(), host.routes(), host.rules()) {
        (Ok(links), Ok(routes), Ok(rules)) => {
            for link in links.into_iter().filter(|l| l.alias.as_deref() == Some(OUR_ALIAS)) {
                if let Some(id) = os::process::uapi_owner(&link.name) {
                    undos.push(Undo::Process { id, interface: link.name.clone() });
                }
                undos.push(Undo::Firewall { name: firewall::table_name(&link.name) });
                undos.push(Undo::Link { name: link.name });
            }
            undos.push(Undo::Firewall { name: firewall::table_name(crate::config::DEFAULT_INTERFACE) });
            undos.extend(routes.into_iter().filter(|r| r.protocol == OUR_PROTOCOL).map(Undo::Route));
            undos.extend(rules.into_iter().filter(|r| r.protocol == OUR_PROTOCOL).map(Undo::Rule));
            match host.seen_chains() {
                Ok(chains) => undos.extend(
                    foreign::marked(&chains).into_iter().map(|(place, comment)| Undo::ForeignAccept { place, comment }),
                ),
                Err(error) => left.0.push(chain(&error)),
            }
        }
        (links, routes, rules) => {
            let errors = [links.err(), routes.err(), rules.err()];
            left.0.extend(errors.into_iter().flatten().map(|e| chain(&e)));
        }
    }
    left.0.extend(undo_each(host, &undos, None).0);
    left
}

/// `log` is the journal that the undos are in; there is none for a sweep.
fn undo_each(host: &mut SystemHost, undos: &[Undo], mut log: Option<&mut files::Log>) -> Leftovers {
    let mut left = Leftovers::default();
    for undo in undos.iter().rev() {
        tracing::debug!(op = %undo, "host undo");
        if let Err(error) = do_undo(host, undo, log.as_deref_mut()) {
            left.0.push(format!("{undo} ({})", chain(&error)));
        }
    }
    left
}

/// Whether a route is among these; the kernel fills in what it was not told.
fn holds(routes: &[Route], route: &Route) -> bool {
    let key = |r: &Route| (r.table, r.destination, r.kind, r.protocol);
    routes.iter().any(|r| key(r) == key(route))
}

fn do_change(host: &mut SystemHost, change: &Change) -> Result<(), Error> {
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

fn do_undo(host: &mut SystemHost, undo: &Undo, log: Option<&mut files::Log>) -> Result<(), Error> {
    match undo {
        Undo::Sysctl { key, was, set, beside } => {
            let mut now = std::collections::BTreeMap::new();
            for key in std::iter::once(key).chain(beside.iter().map(|(key, _)| key)) {
                if let Some(value) = host.sysctl(key)? {
                    now.insert(key.clone(), value);
                }
            }
            let values = sysctl_writes(key, was, set, beside, |key| now.get(key).cloned());
            if let (Some(log), true) = (log, values.len() > 1) {
                let rest = Record::Undo { n: u32::MAX, undo: Undo::Settings { values: values.clone() } };
                if let Err(error) = log.append(&journal::encode(&rest)) {
                    // a full or read-only disk must not keep us from putting the host back
                    tracing::warn!(%error, "this undo must not be interrupted");
                }
            }
            put_settings(host, &values)
        }
        Undo::Settings { values } => put_settings(host, values),
        Undo::Link { name } => match host.link(name)? {
            // a kill between creating and marking leaves it without alias; any other alias is someone else's link
            Some(link)
                if link.alias.as_deref() == Some(OUR_ALIAS)
                    || (link.alias.is_none() && link.kind.as_deref() == Some("wireguard")) =>
            {
                host.delete_link(name)
            }
            _ => Ok(()),
        },
        Undo::Process { id, interface } => {
            os::process::terminate(id, DEVICE_GRACE)?;
            os::process::remove_uapi_socket(interface)?;
            // a TUN link dies with its process; wait until it has
            for _ in 0..50 {
                match host.link(interface)? {
                    Some(link) if link.alias.as_deref() == Some(OUR_ALIAS) => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
            Ok(())
        }
        Undo::Firewall { name } => host.delete_firewall(name),
        Undo::Route(route) => host.delete_route(route),
        Undo::Rule(rule) => host.delete_rule(rule),
        Undo::ForeignAccept { place, comment } => host.delete_commented(place, comment),
        Undo::PortMapping(mapping) => {
            // a gateway that is gone is none of the host's state, and must not keep anybody from recovering
            if let Err(unconfirmed) = portmap::remove::remove(mapping) {
                tracing::warn!("the port mapping was not deleted: {unconfirmed}");
            }
            Ok(())
        }
        Undo::File { path, was, set, in_place } => {
            if dns::still_ours(&os::dns::file::state(path)?, set) {
                return os::dns::file::put(path, was, *in_place);
            }
            tracing::info!(path = %path.display(), "someone else has changed it since: left as it is");
            Ok(())
        }
        Undo::ResolvedLink { interface } => match host.link(interface)? {
            Some(link) if link.alias.as_deref() == Some(OUR_ALIAS) => os::dns::resolved::revert(link.index),
            _ => Ok(()),
        },
        Undo::SystemDns { interface } => host.unset_dns(interface),
        Undo::Resolvconf { resolvconf, record } => os::dns::resolvconf::remove(resolvconf, record),
    }
}

/// Writes settings; those of links that are gone went with them.
fn put_settings(host: &mut SystemHost, values: &[(String, String)]) -> Result<(), Error> {
    for (key, value) in values {
        match host.set_sysctl(key, value) {
            Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Brings up what lives on our link: WireGuard's settings, addresses, MTU. Goes with the link.
pub fn bring_up(
    host: &mut SystemHost,
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

/// The boot we are in; a journal of an earlier one describes kernel state that is gone.
fn boot_id(host: &mut SystemHost) -> String {
    host.boot_id().unwrap_or_default()
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
