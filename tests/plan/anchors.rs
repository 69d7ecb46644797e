//! Both policies on macOS: as text against golden files (`PEERVPN_BLESS=1` writes them anew), and what the rules say of some
//! packets, asked in pf's order: the last filter that matches decides, or the first that is `quick`.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use peervpn::host::firewall::{ConnectPolicy, ExitPolicy, KillSwitch, OnlyDns, Surroundings};
use peervpn::host::lan::Lan;
use peervpn_platform::pf::Anchor;
use peervpn_platform::types::{Family, RouteLookup};

use super::firewall::{V4, V6, connect, exit, path};

const TUNNEL: &str = "$tunnel";

fn way(source: &str, gateway: &str) -> RouteLookup {
    RouteLookup {
        ifindex: 4,
        interface: "en0".into(),
        source: source.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        mtu: 1500,
        table: 254,
    }
}

fn uplinks() -> [(Family, RouteLookup); 2] {
    [(Family::V4, way("192.168.1.7", "192.168.1.1")), (Family::V6, way("2001:db8:1::7", "fe80::1"))]
}

/// Every policy that has a golden file.
pub fn golden() -> Vec<(&'static str, Anchor)> {
    let uplinks = uplinks();
    let around = Surroundings { port: Some(51820), mtu: 1420, uplinks: uplinks.to_vec() };
    let v4_only = Surroundings { port: None, mtu: 1280, uplinks: uplinks[..1].to_vec() };
    let lan = |prefix: &str| Lan { interface: "en0".into(), prefix: prefix.parse().unwrap() };
    let lans = [lan("192.168.1.0/24"), lan("2001:db8:1::/64")];
    let everything = Family::BOTH.map(Family::default_prefix);
    let one = ["198.51.100.0/24".parse().unwrap()];
    let other = ["198.51.100.128/25".parse().unwrap()];
    let far = ["10.77.9.9".parse().unwrap(), "fd77::9".parse().unwrap()];
    let resolver: [IpAddr; 2] = ["192.168.1.1".parse().unwrap(), "2001:db8:1::53".parse().unwrap()];
    let closed = KillSwitch { allowed: &everything, exclude: &[], exit: &far, lan: Some(&lans) };
    let only_dns = Some(OnlyDns { lan_servers: &[] });
    let kill_switch = ConnectPolicy { kill_switch: Some(closed), dns: only_dns, ..connect() };
    let lockdown =
        ConnectPolicy { kill_switch: Some(KillSwitch { lan: None, ..closed }), v6: None, refuse_v6: true, ..connect() };
    let split = ConnectPolicy {
        kill_switch: Some(KillSwitch { allowed: &one, exclude: &other, ..closed }),
        dns: Some(OnlyDns { lan_servers: &resolver[..1] }),
        ..connect()
    };
    let serving = ExitPolicy { services: vec![(6, 51820)], dns: resolver.to_vec(), ..exit() };
    let open = ExitPolicy { allow_lan: true, allow_peers: true, interface: "pv1", v6: None, ..exit() };
    vec![
        ("connect-kill-switch.pf", kill_switch.anchor(&around)),
        ("connect-lockdown.pf", lockdown.anchor(&v4_only)),
        ("connect-split.pf", split.anchor(&around)),
        ("connect.pf", connect().anchor(&around)),
        ("exit.pf", serving.anchor(&around)),
        ("exit-open.pf", open.anchor(&v4_only)),
    ]
}

fn policy(name: &str) -> Anchor {
    golden().into_iter().find(|(other, _)| *other == name).expect("there is one of that name").1
}

#[test]
fn anchors_read_as_agreed() {
    for (name, anchor) in golden() {
        if std::env::var_os("PEERVPN_BLESS").is_some() {
            std::fs::write(path(name), &anchor.rules).expect("the golden file is writable");
        }
        let agreed = std::fs::read_to_string(path(name)).expect("the golden file is there");
        assert_eq!(anchor.rules, agreed, "{name}");
    }
    assert_eq!(policy("exit-open.pf").name, "peervpn-pv1");
    assert_eq!(policy("exit.pf").name, "peervpn");
}

/// pf wants scrub first, then translation, then filters; and a list or a macro of its own would be read back as more
/// rules than were written.
#[test]
fn rules_come_in_pfs_order_and_stay_one_a_line() {
    for (name, anchor) in golden() {
        let rank = |line: &&str| match line.split(' ').next() {
            Some("scrub") => 0,
            Some("nat" | "rdr") => 1,
            Some("pass" | "block") => 2,
            other => panic!("{name}: {other:?}"),
        };
        let rules: Vec<&str> = anchor.rules.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(rules.is_sorted_by_key(rank), "{name}");
        assert_eq!(anchor.count(), rules.len());
        for rule in rules {
            assert!(!rule.contains(['{', '<', '"', '\\']), "{name}: {rule}");
            let left_to_the_host = rule.starts_with("pass in on en0 reply-to ");
            assert!(rank(&rule) < 2 || rule.contains(" quick ") || left_to_the_host, "{name}: {rule}");
        }
    }
}

/// A packet at an interface.
#[derive(Clone, Copy)]
struct Packet<'a> {
    out: bool,
    interface: &'a str,
    from: &'a str,
    to: &'a str,
    protocol: &'a str,
    ports: (u16, u16),
    /// What an `in` rule has put on it.
    tag: &'a str,
}

impl Packet<'_> {
    fn is(&self, word: &str, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        match word {
            "any" => true,
            "(self)" => [IpAddr::from(V4), IpAddr::from(V6), "192.168.1.7".parse().unwrap()].contains(&address),
            "(en0:network)" => {
                ["192.168.1.0/24", "2001:db8:1::/64"].iter().any(|n| n.parse::<IpNetwork>().unwrap().contains(address))
            }
            prefix => prefix.parse::<IpNetwork>().unwrap_or_else(|_| panic!("{prefix}")).contains(address),
        }
    }

    /// What a rule does if it matches, with the tag it gives.
    fn asked<'r>(&self, rule: &'r str) -> Option<(&'r str, &'r str)> {
        let mut words = rule.split(' ').peekable();
        let mut verdict = words.next()?;
        let mut tag = "";
        let mut matches = true;
        while let Some(word) = words.next() {
            let mut not = false;
            let mut value = |words: &mut std::iter::Peekable<std::str::Split<'r, char>>| {
                not = words.next_if_eq(&"!").is_some();
                words.next().expect("a value")
            };
            matches &= match word {
                "return" | "drop" => {
                    verdict = word;
                    true
                }
                "in" => !self.out,
                "out" => self.out,
                "quick" | "all" | "no" | "state" => true,
                "on" => (value(&mut words) == self.interface) != not,
                "inet" => !self.from.contains(':'),
                "inet6" => self.from.contains(':'),
                "proto" => value(&mut words) == self.protocol,
                "reply-to" => {
                    verdict = "reply-to";
                    words.nth(1).is_some()
                }
                "from" | "to" => {
                    let (address, port) = match word {
                        "from" => (self.from, self.ports.0),
                        _ => (self.to, self.ports.1),
                    };
                    let prefix = value(&mut words);
                    let address = self.is(prefix, address) != not;
                    let port = words.next_if_eq(&"port").is_none() || {
                        let wanted = words.next().expect("a port").parse::<u16>().unwrap();
                        matches!(self.protocol, "tcp" | "udp") && wanted == port
                    };
                    address && port
                }
                "icmp-type" | "icmp6-type" => match value(&mut words) {
                    "echoreq" => self.ports.0 == 8,
                    kind => kind.parse::<u16>().unwrap() == self.ports.0,
                },
                "tag" => {
                    tag = value(&mut words);
                    true
                }
                "tagged" => value(&mut words) == self.tag,
                other => panic!("{other} in {rule}"),
            };
        }
        matches.then_some((verdict, tag))
    }

    fn verdict(&self, anchor: &Anchor) -> String {
        self.verdict_of(&anchor.rules)
    }

    /// What the filters say; nothing means that the packet passes.
    fn verdict_of(&self, rules: &str) -> String {
        let (mut verdict, mut tag) = ("pass", "");
        for rule in rules.lines().filter(|line| line.starts_with("pass") || line.starts_with("block")) {
            if let Some(met) = self.asked(rule) {
                (verdict, tag) = met;
                if rule.contains(" quick ") {
                    break;
                }
            }
        }
        if tag.is_empty() { verdict.to_owned() } else { format!("{verdict} {tag}") }
    }
}

const HERE: Packet = Packet {
    out: true,
    interface: "en0",
    from: "192.168.1.7",
    to: "203.0.113.9",
    protocol: "tcp",
    ports: (50000, 443),
    tag: "",
};

#[test]
fn nothing_leaves_beside_the_tunnel_but_what_must() {
    let closed = policy("connect-kill-switch.pf");
    let v6 = Packet { from: "2001:db8:1::7", to: "2001:db8:9::9", ..HERE };
    let tunnel = Packet { interface: TUNNEL, from: "10.77.0.1", ..HERE };
    let outer = Packet { protocol: "udp", ports: (51820, 51820), ..HERE };
    let lan = Packet { to: "192.168.1.20", ..HERE };
    for (packet, expected) in [
        (HERE, "return"),
        (v6, "return"),
        (Packet { interface: "en7", ..HERE }, "return"),
        (tunnel, "pass"),
        (Packet { interface: "en0", ..tunnel }, "drop"),
        (Packet { protocol: "udp", ports: (51820, 51820), ..tunnel }, "drop"),
        (outer, "pass"),
        (Packet { from: "2001:db8:1::7", to: "2001:db8:9::9", ..outer }, "pass"),
        (Packet { ports: (51821, 51820), ..outer }, "return"),
        (Packet { protocol: "tcp", ..outer }, "return"),
        (lan, "pass"),
        (Packet { interface: "en7", ..lan }, "return"),
        (Packet { protocol: "udp", ports: (5353, 53), ..lan }, "return"),
        (Packet { ports: (50000, 853), ..lan }, "return"),
        (Packet { interface: "lo0", from: "127.0.0.1", to: "127.0.0.1", ..HERE }, "pass"),
        (Packet { interface: "lo0", from: "127.0.0.1", to: "127.0.0.1", ports: (5, 53), ..HERE }, "pass"),
        (Packet { protocol: "udp", to: "255.255.255.255", ports: (68, 67), ..HERE }, "pass"),
        (Packet { protocol: "ipv6-icmp", from: "fe80::7", to: "ff02::1", ports: (135, 0), ..HERE }, "pass"),
        (Packet { protocol: "ipv6-icmp", ports: (128, 0), ..v6 }, "return"),
        (Packet { protocol: "udp", to: "224.0.0.251", ports: (5353, 5353), ..HERE }, "pass"),
    ] {
        assert_eq!(packet.verdict(&closed), expected, "{} {} > {}", packet.interface, packet.from, packet.to);
    }
}

#[test]
fn a_lockdown_knows_neither_port_nor_lan_and_refuses_ipv6() {
    let closed = policy("connect-lockdown.pf");
    let outer = Packet { protocol: "udp", ports: (51820, 51820), ..HERE };
    assert_eq!(outer.verdict(&closed), "return");
    assert_eq!(Packet { to: "192.168.1.20", ..HERE }.verdict(&closed), "return");
    let v6 = Packet { interface: TUNNEL, from: "fd77::1", to: "2001:db8:9::9", ..HERE };
    assert_eq!(v6.verdict(&closed), "return");
    assert_eq!(Packet { to: "fd77::9", ..v6 }.verdict(&closed), "pass");
}

#[test]
fn a_split_tunnel_closes_its_prefixes_only() {
    let split = policy("connect-split.pf");
    for (to, ports, expected) in [
        ("198.51.100.7", (1, 443), "return"),
        ("198.51.100.200", (1, 443), "pass"),
        ("203.0.113.9", (1, 443), "pass"),
        ("10.77.9.9", (1, 443), "return"),
        ("192.168.1.1", (1, 53), "pass"),
        ("203.0.113.9", (1, 53), "return"),
    ] {
        assert_eq!(Packet { to, ports, ..HERE }.verdict(&split), expected, "{to} {ports:?}");
    }
}

#[test]
fn connections_from_outside_are_answered_the_way_they_came() {
    for name in ["connect.pf", "connect-kill-switch.pf"] {
        let anchor = policy(name);
        let ssh = Packet { out: false, from: "203.0.113.9", to: "192.168.1.7", ports: (50000, 22), ..HERE };
        assert_eq!(ssh.verdict(&anchor), "reply-to");
        assert_eq!(Packet { from: "192.168.1.20", ..ssh }.verdict(&anchor), "pass");
        let spoofed = Packet { to: "10.77.0.1", ..ssh };
        assert_eq!(spoofed.verdict(&anchor), "drop");
        assert_eq!(Packet { interface: "lo0", ..spoofed }.verdict(&anchor), "pass");
        assert_eq!(Packet { interface: TUNNEL, ..spoofed }.verdict(&anchor), "pass");
    }
}

#[test]
fn what_comes_in_beside_the_tunnel_is_the_hosts_to_judge() {
    for name in ["connect.pf", "connect-kill-switch.pf", "connect-lockdown.pf"] {
        let behind = format!("{}block drop in on en0 proto tcp from any to any port 22\n", policy(name).rules);
        let ssh = Packet { out: false, from: "203.0.113.9", to: "192.168.1.7", ports: (50000, 22), ..HERE };
        assert_eq!(ssh.verdict_of(&behind), "drop", "{name}");
        assert_eq!(Packet { from: "192.168.1.20", ..ssh }.verdict_of(&behind), "drop", "{name}");
        assert_eq!(Packet { ports: (50000, 80), ..ssh }.verdict_of(&behind), "reply-to", "{name}");
    }
}

#[test]
fn peers_reach_the_internet_and_nothing_else() {
    let exit = policy("exit.pf");
    let from_peer = Packet { out: false, interface: TUNNEL, from: "10.99.1.2", ..HERE };
    for (packet, expected) in [
        (from_peer, "pass peervpn"),
        (Packet { to: "192.168.1.7", ..from_peer }, "return"),
        (Packet { to: "10.77.0.1", ports: (1, 22), ..from_peer }, "return"),
        (Packet { to: "10.77.0.1", ports: (1, 51820), ..from_peer }, "pass"),
        (Packet { to: "10.77.0.1", protocol: "icmp", ports: (8, 0), ..from_peer }, "pass"),
        (Packet { to: "192.168.1.1", protocol: "udp", ports: (1, 53), ..from_peer }, "pass peervpn"),
        (Packet { from: "169.254.7.7", ..from_peer }, "return"),
        (Packet { from: "169.254.7.7", to: "10.77.0.1", ports: (1, 51820), ..from_peer }, "pass"),
        (Packet { from: "169.254.7.7", to: "10.77.0.1", ports: (1, 22), ..from_peer }, "return"),
        (Packet { interface: "en0", to: "10.77.0.1", ..from_peer }, "drop"),
    ] {
        assert_eq!(packet.verdict(&exit), expected, "in {} {} > {}", packet.interface, packet.from, packet.to);
    }
    let leaving = Packet { out: true, interface: "en0", from: "192.168.1.7", tag: "peervpn", ..HERE };
    for (packet, expected) in [
        (leaving, "pass"),
        (Packet { to: "192.168.1.20", ..leaving }, "return"),
        (Packet { to: "192.168.1.20", tag: "", ..leaving }, "pass"),
        (Packet { to: "192.168.1.1", protocol: "udp", ports: (1, 53), ..leaving }, "pass"),
        (Packet { to: "192.168.1.1", ports: (1, 80), ..leaving }, "return"),
        (Packet { to: "169.254.169.254", ..leaving }, "return"),
        (Packet { interface: TUNNEL, from: "10.99.1.2", to: "10.99.1.3", ..leaving }, "return"),
        (Packet { interface: TUNNEL, from: "203.0.113.9", to: "10.99.1.3", tag: "", ..leaving }, "drop"),
        (Packet { interface: TUNNEL, from: "10.77.0.1", to: "10.99.1.3", tag: "", ..leaving }, "pass"),
    ] {
        assert_eq!(packet.verdict(&exit), expected, "out {} {} > {}", packet.interface, packet.from, packet.to);
    }
    let open = policy("exit-open.pf");
    let tagged = Packet { tag: "peervpn-pv1", ..leaving };
    assert_eq!(from_peer.verdict(&open), "pass peervpn-pv1");
    assert_eq!(Packet { to: "192.168.1.7", ..from_peer }.verdict(&open), "pass peervpn-pv1");
    assert_eq!(Packet { to: "192.168.1.20", ..tagged }.verdict(&open), "pass");
    assert_eq!(Packet { interface: TUNNEL, to: "10.99.1.3", ..tagged }.verdict(&open), "pass");
}
