//! Asks the gateway for port-mapping protocols, all side by side; nothing is mapped.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peervpn_platform::{Host as _, os};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::{PortMapping, local_towards};
use crate::nat::gateway::{
    self as protocol, NAT_PMP_REQUEST, SSDP_GROUP, SSDP_PORT, is_internet_gateway, is_pcp, nat_pmp, pcp_announce,
    ssdp_search,
};

/// First retransmission; RFC 6886 §3.1 starts at 250 ms and doubles, the gateway is one hop away.
const RETRANSMIT: Duration = Duration::from_millis(120);
/// No answer within this means the gateway doesn't speak the protocol.
const LIMIT: Duration = Duration::from_millis(800);

/// What the gateway told.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    pub(super) protocols: PortMapping,
    /// Its external address, by NAT-PMP.
    pub(super) external: Option<IpAddr>,
}

/// Asks the IPv4 default gateway; all false where there is none.
pub(super) async fn probe() -> Gateway {
    let Some(gateway) = default_gateway() else { return Gateway::default() };
    let Ok(local) = local_towards(SocketAddr::new(gateway, protocol::PORT)) else { return Gateway::default() };
    let announce = pcp_announce(local);
    let unicast = ssdp_search(gateway);
    let multicast = ssdp_search(SSDP_GROUP.into());
    let server = SocketAddr::new(gateway, protocol::PORT);
    let group = SocketAddr::new(SSDP_GROUP.into(), SSDP_PORT);
    let ssdp = SocketAddr::new(gateway, SSDP_PORT);
    let (pcp, nat_pmp, near, far) = tokio::join!(
        ask(local, server, &announce, |bytes| is_pcp(bytes).then_some(())),
        ask(local, server, &NAT_PMP_REQUEST, nat_pmp),
        ask(local, ssdp, unicast.as_bytes(), |bytes| is_internet_gateway(bytes).then_some(())),
        ask(local, group, multicast.as_bytes(), |bytes| is_internet_gateway(bytes).then_some(())),
    );
    Gateway {
        protocols: PortMapping {
            pcp: pcp.is_some(),
            nat_pmp: nat_pmp.is_some(),
            upnp: near.is_some() || far.is_some(),
        },
        external: nat_pmp.flatten().map(IpAddr::V4),
    }
}

/// The next hop towards the internet by IPv4. Any far address does; nothing is sent to it.
fn default_gateway() -> Option<IpAddr> {
    // 192.0.0.9 is the PCP anycast address (RFC 7723), routed like everything far
    let far = IpAddr::from([192, 0, 0, 9]);
    os::host().ok()?.route_lookup(far, 0).ok()??.gateway
}

/// Sends `request` until the gateway gives an answer that `understood` takes.
async fn ask<T>(local: IpAddr, to: SocketAddr, request: &[u8], understood: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let socket = UdpSocket::bind((local, 0)).await.ok()?;
    let mut buffer = [0; 2048];
    let end = Instant::now() + LIMIT;
    let (mut next, mut pause) = (Instant::now(), RETRANSMIT);
    loop {
        if next <= Instant::now() {
            socket.send_to(request, to).await.ok()?;
            next += pause;
            pause *= 2;
        }
        match timeout_at(next.min(end), socket.recv_from(&mut buffer)).await {
            // PCP and NAT-PMP answers come from the server asked (RFC 6887 §8.3), SSDP ones to multicast from anywhere
            Ok(Ok((length, from))) if to.ip().is_multicast() || from.ip() == to.ip() => {
                if let Some(answer) = understood(&buffer[..length]) {
                    return Some(answer);
                }
            }
            _ if Instant::now() >= end => return None,
            _ => {}
        }
    }
}
