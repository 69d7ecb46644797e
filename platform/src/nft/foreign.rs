//! Other programs' chains, as far as it matters to packets that are forwarded.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Table families that see forwarded IP packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableFamily {
    /// Both.
    Inet,
    /// IPv4: what iptables-nft writes to.
    Ip,
    /// IPv6: what ip6tables-nft writes to.
    Ip6,
}

impl TableFamily {
    /// All of them.
    pub const ALL: [TableFamily; 3] = [TableFamily::Inet, TableFamily::Ip, TableFamily::Ip6];

    /// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6` of linux/netfilter.h.
    pub fn number(self) -> u8 {
        match self {
            TableFamily::Inet => 1,
            TableFamily::Ip => 2,
            TableFamily::Ip6 => 10,
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableFamily::Inet => "inet",
            TableFamily::Ip => "ip",
            TableFamily::Ip6 => "ip6",
        })
    }
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenChain {
    /// Family of its table.
    pub family: TableFamily,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// A base chain of type `filter` on the forward hook.
    pub forwards: bool,
    /// A base chain of type `filter` on the input hook.
    pub receives: bool,
    /// Its policy is `drop`.
    pub drops: bool,
    /// Its rules in order.
    pub rules: Vec<SeenRule>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRule {
    /// Its handle: never used again in its table.
    pub handle: u64,
    /// Its comment.
    pub comment: Option<String>,
    /// What it does with every packet; `None` if it is for some packets only, or gives no verdict.
    pub always: Option<Verdict>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this hook's chain.
    Accept,
    /// It is dropped or rejected.
    Drop,
    /// It goes to another chain of the table.
    Jump(String),
}

/// A place in another program's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Family of its table.
    pub family: TableFamily,
    /// Its table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Where in the chain.
    pub position: Position,
}

/// Where in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Before its first rule.
    First,
    /// Before the rule with this handle.
    Before(u64),
    /// After its last rule.
    Last,
}

impl Place {
    /// Whether it is in this chain.
    pub fn is(&self, chain: &SeenChain) -> bool {
        (self.family, &*self.table, &*self.chain) == (chain.family, &*chain.table, &*chain.name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}
