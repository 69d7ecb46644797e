//! macOS: interfaces by ioctl, routes by route(4), packets by bpf(4), pf by pfctl(8), DNS by scutil(8); the WireGuard
//! device is a userspace one on a utun. Written against the published headers, compiled and linted, and its formats
//! tested on other systems ([`crate::macos_formats`]); it has not been run on a Mac.
//!
//! # A full tunnel without fwmarks
//!
//! There is one routing table, and no mark that a route could ask for. So everything goes into the tunnel by two routes
//! of half the address space each, which are more specific than the default route and leave it as it is (0/1 and 128/1,
//! ::/1 and 8000::/1). The outer packets must not follow: a host route to the exit's endpoint, by the gateway of the
//! default route, is more specific again, and is made anew when that gateway changes. Networks that are connected, the
//! LAN, are more specific anyway. Our routes have both flags that are left to routing daemons (`RTF_PROTO1`,
//! `RTF_PROTO2`): by these they are known.

#[path = "../absent.rs"]
#[allow(dead_code, reason = "shared by systems that lack different things")]
mod absent;
mod asserts;
#[path = "../unix/clock.rs"]
mod clock;
#[path = "../unix/control.rs"]
pub mod control;
pub mod dns;
#[path = "../unix/process.rs"]
mod held;
mod host;
#[path = "../unix/launch.rs"]
pub mod launch;
mod names;
#[path = "../unix/output.rs"]
pub mod output;
pub mod packet;
mod pf;
pub mod places;
#[path = "../unix/private.rs"]
pub(crate) mod private;
pub mod process;
mod queue;
pub mod raw;
#[path = "../unix/ready.rs"]
pub mod ready;
#[path = "../unix/service.rs"]
pub mod service;
#[path = "../unix/signals.rs"]
pub mod signals;
mod sys;
mod tap;
mod timer;
#[path = "../unix/uapi.rs"]
mod uapi;
#[path = "../unix/uapi_listener.rs"]
mod uapi_listener;
pub mod udp;
pub mod watch;

pub use absent::{
    confine, confine_thread, kernel_wireguard, legacy_tables, listening_ports, notify, port_holder, reachable,
    release_program_pages, timers_may_be_late, watchdog, writable,
};
pub use clock::local_time;
pub use host::{SystemHost, host};
pub use names::{USUAL_DEVICE, for_device};
pub(crate) use process::lock_holder;
pub use timer::Timer;
pub use uapi::UapiWireGuard;
pub use uapi_listener::UapiListener;

use crate::types::Backend;
use crate::{Error, Result, WireGuard};

/// Which system this is.
pub const SYSTEM: crate::types::System = crate::types::System::Macos;

/// Whether this process may change the network configuration: the effective user is root.
pub fn privileged() -> bool {
    // SAFETY: geteuid(2) always succeeds and touches no memory.
    unsafe { libc::geteuid() == 0 }
}

/// Whether a TUN device can be made: every macOS has utun, and who may make one is asked elsewhere.
pub fn tun_available() -> bool {
    true
}

/// The WireGuard of a back end.
pub fn wireguard(backend: &Backend) -> Result<Box<dyn WireGuard>> {
    match backend {
        Backend::Userspace => Ok(Box::new(UapiWireGuard::new())),
        Backend::Kernel => Err(Error::Unsupported {
            what: "WireGuard in the kernel",
            instead: "take the userspace device: --backend userspace",
        }),
    }
}

/// Those types have no values.
impl std::os::fd::AsRawFd for absent::watch::NetworkWatch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        match *self {}
    }
}

impl std::os::fd::AsRawFd for absent::watch::FileWatch {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        match *self {}
    }
}
