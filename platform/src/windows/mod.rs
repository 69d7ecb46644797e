//! Windows: UDP sockets, reading state files and the journal's log work; the network configuration, a WireGuard back
//! end (WireGuardNT), packet taps and files for our eyes only (they need an access control list) are not there yet and
//! say so with [`crate::Error::Unsupported`].

use std::sync::Arc;

#[path = "../absent.rs"]
#[allow(dead_code, reason = "shared by systems that lack different things")]
mod absent;
pub mod control;
pub mod places;
pub(crate) mod private;
pub mod ready;
mod security;
pub mod signals;
mod text;
pub mod udp;

pub use absent::{
    SystemHost, Timer, USUAL_DEVICE, UapiListener, confine, confine_thread, dns, for_device, host, kernel_wireguard,
    launch, legacy_tables, listening_ports, local_time, notify, packet, port_holder, process, raw, reachable,
    tun_available, watch, watchdog, wireguard, writable,
};

/// Which system this is.
pub const SYSTEM: crate::types::System = crate::types::System::Windows;

/// Whether this process may change the network configuration. Not asked here: what would need it says that it is
/// unsupported, which is the cause that the person must hear.
pub fn privileged() -> bool {
    true
}

impl ready::Source for packet::InitiationTap {
    fn signal(&self) -> &Arc<ready::Signal> {
        match *self {}
    }
}

impl ready::Source for raw::RawStun {
    fn signal(&self) -> &Arc<ready::Signal> {
        match *self {}
    }
}

impl ready::Source for watch::NetworkWatch {
    fn signal(&self) -> &Arc<ready::Signal> {
        match *self {}
    }
}

impl ready::Source for watch::FileWatch {
    fn signal(&self) -> &Arc<ready::Signal> {
        match *self {}
    }
}

impl ready::Source for Timer {
    fn signal(&self) -> &Arc<ready::Signal> {
        match *self {}
    }
}
