//! The connecting node's policy on Windows: as text against golden files (`PEERVPN_BLESS=1` writes them anew), and what
//! the filters say of some packets, asked in the order in which the Windows Filtering Platform asks them.

use std::net::IpAddr;

use peervpn::host::firewall::{ConnectPolicy, KillSwitch, OnlyDns};
use peervpn::host::lan::Lan;
use peervpn_platform::types::Family;
use peervpn_platform::wfp::{Action, Condition, Filter, FilterSet, Layer};

use super::firewall::{connect, path};

const TUNNEL: &str = "peervpn0";

/// Every policy that has a golden file.
pub fn golden() -> Vec<(&'static str, FilterSet)> {
    let lan = |interface: &str, prefix: &str| Lan { interface: interface.into(), prefix: prefix.parse().unwrap() };
    let lans = [lan("Ethernet", "192.168.1.0/24"), lan("Ethernet", "2001:db8:1::/64")];
    let everything = Family::BOTH.map(Family::default_prefix);
    let one = ["198.51.100.0/24".parse().unwrap()];
    let other = ["198.51.100.128/25".parse().unwrap()];
    let exit = ["10.77.9.9".parse().unwrap(), "fd77::9".parse().unwrap()];
    let resolver = ["192.168.1.1".parse().unwrap()];
    let closed = KillSwitch { allowed: &everything, exclude: &[], exit: &exit, lan: Some(&lans) };
    let only_dns = Some(OnlyDns { lan_servers: &[] });
    let kill_switch = ConnectPolicy { kill_switch: Some(closed), dns: only_dns, ..connect() };
    let no_lan = ConnectPolicy { kill_switch: Some(KillSwitch { lan: None, ..closed }), ..connect() };
    let split = KillSwitch { allowed: &one, exclude: &other, ..closed };
    let split = ConnectPolicy { kill_switch: Some(split), dns: Some(OnlyDns { lan_servers: &resolver }), ..connect() };
    let dns = ConnectPolicy { dns: only_dns, v6: None, ..connect() };
    let no_v6 = ConnectPolicy { refuse_v6: true, ..connect() };
    vec![
        ("connect-exit-without-v6.wfp", no_v6.filters()),
        ("connect-kill-switch-exit-without-v6.wfp", ConnectPolicy { refuse_v6: true, ..kill_switch.clone() }.filters()),
        ("connect-kill-switch.wfp", kill_switch.filters()),
        ("connect-kill-switch-no-lan.wfp", no_lan.filters()),
        ("connect-split.wfp", split.filters()),
        ("connect-dns-v4.wfp", dns.filters()),
        ("connect.wfp", connect().filters()),
    ]
}

fn policy(name: &str) -> FilterSet {
    golden().into_iter().find(|(other, _)| *other == name).expect("there is one of that name").1
}

#[test]
fn policies_read_as_agreed() {
    for (name, set) in golden() {
        let text = set.names().join("\n") + "\n";
        if std::env::var_os("PEERVPN_BLESS").is_some() {
            std::fs::write(path(name), &text).expect("the golden file is writable");
        }
        let agreed = std::fs::read_to_string(path(name)).expect("the golden file is there");
        assert_eq!(text, agreed.replace('\r', ""), "{name}");
    }
}

/// A connection that is asked about.
#[derive(Clone, Copy)]
struct Packet<'a> {
    /// Of its local address, when forwarded the one by which it leaves.
    interface: &'a str,
    /// By which it came, if it did.
    arrival: &'a str,
    local: IpAddr,
    remote: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    ours: bool,
}

impl Packet<'_> {
    fn meets(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Interface { name, not } => (name == self.interface) != *not,
            Condition::Arrival { name, not } => (name == self.arrival) != *not,
            // asked about when it comes: nothing is answered yet
            Condition::Answer(_) => false,
            Condition::Loopback => self.remote.is_loopback(),
            Condition::OurProgram => self.ours,
            Condition::Protocol(protocol) => *protocol == self.protocol,
            // of ICMP the type stands where the local port does
            Condition::LocalPort(port) => *port == self.ports.0,
            Condition::IcmpType(kind) => u16::from(*kind) == self.ports.0,
            Condition::RemotePort(port) => *port == self.ports.1,
            Condition::Local(prefix) => prefix.contains(self.local),
            Condition::Remote(prefix) => prefix.contains(self.remote),
        }
    }

    /// What the first filter that matches says; nothing means that the packet passes.
    fn verdict(&self, set: &FilterSet, layer: fn(Family) -> Layer) -> Action {
        let layer = layer(Family::of(&self.remote));
        let met = |filter: &&Filter| filter.layer == layer && filter.conditions.iter().all(|c| self.meets(c));
        set.filters.iter().find(met).map_or(Action::Permit, |filter| filter.action)
    }
}

fn tcp(interface: &'static str, local: &str, remote: &str, port: u16) -> Packet<'static> {
    Packet {
        interface,
        arrival: interface,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        protocol: 6,
        ports: (50_000, port),
        ours: false,
    }
}

#[test]
fn nothing_leaves_beside_the_tunnel() {
    let set = policy("connect-kill-switch.wfp");
    let beside = tcp("Ethernet", "192.168.1.7", "203.0.113.9", 443);
    assert_eq!(beside.verdict(&set, Layer::Connect), Action::Block);
    assert_eq!(Packet { ours: true, ..beside }.verdict(&set, Layer::Connect), Action::PermitAlways);
    assert_eq!(tcp(TUNNEL, "10.77.0.1", "203.0.113.9", 443).verdict(&set, Layer::Connect), Action::Permit);
    assert_eq!(tcp("Ethernet", "2001:db8:1::7", "2001:db8::9", 443).verdict(&set, Layer::Connect), Action::Block);
    assert_eq!(beside.verdict(&set, Layer::Forward), Action::Block, "of a virtual machine");
    let answer = Packet { arrival: TUNNEL, ..tcp("vEthernet", "203.0.113.9", "172.20.0.2", 50_000) };
    assert_eq!(answer.verdict(&set, Layer::Forward), Action::Permit, "to a virtual machine, out of the tunnel");
    assert_eq!(Packet { arrival: "Ethernet", ..answer }.verdict(&set, Layer::Forward), Action::Block);
    assert_eq!(beside.verdict(&set, Layer::Accept), Action::Permit, "connections from outside stay");
    // the tunnel has gone, and another interface has its number: a program's own address is not the tunnel's
    assert_eq!(tcp(TUNNEL, "192.168.1.7", "203.0.113.9", 443).verdict(&set, Layer::Connect), Action::Block);
    assert_eq!(tcp("Ethernet", "10.77.0.1", "192.168.1.1", 443).verdict(&set, Layer::Connect), Action::Block);
}

#[test]
fn the_lan_stays_unless_it_shall_not_and_dns_does_not() {
    let (set, no_lan) = (policy("connect-kill-switch.wfp"), policy("connect-kill-switch-no-lan.wfp"));
    let printer = tcp("Ethernet", "192.168.1.7", "192.168.1.20", 9100);
    assert_eq!(printer.verdict(&set, Layer::Connect), Action::Permit);
    assert_eq!(printer.verdict(&no_lan, Layer::Connect), Action::Block);
    assert_eq!(Packet { interface: "Wi-Fi", ..printer }.verdict(&set, Layer::Connect), Action::Block);
    for port in [53, 853] {
        let resolver = tcp("Ethernet", "192.168.1.7", "192.168.1.1", port);
        assert_eq!(resolver.verdict(&set, Layer::Connect), Action::Block);
        assert_eq!(Packet { protocol: 17, ..resolver }.verdict(&set, Layer::Connect), Action::Block);
        assert_eq!(resolver.verdict(&policy("connect-split.wfp"), Layer::Connect), Action::Permit, "it was named");
    }
    assert_eq!(tcp("lo", "127.0.0.1", "127.0.0.1", 53).verdict(&set, Layer::Connect), Action::Permit);
    let dhcp = Packet { protocol: 17, ports: (68, 67), ..tcp("Ethernet", "0.0.0.0", "255.255.255.255", 67) };
    assert_eq!(dhcp.verdict(&no_lan, Layer::Connect), Action::Permit);
    let neighbour = Packet { protocol: 58, ports: (135, 0), ..tcp("Ethernet", "fe80::7", "ff02::1:ff00:1", 0) };
    assert_eq!(neighbour.verdict(&no_lan, Layer::Connect), Action::Permit);
}

#[test]
fn a_split_tunnel_closes_only_what_it_carries() {
    let set = policy("connect-split.wfp");
    let to = |remote| tcp("Ethernet", "192.168.1.7", remote, 443).verdict(&set, Layer::Connect);
    assert_eq!(to("198.51.100.1"), Action::Block);
    assert_eq!(to("198.51.100.200"), Action::Permit, "excluded");
    assert_eq!(to("203.0.113.9"), Action::Permit);
}

#[test]
fn an_exit_without_ipv6_is_asked_for_none() {
    for name in ["connect-exit-without-v6.wfp", "connect-kill-switch-exit-without-v6.wfp"] {
        let set = policy(name);
        let to = |remote| tcp(TUNNEL, "fd77::1", remote, 443).verdict(&set, Layer::Connect);
        assert_eq!(to("2001:db8::9"), Action::Block, "{name}");
        assert_eq!(to("fd77::9"), Action::Permit, "{name}: the exit itself");
        let v4 = tcp(TUNNEL, "10.77.0.1", "203.0.113.9", 443);
        assert_eq!(v4.verdict(&set, Layer::Connect), Action::Permit, "{name}");
    }
    let beside = tcp("Ethernet", "2001:db8:1::7", "2001:db8::9", 443);
    assert_eq!(beside.verdict(&policy("connect-exit-without-v6.wfp"), Layer::Connect), Action::Permit);
}

#[test]
fn tunnel_addresses_are_reached_through_the_tunnel_only() {
    let set = policy("connect.wfp");
    let inside = tcp(TUNNEL, "10.77.0.1", "10.77.0.2", 22);
    assert_eq!(inside.verdict(&set, Layer::Accept), Action::Permit);
    // the address is the tunnel's, whichever way it comes
    assert_eq!(Packet { arrival: "Ethernet", ..inside }.verdict(&set, Layer::Accept), Action::Block);
}
