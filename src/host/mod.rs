//! The host, as we want it: changes and their undo, the journal's format, which numbers are free, firewall policy.
//! Pure: `node::apply` carries out what is said here.
//!
//! Every change to the host is a [`Change`]; what takes it back is an [`Undo`], written to the journal *before* the
//! change is made. What lives on a link of ours (its addresses, the routes over it, WireGuard's settings) goes with
//! the link and needs no undo of its own.
//!
//! # Other systems
//!
//! What to do is decided here for every system ([`System`]), so that each decision is tested on any host (`tests/plan`);
//! `os::SYSTEM` says which one is meant. Where the words differ:
//! - Firewall: the same [`firewall::Policy`] becomes a [`Firewall`] of that system's packet filter, one file a system in
//!   `firewall/` (`nft`: `exit.rs`, `connect.rs`, `closing.rs`; WFP: `filters.rs`). The filter's plain types are modules of
//!   `platform` (`nft`, `wfp`, …), and a variant there. `Host::replace_firewall` installs it.
//! - Routes: with policy routing `tunnel::routes::{routes, rules}`, without it `tunnel::routes::single` (macOS, Windows):
//!   ordinary [`Change::Route`]s, of which those over our own link need no undo.
//! - DNS: [`dns::choose`]; a system with one resolver of its own has [`Change::SystemDns`] (`Host::set_dns`).
//! - Settings: [`sysctls`], by their own names; a setting that a system does not have is left out.
//! - Whatever has no equal elsewhere gets a variant of [`Change`] and [`Undo`] of its own: plain data with serde names that
//!   stay, carried out by a method of `Host` whose default answer is `Unsupported`. New variants leave the journal's version
//!   as it is; a changed one raises it.
//!
//! What a system can't do is [`Unsupported`], with what to do instead, before anything is changed.
//!
//! [`System`]: peervpn_platform::types::System
//! [`Firewall`]: peervpn_platform::firewall::Firewall

pub mod change;
pub mod dns;
pub mod firewall;
pub mod foreign;
pub mod journal;
pub mod lan;
pub mod numbers;
pub mod sysctls;

pub use change::{Change, Undo};
pub use numbers::Numbers;

use peervpn_platform::types::System;

use crate::error::Hint;

/// A system has no way to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} is not supported on {system}")]
pub struct Unsupported {
    /// The capability.
    pub what: &'static str,
    /// The system.
    pub system: System,
    /// What to do instead.
    pub instead: &'static str,
}

impl Hint for Unsupported {
    fn hint(&self) -> Option<String> {
        Some(self.instead.to_owned())
    }
}
