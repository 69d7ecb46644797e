//! Settings: the TOML file and the command line meet here. Flags win over the file; every option of `exit` and
//! `connect` has a key of the same name; an unknown key is an error that names the nearest known one.
//!
//! Keys stand flat in the file, for both commands, or in a table `[exit]` or `[connect]`, which wins for that command.
//! Values of flags and of keys pass through the same functions ([`value`]). A wrong flag is a usage error (exit status
//! 2); a wrong file is an expected failure (exit status 1), since the command line that met it was right.

mod file;
pub mod value;

pub use file::{ConfigError, ConfigFile};

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

/// Default interface name.
pub const DEFAULT_INTERFACE: &str = "peervpn0";
/// Default `--timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Default `--retry`.
pub const DEFAULT_RETRY: u32 = 1;
/// Default refresh interval of the mapping keeper: carrier NATs drop a mapping after 30 s (design §3).
pub const DEFAULT_KEEPER_INTERVAL: Duration = Duration::from_secs(20);

/// Where things live; `--state-dir`, `--run-dir` and their environment variables. Each system has its own defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Identity key, peers, journals.
    pub state_dir: PathBuf,
    /// Control sockets.
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

/// `dns` as the file or a flag states it. `exit` and `system` both name the exit's own resolver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dns {
    /// The exit's own resolver.
    Exit,
    /// Nothing is done about DNS.
    None,
    /// These servers.
    Servers(Vec<IpAddr>),
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

/// Settings as the file or the flags state them: `None` where they say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// `interface`.
    pub interface: Option<String>,
    /// `port`.
    pub port: Option<u16>,
    /// `backend`.
    pub backend: Option<BackendChoice>,
    /// `stun-server`.
    pub stun_server: Option<Vec<String>>,
    /// `no-stun`.
    pub no_stun: Option<bool>,
    /// `mtu`.
    pub mtu: Option<u32>,
    /// `monitor-nat`.
    pub monitor_nat: Option<bool>,
    /// `keeper-interval`.
    pub keeper_interval: Option<Duration>,
    /// `accept`.
    pub accept: Option<Accept>,
    /// `allow-lan`.
    pub allow_lan: Option<bool>,
    /// `allow-peers`.
    pub allow_peers: Option<bool>,
    /// `endpoint`.
    pub endpoint: Option<Vec<String>>,
    /// `no-portmap`.
    pub no_portmap: Option<bool>,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `retry`.
    pub retry: Option<u32>,
    /// `allowed-ips`.
    pub allowed_ips: Option<Vec<IpNetwork>>,
    /// `exclude`.
    pub exclude: Option<Vec<IpNetwork>>,
    /// `no-lan`.
    pub no_lan: Option<bool>,
    /// `dns`.
    pub dns: Option<Dns>,
    /// `no-kill-switch`.
    pub no_kill_switch: Option<bool>,
    /// `lockdown`.
    pub lockdown: Option<bool>,
}

impl Settings {
    /// These settings, with `lower` where they say nothing. `stun-server` here overrules `no-stun` there, and
    /// `no-kill-switch` here `lockdown` there.
    pub fn over(self, lower: Settings) -> Settings {
        let no_stun = self.no_stun.or(if self.stun_server.is_some() { Some(false) } else { lower.no_stun });
        let lockdown = self.lockdown.or(if self.no_kill_switch == Some(true) { Some(false) } else { lower.lockdown });
        Settings {
            interface: self.interface.or(lower.interface),
            port: self.port.or(lower.port),
            backend: self.backend.or(lower.backend),
            stun_server: self.stun_server.or(lower.stun_server),
            no_stun,
            mtu: self.mtu.or(lower.mtu),
            monitor_nat: self.monitor_nat.or(lower.monitor_nat),
            keeper_interval: self.keeper_interval.or(lower.keeper_interval),
            accept: self.accept.or(lower.accept),
            allow_lan: self.allow_lan.or(lower.allow_lan),
            allow_peers: self.allow_peers.or(lower.allow_peers),
            endpoint: self.endpoint.or(lower.endpoint),
            no_portmap: self.no_portmap.or(lower.no_portmap),
            timeout: self.timeout.or(lower.timeout),
            retry: self.retry.or(lower.retry),
            allowed_ips: self.allowed_ips.or(lower.allowed_ips),
            exclude: self.exclude.or(lower.exclude),
            no_lan: self.no_lan.or(lower.no_lan),
            dns: self.dns.or(lower.dns),
            no_kill_switch: self.no_kill_switch.or(lower.no_kill_switch),
            lockdown,
        }
    }

    /// Options of `exit`, the rest by default; `stun_servers` are asked when none is named.
    pub fn exit(self, stun_servers: &[&str]) -> ExitOptions {
        ExitOptions {
            accept: self.accept.unwrap_or(Accept::Ask),
            allow_lan: self.allow_lan.unwrap_or(false),
            allow_peers: self.allow_peers.unwrap_or(false),
            endpoints: self.endpoint.clone().unwrap_or_default(),
            no_portmap: self.no_portmap.unwrap_or(false),
            dns: match self.dns.clone() {
                None | Some(Dns::Exit) => ExitDns::System,
                Some(Dns::None) => ExitDns::None,
                Some(Dns::Servers(servers)) => ExitDns::Servers(servers),
            },
            node: self.node(stun_servers),
        }
    }

    /// Options of `connect` to `target`, the rest by default; `stun_servers` are asked when none is named.
    pub fn connect(self, target: String, stun_servers: &[&str]) -> ConnectOptions {
        ConnectOptions {
            target,
            timeout: self.timeout.unwrap_or(DEFAULT_TIMEOUT),
            retry: self.retry.unwrap_or(DEFAULT_RETRY),
            allowed_ips: self.allowed_ips.clone().unwrap_or_default(),
            exclude: self.exclude.clone().unwrap_or_default(),
            no_lan: self.no_lan.unwrap_or(false),
            dns: match self.dns.clone() {
                None | Some(Dns::Exit) => ConnectDns::Exit,
                Some(Dns::None) => ConnectDns::None,
                Some(Dns::Servers(servers)) => ConnectDns::Servers(servers),
            },
            // who asks for the lockdown asks for more than the kill switch
            no_kill_switch: self.no_kill_switch.unwrap_or(false) && self.lockdown != Some(true),
            lockdown: self.lockdown.unwrap_or(false),
            node: self.node(stun_servers),
        }
    }

    /// Options that both share.
    fn node(self, stun_servers: &[&str]) -> NodeOptions {
        let no_stun = self.no_stun.unwrap_or(false);
        let servers = || self.stun_server.unwrap_or_else(|| stun_servers.iter().map(|&s| s.to_owned()).collect());
        NodeOptions {
            interface: self.interface.unwrap_or_else(|| DEFAULT_INTERFACE.to_owned()),
            port: self.port,
            backend: self.backend.unwrap_or(BackendChoice::Auto),
            stun_servers: if no_stun { Vec::new() } else { servers() },
            no_stun,
            mtu: self.mtu,
            monitor_nat: self.monitor_nat.unwrap_or(false),
            keeper_interval: self.keeper_interval.unwrap_or(DEFAULT_KEEPER_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_wins_and_the_rest_is_default() {
        let flags = Settings { port: Some(7), ..Settings::default() };
        let file = Settings { port: Some(8), mtu: Some(1400), no_stun: Some(true), ..Settings::default() };
        let exit = flags.over(file).exit(&["s:1"]);
        assert_eq!((exit.node.port, exit.node.mtu, exit.accept), (Some(7), Some(1400), Accept::Ask));
        assert!(exit.node.no_stun && exit.node.stun_servers.is_empty());
        assert_eq!(exit.node.interface, "peervpn0");

        let connect = Settings::default().connect("t".into(), &["s:1"]);
        assert_eq!((connect.timeout, connect.retry), (DEFAULT_TIMEOUT, 1));
        assert_eq!(connect.node.stun_servers, ["s:1"]);
    }

    #[test]
    fn the_kill_switch_is_as_the_flags_say() {
        let open = || Settings { no_kill_switch: Some(true), ..Settings::default() };
        let lockdown = || Settings { lockdown: Some(true), ..Settings::default() };
        for (flags, file, expected) in [(open(), lockdown(), (true, false)), (lockdown(), open(), (false, true))] {
            let options = flags.over(file).connect("t".into(), &[]);
            assert_eq!((options.no_kill_switch, options.lockdown), expected);
        }
    }

    #[test]
    fn a_stun_server_flag_overrules_no_stun_of_the_file() {
        let flags = Settings { stun_server: Some(vec!["s:1".into()]), ..Settings::default() };
        let file = Settings { no_stun: Some(true), ..Settings::default() };
        let node = flags.over(file).exit(&["d:1"]).node;
        assert_eq!((node.no_stun, node.stun_servers), (false, vec!["s:1".to_owned()]));
    }
}
