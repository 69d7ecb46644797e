//! Settings: the TOML file and the command line meet here. Flags win over the file; every option of `exit` and
//! `connect` has a key of the same name; an unknown key is an error that names the nearest known one.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// Default interface name.
pub const DEFAULT_INTERFACE: &str = "peervpn0";

/// Where things live; `--config`, `--state-dir`, `--run-dir` and their environment variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Identity key, peers, journals; `/var/lib/peervpn`.
    pub state_dir: PathBuf,
    /// Control sockets; `/run/peervpn`.
    pub run_dir: PathBuf,
}

/// `--backend`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendChoice {
    /// The kernel's if it has one, else the bundled userspace device.
    Auto,
    /// The kernel's or nothing.
    Kernel,
    /// A process of its own: the bundled device, or this program.
    Userspace(Option<String>),
}

/// `--accept`: what to do with an unknown peer's valid initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// Ask on the terminal, else keep it pending.
    Ask,
    /// Let everyone in.
    Any,
    /// Let no one in.
    None,
}

/// Options that `exit` and `connect` share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeOptions {
    /// Interface name.
    pub interface: String,
    /// WireGuard listen port; `None` picks one (exit: 51820 if free; connect: any).
    pub port: Option<u16>,
    /// Back end.
    pub backend: BackendChoice,
    /// STUN servers as `HOST:PORT`; empty with `no_stun`.
    pub stun_servers: Vec<String>,
    /// Ask no STUN server.
    pub no_stun: bool,
    /// Tunnel MTU in bytes; `None` derives it from the route to the endpoint.
    pub mtu: Option<u32>,
    /// Print a line about the mapping every 10 s.
    pub monitor_nat: bool,
    /// How often the mapping keeper refreshes the mapping.
    pub keeper_interval: Duration,
}

/// `--dns` of `exit`: where peers' DNS queries to our tunnel address go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitDns {
    /// The exit's own resolver.
    System,
    /// Nowhere.
    None,
    /// These servers.
    Servers(Vec<IpAddr>),
}

/// `--dns` of `connect`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectDns {
    /// The exit's.
    Exit,
    /// Leave DNS as it is.
    None,
    /// These servers, through the tunnel.
    Servers(Vec<IpAddr>),
}

/// Everything `exit` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitOptions {
    /// Shared options.
    pub node: NodeOptions,
    /// Admission.
    pub accept: Accept,
    /// Peers may reach the exit's LAN and the exit itself.
    pub allow_lan: bool,
    /// Peers may reach each other.
    pub allow_peers: bool,
    /// Endpoints stated by hand, `HOST:PORT`.
    pub endpoints: Vec<String>,
    /// Ask no gateway for a port mapping.
    pub no_portmap: bool,
    /// DNS for peers.
    pub dns: ExitDns,
}

/// Everything `connect` needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Shared options.
    pub node: NodeOptions,
    /// `PUBKEY@ENDPOINT[,ENDPOINT…]` or an invite, as typed.
    pub target: String,
    /// How long to wait for the first handshake.
    pub timeout: Duration,
    /// How many times to try.
    pub retry: u32,
    /// What goes through the tunnel; empty means everything.
    pub allowed_ips: Vec<IpNetwork>,
    /// What does not.
    pub exclude: Vec<IpNetwork>,
    /// Send even the LAN through the tunnel.
    pub no_lan: bool,
    /// DNS.
    pub dns: ConnectDns,
    /// Leave the kill switch out.
    pub no_kill_switch: bool,
    /// Close everything before the first handshake, too.
    pub lockdown: bool,
}
