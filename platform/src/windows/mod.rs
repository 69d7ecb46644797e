//! Windows: UDP sockets, reading state files and the journal's log work; the network configuration, a WireGuard back
//! end (WireGuardNT), packet taps and files for our eyes only (they need an access control list) are not there yet and
//! say so with [`crate::Error::Unsupported`].

#[path = "../absent.rs"]
mod absent;
pub mod files;
pub mod udp;

pub use absent::{
    NetlinkHost, SystemHost, confine, confine_thread, dns, host, kernel_wireguard, launch, legacy_tables,
    listening_ports, local_time, notify, packet, port_holder, process, raw, reachable, tun_available, watchdog,
    wireguard, writable,
};

/// Whether this process may change the network configuration. Not asked here: what would need it says that it is
/// unsupported, which is the cause that the person must hear.
pub fn privileged() -> bool {
    true
}
