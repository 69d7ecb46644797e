//! The connecting node's table. What carries the fwmark goes beside the tunnel: the policy rules look it up in the
//! ordinary tables, and with `src_valid_mark` a strict reverse-path filter does so too.

use ipnetwork::IpNetwork;
use peervpn_platform::nft::{Hook, Kind, Match, Rule, Statement, Table};
use peervpn_platform::types::Family;

use super::*;

/// Unique local addresses, RFC 4193: tunnel addresses are such, and the exit itself answers for the rest.
const UNIQUE_LOCAL: &str = "fc00::/7";

impl ConnectPolicy<'_> {
    pub(super) fn table(&self) -> Table {
        Table {
            name: table_name(self.interface),
            chains: vec![
                base_chain("prerouting", Kind::Filter, Hook::Prerouting, MANGLE, self.prerouting()),
                base_chain("output", Kind::Route, Hook::Output, MANGLE, self.output()),
                base_chain("leaving", Kind::Filter, Hook::Output, FILTER, self.leaving()),
                base_chain("forward", Kind::Filter, Hook::Forward, FILTER, self.forward()),
                closing::blocked_chain(),
                refuse_chain(),
            ],
        }
    }

    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = anti_spoofing(self.interface, addresses(self.v4, self.v6));
        // Only what is for this host: forwarded connections (containers) are to enter the tunnel.
        rules.push(commented(
            "came from outside: its replies leave the way it came",
            rule(
                [
                    not_from(self.interface),
                    not_from("lo"),
                    Match::CtOriginal,
                    // or a forged error about a connection in the tunnel would turn it out
                    Match::CtNotRelated,
                    self.unmarked(),
                    Match::DestinationLocal { not: false },
                ],
                [Statement::SetCtMark(self.fwmark)],
            ),
        ));
        rules.push(commented(
            "for the reverse-path filter, and for replies of containers",
            rule([self.marked()], [Statement::SetMark(self.fwmark)]),
        ));
        rules
    }

    fn output(&self) -> Vec<Rule> {
        let mut rules = vec![commented(
            "outer packets: so that their replies get the mark as well",
            rule([Match::Mark { value: self.fwmark, not: false }], [Statement::SetCtMark(self.fwmark)]),
        )];
        for family in Family::BOTH {
            let mut matches = vec![Match::CtReply, Match::CtNotRelated, self.unmarked(), not_into("lo")];
            matches.push(self.not_from_tunnel_address(family));
            rules.push(commented(
                "reply to a connection from outside",
                rule(matches, [Statement::SetCtMark(self.fwmark)]),
            ));
            for (first, last) in ranges(&self.listening) {
                let matches = [
                    Match::CtNew,
                    self.unmarked(),
                    Match::TcpNotSyn,
                    Match::SourcePort(first, last),
                    not_into("lo"),
                    self.not_from_tunnel_address(family),
                ];
                rules.push(commented(
                    "connection from outside, older than its tracking",
                    rule(matches, [Statement::SetCtMark(self.fwmark)]),
                ));
            }
        }
        rules.push(rule([self.marked()], [Statement::SetMark(self.fwmark)]));
        rules
    }

    /// Of this host itself.
    fn leaving(&self) -> Vec<Rule> {
        let mut rules = self.refuse_v6();
        rules.extend(self.closing(true));
        rules
    }

    /// Of containers and other hosts behind this one.
    fn forward(&self) -> Vec<Rule> {
        let mut rules = clamp_mss(self.interface).to_vec();
        rules.extend(self.refuse_v6());
        rules.extend(self.closing(false));
        rules
    }

    /// Refused, not dropped: applications turn to IPv4 at once. A packet that `output` re-routed still shows the
    /// interface it was routed to first, hence the mark.
    fn refuse_v6(&self) -> Vec<Rule> {
        if !self.refuse_v6 {
            return Vec::new();
        }
        let prefix = UNIQUE_LOCAL.parse().expect("it is a prefix");
        vec![commented(
            "the exit has no IPv6",
            rule(
                [
                    into(self.interface),
                    Match::Mark { value: self.fwmark, not: true },
                    Match::Destination { prefix, not: true },
                ],
                [refuse()],
            ),
        )]
    }

    fn marked(&self) -> Match {
        Match::CtMark { value: self.fwmark, not: false }
    }

    /// Another program's connection marks stay as they are.
    fn unmarked(&self) -> Match {
        Match::CtMark { value: 0, not: false }
    }

    fn not_from_tunnel_address(&self, family: Family) -> Match {
        let address = match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        };
        match address {
            Some(address) => Match::Source { prefix: IpNetwork::from(address), not: true },
            None => Match::Family(family),
        }
    }
}

/// Ports as inclusive ranges, in ascending order.
fn ranges(ports: &[u16]) -> Vec<(u16, u16)> {
    let mut ports = ports.to_vec();
    ports.sort_unstable();
    ports.dedup();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == port => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}
