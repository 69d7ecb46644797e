//! Windows: WireGuardNT by its own library, IP Helper for links, addresses and routes, the Windows Filtering Platform for
//! the kill switch, the Name Resolution Policy Table for DNS, the service manager. No other program is started.
//!
//! # What there is no sound way for
//! **An exit.** Windows' own NAT (WinNAT, `MSFT_NetNat`) comes with Hyper-V or containers only, translates IPv4 only, and
//! a host has but one of them, which Docker and WSL take too (Microsoft, "Windows NAT: capabilities and limitations"); the
//! older Internet Connection Sharing moves the inner network to 192.168.137.0/24 and serves DHCP there. And peers could
//! not join: WireGuardNT owns the port and says nothing of keys it does not know; a raw socket with `SIO_RCVALL` copies
//! every packet of an interface to us, the tunnel's own among them, with no filter before us; a relay that owns the outer
//! port would forward every packet in user space; and a WFP callout is a kernel driver, which needs Microsoft's signature.
//! So `exit` says that it is unsupported, and there is no tap for initiations.
//!
//! **STUN after the handoff.** The same socket would be needed to hear the answers. So `connect` asks from WireGuard's port
//! before WireGuardNT has it (`node/approach.rs`), for a second at most, and does not repeat it: WireGuard's own
//! initiations, later its keepalive, hold that mapping.
//!
//! **Which files other processes have open.** Nobody tells; so a node says that it runs (`control.rs`, `nodes`), for a
//! `recover` with other directories.

use std::sync::Arc;

#[path = "../absent.rs"]
#[allow(dead_code, reason = "shared by systems that lack different things")]
mod absent;
mod boot;
mod clock;
pub mod control;
mod dll;
pub mod dns;
mod elevation;
mod host;
mod interface;
mod nrpt;
pub mod places;
pub(crate) mod private;
pub mod process;
pub mod ready;
mod registry;
mod route;
mod security;
pub mod service;
pub mod signals;
pub(crate) mod text;
pub mod udp;
pub mod watch;
mod wfp;
mod wireguard;

pub use absent::{
    Timer, USUAL_DEVICE, UapiListener, confine, confine_thread, for_device, launch, legacy_tables, listening_ports,
    notify, output, packet, port_holder, raw, reachable, release_program_pages, timers_may_be_late, tun_available,
    watchdog, writable,
};
pub use clock::local_time;
pub use elevation::privileged;
pub use host::{SystemHost, host};
pub use wireguard::{NtWireGuard, kernel_wireguard, wireguard};

/// Which system this is.
pub const SYSTEM: crate::types::System = crate::types::System::Windows;

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

impl ready::Source for absent::watch::NetworkWatch {
    fn signal(&self) -> &Arc<ready::Signal> {
        match *self {}
    }
}
