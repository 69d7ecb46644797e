//! Plain data that every operating system shares: what a link, an address, a route, a policy rule and a WireGuard
//! device look like. No behaviour beyond constructors; safe to use from pure code.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// An operating system, for decisions that differ between them: each is made for any system on every host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// Linux: policy routing, nftables.
    Linux,
    /// macOS: one routing table, pf.
    Macos,
    /// Windows: one routing table, the Windows Filtering Platform.
    Windows,
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            System::Linux => "Linux",
            System::Macos => "macOS",
            System::Windows => "Windows",
        })
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, v4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// `0.0.0.0/0` or `::/0`.
    pub fn default_prefix(self) -> IpNetwork {
        match self {
            Family::V4 => IpNetwork::V4(
                ipnetwork::Ipv4Network::new(std::net::Ipv4Addr::UNSPECIFIED, 0).expect("0 is a prefix length"),
            ),
            Family::V6 => IpNetwork::V6(
                ipnetwork::Ipv6Network::new(std::net::Ipv6Addr::UNSPECIFIED, 0).expect("0 is a prefix length"),
            ),
        }
    }
}

/// 32 secret bytes (a static private key or a preshared key); wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name, at most 15 bytes on Linux.
    pub name: String,
    /// Driver kind as the system names it (`wireguard`, `tun`, `veth`), where it has one.
    pub kind: Option<String>,
    /// Administratively up.
    pub up: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// The alias, which carries our mark on links we made.
    pub alias: Option<String>,
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Interface index.
    pub ifindex: u32,
    /// The address with its prefix length (host bits kept).
    pub address: IpNetwork,
}

/// What a route does with a packet; rtnetlink(7) `rtm_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// Forward it.
    Unicast,
    /// Refuse it at once: ICMP destination unreachable.
    Unreachable,
    /// Anything else, by the kernel's number.
    Other(u8),
}

/// A route in one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Table number; 254 is `main`.
    pub table: u32,
    /// Destination; prefix length 0 is the default route. Its variant is the route's family.
    pub destination: IpNetwork,
    /// What it does.
    pub kind: RouteKind,
    /// Outgoing interface name.
    pub oif: Option<String>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Metric; `None` lets the system choose.
    pub metric: Option<u32>,
    /// Origin (rtnetlink(7) `rtm_protocol`); [`crate::OUR_PROTOCOL`] marks ours.
    pub protocol: u8,
    /// Route MTU in bytes, where the route has one.
    pub mtu: Option<u32>,
}

/// A policy rule; ip-rule(8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Family.
    pub family: Family,
    /// Priority; smaller is asked first.
    pub priority: u32,
    /// `(mark, mask)`.
    pub fwmark: Option<(u32, u32)>,
    /// `not`: the selector is inverted.
    pub invert: bool,
    /// Table to look up; 0 where the action is no look-up.
    pub table: u32,
    /// Ignore results with this prefix length or a shorter one.
    pub suppress_prefixlen: Option<u32>,
    /// Origin; [`crate::OUR_PROTOCOL`] marks ours.
    pub protocol: u8,
}

/// The system's answer to "how would a packet to this destination leave?"
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLookup {
    /// Outgoing interface index.
    pub ifindex: u32,
    /// Outgoing interface name.
    pub interface: String,
    /// Source address it would get.
    pub source: IpAddr,
    /// Next hop, if not on the link.
    pub gateway: Option<IpAddr>,
    /// MTU in bytes towards it (route MTU where set, else the link's).
    pub mtu: u32,
    /// Table the route was found in.
    pub table: u32,
}

/// Which WireGuard implementation drives an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The operating system's own.
    Kernel,
    /// A process of its own that speaks the UAPI protocol.
    Userspace,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Backend::Kernel => "kernel",
            Backend::Userspace => "userspace",
        })
    }
}

/// Desired settings of a WireGuard device; `None` leaves a setting as it is; wg(8) `set`.
#[derive(Debug, Clone, Default)]
pub struct DeviceConfig {
    /// Static private key.
    pub private_key: Option<Secret>,
    /// Listen port.
    pub listen_port: Option<u16>,
    /// fwmark of outer packets; 0 clears it.
    pub fwmark: Option<u32>,
    /// Remove every peer that is not in `peers`.
    pub replace_peers: bool,
    /// Peers to add, change or remove, applied in order.
    pub peers: Vec<PeerConfig>,
}

/// Desired settings of one peer.
#[derive(Debug, Clone, Default)]
pub struct PeerConfig {
    /// Static public key.
    pub public_key: [u8; 32],
    /// Remove the peer; every other field is then ignored.
    pub remove: bool,
    /// Only change it if it exists.
    pub update_only: bool,
    /// Preshared key.
    pub preshared_key: Option<Secret>,
    /// Outer address and port.
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds; 0 switches it off.
    pub keepalive: Option<u16>,
    /// Replace the allowed IPs by `allowed_ips` instead of adding to them.
    pub replace_allowed_ips: bool,
    /// Allowed IPs.
    pub allowed_ips: Vec<IpNetwork>,
}

/// A WireGuard device as it is; wg(8) `show`. Carries no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    /// Static public key, if a private one is set.
    pub public_key: Option<[u8; 32]>,
    /// Listen port.
    pub listen_port: u16,
    /// fwmark, 0 for none.
    pub fwmark: u32,
    /// Its peers.
    pub peers: Vec<PeerState>,
}

/// One peer as the device sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Static public key.
    pub public_key: [u8; 32],
    /// Current outer address and port.
    pub endpoint: Option<SocketAddr>,
    /// Persistent keepalive in seconds, 0 for off.
    pub keepalive: u16,
    /// Time of the last handshake since the Unix epoch; `None` before the first.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Allowed IPs.
    pub allowed_ips: Vec<IpNetwork>,
}

/// Who holds a UDP port, where the system tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortHolder {
    /// Process ID.
    pub pid: u32,
    /// Program name.
    pub program: String,
}

/// A right of a process beyond an ordinary user's; capabilities(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// Pass by file permissions.
    DacOverride,
    /// Bind ports below 1024.
    NetBindService,
    /// Configure the network.
    NetAdmin,
    /// Raw and packet sockets.
    NetRaw,
}

impl Capability {
    /// Its number in linux/capability.h.
    pub fn number(self) -> u32 {
        match self {
            Capability::DacOverride => 1,
            Capability::NetBindService => 10,
            Capability::NetAdmin => 12,
            Capability::NetRaw => 13,
        }
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Capability::DacOverride => "CAP_DAC_OVERRIDE",
            Capability::NetBindService => "CAP_NET_BIND_SERVICE",
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::NetRaw => "CAP_NET_RAW",
        })
    }
}

/// What installing ourselves as a service came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installed {
    /// It is there, and was started.
    Made,
    /// It was there already, with the same command; it was started if it did not run.
    Same,
    /// It is there with these other arguments, and was left as it is.
    Other(Vec<std::ffi::OsString>),
}

/// A service of ours as the system has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// How it stands.
    pub state: ServiceState,
    /// Process ID, while it runs.
    pub pid: Option<u32>,
    /// What it ended with; `None` before its first end.
    pub exit: Option<u32>,
    /// Its arguments, without the program.
    pub arguments: Vec<std::ffi::OsString>,
}

/// How a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceState {
    /// It is about to run.
    Starting,
    /// It runs.
    Running,
    /// It puts the host back.
    Stopping,
    /// It does not run.
    Stopped,
}

/// A process we started, named so that a recycled process ID is never mistaken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process ID.
    pub pid: u32,
    /// Start time in the system's own unit (Linux: clock ticks since boot, proc(5) `stat` field 22).
    pub started: u64,
}

/// A file as it is, or shall be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// There is none.
    Missing,
    /// A regular file.
    Text {
        /// Contents.
        text: String,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// As it is stored, relative or not.
        target: std::path::PathBuf,
    },
}

/// What decides how DNS is changed on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsProbes {
    /// The system has one resolver, which is told by [`crate::Host::set_dns`]; nothing else counts then.
    pub system: bool,
    /// systemd-resolved runs and answers on the system bus.
    pub resolved: bool,
    /// resolvconf(8), if there is one of its own.
    pub resolvconf: Option<Resolvconf>,
    /// `/etc/resolv.conf`.
    pub file: ResolvConf,
}

/// `/etc/resolv.conf` before it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The file itself.
    pub state: FileState,
    /// What programs read there, through the link if it is one; empty if nothing.
    pub text: String,
    /// It has the immutable attribute.
    pub immutable: bool,
    /// It is a mount point: it can be written, not replaced.
    pub mounted: bool,
    /// It can't be written: a read-only file system.
    pub read_only: bool,
    /// We are in a network namespace of our own, and this file is the one of the host around it.
    pub shared: bool,
}

/// A resolvconf(8) program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolvconf {
    /// Its path.
    pub program: std::path::PathBuf,
    /// Which one.
    pub kind: ResolvconfKind,
}

/// Who made a resolvconf(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolvconfKind {
    /// openresolv: records can be exclusive.
    Openresolv,
    /// Debian's: records are in an order by interface name.
    Debian,
}
