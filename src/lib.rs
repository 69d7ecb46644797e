//! PeerVPN: a VPN between two people and no server.
//!
//! # The map of the house
//!
//! One direction only: `main → cli → node → {nat, join, tunnel, host} → {key, config, error}`, and `node → platform`.
//! `tests/layering.rs` holds it.
//!
//! - [`cli`]: one file a command; parses, asks [`node`] or a running node's control socket, renders.
//! - [`node`]: the running node, exit or connect: one event loop that joins the rest; applies host changes through the
//!   journal; the control socket; the userspace device's own process.
//! - [`nat`]: STUN transactions and NAT discovery. Pure: bytes and `now` go in, bytes and verdicts come out.
//! - [`join`]: handshake initiations, admission, tunnel addresses, connect strings. Pure.
//! - [`tunnel`]: the desired WireGuard state, MTU arithmetic. Pure.
//! - [`host`]: the desired host state, changes and their undo, the journal's format, firewall policy. Pure.
//! - [`config`], [`key`], [`error`]: settings, secrets, errors with hints.
//! - `platform` (its own crate): what is asked of the operating system. Pure modules may use its plain types only
//!   (`peervpn_platform::{types, firewall, nft, pf, wfp}`).

pub mod cli;
pub mod config;
pub mod error;
pub mod host;
pub mod join;
pub mod key;
pub mod nat;
pub mod node;
pub mod tunnel;
