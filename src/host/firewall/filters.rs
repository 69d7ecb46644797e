//! The connecting node's policy on Windows, as filters of the Windows Filtering Platform. It says what `closing.rs` says
//! in nftables, and leaves out what Windows does by itself: WireGuardNT finds its way beside its own adapter, and a
//! connection that came in from outside is answered by the interface of its own address (strong host model, RFC 1122
//! §3.3.4.2), and is asked about when it is accepted, not when it is answered.
//!
//! The filters are neither bound to our session nor persistent: like a firewall table they outlive a node that is killed,
//! and end with the system.

use peervpn_platform::types::Family;
use peervpn_platform::wfp::{Action, Condition, Filter, FilterSet, Layer};

use super::closing::{DHCP, DHCPV6, LINK_SCOPE, NEIGHBOUR_DISCOVERY};
use super::connect::UNIQUE_LOCAL;
use super::*;

const IPPROTO_ICMPV6: u8 = 58;

/// Collects filters of one layer.
struct Chain<'a> {
    layer: Layer,
    filters: &'a mut Vec<Filter>,
}

impl Chain<'_> {
    fn add(&mut self, action: Action, conditions: impl Into<Vec<Condition>>) {
        self.filters.push(Filter { layer: self.layer, conditions: conditions.into(), action });
    }

    fn permit(&mut self, conditions: impl Into<Vec<Condition>>) {
        self.add(Action::Permit, conditions);
    }

    fn block(&mut self, conditions: impl Into<Vec<Condition>>) {
        self.add(Action::Block, conditions);
    }
}

fn on(interface: &str) -> Condition {
    Condition::Interface { name: interface.to_owned(), not: false }
}

fn not_on(interface: &str) -> Condition {
    Condition::Interface { name: interface.to_owned(), not: true }
}

fn arriving_on(interface: &str) -> Condition {
    Condition::Arrival { name: interface.to_owned(), not: false }
}

fn arriving_not_on(interface: &str) -> Condition {
    Condition::Arrival { name: interface.to_owned(), not: true }
}

fn is(family: Family, prefix: &IpNetwork) -> bool {
    Family::of(&prefix.network()) == family
}

impl ConnectPolicy<'_> {
    /// The filters that carry it out on Windows.
    pub fn filters(&self) -> FilterSet {
        let mut filters = Vec::new();
        for family in Family::BOTH {
            let own = addresses(self.v4, self.v6).find(|address| Family::of(address) == family).map(IpNetwork::from);
            self.accepting(Chain { layer: Layer::Accept(family), filters: &mut filters }, own);
            if self.refuse_v6 && family == Family::V6 {
                self.refusing(Chain { layer: Layer::Connect(family), filters: &mut filters }, own);
            }
            if self.dns.is_some() || self.kill_switch.is_some() {
                self.connecting(Chain { layer: Layer::Connect(family), filters: &mut filters }, family, own);
            }
            if let Some(kill_switch) = &self.kill_switch {
                let mut forward = Chain { layer: Layer::Forward(family), filters: &mut filters };
                forward.permit([on(self.interface)]);
                forward.permit([arriving_on(self.interface)]);
                kill_switch.filters(&mut forward, family, own);
            }
        }
        FilterSet { name: table_name(self.interface), filters }
    }

    /// Tunnel addresses are reached through the tunnel only.
    fn accepting(&self, mut accept: Chain, own: Option<IpNetwork>) {
        if let Some(own) = own {
            accept.permit([Condition::Loopback]);
            // asked again after the first answer, when filters change, it knows no interface by which it came
            accept.permit([Condition::Answer(self.interface.to_owned()), Condition::Local(own)]);
            accept.block([arriving_not_on(self.interface), Condition::Local(own)]);
        }
    }

    /// The exit has no IPv6: a program that is refused turns to IPv4 at once. What is forwarded could only be dropped, which
    /// the exit does.
    fn refusing(&self, mut connect: Chain, own: Option<IpNetwork>) {
        if let Some(own) = own {
            let prefix = UNIQUE_LOCAL.parse().expect("it is a prefix");
            connect.permit([on(self.interface), Condition::Local(own), Condition::Remote(prefix)]);
        }
        connect.block([on(self.interface)]);
    }

    fn connecting(&self, mut connect: Chain, family: Family, own: Option<IpNetwork>) {
        connect.permit([Condition::Loopback]);
        if let Some(own) = own {
            if self.kill_switch.is_some() {
                // of connections whose tunnel has gone
                connect.block([not_on(self.interface), Condition::Local(own)]);
            }
            // by address, too: the number of an interface that has gone may be given to another one
            connect.permit([on(self.interface), Condition::Local(own)]);
        }
        // outer packets belong to the process that brought the adapter up; wireguard.h, WireGuardSetAdapterState
        connect.add(Action::PermitAlways, [Condition::OurProgram]);
        let (from_port, to_port) = if family == Family::V4 { DHCP } else { DHCPV6 };
        connect.permit([
            Condition::Protocol(IPPROTO_UDP),
            Condition::LocalPort(from_port),
            Condition::RemotePort(to_port),
        ]);
        if family == Family::V6 {
            for kind in NEIGHBOUR_DISCOVERY {
                connect.permit([Condition::Protocol(IPPROTO_ICMPV6), Condition::IcmpType(kind)]);
            }
        }
        if let Some(dns) = self.dns {
            for (protocol, port) in QUERIES {
                let query = [Condition::Protocol(protocol), Condition::RemotePort(port)];
                for server in dns.lan_servers.iter().filter(|server| Family::of(server) == family) {
                    let to = Condition::Remote(IpNetwork::from(*server));
                    connect.permit([&query[..], &[to]].concat());
                }
                connect.block(query);
            }
        }
        if let Some(kill_switch) = &self.kill_switch {
            kill_switch.filters(&mut connect, family, own);
        }
    }
}

impl KillSwitch<'_> {
    /// The end of a layer: what stays open beside the tunnel, then the rest.
    fn filters(&self, chain: &mut Chain, family: Family, own: Option<IpNetwork>) {
        let to = |prefix: &IpNetwork| Condition::Remote(*prefix);
        for prefix in self.exclude.iter().filter(|prefix| is(family, prefix)) {
            chain.permit([to(prefix)]);
        }
        if let Some(lan) = self.lan {
            for prefix in LINK_SCOPE.map(|prefix| prefix.parse().expect("the table holds prefixes")) {
                if is(family, &prefix) {
                    chain.permit([to(&prefix)]);
                }
            }
            for lan in lan.iter().filter(|lan| is(family, &lan.prefix)) {
                chain.permit([on(&lan.interface), to(&lan.prefix)]);
            }
        }
        if Family::BOTH.iter().all(|family| self.allowed.contains(&family.default_prefix())) {
            chain.block([]);
            return;
        }
        let exit = self.exit.iter().map(|address| IpNetwork::from(*address));
        for prefix in self.allowed.iter().copied().chain(exit).chain(own).filter(|prefix| is(family, prefix)) {
            chain.block([to(&prefix)]);
        }
    }
}
