//! The two firewall policies at work: packets of real hosts in network namespaces, a veth pair in the tunnel's place.
//! Needs root, `ip` and `nft`.

#[allow(dead_code, reason = "the lab uses the rest")]
#[path = "../lab/net.rs"]
mod lab_net;

mod connecting;
mod exiting;
pub mod net;
