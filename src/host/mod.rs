//! The host, as we want it: changes and their undo, the journal's format, which numbers are free, firewall policy.
//! Pure: `node::apply` carries out what is said here.
//!
//! Every change to the host is a [`Change`]; what takes it back is an [`Undo`], written to the journal *before* the
//! change is made. What lives on a link of ours (its addresses, the routes over it, WireGuard's settings) goes with
//! the link and needs no undo of its own.

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
