//! The connecting node's table. What carries the fwmark goes beside the tunnel: the policy rules look it up in the
//! ordinary tables, and with `src_valid_mark` a strict reverse-path filter does so too.

use ipnetwork::IpNetwork;
use peervpn_platform::nft::{Hook, Kind, Match, Rule, Statement, Table};

use super::*;

/// Unique local addresses, RFC 4193: tunnel addresses are such, and the exit itself answers for the rest.
pub(super) const UNIQUE_LOCAL: &str = "fc00::/7";

/// The chains for what leaves the way it came, and for what may.
const OUTSIDE: &str = "outside";
const OLDER: &str = "older";

impl ConnectPolicy<'_> {
    pub(super) fn table(&self) -> Table {
        Table {
            name: table_name(self.interface),
            chains: vec![
                base_chain("prerouting", Kind::Filter, Hook::Prerouting, MANGLE, self.prerouting()),
                base_chain("output", Kind::Route, Hook::Output, MANGLE, self.output()),
                base_chain("leaving", Kind::Filter, Hook::Output, FILTER, self.leaving()),
                base_chain("forward", Kind::Filter, Hook::Forward, FILTER, self.forward()),
                plain_chain(OLDER, self.older()),
                plain_chain(OUTSIDE, self.outside()),
                closing::blocked_chain(),
                refuse_chain(),
            ],
        }
    }

    /// Every packet passes here: what lets most of them go comes first.
    fn prerouting(&self) -> Vec<Rule> {
        // a connection from outside does not come out of the tunnel: with its mark a strict reverse-path filter sees that
        let own = [from(self.interface), Match::CtMark { value: self.fwmark, not: true }];
        let mut rules = vec![rule(own, [Statement::Accept])];
        rules.extend(anti_spoofing(self.interface, addresses(self.v4, self.v6)));
        rules.push(commented(
            "for the reverse-path filter, and for replies of containers",
            rule([self.marked()], [Statement::SetMark(self.fwmark), Statement::Accept]),
        ));
        // Only what is for this host: forwarded connections (containers) are to enter the tunnel.
        rules.push(commented(
            "came from outside: its replies leave the way it came",
            rule(
                [
                    not_from("lo"),
                    Match::CtOriginal,
                    // or a forged error about a connection in the tunnel would turn it out
                    Match::CtNotRelated,
                    self.unmarked(),
                    Match::DestinationLocal { not: false },
                ],
                [Statement::SetCtMark(self.fwmark), Statement::SetMark(self.fwmark)],
            ),
        ));
        rules
    }

    fn output(&self) -> Vec<Rule> {
        let mut rules = vec![
            commented(
                "outer packets: so that their replies get the mark as well",
                rule(
                    [Match::Mark { value: self.fwmark, not: false }],
                    [Statement::SetCtMark(self.fwmark), Statement::Accept],
                ),
            ),
            rule([self.marked()], [Statement::SetMark(self.fwmark), Statement::Accept]),
            commented(
                "reply to a connection from outside",
                rule(
                    [Match::CtReply, Match::CtNotRelated, self.unmarked(), not_into("lo")],
                    [Statement::Jump(OUTSIDE.to_owned())],
                ),
            ),
        ];
        if !self.listening.is_empty() {
            rules.push(commented(
                "connection from outside, older than its tracking",
                rule(
                    [Match::CtNew, self.unmarked(), Match::TcpNotSyn, not_into("lo")],
                    [Statement::Jump(OLDER.to_owned())],
                ),
            ));
        }
        rules
    }

    /// By the ports this host listens on.
    fn older(&self) -> Vec<Rule> {
        let from = |(first, last)| [Match::L4Proto(IPPROTO_TCP), Match::SourcePort(first, last)];
        ranges(&self.listening)
            .into_iter()
            .map(|range| rule(from(range), [Statement::Jump(OUTSIDE.to_owned())]))
            .collect()
    }

    /// Leaves the way it came, but for what a tunnel address says.
    fn outside(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = addresses(self.v4, self.v6)
            .map(|address| {
                let source = Match::Source { prefix: IpNetwork::from(address), not: false };
                rule([source], [Statement::Accept])
            })
            .collect();
        rules.push(rule([], [Statement::SetCtMark(self.fwmark), Statement::SetMark(self.fwmark)]));
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
        let clamped = |through| Rule { matches: [vec![through], clamp_mss().matches].concat(), ..clamp_mss() };
        let mut rules = vec![clamped(from(self.interface)), clamped(into(self.interface))];
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
