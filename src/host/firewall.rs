//! Firewall policy: what an exit and a connect node want of the packet filter, as one [`nft::Table`] (design §7).
//!
//! Only our own table is ever written, so our `accept` ends our chain and nothing else: another program's chain on
//! the same hook can still drop the packet (nft(8), "verdict statements"). On Windows the connect node's policy is a
//! [`peervpn_platform::wfp::FilterSet`], on macOS both are a [`peervpn_platform::pf::Anchor`].

mod anchor;
mod closing;
mod connect;
mod exit;
mod filters;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use peervpn_platform::firewall::Firewall;
use peervpn_platform::nft::{Base, Chain, Hook, Kind, Match, Rule, Statement, Table};
use peervpn_platform::types::System;

use super::Unsupported;
use super::lan::Lan;

pub use anchor::Surroundings;
pub use closing::KILL_SWITCH;

/// The interface whose table is called just `peervpn`.
const DEFAULT_INTERFACE: &str = "peervpn0";

/// Priorities, nft(8) "standard priority names".
const MANGLE: i32 = -150;
const FILTER: i32 = 0;
const DSTNAT: i32 = -100;
const SRCNAT: i32 = 100;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// DNS, RFC 1035 §4.2.
const DNS: u16 = 53;
/// DNS over TLS, RFC 7858, and over QUIC, RFC 9250.
const DNS_SECURE: u16 = 853;

/// Protocols and ports of DNS.
const QUERIES: [(u8, u16); 4] =
    [(IPPROTO_UDP, DNS), (IPPROTO_TCP, DNS), (IPPROTO_UDP, DNS_SECURE), (IPPROTO_TCP, DNS_SECURE)];

/// The chain that refuses what jumps to it.
const REFUSE: &str = "refuse";

/// What the packet filter is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy<'a> {
    /// On an exit.
    Exit(ExitPolicy<'a>),
    /// On a node that sends its traffic through an exit.
    Connect(ConnectPolicy<'a>),
}

/// Policy of an exit: peers reach the internet, and nothing else unless a flag says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitPolicy<'a> {
    /// Tunnel interface.
    pub interface: &'a str,
    /// WireGuard's UDP port.
    pub port: u16,
    /// How many handshake initiations a second WireGuard gets, of each family, from sources that we have sent nothing to lately.
    pub initiations: u32,
    /// Our IPv4 tunnel address.
    pub v4: Option<Ipv4Addr>,
    /// Our IPv6 tunnel address.
    pub v6: Option<Ipv6Addr>,
    /// Peers may reach this host's own services and its LAN.
    pub allow_lan: bool,
    /// Peers may reach each other.
    pub allow_peers: bool,
    /// Services open to peers on our tunnel addresses: (IP protocol, port).
    pub services: Vec<(u8, u16)>,
    /// Where DNS queries to our tunnel addresses are sent on to: the first of each family counts.
    pub dns: Vec<IpAddr>,
    /// This host's LAN: public addresses can be one, too, and mostly are in IPv6.
    pub lan: &'a [Lan],
    /// The mark of outer packets, while it leads them (Linux).
    pub outer: Option<u32>,
}

/// Policy of a node that sends its traffic through an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectPolicy<'a> {
    /// Tunnel interface.
    pub interface: &'a str,
    /// Our IPv4 tunnel address.
    pub v4: Option<Ipv4Addr>,
    /// Our IPv6 tunnel address.
    pub v6: Option<Ipv6Addr>,
    /// Mark of WireGuard's outer packets, and of whatever else goes beside the tunnel; not 0.
    pub fwmark: u32,
    /// The exit has no IPv6: refuse at once what would enter the tunnel towards the IPv6 internet.
    pub refuse_v6: bool,
    /// TCP ports this host listens on. Their connections that are older than connection tracking (which only starts
    /// with the first rule that needs it) keep their way too: the SSH session from which we are started, say.
    pub listening: Vec<u16>,
    /// Marks of the outer packets of other tunnels that carry ours.
    pub carriers: &'a [u32],
    /// DNS has no way out but the tunnel; `None` leaves it alone.
    pub dns: Option<OnlyDns<'a>>,
    /// Nothing goes beside the tunnel; `None` is `--no-kill-switch`.
    pub kill_switch: Option<KillSwitch<'a>>,
}

/// DNS goes through the tunnel, or to these servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlyDns<'a> {
    /// Servers on the LAN that the user named.
    pub lan_servers: &'a [IpAddr],
}

/// What may not go beside the tunnel, and the exceptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillSwitch<'a> {
    /// What goes through the tunnel, and so nowhere else. Prefixes of length 0 for both families: everything.
    pub allowed: &'a [IpNetwork],
    /// What keeps its way.
    pub exclude: &'a [IpNetwork],
    /// The exit's tunnel addresses.
    pub exit: &'a [IpAddr],
    /// The LAN; `None` closes it too (`--no-lan`).
    pub lan: Option<&'a [Lan]>,
}

/// The reasons stand in `platform/src/windows/mod.rs`.
const NO_EXIT: Unsupported = Unsupported {
    what: "an exit",
    system: System::Windows,
    instead: "run peervpn exit on a Linux machine, or in a Linux virtual machine on this one: Windows' own NAT needs \
              Hyper-V, has no IPv6 and serves one program at a time, and WireGuardNT does not tell who asks to be let in",
};

/// Whether a system can be an exit at all; asked before anything is changed.
pub fn can_exit(system: System) -> Result<(), Unsupported> {
    if system == System::Windows { Err(NO_EXIT) } else { Ok(()) }
}

impl Policy<'_> {
    /// What carries it out on that system.
    pub fn firewall(&self, system: System, around: &Surroundings) -> Result<Firewall, Unsupported> {
        match (system, self) {
            (System::Macos, Policy::Exit(policy)) => Ok(Firewall::Pf(policy.anchor(around))),
            (System::Macos, Policy::Connect(policy)) => Ok(Firewall::Pf(policy.anchor(around))),
            (System::Linux, policy) => Ok(Firewall::Nft(policy.table())),
            (System::Windows, Policy::Connect(policy)) => Ok(Firewall::Wfp(policy.filters())),
            (System::Windows, Policy::Exit(_)) => Err(NO_EXIT),
        }
    }

    /// The table that carries it out on Linux.
    pub fn table(&self) -> Table {
        match self {
            Policy::Exit(policy) => policy.table(),
            Policy::Connect(policy) => policy.table(),
        }
    }
}

/// Name of the table of the node on that interface, family `inet`.
pub fn table_name(interface: &str) -> String {
    if interface == DEFAULT_INTERFACE { "peervpn".to_owned() } else { format!("peervpn-{interface}") }
}

/// Whether rules of ours are a kill switch, by what that system shows of them (`Host::firewall_rules`).
pub fn closes(system: System, rules: &[String]) -> bool {
    // beside the kill switch only DNS, peers' traffic, and what enters the tunnel is refused on its way out
    let other = |rule: &str| [" on ", " port ", " tagged "].iter().any(|of| rule.contains(of));
    rules.iter().any(|rule| match system {
        System::Linux => rule == KILL_SWITCH,
        System::Macos => rule.starts_with("block return out quick") && !other(rule),
        // nothing else asks about forwarded packets
        System::Windows => rule.starts_with("forward-"),
    })
}

fn base_chain(name: &str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind, hook, priority, drop: false }), rules }
}

/// To be jumped to.
fn plain_chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules }
}

fn rule(matches: impl Into<Vec<Match>>, statements: impl Into<Vec<Statement>>) -> Rule {
    Rule { matches: matches.into(), statements: statements.into(), comment: None }
}

fn commented(comment: &str, rule: Rule) -> Rule {
    Rule { comment: Some(comment.to_owned()), ..rule }
}

fn from(interface: &str) -> Match {
    Match::Iif { name: interface.to_owned(), not: false }
}

fn not_from(interface: &str) -> Match {
    Match::Iif { name: interface.to_owned(), not: true }
}

fn into(interface: &str) -> Match {
    Match::Oif { name: interface.to_owned(), not: false }
}

fn not_into(interface: &str) -> Match {
    Match::Oif { name: interface.to_owned(), not: true }
}

fn to_address(address: IpAddr) -> Match {
    Match::Destination { prefix: IpNetwork::from(address), not: false }
}

/// Both tunnel addresses, as far as there are any, v4 first.
fn addresses(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
}

/// Whoever shares a link with this host could otherwise speak to, or as if inside, the tunnel (CVE-2019-14899).
fn anti_spoofing(interface: &str, addresses: impl Iterator<Item = IpAddr>) -> Vec<Rule> {
    addresses
        .map(|address| {
            commented(
                "tunnel addresses are reached through the tunnel only",
                rule([to_address(address), not_from(interface), not_from("lo")], [Statement::Drop]),
            )
        })
        .collect()
}

/// Sends a packet to the chain that refuses it.
fn refuse() -> Statement {
    Statement::Jump(REFUSE.to_owned())
}

/// Refuses at once, so that nobody waits for a time-out. Resets for TCP: the kernel limits the rate of ICMP errors.
fn refuse_chain() -> Chain {
    let tcp = rule([Match::L4Proto(IPPROTO_TCP)], [Statement::Counter, Statement::Reset]);
    plain_chain(REFUSE, vec![tcp, rule([], [Statement::Counter, Statement::Reject])])
}

/// Clamps the MSS of a connection that is forwarded through the tunnel.
fn clamp_mss() -> Rule {
    rule([Match::TcpSyn], [Statement::ClampMss])
}
