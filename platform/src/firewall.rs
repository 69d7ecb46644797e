//! Our firewall rules, in the words of the system's own packet filter.

use std::fmt::{self, Display, Formatter};

use crate::{nft, pf, wfp};

/// What one node installs: whole, and replaced whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Firewall {
    /// Linux: a table of nftables.
    Nft(nft::Table),
    /// macOS: the rules of an anchor.
    Pf(pf::Anchor),
    /// Windows: the filters of a sublayer.
    Wfp(wfp::FilterSet),
}

impl Firewall {
    /// By which it is found and deleted again, in the journal too.
    pub fn name(&self) -> &str {
        match self {
            Firewall::Nft(table) => &table.name,
            Firewall::Pf(anchor) => &anchor.name,
            Firewall::Wfp(filters) => &filters.name,
        }
    }
}

impl Display for Firewall {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Firewall::Nft(table) => write!(f, "firewall table inet {}", table.name),
            Firewall::Pf(anchor) => write!(f, "firewall rules of anchor com.apple/{}", anchor.name),
            Firewall::Wfp(filters) => write!(f, "firewall filters of sublayer {}", filters.name),
        }
    }
}
