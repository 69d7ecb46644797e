//! Another WireGuard tunnel around ours: one with a default route, of wg-quick's say, takes our outer packets as it takes
//! everything. Its own outer packets must then neither enter our tunnel, or all would go round in circles, nor be
//! stopped by the kill switch. They are told by their fwmark.

use std::net::IpAddr;

use peervpn_platform::Host;
use peervpn_platform::os;
use peervpn_platform::types::{Backend, DeviceState};

use super::roam;

/// How many tunnels around one another are looked through.
const DEPTH: usize = 4;

/// The marks of the tunnels around ours (`own`), for outer packets with `fwmark` to `endpoint`; the inmost first.
pub fn marks(host: &mut impl Host, endpoint: IpAddr, fwmark: u32, own: &str) -> Vec<u32> {
    let mut marks = Vec::new();
    let (mut to, mut mark) = (endpoint, fwmark);
    while marks.len() < DEPTH {
        let Some(way) = roam::way(host, to, mark, own) else { break };
        let Some(device) = device(host, &way.interface) else { break };
        if device.fwmark == 0 || device.fwmark == fwmark || marks.contains(&device.fwmark) {
            break;
        }
        marks.push(device.fwmark);
        let peer = device.peers.iter().find(|peer| peer.allowed_ips.iter().any(|net| net.contains(to)));
        let Some(next) = peer.and_then(|peer| peer.endpoint) else { break };
        (to, mark) = (next.ip(), device.fwmark);
    }
    marks
}

/// A link's WireGuard device, if it is one.
fn device(host: &mut impl Host, interface: &str) -> Option<DeviceState> {
    let backend = match host.link(interface).ok()??.kind.as_deref() {
        Some("wireguard") => Backend::Kernel,
        // no socket, or no answer: a tunnel of another kind
        Some("tun") => Backend::Userspace,
        _ => return None,
    };
    os::wireguard(&backend).ok()?.state(interface).ok()
}
