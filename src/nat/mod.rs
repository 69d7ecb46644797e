//! What the network is, measured: STUN messages and transactions, gathering reflexive addresses, NAT discovery.
//!
//! Pure: bytes and `now` go in, bytes and results come out. [`stun`] is the codec's narrow side, [`transaction`] runs
//! many requests at once; [`gather`] asks several servers for our reflexive address before the handoff, [`keeper`]
//! keeps and watches the mapping after it; [`discovery`] measures how a NAT behaves, [`lifetime`] how long it remembers,
//! [`gateway`] asks which port-mapping protocols there are, [`portmap`] maps a port by them, [`verdict`] says what it
//! all means. [`servers`] lists the default STUN servers. `node::stun`, `node::mapping` and `node::nattest` move the
//! bytes.

pub mod discovery;
pub mod gateway;
pub mod gather;
pub mod keeper;
pub mod lifetime;
pub mod portmap;
pub mod servers;
pub mod stun;
pub mod transaction;
pub mod verdict;
