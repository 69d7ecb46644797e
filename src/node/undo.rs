//! Takes changes to the host back, from the journal, or where there is none by our marks.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use peervpn_platform::files;
use peervpn_platform::os;
use peervpn_platform::types::ProcessId;
use peervpn_platform::{Error, Host, OUR_ALIAS, OUR_PROTOCOL};

use super::apply::unwritable;
use super::portmap;
use crate::error::{Failure, chain};
use crate::host::change::{Undo, sysctl_writes};
use crate::host::journal::{self, Journal, Record};
use crate::host::{dns, firewall, foreign};

/// How long a userspace device gets to end by itself before it is killed.
const DEVICE_GRACE: Duration = Duration::from_secs(2);

/// Names and what they stood for.
pub type Names = Vec<(String, IpAddr)>;

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

/// What the journal of a node that was killed means to the next one.
#[derive(Debug, Default)]
pub struct Dead {
    /// It was connected, and its kill switch is still on.
    pub closed: bool,
    /// What the names that it looked up stood for.
    pub names: Names,
}

/// Reads the journal of a node that was killed. Where it cannot be trusted, the kill switch is one if it is seen.
pub fn dead(host: &mut dyn Host, log: &mut files::Log, interface: &str) -> Result<Dead, Failure> {
    let journal = journal::decode(&log.contents().map_err(unwritable)?);
    let unsure = journal.torn || journal.damaged_at.is_some() || journal.boot.is_none();
    let closed = match gone(host, &journal) {
        // the rules themselves do not outlive a reboot
        true => false,
        false if unsure && kill_switch_stands(host, interface)? => true,
        false => journal.boot.is_some() && journal.closes && journal.undos.contains(&firewall(interface)),
    };
    Ok(Dead { closed, names: journal.names })
}

/// Whether the rules that close are seen.
fn kill_switch_stands(host: &mut dyn Host, interface: &str) -> Result<bool, Error> {
    let rules = host.firewall_rules(&firewall::table_name(interface))?;
    Ok(firewall::closes(os::SYSTEM, &rules))
}

/// A network namespace that is not this one, and where a killed node's changes lie.
#[derive(Debug)]
pub struct Elsewhere {
    namespace: u64,
    way: PathBuf,
}

impl std::fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the last node ran in another network namespace (net:[{}]) and did not stop by itself",
            self.namespace
        )
    }
}

impl Elsewhere {
    /// Why nothing can be done from here, and what can; `or`: what else.
    pub fn failure(&self, interface: &str, or: &str) -> Failure {
        let or = if or.is_empty() { String::new() } else { format!("; {or}") };
        let hint = format!("put the host back there: sudo nsenter --net={} peervpn recover{or}", self.way.display());
        Failure::new(format!("{interface}: {self}"), hint).host("unchanged")
    }
}

/// Where the changes of a killed node are to be taken back, if not here. A namespace that has gone took along what a
/// reboot takes along.
pub fn elsewhere(host: &mut dyn Host, log: &mut files::Log) -> Result<Option<Elsewhere>, Failure> {
    let journal = journal::decode(&log.contents().map_err(unwritable)?);
    let here = host.namespace()?;
    match journal.namespace {
        Some(namespace) if here != Some(namespace) && journal.boot == Some(boot_id(host)) => {
            Ok(host.way_into(namespace)?.map(|way| Elsewhere { namespace, way }))
        }
        _ => Ok(None),
    }
}

/// The undo of the firewall rules of the node on that interface.
pub fn firewall(interface: &str) -> Undo {
    Undo::Firewall { name: firewall::table_name(interface) }
}

/// Undoes a journal but for the firewall rules, whose undo, if there are any, is then all that is left in it. Also
/// returns what it said.
pub fn but_firewall(host: &mut dyn Host, log: &mut files::Log, interface: &str) -> (Leftovers, Journal) {
    let journal = match read(log) {
        Ok(journal) => journal,
        Err(error) => return (Leftovers(vec![chain(&error)]), Journal::default()),
    };
    let firewall = firewall(interface);
    let others: Vec<Undo> = journal.undos.iter().filter(|undo| **undo != firewall).cloned().collect();
    let mut left = each(host, &others, Some(log));
    // a damaged journal may have lost its undo, and that they close
    let lost = journal.damaged_at.is_some() || journal.torn;
    let stay = lost || journal.undos.contains(&firewall);
    let mut records = journal::encode(&Record::Undone { but: stay.then_some(firewall).into_iter().collect() });
    if lost {
        records.extend(journal::encode(&Record::Closes(true)));
    }
    if left.none()
        && let Err(error) = log.append(&records)
    {
        left.0.push(chain(&error));
    }
    (left, journal)
}

/// Reads a journal that is going to be appended to: not behind a torn line.
fn read(log: &mut files::Log) -> Result<Journal, Error> {
    let journal = journal::decode(&log.contents()?);
    if journal.torn
        && let Err(error) = log.truncate(journal.whole as u64)
    {
        // a full or read-only disk must not keep us from putting the host back
        tracing::warn!(%error, "the torn line stays");
    }
    Ok(journal)
}

/// Undoes an orphaned journal, as far as it can be read. Also returns what it said.
pub fn journal(host: &mut dyn Host, log: &mut files::Log) -> (Leftovers, Journal) {
    let journal = match read(log) {
        Ok(journal) => journal,
        Err(error) => return (Leftovers(vec![chain(&error)]), Journal::default()),
    };
    let gone = gone(host, &journal);
    let undos: Vec<Undo> = journal.undos.iter().filter(|u| !gone || u.survives_reboot()).cloned().collect();
    (each(host, &undos, Some(log)), journal)
}

/// The kernel state that a journal tells of is gone, with its boot or its network namespace (see [`elsewhere`]). Where
/// the first line is lost, or a boot has no name, that is unknown: an undo checks what it finds.
fn gone(host: &mut dyn Host, journal: &Journal) -> bool {
    let here = host.namespace().unwrap_or_default();
    let (boot, now) = (journal.boot.as_deref().unwrap_or_default(), boot_id(host));
    (!boot.is_empty() && !now.is_empty() && boot != now)
        || journal.namespace.is_some_and(|namespace| here != Some(namespace))
}

/// Deletes what carries our marks: rules and routes by protocol number, tables and links by name and alias. For the
/// case that no journal tells, but for the firewall rules of the interface that is to stay `closed`. Kernel settings carry
/// no mark. Also whether there was anything.
pub fn sweep(host: &mut dyn Host, closed: Option<&str>) -> (Leftovers, bool) {
    let mut left = Leftovers::default();
    let mut undos = Vec::new();
    match (host.links(), host.routes(), host.rules()) {
        (Ok(links), Ok(routes), Ok(rules)) => {
            for link in links.into_iter().filter(|l| l.alias.as_deref() == Some(OUR_ALIAS)) {
                if let Some(id) = os::process::uapi_owner(&link.name) {
                    undos.push(Undo::Process { id, interface: link.name.clone() });
                }
                undos.push(Undo::Firewall { name: firewall::table_name(&link.name) });
                undos.push(Undo::SystemDns { interface: link.name.clone() });
                undos.push(Undo::Link { name: link.name });
            }
            undos.extend(routes.into_iter().filter(|r| r.protocol == OUR_PROTOCOL).map(|route| Undo::Route { route }));
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
    let found = !undos.is_empty();
    // what the default interface has beside its link can't be seen everywhere: taken back last, unseen
    let interface = crate::config::DEFAULT_INTERFACE.to_owned();
    undos.splice(0..0, [Undo::Firewall { name: firewall::table_name(&interface) }, Undo::SystemDns { interface }]);
    if let Some(interface) = closed {
        let stays = firewall(interface);
        undos.retain(|undo| *undo != stays);
    }
    left.0.extend(each(host, &undos, None).0);
    if closed.is_none() {
        left.0.extend(host.delete_marked().err().map(|error| chain(&error)));
    }
    (left, found)
}

/// `log` is the journal that the undos are in; there is none for a sweep.
pub fn each(host: &mut dyn Host, undos: &[Undo], mut log: Option<&mut files::Log>) -> Leftovers {
    let mut left = Leftovers::default();
    for undo in undos.iter().rev() {
        tracing::debug!(op = %undo, "host undo");
        if let Err(error) = do_undo(host, undo, log.as_deref_mut()) {
            left.0.push(format!("{undo} ({})", chain(&error)));
        }
    }
    left
}

fn do_undo(host: &mut dyn Host, undo: &Undo, log: Option<&mut files::Log>) -> Result<(), Error> {
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
        Undo::Process { id, interface } => device(host, id, interface),
        Undo::Firewall { name } => host.delete_firewall(name),
        Undo::Route { route } => host.delete_route(route),
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
fn put_settings(host: &mut dyn Host, values: &[(String, String)]) -> Result<(), Error> {
    for (key, value) in values {
        match host.set_sysctl(key, value) {
            Err(error) if error.kind() == Some(std::io::ErrorKind::NotFound) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Ends a userspace device.
pub fn device(host: &mut dyn Host, id: &ProcessId, interface: &str) -> Result<(), Error> {
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

/// The boot we are in; a journal of an earlier one describes kernel state that is gone.
pub fn boot_id(host: &mut dyn Host) -> String {
    host.boot_id().unwrap_or_default()
}
