//! macOS: state files and UDP sockets work; the network configuration, a WireGuard back end (`utun`, `PF_ROUTE`, pf) and
//! packet taps are not there yet and say so with [`crate::Error::Unsupported`].

use std::os::fd::{AsRawFd, RawFd};

#[path = "../absent.rs"]
#[allow(dead_code, reason = "shared by systems that lack different things")]
mod absent;
#[path = "../unix/control.rs"]
pub mod control;
pub mod places;
#[path = "../unix/private.rs"]
pub(crate) mod private;
#[path = "../unix/ready.rs"]
pub mod ready;
#[path = "../unix/signals.rs"]
pub mod signals;
#[path = "../unix/uapi_listener.rs"]
mod uapi_listener;
pub mod udp;

pub use uapi_listener::UapiListener;

pub use absent::{
    SystemHost, Timer, confine, confine_thread, dns, host, kernel_wireguard, launch, legacy_tables, listening_ports,
    local_time, notify, packet, port_holder, process, raw, reachable, tun_available, watch, watchdog, wireguard,
    writable,
};

/// Which system this is.
pub const SYSTEM: crate::types::System = crate::types::System::Macos;

/// Whether this process may change the network configuration: the effective user is root.
pub fn privileged() -> bool {
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// The process that holds a file's lock; macOS tells nobody.
pub(crate) fn lock_holder(_file: &std::fs::File) -> Option<u32> {
    None
}

impl AsRawFd for watch::NetworkWatch {
    fn as_raw_fd(&self) -> RawFd {
        match *self {}
    }
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

impl AsRawFd for watch::FileWatch {
    fn as_raw_fd(&self) -> RawFd {
        match *self {}
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        match *self {}
    }
}
