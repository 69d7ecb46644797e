//! Filters of the Windows Filtering Platform, as far as our policies use them: plain data, and the text that names each
//! filter on the host. What they mean is decided in `src/host/firewall`; `windows/wfp.rs` hands them to the engine.
//!
//! The filters of a node live in a sublayer of its own, in the order given: the first that matches decides there. A block
//! of any other sublayer stands beside a permit of ours, except for [`Action::PermitAlways`].

use std::fmt::{self, Display, Formatter};

use ipnetwork::IpNetwork;

use crate::types::Family;

/// Our provider, by which recovery without a journal finds everything of ours.
pub const PROVIDER: u128 = 0x7dd3_6ff5_0a2c_4b5e_9d0b_61c4_50f1_37a2;
/// First half of every sublayer key of ours; the name of the node's filters gives the rest.
const SUBLAYER: u128 = 0x52c8_2b6e_f1d7_4e09_0000_0000_0000_0000;

/// The filters of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterSet {
    /// By which it is found again: its sublayer.
    pub name: String,
    /// In the order they are asked; a layer sees only its own.
    pub filters: Vec<Filter>,
}

/// One filter. All its conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Where it is asked.
    pub layer: Layer,
    /// What it asks.
    pub conditions: Vec<Condition>,
    /// What follows.
    pub action: Action,
}

/// Where a filter is asked; "Filtering layer identifiers" of the Windows Filtering Platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// A program of this host connects or sends to a new remote (`ALE_AUTH_CONNECT`). Replies to what came in are none.
    Connect(Family),
    /// A program of this host is connected or sent to (`ALE_AUTH_RECV_ACCEPT`).
    Accept(Family),
    /// A packet is forwarded, of a virtual machine or container (`IPFORWARD`).
    Forward(Family),
}

/// What follows when a filter matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let it pass our sublayer.
    Permit,
    /// Let it pass, whatever other sublayers say.
    PermitAlways,
    /// Refuse it.
    Block,
}

/// What a filter asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The local interface, when forwarding the outgoing one.
    Interface {
        /// Its name.
        name: String,
        /// Any other one.
        not: bool,
    },
    /// The interface by which it came in: of what is accepted or forwarded.
    Arrival {
        /// Its name.
        name: String,
        /// Any other one.
        not: bool,
    },
    /// The interface by which what is accepted is answered. The engine asks again with that one alone when filters change.
    Answer(String),
    /// It stays on this host.
    Loopback,
    /// Our own program file.
    OurProgram,
    /// IP protocol number.
    Protocol(u8),
    /// Local port of TCP or UDP.
    LocalPort(u16),
    /// Remote port of TCP or UDP.
    RemotePort(u16),
    /// ICMP or ICMPv6 type.
    IcmpType(u8),
    /// Local address, when forwarding the source.
    Local(IpNetwork),
    /// Remote address, when forwarding the destination.
    Remote(IpNetwork),
}

/// Key of the sublayer of a node's filters: ours, and found again by their name alone.
pub fn sublayer(name: &str) -> u128 {
    // FNV-1a: nobody gains anything by a collision but his own nodes sharing a sublayer
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    SUBLAYER | u128::from(hash)
}

/// Whether a sublayer key is that of some node of ours.
pub fn is_ours(sublayer: u128) -> bool {
    sublayer >> 64 == SUBLAYER >> 64
}

impl FilterSet {
    /// Each filter as text, in order: how it is called on the host, and what reading back should give.
    pub fn names(&self) -> Vec<String> {
        self.filters.iter().map(ToString::to_string).collect()
    }
}

impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.layer, self.action)?;
        self.conditions.iter().try_for_each(|condition| write!(f, " {condition}"))
    }
}

impl Display for Layer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (layer, family) = match self {
            Layer::Connect(family) => ("connect", family),
            Layer::Accept(family) => ("accept", family),
            Layer::Forward(family) => ("forward", family),
        };
        write!(f, "{layer}-{}", if *family == Family::V4 { "v4" } else { "v6" })
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Permit => "permit",
            Action::PermitAlways => "permit-always",
            Action::Block => "block",
        })
    }
}

impl Display for Condition {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Condition::Interface { name, not: false } => write!(f, "interface {name}"),
            Condition::Interface { name, not: true } => write!(f, "interface not {name}"),
            Condition::Arrival { name, not: false } => write!(f, "arriving on {name}"),
            Condition::Arrival { name, not: true } => write!(f, "arriving not on {name}"),
            Condition::Answer(name) => write!(f, "answered on {name}"),
            Condition::Loopback => f.write_str("loopback"),
            Condition::OurProgram => f.write_str("our program"),
            Condition::Protocol(number) => write!(f, "protocol {number}"),
            Condition::LocalPort(port) => write!(f, "from port {port}"),
            Condition::RemotePort(port) => write!(f, "to port {port}"),
            Condition::IcmpType(kind) => write!(f, "icmp type {kind}"),
            Condition::Local(prefix) => write!(f, "from {prefix}"),
            Condition::Remote(prefix) => write!(f, "to {prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sublayers_are_told_apart_and_known_as_ours() {
        assert_ne!(sublayer("peervpn"), sublayer("peervpn-peervpn1"));
        assert_eq!(sublayer("peervpn"), sublayer("peervpn"));
        assert!(is_ours(sublayer("")) && is_ours(sublayer("peervpn")) && !is_ours(PROVIDER));
    }
}
