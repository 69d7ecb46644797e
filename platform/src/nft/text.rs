//! A table as `nft -f` reads it (nft(8)).

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use super::{Chain, Hook, Kind, Match, Rule, Statement, Table};
use crate::types::Family;

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for (index, chain) in self.chains.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            let policy = if base.drop { "drop" } else { "accept" };
            writeln!(
                f,
                "\t\ttype {} hook {} priority {}; policy {policy};",
                base.kind.name(),
                base.hook.name(),
                base.priority
            )?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.matches.iter().map(ToString::to_string).collect();
        words.extend(self.statements.iter().map(ToString::to_string));
        if let Some(comment) = &self.comment {
            words.push(format!("comment \"{comment}\""));
        }
        f.write_str(&words.join(" "))
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let inverted = |not: &bool| if *not { "!= " } else { "" };
        match self {
            Match::Iif { name, not } => write!(f, "iifname {}\"{name}\"", inverted(not)),
            Match::Oif { name, not } => write!(f, "oifname {}\"{name}\"", inverted(not)),
            Match::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Match::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Match::L4Proto(protocol) => write!(f, "meta l4proto {protocol}"),
            Match::Source { prefix, not } => write!(f, "{} saddr {}{prefix}", header(prefix.ip()), inverted(not)),
            Match::Destination { prefix, not } => write!(f, "{} daddr {}{prefix}", header(prefix.ip()), inverted(not)),
            Match::DestinationIn(prefixes) => {
                let header = prefixes.first().map_or("ip", |prefix| header(prefix.ip()));
                let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
                write!(f, "{header} daddr {{ {} }}", prefixes.join(", "))
            }
            Match::SourcePort(first, last) => write!(f, "th sport {}", Ports(*first, *last)),
            Match::DestinationPort(first, last) => write!(f, "th dport {}", Ports(*first, *last)),
            Match::UdpLength(length) => write!(f, "udp length {length}"),
            Match::UdpPayload(value) => write!(f, "@th,64,32 {value:#x}"),
            Match::IcmpType(kind) => write!(f, "icmp type {kind}"),
            Match::Icmp6Type(kind) => write!(f, "icmpv6 type {kind}"),
            Match::Mark { value, not } => write!(f, "meta mark {}{value:#x}", inverted(not)),
            Match::CtMark { value, not } => write!(f, "ct mark {}{value:#x}", inverted(not)),
            Match::CtEstablished => f.write_str("ct state established,related"),
            Match::CtNotRelated => f.write_str("ct state established,new"),
            Match::CtNew => f.write_str("ct state new"),
            Match::CtInvalid => f.write_str("ct state invalid"),
            Match::CtDnat => f.write_str("ct status dnat"),
            Match::CtOriginal => f.write_str("ct direction original"),
            Match::CtReply => f.write_str("ct direction reply"),
            Match::DestinationLocal { not } => write!(f, "fib daddr type {}local", inverted(not)),
            Match::TcpSyn => f.write_str("tcp flags & (syn | rst) == syn"),
            Match::TcpNotSyn => f.write_str("tcp flags & syn == 0"),
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Statement::Counter => f.write_str("counter"),
            Statement::Over { per_second, burst } => {
                write!(f, "limit rate over {per_second}/second burst {burst} packets")
            }
            Statement::Accept => f.write_str("accept"),
            Statement::Drop => f.write_str("drop"),
            Statement::Reject => f.write_str("reject with icmpx admin-prohibited"),
            Statement::Reset => f.write_str("reject with tcp reset"),
            Statement::Jump(chain) => write!(f, "jump {chain}"),
            Statement::Masquerade => f.write_str("masquerade"),
            Statement::Dnat(address) => write!(f, "dnat {} to {address}", header(*address)),
            Statement::SetMark(value) => write!(f, "meta mark set {value:#x}"),
            Statement::SetCtMark(value) => write!(f, "ct mark set {value:#x}"),
            Statement::ClampMss => f.write_str("tcp option maxseg size set rt mtu"),
        }
    }
}

impl Kind {
    /// nft(8)'s word, which is also the kernel's chain type name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
            Kind::Route => "route",
        }
    }
}

impl Hook {
    /// nft(8)'s word.
    pub fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// nft's word for the network header of that family.
fn header(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "ip" } else { "ip6" }
}

/// A port or an inclusive range.
struct Ports(u16, u16);

impl Display for Ports {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 { write!(f, "{}", self.0) } else { write!(f, "{}-{}", self.0, self.1) }
    }
}
