//! Joining: how an exit learns a peer's key, and how both sides arrive at the same tunnel addresses (design §4, §5).
//! Pure: bytes and `now` come in, decisions come out.
//!
//! An initiation's way through an exit: the packet socket copies it → [`initiation::Checker`] proves that its sender
//! holds the private key → [`admission::Admission`] decides → [`peers::PeerStore`] remembers. A peer's way in: it reads
//! a [`connect::ConnectString`] and computes both sides' [`address::TunnelAddresses`]; or it reads an [`invite::Invite`],
//! has it redeemed by the exit's control [`service`], and remembers that among its [`exits`].

pub mod address;
pub mod admission;
mod bucket;
pub mod connect;
pub mod exits;
pub mod initiation;
pub mod invite;
pub mod peers;
pub mod service;
pub mod waiting;
