//! What the network is, measured: STUN messages and transactions, gathering reflexive addresses, NAT discovery.
//!
//! Pure: bytes and `now` go in, bytes and results come out. [`stun`] is the codec's narrow side, [`transaction`] runs
//! many requests at once, [`gather`] asks several servers for our reflexive address, [`servers`] lists the default ones.
//! `node::stun` moves the bytes.

pub mod discovery;
pub mod gather;
pub mod servers;
pub mod stun;
pub mod transaction;
