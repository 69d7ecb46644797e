//! Linux: netlink for links, addresses, routes, rules, WireGuard and nftables; procfs for sysctls and port holders;
//! raw and packet sockets. No other program is started here except the userspace WireGuard device.

mod nft;
pub mod udp;
