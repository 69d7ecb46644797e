//! Linux: netlink for links, addresses, routes, rules, WireGuard and nftables; procfs for sysctls and port holders;
//! raw and packet sockets. No other program is started here except the userspace WireGuard device, and
//! resolvconf(8), which has no other interface.

mod bpf;
mod caps;
mod clock;
pub mod dns;
pub mod files;
mod host;
pub mod launch;
mod nft;
mod notify;
pub mod packet;
mod privilege;
pub mod process;
pub mod raw;
mod route;
mod sysctl;
mod uapi;
pub mod udp;
pub mod watch;
mod wireguard;

pub use caps::{legacy_tables, listening_ports, port_holder, privileged};
pub use clock::local_time;
pub use host::{NetlinkHost, host};
pub use notify::{notify, watchdog};
pub use privilege::{confine, confine_thread, reachable, writable};
pub use uapi::UapiWireGuard;
pub use wireguard::{KernelWireGuard, kernel_wireguard, tun_available, wireguard};
