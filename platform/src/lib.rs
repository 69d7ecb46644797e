//! What PeerVPN asks of an operating system.
//!
//! Plain types ([`types`], [`nft`]), two traits ([`Host`] for what the network stack holds, [`WireGuard`] for the
//! device) and one module an operating system, selected here and nowhere else. Everything is synchronous, but for
//! what each system awaits in a way of its own: [`os::ready`] (sockets and other sources, which come non-blocking),
//! [`os::control`] and [`os::signals`]. No decisions are taken here: callers say exactly what to do.
//! What a system cannot do returns [`Error::Unsupported`], never a silent success.

#[cfg(any(windows, test))]
mod argv;
#[cfg(any(unix, test))]
#[cfg_attr(not(any(target_os = "linux", test)), allow(dead_code, reason = "only Linux leaves out expected answers"))]
mod bpf;
pub mod datagram;
pub mod files;
pub mod firewall;
#[cfg(any(unix, test))]
#[path = "macos/formats/mod.rs"]
pub mod macos_formats;
#[cfg(any(unix, test))]
#[cfg_attr(not(any(target_os = "linux", test)), allow(dead_code, reason = "only Linux leaves out expected answers"))]
mod messages;
pub mod nft;
pub mod pf;
pub mod types;
pub mod wfp;
pub mod wireguard_nt;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
pub mod os;
#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
pub mod os;
#[cfg(windows)]
#[path = "windows/mod.rs"]
pub mod os;

use std::net::IpAddr;

use firewall::Firewall;
use ipnetwork::IpNetwork;
use types::*;

/// Origin number of our routes and rules (`rtm_protocol`, `FRA_PROTOCOL`): the kernel leaves numbers from 5 up to
/// user space and no entry of iproute2's `rt_protos` uses this one.
pub const OUR_PROTOCOL: u8 = 80;

/// Alias put on every link we make, so that recovery without a journal finds it.
pub const OUR_ALIAS: &str = "peervpn";

/// What went wrong at the border to the operating system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused an operation.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was tried, with its operands, in the infinitive: `add route default (table 51820)`.
        operation: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// This operating system has no way to do it.
    #[error("{what} is not supported on {os}", os = std::env::consts::OS)]
    Unsupported {
        /// The capability.
        what: &'static str,
        /// What to do instead.
        instead: &'static str,
    },
    /// The system's answer could not be understood.
    #[error("unexpected answer to {operation}: {detail}")]
    Unexpected {
        /// What was asked.
        operation: String,
        /// What was odd about the answer.
        detail: String,
    },
}

impl Error {
    /// Wraps the system's answer to `operation`.
    pub fn system(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Error::System { operation: operation.into(), source: source.into() }
    }

    /// The system's error kind, if it is one.
    pub fn kind(&self) -> Option<std::io::ErrorKind> {
        match self {
            Error::System { source, .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// The system's error number, if it is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;

/// The host's network configuration. Reading never changes anything; every change is exactly the one asked for.
pub trait Host {
    /// Every link.
    fn links(&mut self) -> Result<Vec<Link>>;
    /// One link by name; `None` if there is none.
    fn link(&mut self, name: &str) -> Result<Option<Link>>;
    /// Creates a link of the system's WireGuard kind, down, and marks it with [`OUR_ALIAS`].
    fn create_wireguard_link(&mut self, name: &str) -> Result<()>;
    /// Deletes a link. A link that is already gone is no error.
    fn delete_link(&mut self, name: &str) -> Result<()>;
    /// Marks a link as ours with [`OUR_ALIAS`] (for links another program created for us).
    fn mark_link(&mut self, name: &str) -> Result<()>;
    /// Sets MTU (bytes) and brings the link up, in one request.
    fn bring_up(&mut self, name: &str, mtu: u32) -> Result<()>;
    /// Every address of every link.
    fn addresses(&mut self) -> Result<Vec<Address>>;
    /// Adds an address to a link (without the prefix route for `/32` and `/128`, no duplicate address detection).
    fn add_address(&mut self, link: &str, address: IpNetwork) -> Result<()>;
    /// Every route of every table and family, the kernel's own `local` table left out.
    fn routes(&mut self) -> Result<Vec<Route>>;
    /// Adds a route; one that is already there is an error (`EEXIST`).
    fn add_route(&mut self, route: &Route) -> Result<()>;
    /// Adds many routes with few system calls; stops at the first failure.
    fn add_routes(&mut self, routes: &[Route]) -> Result<()>;
    /// Deletes exactly this route (protocol included). One that is already gone is no error.
    fn delete_route(&mut self, route: &Route) -> Result<()>;
    /// Every policy rule.
    fn rules(&mut self) -> Result<Vec<Rule>>;
    /// Adds a policy rule.
    fn add_rule(&mut self, rule: &Rule) -> Result<()>;
    /// Deletes exactly this rule (protocol included). One that is already gone is no error.
    fn delete_rule(&mut self, rule: &Rule) -> Result<()>;
    /// How a packet with this mark (0 for none) to `destination` would leave; `None` if there is no route.
    fn route_lookup(&mut self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>>;
    /// How an outer packet with this mark would leave: where the device finds its way beside its own link, that way.
    fn outer_route(&mut self, destination: IpAddr, mark: u32) -> Result<Option<RouteLookup>> {
        self.route_lookup(destination, mark)
    }
    /// Reads a kernel setting by its sysctl name in slash form (`net/ipv4/conf/eth0/forwarding`), trimmed;
    /// `None` if the kernel has no such setting.
    fn sysctl(&mut self, key: &str) -> Result<Option<String>>;
    /// Writes a kernel setting.
    fn set_sysctl(&mut self, key: &str, value: &str) -> Result<()>;
    /// Whether this host has IPv6, and new interfaces get it.
    fn ipv6(&mut self) -> Result<bool>;
    /// Different after every start of the system; empty where it can't be told.
    fn boot_id(&mut self) -> Result<String>;
    /// The network namespace whose configuration this is, as a number; `None` where there is but one.
    fn namespace(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }
    /// By which path to get into that namespace, as far as it can be seen from here; `None`: it has gone.
    fn way_into(&mut self, namespace: u64) -> Result<Option<std::path::PathBuf>> {
        let _ = namespace;
        Ok(None)
    }
    /// Replaces our firewall rules of that name by these, atomically. Those of another system's filter are unsupported.
    fn replace_firewall(&mut self, firewall: &Firewall) -> Result<()>;
    /// Reads back whether exactly these rules are there, as far as the system tells.
    fn firewall_stands(&mut self, firewall: &Firewall) -> Result<bool>;
    /// Our firewall rules of that name as the system shows them: on Linux their comments, on macOS lines of pf's language, on
    /// Windows the filters' names. None there, none shown.
    fn firewall_rules(&mut self, name: &str) -> Result<Vec<String>> {
        let chains = self.seen_chains()?.into_iter().filter(|chain| chain.table == name);
        Ok(chains.flat_map(|chain| chain.rules).filter_map(|rule| rule.comment).collect())
    }
    /// Deletes our firewall rules of that name. None there is no error.
    fn delete_firewall(&mut self, name: &str) -> Result<()>;
    /// Deletes what carries our marks and is in none of the lists above, of whichever node.
    fn delete_marked(&mut self) -> Result<()> {
        Ok(())
    }
    /// Makes the system's programs ask these DNS servers, through that interface, while it is there. For systems that
    /// have one resolver to tell; on Linux, `os::dns` has several.
    fn set_dns(&mut self, interface: &str, servers: &[IpAddr]) -> Result<()> {
        let _ = (interface, servers);
        Err(Error::Unsupported { what: "a resolver of the system's own", instead: "leave DNS as it is: --dns none" })
    }
    /// For read-back: what [`Host::set_dns`] has set for that interface.
    fn dns(&mut self, interface: &str) -> Result<Vec<IpAddr>> {
        let _ = interface;
        Ok(Vec::new())
    }
    /// Takes it back. Nothing there is no error.
    fn unset_dns(&mut self, interface: &str) -> Result<()> {
        let _ = interface;
        Ok(())
    }
    /// Every firewall chain, of every program, that could see forwarded packets.
    fn seen_chains(&mut self) -> Result<Vec<nft::foreign::SeenChain>>;
    /// Puts rules into another program's chain, in order, all or none.
    fn insert_rules(&mut self, place: &nft::foreign::Place, rules: &[nft::Rule]) -> Result<()>;
    /// Deletes the rules with this comment from another program's chain. None there, or no such chain, is no error.
    fn delete_commented(&mut self, place: &nft::foreign::Place, comment: &str) -> Result<()>;
}

/// Something that becomes readable when what it watches has changed.
pub trait Watch: os::ready::Source {
    /// Takes every notification that waits; whether there was one.
    fn drain(&self) -> bool;
}

/// A WireGuard device, on whichever back end it runs.
pub trait WireGuard {
    /// Applies settings in as few requests as the back end allows.
    fn configure(&mut self, interface: &str, config: &DeviceConfig) -> Result<()>;
    /// The device as it is.
    fn state(&mut self, interface: &str) -> Result<DeviceState>;
}

#[cfg(test)]
mod tests {
    /// The static build brings its unwinder together from parts that were not made for one another (`tests/cross/env.sh`).
    #[test]
    fn a_panic_is_caught() {
        assert!(std::thread::spawn(|| panic!("on purpose")).join().is_err());
    }
}
