//! A firewall table as plain data: what `nft list table` would show, in the few words PeerVPN needs.
//! `src/host` writes these from a policy; `linux/nft` encodes them to netlink and reads their shape back.
//! Displayed, a [`Table`] is text that `nft -f` accepts: what tests compare and logs show.
//! Expression semantics: nft(8), `linux/netfilter/nf_tables.h`.

pub mod foreign;
mod text;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// A whole table of family `inet`; applied as one atomic batch that replaces an earlier table of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Table name.
    pub name: String,
    /// Chains in order.
    pub chains: Vec<Chain>,
}

impl Table {
    /// What reading it back should give: each chain with its number of rules, in order.
    pub fn shape(&self) -> Vec<(String, usize)> {
        self.chains.iter().map(|chain| (chain.name.clone(), chain.rules.len())).collect()
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Chain name; must not be an nft keyword.
    pub name: String,
    /// Where it hooks; `None` for a chain that is only jumped to.
    pub base: Option<Base>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// A base chain's hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Chain type.
    pub kind: Kind,
    /// Hook.
    pub hook: Hook,
    /// Priority; nft(8) names: raw -300, mangle -150, dstnat -100, filter 0, srcnat 100.
    pub priority: i32,
    /// Policy `drop` instead of `accept`.
    pub drop: bool,
}

/// Chain type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `filter`.
    Filter,
    /// `nat`.
    Nat,
    /// `route`: a changed mark re-routes the packet.
    Route,
}

/// Netfilter hook of family `inet`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// `prerouting`.
    Prerouting,
    /// `input`.
    Input,
    /// `forward`.
    Forward,
    /// `output`.
    Output,
    /// `postrouting`.
    Postrouting,
}

/// A rule: every match must hold, then the statements run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Matches.
    pub matches: Vec<Match>,
    /// Statements, the verdict last.
    pub statements: Vec<Statement>,
    /// Comment shown by `nft list`; at most 127 bytes.
    pub comment: Option<String>,
}

/// One condition. `not` inverts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// `iifname NAME`.
    Iif {
        /// Interface name.
        name: String,
        /// Invert.
        not: bool,
    },
    /// `oifname NAME`.
    Oif {
        /// Interface name.
        name: String,
        /// Invert.
        not: bool,
    },
    /// `meta nfproto ipv4|ipv6`.
    Family(crate::types::Family),
    /// `meta l4proto N`: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6.
    L4Proto(u8),
    /// `ip saddr` / `ip6 saddr PREFIX` (implies the family).
    Source {
        /// Prefix.
        prefix: IpNetwork,
        /// Invert.
        not: bool,
    },
    /// `ip daddr` / `ip6 daddr PREFIX` (implies the family).
    Destination {
        /// Prefix.
        prefix: IpNetwork,
        /// Invert.
        not: bool,
    },
    /// `ip daddr { … }` / `ip6 daddr { … }`: one of these prefixes, of one family, at the cost of one (implies the family).
    DestinationIn(Vec<IpNetwork>),
    /// `th sport FIRST-LAST` (inclusive; [`Match::L4Proto`] must be matched before).
    SourcePort(u16, u16),
    /// `th dport FIRST-LAST` (inclusive; [`Match::L4Proto`] must be matched before).
    DestinationPort(u16, u16),
    /// `udp length N`, header included ([`Match::L4Proto`] 17 must be matched before).
    UdpLength(u16),
    /// `@th,64,32 VALUE`: the first four payload bytes, in network order ([`Match::L4Proto`] 17 must be matched before).
    UdpPayload(u32),
    /// `icmp type N` (implies IPv4 and ICMP).
    IcmpType(u8),
    /// `icmpv6 type N` (implies IPv6 and ICMPv6).
    Icmp6Type(u8),
    /// `meta mark VALUE`.
    Mark {
        /// Value.
        value: u32,
        /// Invert.
        not: bool,
    },
    /// `ct mark VALUE`.
    CtMark {
        /// Value.
        value: u32,
        /// Invert.
        not: bool,
    },
    /// `ct state established,related`.
    CtEstablished,
    /// `ct state new`.
    CtNew,
    /// `ct state established,new`: of a connection, not an ICMP error about one (which counts as the connection's, too).
    CtNotRelated,
    /// `ct state invalid`: belongs to no connection, so no NAT applies to it.
    CtInvalid,
    /// `ct status dnat`: its destination was translated.
    CtDnat,
    /// `ct direction original`.
    CtOriginal,
    /// `ct direction reply`.
    CtReply,
    /// `fib daddr type local`: the destination is one of the host's own addresses.
    DestinationLocal {
        /// Invert.
        not: bool,
    },
    /// `tcp flags & (syn|rst) == syn` (implies TCP).
    TcpSyn,
    /// `tcp flags & syn == 0` (implies TCP).
    TcpNotSyn,
}

impl Match {
    /// Those of a [`Match::DestinationIn`].
    pub fn prefixes(&self) -> Option<&[IpNetwork]> {
        if let Match::DestinationIn(prefixes) = self { Some(prefixes) } else { None }
    }
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statement {
    /// `counter`.
    Counter,
    /// `limit rate over N/second burst M packets`: goes on only with what exceeds that.
    Over {
        /// Packets a second.
        per_second: u32,
        /// Packets at once.
        burst: u32,
    },
    /// `accept`.
    Accept,
    /// `drop`.
    Drop,
    /// `reject with icmpx admin-prohibited`; the kernel sends few of these a second to one destination
    /// (`net.ipv4.icmp_ratelimit`).
    Reject,
    /// `reject with tcp reset` (TCP must be matched before).
    Reset,
    /// `jump CHAIN`: comes back if that chain gives no verdict.
    Jump(String),
    /// `masquerade`.
    Masquerade,
    /// `dnat to ADDR`, the port unchanged; packets of the other family are left alone.
    Dnat(std::net::IpAddr),
    /// `meta mark set VALUE`.
    SetMark(u32),
    /// `ct mark set VALUE`.
    SetCtMark(u32),
    /// `tcp option maxseg size set rt mtu`: clamp to the route's MTU.
    ClampMss,
}
