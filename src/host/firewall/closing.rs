//! What a connected node closes: the ways beside the tunnel (kill switch), and DNS outside it.
//!
//! The table outlives a node that is killed, so nothing opens then. What the tunnel should have carried is dropped if it
//! belongs to a connection, which thereby survives a short outage, and refused if it is new, so that programs fail fast.

use peervpn_platform::nft::{Chain, Match, Rule, Statement};
use peervpn_platform::types::Family;

use super::*;

/// The chain for what would go beside the tunnel.
const BLOCKED: &str = "blocked";

/// The comment of the rules that close, by which they are known again.
pub const KILL_SWITCH: &str = "kill switch: peervpn down lifts it, after a crash peervpn recover";

/// Ports of DHCP: client and server of DHCPv4 (RFC 2131 §4.1), then of DHCPv6 (RFC 8415 §7.2).
pub(super) const DHCP: (u16, u16) = (68, 67);
pub(super) const DHCPV6: (u16, u16) = (546, 547);

/// ICMPv6 types without which a link does not work: router solicitation, neighbour solicitation and advertisement
/// (RFC 4861 §4), and the group reports that switches want to see first (RFC 3810 §5.2).
pub(super) const NEIGHBOUR_DISCOVERY: [u8; 4] = [133, 135, 136, 143];

/// Never leaves the link, whichever it is.
pub(super) const LINK_SCOPE: [&str; 6] = [
    "fe80::/10",          // link-local, RFC 4291 §2.5.6
    "ff02::/16",          // link-local multicast, RFC 4291 §2.7
    "169.254.0.0/16",     // link-local, RFC 3927
    "224.0.0.0/24",       // link-local multicast, RFC 5771 §4
    "239.255.0.0/16",     // local scope multicast, RFC 2365 §6.1
    "255.255.255.255/32", // limited broadcast, RFC 919
];

pub(super) fn blocked_chain() -> Chain {
    let rules = vec![rule([Match::CtEstablished], [Statement::Counter, Statement::Drop]), rule([], [refuse()])];
    plain_chain(BLOCKED, rules)
}

impl ConnectPolicy<'_> {
    /// The rules of the output (`own`) or forward chain, the last of them for what nothing before it let go.
    pub(super) fn closing(&self, own: bool) -> Vec<Rule> {
        if self.dns.is_none() && self.kill_switch.is_none() {
            return Vec::new();
        }
        let accept = |matches: Vec<Match>| rule(matches, [Statement::Accept]);
        // most packets: the tunnel's own
        let mut rules = vec![accept(vec![into(self.interface)])];
        if own {
            rules.push(accept(vec![into("lo")]));
        }
        if self.kill_switch.is_some() {
            // of connections whose tunnel has gone; before anything that a mark could open
            rules.extend(addresses(self.v4, self.v6).map(|address| {
                let source = Match::Source { prefix: IpNetwork::from(address), not: false };
                commented(
                    "a tunnel address leaves by the tunnel only",
                    rule([source], [Statement::Counter, Statement::Drop]),
                )
            }));
        }
        rules.push(commented(
            "outer packets, and answers to connections from outside",
            accept(vec![Match::Mark { value: self.fwmark, not: false }]),
        ));
        if own {
            rules.extend(self.carriers.iter().map(|mark| {
                commented(
                    "outer packets of a tunnel around ours",
                    accept(vec![Match::Mark { value: *mark, not: false }]),
                )
            }));
            for (from_port, to_port) in [DHCP, DHCPV6] {
                let family = if to_port == DHCP.1 { Family::V4 } else { Family::V6 };
                rules.push(accept(vec![
                    Match::Family(family),
                    Match::L4Proto(IPPROTO_UDP),
                    Match::SourcePort(from_port, from_port),
                    Match::DestinationPort(to_port, to_port),
                ]));
            }
            rules.extend(NEIGHBOUR_DISCOVERY.map(|kind| accept(vec![Match::Icmp6Type(kind)])));
        } else {
            rules.push(accept(vec![from(self.interface)]));
        }
        if let Some(dns) = self.dns {
            rules.extend(only_dns(dns));
        }
        if let Some(kill_switch) = self.kill_switch {
            let own = addresses(self.v4, self.v6).map(IpNetwork::from);
            rules.extend(kill_switch.rules(own));
        }
        rules
    }
}

/// DNS has no other way out; the tunnel's was taken before.
fn only_dns(dns: OnlyDns) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (protocol, port) in QUERIES {
        let query = || [Match::L4Proto(protocol), Match::DestinationPort(port, port)];
        for server in dns.lan_servers {
            let matches = [&[to_address(*server)][..], &query()].concat();
            rules.push(rule(matches, [Statement::Accept]));
        }
        rules.push(commented("DNS goes through the tunnel", rule(query(), [refuse()])));
    }
    rules
}

impl KillSwitch<'_> {
    /// `own`: our tunnel addresses; errors about what was sent from there must not go elsewhere.
    fn rules(self, own: impl Iterator<Item = IpNetwork>) -> Vec<Rule> {
        let to = |prefix: &IpNetwork| Match::Destination { prefix: *prefix, not: false };
        let mut rules: Vec<Rule> = self.exclude.iter().map(|prefix| rule([to(prefix)], [Statement::Accept])).collect();
        let everything = |family: Family| self.allowed.iter().any(|p| *p == family.default_prefix());
        if let Some(lan) = self.lan {
            for prefix in LINK_SCOPE {
                let prefix = prefix.parse().expect("the table above holds prefixes");
                rules.push(rule([to(&prefix)], [Statement::Accept]));
            }
            rules.extend(lan.iter().map(|lan| rule([into(&lan.interface), to(&lan.prefix)], [Statement::Accept])));
        }
        let blocked =
            |matches: Vec<Match>| commented(KILL_SWITCH, rule(matches, [Statement::Jump(BLOCKED.to_owned())]));
        if Family::BOTH.into_iter().all(everything) {
            rules.push(blocked(Vec::new()));
            return rules;
        }
        let exit = self.exit.iter().map(|address| IpNetwork::from(*address));
        rules.extend(self.allowed.iter().copied().chain(exit).chain(own).map(|prefix| blocked(vec![to(&prefix)])));
        rules
    }
}
