//! What we want of the host, and what the host does with it.

mod anchors;
mod filters;
mod firewall;
#[cfg(target_os = "linux")]
mod firewall_lab;
mod steps;
