//! Joining: how an exit learns a peer's key, and how both sides arrive at the same tunnel addresses (design §4, §5).
//! Pure: bytes and `now` come in, decisions come out.
//!
//! An initiation's way through an exit: the packet socket copies it → [`initiation::Checker`] proves that its sender
//! holds the private key → [`admission::Admission`] decides → [`peers::PeerStore`] remembers. A peer's way in: it reads
//! a [`connect::ConnectString`] and computes both sides' [`address::TunnelAddresses`].

pub mod address;
pub mod admission;
mod bucket;
pub mod connect;
pub mod initiation;
pub mod peers;
pub mod waiting;
