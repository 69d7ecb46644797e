//! The atoms of change to the host, and of its undo.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use peervpn_platform::firewall::Firewall;
use peervpn_platform::nft::foreign::Place;
use peervpn_platform::types::{FileState, ProcessId, Resolvconf, Route, Rule};
use serde::{Deserialize, Serialize};

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Write a kernel setting.
    Sysctl {
        /// Slash form, below `/proc/sys`.
        key: String,
        /// New value.
        value: String,
        /// Settings that the kernel overwrites along with this one (`net/ipv6/conf/all/forwarding` writes every
        /// interface's), to be put back too.
        beside: Vec<String>,
    },
    /// Create a link of the kernel's WireGuard kind.
    Link {
        /// Interface name.
        name: String,
    },
    /// Install our firewall rules, whole.
    Firewall(Firewall),
    /// Add a route that does not lie on our link.
    Route(Route),
    /// Add a policy rule.
    Rule(Rule),
    /// Write a file of the host's, `/etc/resolv.conf`.
    File {
        /// Path.
        path: PathBuf,
        /// Contents.
        text: String,
        /// Write over it (a mount point) instead of replacing it.
        in_place: bool,
    },
    /// Send all of systemd-resolved's queries by our link.
    ResolvedLink {
        /// Interface name.
        interface: String,
        /// Servers.
        servers: Vec<IpAddr>,
        /// Without DNS over TLS: an exit's resolver speaks none.
        plain: bool,
    },
    /// Tell the system's one resolver (macOS, Windows).
    SystemDns {
        /// Our interface.
        interface: String,
        /// Servers.
        servers: Vec<IpAddr>,
    },
    /// Give resolvconf(8) a record.
    Resolvconf {
        /// Which resolvconf.
        resolvconf: Resolvconf,
        /// Name of the record.
        record: String,
        /// Its lines.
        text: String,
    },
    /// Let the packets of our interface pass another program's chain; [`super::foreign`].
    ForeignAccept {
        /// Where.
        place: Place,
        /// Our interface.
        interface: String,
    },
}

/// What takes a change back. Idempotent: undoing what was never done, or is already undone, does nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Undo {
    /// Put a kernel setting back, unless someone else has changed it since.
    Sysctl {
        /// Slash form.
        key: String,
        /// Value found before.
        was: String,
        /// Value we wrote.
        set: String,
        /// Settings the kernel changes along with it, with the values found before.
        beside: Vec<(String, String)>,
    },
    /// Write these settings, whatever they are now: the rest of a [`Undo::Sysctl`] that takes several writes, journaled
    /// when its values are chosen. Killed between two writes, it could not choose them again: ours are gone by then.
    Settings {
        /// Slash form and value, in order.
        values: Vec<(String, String)>,
    },
    /// Delete our link.
    Link {
        /// Interface name.
        name: String,
    },
    /// End the userspace device's process; its link goes with it.
    Process {
        /// Process.
        id: ProcessId,
        /// Interface name.
        interface: String,
    },
    /// Delete our firewall rules.
    #[serde(rename = "table")]
    Firewall {
        /// [`Firewall::name`].
        name: String,
    },
    /// Delete our route. Not beside its fields: it has a `kind` of its own.
    Route {
        /// As it was added.
        route: Route,
    },
    /// Delete our policy rule.
    Rule(Rule),
    /// Delete our rules, known by their comment, from another program's chain.
    ForeignAccept {
        /// Where.
        place: Place,
        /// Their comment.
        comment: String,
    },
    /// Delete our port mapping on the gateway.
    PortMapping(PortMapping),
    /// Put a file back, unless someone else has changed it since.
    File {
        /// Path.
        path: PathBuf,
        /// What was there before.
        was: FileState,
        /// SHA-256 of what we wrote, in hex.
        set: String,
        /// Write over it instead of replacing it.
        in_place: bool,
    },
    /// Take back what we told systemd-resolved about our link.
    ResolvedLink {
        /// Interface name.
        interface: String,
    },
    /// Take back what we told the system's one resolver.
    SystemDns {
        /// Our interface.
        interface: String,
    },
    /// Take our record back from resolvconf(8).
    Resolvconf {
        /// Which resolvconf.
        resolvconf: Resolvconf,
        /// Name of the record.
        record: String,
    },
}

/// A port mapping on a gateway: what it takes to delete it, from any process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "protocol", rename_all = "snake_case")]
pub enum PortMapping {
    /// RFC 6887: only who knows the nonce may delete it.
    Pcp {
        /// The gateway.
        gateway: Ipv4Addr,
        /// Our address towards it.
        client: Ipv4Addr,
        /// Our port.
        port: u16,
        /// The mapping's nonce.
        nonce: [u8; 12],
    },
    /// RFC 6886.
    NatPmp {
        /// The gateway.
        gateway: Ipv4Addr,
        /// Our address towards it.
        client: Ipv4Addr,
        /// Our port.
        port: u16,
    },
    /// UPnP IGD.
    Upnp {
        /// The service's server.
        server: SocketAddrV4,
        /// Path of its control URL.
        path: String,
        /// Service type.
        service: String,
        /// Port at the gateway.
        external_port: u16,
        /// Where it leads: our address.
        client: Ipv4Addr,
        /// Our port.
        port: u16,
        /// The router knows no leases: nothing but a deletion ends it.
        permanent: bool,
    },
}

impl Undo {
    /// Whether what it takes back outlives a reboot. Kernel state does not; files and the gateway's mappings do.
    pub fn survives_reboot(&self) -> bool {
        match self {
            Undo::Sysctl { .. }
            | Undo::Settings { .. }
            | Undo::Link { .. }
            | Undo::Process { .. }
            | Undo::Firewall { .. }
            | Undo::Route { .. }
            | Undo::Rule(_)
            | Undo::ResolvedLink { .. }
            | Undo::ForeignAccept { .. } => false,
            // resolvconf's records are gone, the file that it made of them is not
            Undo::File { .. } | Undo::Resolvconf { .. } => true,
            // Windows' name resolution policy is in the registry
            Undo::SystemDns { .. } => true,
            Undo::PortMapping(_) => true,
        }
    }
}

impl Change {
    /// The policy rule that it adds.
    pub fn rule(&self) -> Option<&Rule> {
        if let Change::Rule(rule) = self { Some(rule) } else { None }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Sysctl { key, value, .. } => write!(f, "set {} to {value}", key.replace('/', ".")),
            Change::Link { name } => write!(f, "create interface {name}"),
            Change::Firewall(firewall) => write!(f, "install {firewall}"),
            Change::Route(route) => write!(f, "add route {} (table {})", route.destination, route.table),
            Change::Rule(rule) => write!(f, "add policy rule (priority {}, table {})", rule.priority, rule.table),
            Change::File { path, .. } => write!(f, "write {}", path.display()),
            Change::ResolvedLink { interface, .. } => write!(f, "make {interface} systemd-resolved's way"),
            Change::SystemDns { interface, .. } => write!(f, "make {interface} the way of DNS"),
            Change::Resolvconf { record, .. } => write!(f, "give resolvconf the record {record}"),
            Change::ForeignAccept { place, interface } => {
                write!(f, "let packets of {interface} pass firewall chain {place}")
            }
        }
    }
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undo::Sysctl { key, was, .. } => write!(f, "set {} back to {was}", key.replace('/', ".")),
            Undo::Settings { values } => {
                let list: Vec<_> =
                    values.iter().map(|(key, value)| format!("{}={value}", key.replace('/', "."))).collect();
                write!(f, "set back {}", list.join(", "))
            }
            Undo::Link { name } => write!(f, "delete interface {name}"),
            Undo::Process { id, interface } => write!(f, "end the device process {} of {interface}", id.pid),
            Undo::Firewall { name } => write!(f, "delete firewall rules {name}"),
            Undo::Route { route } => write!(f, "delete route {} (table {})", route.destination, route.table),
            Undo::Rule(rule) => write!(f, "delete policy rule (priority {}, table {})", rule.priority, rule.table),
            Undo::ForeignAccept { place, comment } => {
                write!(f, "delete rules with comment {comment} from firewall chain {place}")
            }
            Undo::PortMapping(PortMapping::Pcp { gateway, port, .. }) => {
                write!(f, "delete the port mapping of {port} on {gateway} (PCP)")
            }
            Undo::PortMapping(PortMapping::NatPmp { gateway, port, .. }) => {
                write!(f, "delete the port mapping of {port} on {gateway} (NAT-PMP)")
            }
            Undo::PortMapping(PortMapping::Upnp { server, external_port, .. }) => {
                write!(f, "delete the port mapping of {external_port} on {} (UPnP IGD)", server.ip())
            }
            Undo::File { path, .. } => write!(f, "put {} back", path.display()),
            Undo::ResolvedLink { interface } => write!(f, "take {interface} back from systemd-resolved"),
            Undo::SystemDns { interface } => write!(f, "take {interface} back as the way of DNS"),
            Undo::Resolvconf { record, .. } => write!(f, "take the record {record} back from resolvconf"),
        }
    }
}

/// What putting a setting back takes, given the values as they are now: the writes, in order.
///
/// A value that is no longer the one we wrote was changed by someone else and stays. Writing `key` overwrites the
/// settings `beside` it, so each of them gets, after that, its old value where it still had ours, or the value that
/// someone else gave it.
pub fn sysctl_writes(
    key: &str,
    was: &str,
    set: &str,
    beside: &[(String, String)],
    now: impl Fn(&str) -> Option<String>,
) -> Vec<(String, String)> {
    if now(key).as_deref() != Some(set) {
        return Vec::new();
    }
    let mut writes = vec![(key.to_owned(), was.to_owned())];
    for (other, other_was) in beside {
        match now(other) {
            None => {}
            Some(value) if value == set => writes.push((other.clone(), other_was.clone())),
            Some(value) => writes.push((other.clone(), value)),
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now<'a>(values: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |key| values.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned())
    }

    #[test]
    fn a_setting_goes_back_only_if_it_is_still_ours() {
        assert_eq!(sysctl_writes("a", "0", "1", &[], now(&[("a", "1")])), [("a".into(), "0".into())]);
        assert_eq!(sysctl_writes("a", "0", "1", &[], now(&[("a", "2")])), []);
        assert_eq!(
            sysctl_writes("a", "0", "1", &[], now(&[])),
            [],
            "an interface that is gone took its settings along"
        );
    }

    #[test]
    fn what_the_kernel_overwrites_along_is_put_back_one_by_one() {
        let beside = [
            ("eth0".to_owned(), "1".to_owned()),
            ("eth1".to_owned(), "0".to_owned()),
            ("gone".to_owned(), "0".to_owned()),
        ];
        let writes = sysctl_writes("all", "0", "1", &beside, now(&[("all", "1"), ("eth0", "1"), ("eth1", "2")]));
        assert_eq!(writes, [("all".into(), "0".into()), ("eth0".into(), "1".into()), ("eth1".into(), "2".into())]);
    }
}
