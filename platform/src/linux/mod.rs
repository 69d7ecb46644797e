//! Linux: netlink for links, addresses, routes, rules, WireGuard and nftables; procfs for sysctls and port holders;
//! raw and packet sockets. No other program is started here except the userspace WireGuard device, and
//! resolvconf(8), which has no other interface.

mod bpf;
mod caps;
#[path = "../unix/clock.rs"]
mod clock;
#[path = "../unix/control.rs"]
pub mod control;
pub mod dns;
mod exchange;
#[path = "../unix/process.rs"]
mod held;
mod host;
#[path = "../unix/launch.rs"]
pub mod launch;
mod lock;
mod memory;
mod names;
mod nft;
mod notify;
#[path = "../unix/output.rs"]
pub mod output;
pub mod packet;
pub mod places;
#[path = "../unix/private.rs"]
pub(crate) mod private;
mod privilege;
pub mod process;
pub mod raw;
#[path = "../unix/ready.rs"]
pub mod ready;
mod route;
#[path = "../unix/service.rs"]
pub mod service;
#[path = "../unix/signals.rs"]
pub mod signals;
mod sockopt;
mod start;
mod sysctl;
mod timer;
#[path = "../unix/uapi.rs"]
mod uapi;
#[path = "../unix/uapi_listener.rs"]
mod uapi_listener;
pub mod udp;
pub mod watch;
mod wireguard;

pub use caps::{legacy_tables, listening_ports, port_holder, privileged};
pub use clock::local_time;
pub use host::{NetlinkHost as SystemHost, host};
pub(crate) use lock::lock_holder;
pub use memory::release_program_pages;
pub use names::{USUAL_DEVICE, for_device};
pub use notify::{notify, watchdog};
pub use privilege::{confine, confine_thread, reachable, writable};
pub use timer::{Timer, timers_may_be_late};
pub use uapi::UapiWireGuard;
pub use uapi_listener::UapiListener;
pub use wireguard::{KernelWireGuard, kernel_wireguard, tun_available, wireguard};

/// Which system this is.
pub const SYSTEM: crate::types::System = crate::types::System::Linux;
