//! What holds a connected node's traffic in the tunnel: the firewall table with the kill switch and the way of DNS. Put
//! up before the first packet goes in (with `--lockdown` before the first handshake), looked after while the node runs.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use peervpn_platform::types::{Family, RouteLookup, System};
use peervpn_platform::{Host as _, os};

use super::apply::Applier;
use super::control::KillSwitchStatus;
use super::dns::{self, FileWatch};
use super::event::{Event, Output};
use crate::config::{ConnectDns, ConnectOptions};
use crate::error::{Failure, Words};
use crate::host::firewall::{ConnectPolicy, KillSwitch, OnlyDns, Policy, Surroundings};
use crate::host::lan::{self, Lan};
use crate::host::{Change, Numbers, Unsupported};
use crate::join::address::TunnelAddresses;

/// A session without a new handshake is dead after this: WireGuard makes one every 120 s and asks for 90 s more
/// (whitepaper §6.1, REKEY-AFTER-TIME and REKEY-ATTEMPT-TIME).
const SILENT: u64 = 120 + 90;

/// A connected node's firewall.
pub struct Guard {
    interface: String,
    fwmark: u32,
    addresses: TunnelAddresses,
    allowed: Vec<IpNetwork>,
    exclude: Vec<IpNetwork>,
    exit: Vec<IpAddr>,
    no_lan: bool,
    carriers: Vec<u32>,
    kill_switch: bool,
    lockdown: bool,
    /// The exit says that it has no IPv6.
    refuse_v6: bool,
    /// Servers that the user named; empty with the exit's, `None` where DNS is left alone.
    servers: Option<Vec<IpAddr>>,
    lan: Vec<Lan>,
    /// For filters without marks.
    around: Surroundings,
    listening: Vec<u16>,
    file: Option<FileWatch>,
}

impl Guard {
    /// Nothing is changed yet. `carriers`: see [`super::carrier::marks`].
    pub fn new(
        applier: &mut Applier,
        options: &ConnectOptions,
        numbers: Numbers,
        addresses: TunnelAddresses,
        exit: &[IpAddr],
        carriers: Vec<u32>,
    ) -> Result<Guard, Failure> {
        // also the family that new interfaces do not get: an old one may have it
        let everything = || Family::BOTH.map(Family::default_prefix).to_vec();
        let mut guard = Guard {
            interface: applier.interface().to_owned(),
            fwmark: numbers.fwmark,
            addresses,
            allowed: if options.allowed_ips.is_empty() { everything() } else { options.allowed_ips.clone() },
            exclude: options.exclude.clone(),
            exit: exit.to_vec(),
            no_lan: options.no_lan,
            carriers,
            kill_switch: !options.no_kill_switch,
            lockdown: options.lockdown,
            refuse_v6: false,
            servers: match &options.dns {
                ConnectDns::Exit => Some(Vec::new()),
                ConnectDns::None => None,
                ConnectDns::Servers(servers) => Some(servers.clone()),
            },
            lan: Vec::new(),
            around: Surroundings::default(),
            listening: os::listening_ports(),
            file: None,
        };
        guard.lan = guard.lan_now(applier)?;
        guard.around.uplinks = guard.uplinks_now(applier)?;
        Ok(guard)
    }

    /// The device's listen port and MTU: [`Guard::change`] has them from here on.
    pub fn set_device(&mut self, port: u16, mtu: u32) {
        self.around.port = (port != 0).then_some(port);
        self.around.mtu = mtu;
    }

    /// Closes everything now, read back: `--lockdown`, or a host that was closed when we came. Names are resolved before; what we ask for ourselves from here on
    /// carries our mark. A host that a killed node left closed gets our table in place of the other, in one step.
    pub fn lock_down(&self, applier: &mut Applier, out: &mut dyn Output) -> Result<(), Failure> {
        applier.will_close(self.kill_switch);
        applier.make(self.change()?)?;
        applier.verify()?;
        if !self.lockdown {
            return Ok(());
        }
        out.event(&Event::Step(format!("lockdown: nothing leaves until the exit answers; {}", Words::HERE.lift())));
        Ok(())
    }

    /// The table as a change; replaces the one before.
    pub fn change(&self) -> Result<Change, Unsupported> {
        let lan_servers: Vec<IpAddr> = match &self.servers {
            Some(servers) if !self.no_lan => {
                servers.iter().copied().filter(|server| lan::contains(&self.lan, *server)).collect()
            }
            _ => Vec::new(),
        };
        let policy = ConnectPolicy {
            interface: &self.interface,
            v4: Some(self.addresses.v4),
            v6: Some(self.addresses.v6),
            fwmark: self.fwmark,
            refuse_v6: self.refuse_v6,
            listening: self.listening.clone(),
            carriers: &self.carriers,
            dns: self.servers.as_ref().map(|_| OnlyDns { lan_servers: &lan_servers }),
            kill_switch: self.kill_switch.then_some(KillSwitch {
                allowed: &self.allowed,
                exclude: &self.exclude,
                exit: &self.exit,
                lan: (!self.no_lan).then_some(&self.lan),
            }),
        };
        Ok(Change::Firewall(Policy::Connect(policy).firewall(os::SYSTEM, &self.around)?))
    }

    /// Other tunnels have come around ours, or gone; [`Guard::change`] has it from here on.
    pub fn set_carriers(&mut self, carriers: &[u32]) {
        self.carriers = carriers.to_vec();
    }

    /// Whether the kill switch is on.
    pub fn closes(&self) -> bool {
        self.kill_switch
    }

    /// What the exit says of its IPv6; whether that is news, and the table to be replaced. Until it says, the exit itself
    /// refuses what it has no route for.
    pub fn exit_has_v6(&mut self, has: bool) -> bool {
        std::mem::replace(&mut self.refuse_v6, !has) == has
    }

    /// Whether this host's programs ask the exit for names.
    pub fn asks_exit(&self) -> bool {
        self.servers.as_ref().is_some_and(Vec::is_empty)
    }

    /// Says what is closed, once connected.
    pub fn announce(&self, out: &mut dyn Output) {
        let what = match self.everything() {
            true => "nothing leaves this host beside the tunnel",
            false => "the allowed IPs are reached through the tunnel only",
        };
        let lan = if self.no_lan { "" } else { " (the LAN stays reachable)" };
        if self.kill_switch {
            out.event(&Event::Step(format!(
                "kill switch on: {what}{lan}, even if peervpn is killed; {}",
                Words::HERE.lift()
            )));
        } else {
            out.event(&Event::Warning(
                "no kill switch (--no-kill-switch): if the tunnel fails, traffic leaves beside it".to_owned(),
            ));
        }
    }

    /// For `status`, given the seconds since the last handshake.
    pub fn status(&self, last_handshake_s: Option<u64>) -> KillSwitchStatus {
        KillSwitchStatus {
            on: self.kill_switch,
            lockdown: self.lockdown,
            blocking: self.kill_switch && last_handshake_s.is_none_or(|age| age >= SILENT),
        }
    }

    /// Makes this host's programs ask the exit, or the servers that the user named; returns those asked.
    pub fn take_dns(&mut self, applier: &mut Applier, out: &mut dyn Output) -> Result<Vec<IpAddr>, Failure> {
        let Some(named) = &self.servers else { return Ok(Vec::new()) };
        let exits = named.is_empty();
        let mut servers = if exits { self.exit.clone() } else { named.clone() };
        if exits {
            // more exits have a resolver by IPv4
            servers.sort_by_key(IpAddr::is_ipv6);
        }
        let changes = dns::changes(&self.interface, &servers, exits, out)?;
        self.file = FileWatch::of(&changes)?;
        applier.make_all(changes)?;
        Ok(servers)
    }

    /// When to call [`Guard::take_dns_back`] next. Can be dropped and called again at any time.
    pub async fn dns_changed(&mut self) {
        match &mut self.file {
            Some(file) => file.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Puts our resolv.conf back where another program wrote over it.
    pub fn take_dns_back(&mut self, applier: &mut Applier, out: &mut dyn Output) -> Result<(), Failure> {
        match &mut self.file {
            Some(file) => file.take_back(applier, out),
            None => Ok(()),
        }
    }

    /// Lets the LAN through that this host is on now.
    pub fn follow_lan(&mut self, applier: &mut Applier) -> Result<(), Failure> {
        let (lan, uplinks) = (self.lan_now(applier)?, self.uplinks_now(applier)?);
        if lan == self.lan && uplinks == self.around.uplinks {
            return Ok(());
        }
        tracing::info!(?lan, "the LAN has changed");
        self.lan = lan;
        self.around.uplinks = uplinks;
        applier.make(self.change()?)
    }

    fn everything(&self) -> bool {
        Family::BOTH.into_iter().all(|family| self.allowed.contains(&family.default_prefix()))
    }

    /// How packets leave beside the tunnel, where the firewall's rules must name it.
    fn uplinks_now(&self, applier: &mut Applier) -> Result<Vec<(Family, RouteLookup)>, Failure> {
        if os::SYSTEM != System::Macos {
            return Ok(Vec::new());
        }
        let mut ways = Vec::new();
        for probe in super::PROBES {
            let way = applier.host.route_lookup(probe, self.fwmark)?;
            ways.extend(way.map(|way| (Family::of(&probe), way)));
        }
        Ok(ways)
    }

    fn lan_now(&self, applier: &mut Applier) -> Result<Vec<Lan>, Failure> {
        if self.no_lan {
            return Ok(Vec::new());
        }
        let host = &mut applier.host;
        let (links, addresses, routes) = (host.links()?, host.addresses()?, host.routes()?);
        Ok(lan::prefixes(&self.interface, &links, &addresses, &routes))
    }
}
