//! How many chains and conditions a data packet meets in our tables: they are asked of every packet, so their number must
//! not grow unseen. Counted, since a clock would not tell.

use std::net::IpAddr;

use peervpn::host::firewall::{ConnectPolicy, ExitPolicy, KillSwitch, OnlyDns, Policy};
use peervpn_platform::nft::{Hook, Match, Rule, Statement, Table};
use peervpn_platform::types::Family;

use super::firewall::{FWMARK, V4, V6, connect, exit};

/// A packet of an established connection; what a test does not say is as most packets have it.
#[derive(Clone)]
struct Packet {
    iif: &'static str,
    oif: &'static str,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    ports: (u16, u16),
    mark: u32,
    ct_mark: u32,
    original: bool,
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

impl Packet {
    fn tcp(iif: &'static str, oif: &'static str, from: &str, to: &str) -> Packet {
        let (from, to) = (address(from), address(to));
        Packet { iif, oif, from, to, protocol: 6, ports: (40000, 443), mark: 0, ct_mark: 0, original: true }
    }

    fn outer(iif: &'static str, oif: &'static str, from: &str, to: &str) -> Packet {
        Packet { protocol: 17, ports: (51820, 51820), ..Packet::tcp(iif, oif, from, to) }
    }

    fn meets(&self, condition: &Match) -> bool {
        let v4 = self.to.is_ipv4();
        match condition {
            Match::Iif { name, not } => (self.iif == name) != *not,
            Match::Oif { name, not } => (self.oif == name) != *not,
            Match::Family(family) => (*family == Family::V4) == v4,
            Match::L4Proto(number) => *number == self.protocol,
            Match::Source { prefix, not } => prefix.is_ipv4() == v4 && prefix.contains(self.from) != *not,
            Match::Destination { prefix, not } => prefix.is_ipv4() == v4 && prefix.contains(self.to) != *not,
            Match::DestinationIn(prefixes) => prefixes.iter().any(|prefix| prefix.contains(self.to)),
            Match::SourcePort(first, last) => (*first..=*last).contains(&self.ports.0),
            Match::DestinationPort(first, last) => (*first..=*last).contains(&self.ports.1),
            Match::Mark { value, not } => (self.mark == *value) != *not,
            Match::CtMark { value, not } => (self.ct_mark == *value) != *not,
            Match::CtEstablished | Match::CtNotRelated => true,
            Match::CtOriginal => self.original,
            Match::CtReply => !self.original,
            // a data packet: long, no SYN, of a known connection, its destination not translated
            Match::UdpLength(_) | Match::TcpSyn | Match::CtNew | Match::CtInvalid | Match::CtDnat => false,
            Match::UdpPayload(_) | Match::IcmpType(_) | Match::Icmp6Type(_) => false,
            Match::TcpNotSyn => self.protocol == 6,
            Match::DestinationLocal { not } => !*not,
        }
    }
}

/// Whether a packet is let through, and how many chains (of a hook) and conditions it met on its way.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    passes: bool,
    chains: usize,
    conditions: usize,
}

/// The way of a packet that is let through.
fn passes(chains: usize, conditions: usize) -> Way {
    Way { passes: true, chains, conditions }
}

fn way(table: &Table, hooks: &[Hook], packet: &Packet) -> Way {
    let mut way = passes(0, 0);
    let mut chains: Vec<_> = table.chains.iter().filter(|chain| chain.base.is_some()).collect();
    chains.sort_by_key(|chain| chain.base.as_ref().unwrap().priority);
    for hook in hooks {
        for chain in chains.iter().filter(|chain| chain.base.as_ref().unwrap().hook == *hook) {
            // the kernel shows a nat chain the first packet of a connection only
            if chain.base.as_ref().unwrap().kind == peervpn_platform::nft::Kind::Nat {
                continue;
            }
            way.chains += 1;
            if go(table, &chain.rules, packet, &mut way.conditions) == Some(false) {
                way.passes = false;
                return way;
            }
        }
    }
    way
}

/// The verdict of these rules, if they give one: whether it passes.
fn go(table: &Table, rules: &[Rule], packet: &Packet, conditions: &mut usize) -> Option<bool> {
    for rule in rules {
        let met = rule.matches.iter().all(|condition| {
            *conditions += 1;
            packet.meets(condition)
        });
        for statement in rule.statements.iter().filter(|_| met) {
            let verdict = match statement {
                Statement::Accept => Some(true),
                Statement::Drop | Statement::Reject | Statement::Reset => Some(false),
                Statement::Jump(name) => {
                    let chain = table.chains.iter().find(|chain| chain.name == *name).expect("no jump into nothing");
                    go(table, &chain.rules, packet, conditions)
                }
                _ => None,
            };
            if verdict.is_some() {
                return verdict;
            }
        }
    }
    None
}

#[test]
fn what_a_packet_meets_at_an_exit() {
    let policy = ExitPolicy { services: vec![(6, 51820)], dns: vec![address("192.0.2.53")], ..exit() };
    let table = Policy::Exit(policy).table();
    let at = |hooks: &[Hook], packet: &Packet| way(&table, hooks, packet);
    let host = [Hook::Prerouting, Hook::Input];
    let through = [Hook::Prerouting, Hook::Forward];

    assert_eq!(at(&host, &Packet::outer("eth0", "", "198.51.100.7", "203.0.113.20")), passes(2, 7));
    assert_eq!(at(&[Hook::Output], &Packet::outer("", "eth0", "203.0.113.20", "198.51.100.7")), passes(0, 0));
    assert_eq!(at(&through, &Packet::tcp("peervpn0", "eth0", "10.77.0.2", "192.0.2.80")), passes(2, 9));
    let back = Packet { original: false, ..Packet::tcp("eth0", "peervpn0", "192.0.2.80", "10.77.0.2") };
    assert_eq!(at(&through, &back), passes(2, 8));
    assert_eq!(at(&host, &Packet::tcp("eth0", "", "198.51.100.7", "203.0.113.20")), passes(2, 5));
    // and what may not pass does not
    assert!(!at(&through, &Packet::tcp("peervpn0", "eth0", "10.77.0.2", "192.168.1.9")).passes);
    assert!(!at(&through, &Packet::tcp("peervpn0", "peervpn0", "10.77.0.2", "10.77.0.3")).passes);
    let forged = Packet { to: V4.into(), ..Packet::tcp("eth0", "", "198.51.100.7", "203.0.113.20") };
    assert!(!at(&host, &forged).passes);
}

#[test]
fn what_a_packet_meets_at_a_peer() {
    let everything = Family::BOTH.map(Family::default_prefix);
    let own = [V4.into(), V6.into()];
    let closed = KillSwitch { allowed: &everything, exclude: &[], exit: &own, lan: Some(&[]) };
    let dns = Some(OnlyDns { lan_servers: &[] });
    let policy = ConnectPolicy { kill_switch: Some(closed), dns, listening: vec![22, 80, 443], ..connect() };
    let table = Policy::Connect(policy).table();
    let at = |hooks: &[Hook], packet: &Packet| way(&table, hooks, packet);

    assert_eq!(at(&[Hook::Output], &Packet::tcp("", "peervpn0", "10.77.0.1", "192.0.2.80")), passes(2, 5));
    let outer = Packet { mark: FWMARK, ct_mark: FWMARK, ..Packet::outer("", "eth0", "198.51.100.7", "203.0.113.20") };
    assert_eq!(at(&[Hook::Output], &outer), passes(2, 6));
    let outer = Packet { original: false, mark: 0, ..Packet::outer("eth0", "", "203.0.113.20", "198.51.100.7") };
    let outer = Packet { ct_mark: FWMARK, ..outer };
    assert_eq!(at(&[Hook::Prerouting, Hook::Input], &outer), passes(1, 4));
    let inner = Packet { original: false, ..Packet::tcp("peervpn0", "", "192.0.2.80", "10.77.0.1") };
    assert_eq!(at(&[Hook::Prerouting, Hook::Input], &inner), passes(1, 2));
    // and what may not pass does not, marked connection or not
    let forged = Packet { to: V4.into(), ct_mark: FWMARK, ..Packet::tcp("eth0", "", "198.51.100.7", "198.51.100.9") };
    assert!(!at(&[Hook::Prerouting], &forged).passes);
    assert!(!at(&[Hook::Output], &Packet::tcp("", "eth0", "198.51.100.7", "192.0.2.80")).passes);
    let inside = Packet::tcp("", "eth0", "10.77.0.1", "192.0.2.80");
    for (mark, ct_mark, original) in [(0, 0, true), (0, 0, false), (FWMARK, 0, true), (0, FWMARK, false)] {
        let inside = Packet { mark, ct_mark, original, ..inside.clone() };
        assert!(!at(&[Hook::Output], &inside).passes, "mark {mark}, connection's {ct_mark}");
    }
}
