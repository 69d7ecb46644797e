//! macOS: state files and UDP sockets work; the network configuration, a WireGuard back end (`utun`, `PF_ROUTE`, pf) and
//! packet taps are not there yet and say so with [`crate::Error::Unsupported`].

use std::os::fd::{AsRawFd, RawFd};

#[path = "../absent.rs"]
mod absent;
pub mod files;
pub mod udp;

pub use absent::{
    NetlinkHost, SystemHost, confine, confine_thread, dns, host, kernel_wireguard, launch, legacy_tables,
    listening_ports, local_time, notify, packet, port_holder, process, raw, reachable, tun_available, watchdog,
    wireguard, writable,
};

/// Whether this process may change the network configuration: the effective user is root.
pub fn privileged() -> bool {
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

impl AsRawFd for packet::InitiationTap {
    fn as_raw_fd(&self) -> RawFd {
        match *self {}
    }
}

impl AsRawFd for raw::RawStun {
    fn as_raw_fd(&self) -> RawFd {
        match *self {}
    }
}
