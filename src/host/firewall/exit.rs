//! The exit's table.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use peervpn_platform::nft::{Hook, Kind, Match, Rule, Statement, Table};
use peervpn_platform::types::Family;

use super::*;

/// Where an exit's own networks are: never the internet. Sources: the IANA special-purpose registries (RFC 6890).
pub(super) const LAN: [&str; 12] = [
    "10.0.0.0/8",     // private, RFC 1918
    "172.16.0.0/12",  // private, RFC 1918
    "192.168.0.0/16", // private, RFC 1918
    "100.64.0.0/10",  // shared space, RFC 6598
    "169.254.0.0/16", // link-local, RFC 3927; cloud metadata services
    "127.0.0.0/8",    // loopback, RFC 1122 §3.2.1.3
    "224.0.0.0/4",    // multicast, RFC 5771
    "240.0.0.0/4",    // reserved, RFC 1112 §4, and limited broadcast
    "fc00::/7",       // unique local, RFC 4193
    "fe80::/10",      // link-local, RFC 4291 §2.5.6
    "ff00::/8",       // multicast, RFC 4291 §2.7
    "::1/128",        // loopback, RFC 4291 §2.5.3
];

/// Where the doors of invites lie ([`crate::join::address::door`]): good for asking the control service, nothing else.
pub(super) const DOORS: &str = "169.254.0.0/16";

/// UDP header and handshake initiation in bytes; WireGuard paper §5.4.2.
const INITIATION_UDP_LEN: u16 = 8 + 148;
/// An initiation's first four bytes: type 1, three reserved ones.
const INITIATION: u32 = 0x0100_0000;

/// The chains for what passes from and to peers, for initiations, and for DNS.
const FROM_PEERS: &str = "from_peers";
const TO_PEERS: &str = "to_peers";
const FLOOD: &str = "flood";
const RESOLVER: &str = "to_resolver";

const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;

fn covers(block: &IpNetwork, prefix: &IpNetwork) -> bool {
    block.prefix() <= prefix.prefix() && block.contains(prefix.network())
}

fn from_doors() -> Match {
    Match::Source { prefix: DOORS.parse().expect("a prefix"), not: false }
}

fn nothing_else() -> Rule {
    commented("an invite opens nothing else", rule([from_doors()], [refuse()]))
}

fn sent_on() -> Rule {
    rule([Match::CtDnat], [Statement::Jump(RESOLVER.to_owned())])
}

fn to_peers() -> Vec<Rule> {
    vec![
        clamp_mss(),
        rule([Match::CtEstablished], [Statement::Accept]),
        commented("nobody asked for it", rule([], [Statement::Counter, Statement::Drop])),
    ]
}

impl ExitPolicy<'_> {
    pub(super) fn table(&self) -> Table {
        Table {
            name: table_name(self.interface),
            chains: vec![
                base_chain("prerouting", Kind::Filter, Hook::Prerouting, MANGLE, self.prerouting()),
                base_chain("input", Kind::Filter, Hook::Input, FILTER, self.input()),
                base_chain("forward", Kind::Filter, Hook::Forward, FILTER, self.forward()),
                plain_chain(FLOOD, self.flood()),
                plain_chain(RESOLVER, self.to_resolver()),
                plain_chain(FROM_PEERS, self.peers_send()),
                plain_chain(TO_PEERS, to_peers()),
                base_chain("resolver", Kind::Nat, Hook::Prerouting, DSTNAT, self.resolver()),
                base_chain("postrouting", Kind::Nat, Hook::Postrouting, SRCNAT, self.postrouting()),
                refuse_chain(),
            ],
        }
    }

    /// Every packet passes here: what lets most of them go comes first.
    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = vec![rule([from(self.interface)], [Statement::Accept])];
        rules.extend(anti_spoofing(self.interface, addresses(self.v4, self.v6)));
        rules.push(self.initiation());
        rules.extend(self.outer());
        rules
    }

    /// A flood of forged initiations would push data out of WireGuard's socket, and each source would fill a place of the
    /// connection table until peers' new connections find none: dropped here it has none yet. Peers that are in have
    /// been sent something, so theirs pass. A newcomer needs no WireGuard to see it: the node has its own copy.
    fn flood(&self) -> Vec<Rule> {
        let over = || Statement::Over { per_second: self.initiations, burst: self.initiations };
        let drop = |family| {
            let matches = [Match::Family(family), Match::CtNew, Match::DestinationLocal { not: false }];
            rule(matches, [over(), Statement::Counter, Statement::Drop])
        };
        Family::BOTH.map(|family| commented("a flood of handshake initiations", drop(family))).to_vec()
    }

    /// A handshake initiation, by its looks.
    fn initiation(&self) -> Rule {
        rule(
            [
                Match::L4Proto(IPPROTO_UDP),
                Match::DestinationPort(self.port, self.port),
                Match::UdpLength(INITIATION_UDP_LEN),
                Match::UdpPayload(INITIATION),
            ],
            [Statement::Jump(FLOOD.to_owned())],
        )
    }

    /// A strict reverse-path filter looks for the way back by the mark that answers have. The connection has it, too, since
    /// wg-quick's own rules make every packet's mark that of its connection.
    fn outer(&self) -> Vec<Rule> {
        let Some(mark) = self.outer else { return Vec::new() };
        let packets = |of: u32| {
            [
                Match::L4Proto(IPPROTO_UDP),
                Match::DestinationPort(self.port, self.port),
                Match::DestinationLocal { not: false },
                Match::CtMark { value: of, not: false },
            ]
        };
        let why = |rule| commented("outer packets: for the reverse-path filter", rule);
        vec![why(rule(packets(0), [Statement::SetCtMark(mark)])), why(rule(packets(mark), [Statement::SetMark(mark)]))]
    }

    /// From peers to this host, by whichever of its addresses.
    fn input(&self) -> Vec<Rule> {
        let mut rules = vec![rule([not_from(self.interface)], [Statement::Accept])];
        for (own, (protocol, port)) in self.v4.iter().flat_map(|own| self.services.iter().map(move |s| (own, s))) {
            let service = [Match::L4Proto(*protocol), Match::DestinationPort(*port, *port)];
            let to_service = [vec![from_doors(), to_address(IpAddr::V4(*own))], service.to_vec()].concat();
            rules.push(rule(to_service, [Statement::Accept]));
        }
        rules.push(nothing_else());
        if self.allow_lan {
            return rules;
        }
        rules.push(rule([Match::CtEstablished], [Statement::Accept]));
        rules.push(sent_on());
        for address in addresses(self.v4, self.v6) {
            let echo_request = match address {
                IpAddr::V4(_) => Match::IcmpType(ICMP_ECHO_REQUEST),
                IpAddr::V6(_) => Match::Icmp6Type(ICMPV6_ECHO_REQUEST),
            };
            rules.push(rule([to_address(address), echo_request], [Statement::Accept]));
            for (protocol, port) in &self.services {
                rules.push(rule(
                    [to_address(address), Match::L4Proto(*protocol), Match::DestinationPort(*port, *port)],
                    [Statement::Accept],
                ));
            }
        }
        rules.push(commented("this host's services: closed to peers", rule([], [refuse()])));
        rules
    }

    /// From peers to elsewhere and back.
    fn forward(&self) -> Vec<Rule> {
        vec![
            rule([from(self.interface)], [Statement::Jump(FROM_PEERS.to_owned())]),
            rule([into(self.interface)], [Statement::Jump(TO_PEERS.to_owned())]),
        ]
    }

    /// No shortcut for established connections: a flag that is taken away also ends the connections it had opened.
    fn peers_send(&self) -> Vec<Rule> {
        let mut rules = vec![clamp_mss(), nothing_else()];

        // Peers' addresses lie in the LAN ranges, so decide this first.
        let between_peers = [into(self.interface)];
        rules.push(if self.allow_peers {
            rule(between_peers, [Statement::Accept])
        } else {
            commented("from peer to peer", rule(between_peers, [refuse()]))
        });

        rules.push(commented(
            "would leave with a peer's tunnel address: no NAT applies",
            rule([Match::CtInvalid], [Statement::Counter, Statement::Drop]),
        ));
        rules.push(sent_on());
        if !self.allow_lan {
            let closed = |matches: Vec<Match>| commented("this host's LAN: closed to peers", rule(matches, [refuse()]));
            for family in Family::BOTH {
                let prefixes = LAN.map(|prefix| prefix.parse().expect("the table above holds prefixes"));
                let of_family = |prefix: &IpNetwork| Family::of(&prefix.ip()) == family;
                rules.push(closed(vec![Match::DestinationIn(prefixes.into_iter().filter(of_family).collect())]));
            }
            for lan in self.other_lan() {
                let onto = Match::Destination { prefix: lan.prefix, not: false };
                rules.push(closed(vec![into(&lan.interface), onto]));
            }
        }
        rules.push(rule([], [Statement::Accept]));
        rules
    }

    /// DNS queries to our tunnel addresses go on to our own resolver, whose answers come back the same way.
    fn resolver(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (address, server) in self.resolvers() {
            for protocol in [IPPROTO_UDP, IPPROTO_TCP] {
                rules.push(commented(
                    "DNS of peers: on to this host's resolver",
                    rule(
                        [
                            from(self.interface),
                            to_address(address),
                            Match::L4Proto(protocol),
                            Match::DestinationPort(DNS, DNS),
                        ],
                        [Statement::Dnat(server)],
                    ),
                ));
            }
        }
        rules
    }

    /// Lets those of peers through that were sent on, wherever the resolver is: on the LAN, mostly.
    fn to_resolver(&self) -> Vec<Rule> {
        let mut rules = Vec::new();
        for (_, server) in self.resolvers() {
            for protocol in [IPPROTO_UDP, IPPROTO_TCP] {
                let query = [Match::L4Proto(protocol), Match::DestinationPort(DNS, DNS)];
                rules.push(rule([&[to_address(server)][..], &query].concat(), [Statement::Accept]));
            }
        }
        rules
    }

    /// The LAN as far as [`LAN`] does not name it: by public addresses.
    pub(super) fn other_lan(&self) -> impl Iterator<Item = &Lan> {
        let named = |lan: &&Lan| LAN.iter().filter_map(|p| p.parse().ok()).any(|p| covers(&p, &lan.prefix));
        self.lan.iter().filter(move |lan| !named(lan))
    }

    /// Our tunnel address and the server behind it, for each family that has one.
    pub(super) fn resolvers(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        addresses(self.v4, self.v6).filter_map(|address| {
            Some((address, *self.dns.iter().find(|server| server.is_ipv4() == address.is_ipv4())?))
        })
    }

    /// The input interface of a forwarded packet is known here from Linux 5.5 on.
    fn postrouting(&self) -> Vec<Rule> {
        vec![rule([from(self.interface), not_into(self.interface)], [Statement::Masquerade])]
    }
}
