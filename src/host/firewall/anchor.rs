//! Both policies on macOS, as rules of pf(4). It says what `exit.rs`, `connect.rs` and `closing.rs` say in nftables, with
//! what pf has: no marks, but tags on a packet's way through the host, states, and `reply-to`. Filters are `quick`, so the
//! first that matches decides, as in a chain; and over the host's own rules behind our anchor, too. What comes in beside the
//! tunnel is theirs to judge: those rules of ours are not, and pf goes by the last that matches. One rule a line without
//! lists, so that as many are read back.
//!
//! States are made where an answer needs one: for what comes in from outside, and for peers' connections through an exit.
//! A rule with a state takes up TCP at its SYN only. A flood of initiations is not stopped: pf reads no payload.
//!
//! WireGuard's outer packets are known by the port they come from, which its device holds alone.

use std::fmt::Write as _;

use peervpn_platform::pf::{Anchor, TUNNEL};
use peervpn_platform::types::{Family, RouteLookup};

use super::closing::{DHCP, DHCPV6, LINK_SCOPE, NEIGHBOUR_DISCOVERY};
use super::exit::{DOORS, LAN};
use super::*;

/// Headers that a TCP segment has around it, without options: IPv4 or IPv6, and TCP.
const AROUND_V4: u32 = 20 + 20;
const AROUND_V6: u32 = 40 + 20;

/// What pf must be told beyond a policy: no rule can ask the kernel for it. Other systems need none of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Listen port of WireGuard; `None` before the device has one.
    pub port: Option<u16>,
    /// MTU of the tunnel in bytes.
    pub mtu: u32,
    /// How packets to the internet leave beside the tunnel.
    pub uplinks: Vec<(Family, RouteLookup)>,
}

/// Collects rules.
#[derive(Default)]
struct Rules(String);

impl Rules {
    fn comment(&mut self, text: &str) {
        let _ = writeln!(self.0, "# {text}");
    }

    fn add(&mut self, rule: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{rule}");
    }

    fn anchor(self, interface: &str) -> Anchor {
        Anchor { name: table_name(interface), interface: interface.to_owned(), rules: self.0 }
    }
}

fn inet(family: Family) -> &'static str {
    match family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    }
}

fn inet_of(address: &IpAddr) -> &'static str {
    inet(Family::of(address))
}

fn inet_of_net(prefix: &IpNetwork) -> &'static str {
    inet(Family::of(&prefix.network()))
}

fn protocol(number: u8) -> &'static str {
    if number == IPPROTO_TCP { "tcp" } else { "udp" }
}

/// Clamps the MSS of connections through the tunnel, both ways.
fn clamp(rules: &mut Rules, mtu: u32) {
    for (family, around) in [(Family::V4, AROUND_V4), (Family::V6, AROUND_V6)] {
        rules.add(format_args!("scrub on {TUNNEL} {} all max-mss {}", inet(family), mtu.saturating_sub(around)));
    }
}

/// Tunnel addresses are reached through the tunnel only, and from this host itself.
fn own_addresses(rules: &mut Rules, addresses: impl Iterator<Item = IpAddr>) {
    rules.comment("tunnel addresses are reached through the tunnel only");
    for address in addresses {
        let inet = inet_of(&address);
        rules.add(format_args!("pass in quick on lo0 {inet} from any to {address} no state"));
        rules.add(format_args!("block drop in quick on ! {TUNNEL} {inet} from any to {address}"));
    }
}

impl ExitPolicy<'_> {
    /// The anchor that carries it out on macOS.
    pub fn anchor(&self, around: &Surroundings) -> Anchor {
        let mut rules = Rules::default();
        let tag = table_name(self.interface);
        clamp(&mut rules, around.mtu);
        rules.comment("peers leave with this host's address");
        for (family, way) in &around.uplinks {
            let inet = inet(*family);
            rules.add(format_args!("nat on {} {inet} from any to any tagged {tag} -> {}", way.interface, way.source));
        }
        let resolvers: Vec<(IpAddr, IpAddr)> = self.resolvers().collect();
        for (own, server) in &resolvers {
            for number in [IPPROTO_UDP, IPPROTO_TCP] {
                rules.add(format_args!(
                    "rdr on {TUNNEL} {} proto {} from any to {own} port {DNS} -> {server} port {DNS}",
                    inet_of(own),
                    protocol(number)
                ));
            }
        }
        own_addresses(&mut rules, addresses(self.v4, self.v6));
        self.doors(&mut rules);
        self.to_this_host(&mut rules, &tag, &resolvers);
        self.passing(&mut rules, &tag, &resolvers);
        rules.anchor(self.interface)
    }

    /// Doors of invites open nothing but the control service.
    fn doors(&self, rules: &mut Rules) {
        rules.comment("an invite opens nothing else");
        if let Some(own) = self.v4 {
            for (number, port) in &self.services {
                rules.add(format_args!(
                    "pass in quick on {TUNNEL} inet proto {} from {DOORS} to {own} port {port}",
                    protocol(*number)
                ));
            }
        }
        rules.add(format_args!("block return in quick on {TUNNEL} inet from {DOORS} to any"));
    }

    /// From peers to this host. Whatever else they send is tagged, and judged where it leaves.
    fn to_this_host(&self, rules: &mut Rules, tag: &str, resolvers: &[(IpAddr, IpAddr)]) {
        for (own, server) in resolvers {
            for number in [IPPROTO_UDP, IPPROTO_TCP] {
                // translated by now
                rules.add(format_args!(
                    "pass in quick on {TUNNEL} {} proto {} from any to {server} port {DNS} tag {tag}",
                    inet_of(own),
                    protocol(number)
                ));
            }
        }
        for address in addresses(self.v4, self.v6) {
            let (icmp, kind) = match address {
                IpAddr::V4(_) => ("icmp", "icmp-type echoreq"),
                IpAddr::V6(_) => ("ipv6-icmp", "icmp6-type echoreq"),
            };
            let inet = inet_of(&address);
            rules.add(format_args!("pass in quick on {TUNNEL} {inet} proto {icmp} from any to {address} {kind}"));
            for (number, port) in &self.services {
                rules.add(format_args!(
                    "pass in quick on {TUNNEL} {inet} proto {} from any to {address} port {port}",
                    protocol(*number)
                ));
            }
        }
        if !self.allow_lan {
            rules.comment("this host's services: closed to peers");
            rules.add(format_args!("block return in quick on {TUNNEL} from any to (self)"));
        }
        rules.add(format_args!("pass in quick on {TUNNEL} from any to any tag {tag}"));
        rules.comment("of no connection: without its tag it would leave with a peer's tunnel address");
        rules.add(format_args!("block return in quick on {TUNNEL} all"));
    }

    /// From peers to elsewhere; back to them by the states of that.
    fn passing(&self, rules: &mut Rules, tag: &str, resolvers: &[(IpAddr, IpAddr)]) {
        if self.allow_peers {
            rules.add(format_args!("pass out quick on {TUNNEL} from any to any tagged {tag}"));
        } else {
            rules.comment("from peer to peer");
            rules.add(format_args!("block return out quick on {TUNNEL} from any to any tagged {tag}"));
        }
        for address in addresses(self.v4, self.v6) {
            rules.add(format_args!("pass out quick on {TUNNEL} {} from {address} to any", inet_of(&address)));
        }
        rules.comment("nobody asked for it");
        rules.add(format_args!("block drop out quick on {TUNNEL} all"));
        for (own, server) in resolvers {
            for number in [IPPROTO_UDP, IPPROTO_TCP] {
                rules.add(format_args!(
                    "pass out quick {} proto {} from any to {server} port {DNS} tagged {tag}",
                    inet_of(own),
                    protocol(number)
                ));
            }
        }
        if !self.allow_lan {
            rules.comment("this host's LAN: closed to peers");
            for prefix in LAN {
                let inet = if prefix.contains(':') { "inet6" } else { "inet" };
                rules.add(format_args!("block return out quick {inet} from any to {prefix} tagged {tag}"));
            }
            for Lan { interface, prefix } in self.other_lan() {
                let inet = inet_of_net(prefix);
                rules.add(format_args!(
                    "block return out quick on {interface} {inet} from any to {prefix} tagged {tag}"
                ));
            }
        }
        rules.add(format_args!("pass out quick from any to any tagged {tag}"));
    }
}

impl ConnectPolicy<'_> {
    /// The anchor that carries it out on macOS.
    pub fn anchor(&self, around: &Surroundings) -> Anchor {
        let mut rules = Rules::default();
        clamp(&mut rules, around.mtu);
        own_addresses(&mut rules, addresses(self.v4, self.v6));
        if let Some(port) = around.port {
            rules.comment("outer packets: never into the tunnel that they make, whatever the routes say");
            for inet in ["inet", "inet6"] {
                rules
                    .add(format_args!("block drop out quick on {TUNNEL} {inet} proto udp from any port {port} to any"));
            }
        }
        self.answers(&mut rules, around);
        if self.refuse_v6 {
            rules.comment("the exit has no IPv6");
            rules.add(format_args!("block return out quick on {TUNNEL} inet6 from any to ! fc00::/7"));
        }
        if self.dns.is_some() || self.kill_switch.is_some() {
            self.closed(&mut rules, around);
        }
        rules.anchor(self.interface)
    }

    /// Connections from outside are answered the way they came: by a state that remembers it. Those of the LAN need
    /// none: its routes are more specific than the tunnel's. Not `quick`: a `block in` of the host's own is to hold.
    fn answers(&self, rules: &mut Rules, around: &Surroundings) {
        rules.comment("a connection from outside is answered the way it came");
        for (family, way) in &around.uplinks {
            let Some(gateway) = way.gateway else { continue };
            let inet = inet(*family);
            let link = &way.interface;
            let scope = match gateway {
                IpAddr::V6(gateway) if gateway.is_unicast_link_local() => format!("%{link}"),
                _ => String::new(),
            };
            for protocol in ["tcp", "udp"] {
                rules.add(format_args!(
                    "pass in on {link} reply-to ({link} {gateway}{scope}) {inet} proto {protocol} from ! ({link}:network) \
                     to {}",
                    way.source
                ));
            }
        }
    }

    /// What leaves this host, or passes through it.
    fn closed(&self, rules: &mut Rules, around: &Surroundings) {
        rules.add("pass out quick on lo0 all no state");
        if self.kill_switch.is_some() {
            rules.comment("a tunnel address leaves by the tunnel only");
            for address in addresses(self.v4, self.v6) {
                let inet = inet_of(&address);
                rules.add(format_args!("block drop out quick on ! {TUNNEL} {inet} from {address} to any"));
            }
        }
        // without states, what was under way before goes on: a rule with one takes up TCP at its SYN only
        rules.add(format_args!("pass out quick on {TUNNEL} all no state"));
        if let Some(port) = around.port {
            rules.comment("outer packets");
            for inet in ["inet", "inet6"] {
                rules.add(format_args!("pass out quick {inet} proto udp from any port {port} to any no state"));
            }
        }
        for (family, (from, to)) in [(Family::V4, DHCP), (Family::V6, DHCPV6)] {
            rules.add(format_args!(
                "pass out quick {} proto udp from any port {from} to any port {to} no state",
                inet(family)
            ));
        }
        for kind in NEIGHBOUR_DISCOVERY {
            rules.add(format_args!("pass out quick inet6 proto ipv6-icmp all icmp6-type {kind} no state"));
        }
        if let Some(dns) = self.dns {
            rules.comment("DNS goes through the tunnel");
            for (number, port) in QUERIES {
                let number = protocol(number);
                for server in dns.lan_servers {
                    rules.add(format_args!(
                        "pass out quick {} proto {number} from any to {server} port {port} no state",
                        inet_of(server)
                    ));
                }
                rules.add(format_args!("block return out quick proto {number} from any to any port {port}"));
            }
        }
        if let Some(kill_switch) = self.kill_switch {
            kill_switch.anchor(rules, addresses(self.v4, self.v6).map(IpNetwork::from));
        }
    }
}

impl KillSwitch<'_> {
    fn anchor(self, rules: &mut Rules, own: impl Iterator<Item = IpNetwork>) {
        for prefix in self.exclude {
            rules.add(format_args!("pass out quick {} from any to {prefix} no state", inet_of_net(prefix)));
        }
        if let Some(lan) = self.lan {
            for prefix in LINK_SCOPE {
                let inet = if prefix.contains(':') { "inet6" } else { "inet" };
                rules.add(format_args!("pass out quick {inet} from any to {prefix} no state"));
            }
            for Lan { interface, prefix } in lan {
                rules.add(format_args!(
                    "pass out quick on {interface} {} from any to {prefix} no state",
                    inet_of_net(prefix)
                ));
            }
        }
        rules.comment(super::KILL_SWITCH);
        if Family::BOTH.into_iter().all(|family| self.allowed.contains(&family.default_prefix())) {
            rules.add("block return out quick all");
            return;
        }
        let exit = self.exit.iter().map(|address| IpNetwork::from(*address));
        for prefix in self.allowed.iter().copied().chain(exit).chain(own) {
            rules.add(format_args!("block return out quick {} from any to {prefix}", inet_of_net(&prefix)));
        }
    }
}
